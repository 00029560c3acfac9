package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/format"
)

func newEvents(a *app) *cobra.Command {
	c := command("events [OPTIONS]", "Get real time events from the server", args(0, 0),
		"hyper system events", "hyper events")
	o := moby.EventsListOptions{Filters: moby.Filters{}}
	var text string
	addFilter(c.Flags(), o.Filters)
	c.Flags().StringVar(&text, "format", "", valueFormatHelp)
	c.Flags().StringVar(&o.Since, "since", "", "Show all events created since timestamp")
	c.Flags().StringVar(&o.Until, "until", "", "Stream events until this timestamp")
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = run(func(ctx context.Context, _ []string) error {
		return cannot(a.events(ctx, o, text), "show events")
	})
	return c
}

func (a *app) events(ctx context.Context, o moby.EventsListOptions, text string) error {
	if text != "" { // what is wrong with it shall show before the first event
		if err := format.Value(io.Discard, text, events.Message{}); err != nil {
			return err
		}
	}
	res := a.api().Events(ctx, o)
	for {
		select {
		case e := <-res.Messages:
			if err := a.printEvent(e, text); err != nil {
				return err
			}
		case err := <-res.Err:
			if errors.Is(err, io.EOF) { // --until has come
				return nil
			}
			return err
		}
	}
}

func (a *app) printEvent(e events.Message, text string) error {
	if text != "" {
		return format.Value(a.out, text, e)
	}
	at := time.Unix(e.Time, 0)
	if e.TimeNano != 0 {
		at = time.Unix(0, e.TimeNano)
	}
	line := fmt.Sprintf("%s %s %s %s", at.Format("2006-01-02T15:04:05.000000000Z07:00"), e.Type, e.Action, e.Actor.ID)
	var attrs []string
	for _, k := range slices.Sorted(maps.Keys(e.Actor.Attributes)) {
		attrs = append(attrs, k+"="+e.Actor.Attributes[k])
	}
	if len(attrs) > 0 {
		line += " (" + strings.Join(attrs, ", ") + ")"
	}
	_, err := fmt.Fprintln(a.out, line)
	return err
}
