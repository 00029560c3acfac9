package dockerapi

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/events"

	"github.com/hyper-run/hyper/internal/event"
	"github.com/hyper-run/hyper/internal/image"
)

func (a *api) events(c *call) error {
	since, err := c.timestamp("since")
	if err != nil {
		return err
	}
	until, err := c.timestamp("until")
	if err != nil {
		return err
	}
	if !until.IsZero() && until.Before(since) {
		return invalid("`since` time (%s) cannot be after `until` time (%s)", c.form.Get("since"), c.form.Get("until"))
	}
	f, err := c.filters("config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret", "service", "type", "volume")
	if err != nil {
		return err
	}
	from := since
	if from.IsZero() && !until.IsZero() {
		from = time.Unix(0, 0)
	}
	ctx, cancel := c.ctx(), context.CancelFunc(func() {})
	if !until.IsZero() {
		ctx, cancel = context.WithDeadline(ctx, until)
	}
	defer cancel()
	past, sub := a.Events.Subscribe(from)
	defer sub.Close()

	contentType := types.MediaTypeJSONLines
	if c.before(52) {
		contentType = types.MediaTypeJSON
	}
	out := c.lines(contentType)
	for _, e := range past {
		if !until.IsZero() && e.Time.After(until) || !wantsEvent(f, e) {
			continue
		}
		if err := out.write(c.message(e)); err != nil {
			return err
		}
	}
	for {
		e, err := sub.Next(ctx)
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			return nil
		}
		if err != nil {
			return err
		}
		if !wantsEvent(f, e) {
			continue
		}
		if err := out.write(c.message(e)); err != nil {
			return err
		}
	}
}

// message is an event as Docker writes it; old clients know it by other names.
func (c *call) message(e event.Event) any {
	m := events.Message{
		Type: events.Type(e.Type), Action: events.Action(e.Action),
		Actor: events.Actor{ID: e.ID, Attributes: e.Attrs},
		Scope: "local", Time: e.Time.Unix(), TimeNano: e.Time.UnixNano(),
	}
	if m.Actor.Attributes == nil {
		m.Actor.Attributes = map[string]string{}
	}
	if !c.before(52) || m.Type != events.ContainerEventType && m.Type != events.ImageEventType {
		return m
	}
	return struct {
		Status string `json:"status,omitempty"`
		ID     string `json:"id,omitempty"`
		From   string `json:"from,omitempty"`
		events.Message
	}{e.Action, e.ID, map[bool]string{true: e.Attrs["image"]}[m.Type == events.ContainerEventType], m}
}

func wantsEvent(f filters, e event.Event) bool {
	match := f.exact
	for _, v := range f["event"] {
		if v == "health_status" || v == "exec_create" || v == "exec_start" {
			match = f.prefix // their actions go on with ": what"
		}
	}
	if !match("event", e.Action) || !f.exact("type", e.Type) || !f.exact("scope", "local") || !f.labels("label", e.Attrs) {
		return false
	}
	for _, actor := range []string{"config", "container", "daemon", "network", "node", "plugin", "secret", "service", "volume"} {
		if f.has(actor) && (e.Type != actor || !f.prefix(actor, e.ID) && !f.prefix(actor, e.Attrs["name"])) {
			return false
		}
	}
	name := e.Attrs["image"]
	if e.Type == "image" {
		name = e.Attrs["name"]
	}
	return f.exact("image", e.ID) || f.exact("image", name) || f.exact("image", repository(name))
}

// repository is a reference without its tag and digest, in familiar form.
func repository(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarName(named)
}

// imageEvent tells those who listen what happened to an image.
func (a *api) imageEvent(action, id, name string, img image.Image) {
	attrs := map[string]string{}
	maps.Copy(attrs, img.Config.Config.Labels)
	attrs["name"] = name
	a.Events.Publish(event.Event{Type: "image", Action: action, ID: id, Attrs: attrs})
}
