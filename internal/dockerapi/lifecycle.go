package dockerapi

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"github.com/hyper-run/hyper/internal/pod"
)

func (a *api) start(c *call) error {
	// The body, which very old clients sent, may hold "{}" or "null".
	if c.r.ContentLength > 7 || c.r.ContentLength == -1 {
		return invalid("starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	if c.form.Get("checkpoint") != "" {
		return errdefs.ErrNotImplemented.WithMessage("starting from a checkpoint is not supported yet")
	}
	if _, err := a.Containers.Get(c.name); err != nil {
		return err // 404 is for the container only, not for what start does not find
	}
	if err := a.Containers.Start(c.ctx(), c.name); err != nil {
		return startError(err)
	}
	return c.noContent()
}

// startError makes a program that can't be run the request's fault, as Docker
// does, whatever kind of error it came as. The docker CLI exits with 127 or
// 126 by the words in the text.
func startError(err error) error {
	if errdefs.IsConflict(err) || errdefs.IsNotModified(err) {
		return err
	}
	text := strings.ToLower(err.Error())
	for _, s := range []string{"executable file not found", "no such file or directory", "permission denied", "is a directory", "not a directory"} {
		if strings.Contains(text, s) {
			return errdefs.ErrInvalidArgument.WithMessage(err.Error())
		}
	}
	return err
}

func (a *api) stop(c *call) error {
	timeout, err := c.integer("t")
	if err != nil {
		return err
	}
	return c.done(a.Containers.Stop(c.ctx(), c.name, c.signal(), timeout))
}

func (a *api) restart(c *call) error {
	timeout, err := c.integer("t")
	if err != nil {
		return err
	}
	if _, err := a.Containers.Get(c.name); err != nil {
		return err
	}
	if err := a.Containers.Restart(c.ctx(), c.name, c.signal(), timeout); err != nil {
		return startError(err)
	}
	return c.noContent()
}

func (c *call) signal() string {
	if c.before(42) {
		return ""
	}
	return c.form.Get("signal")
}

func (a *api) kill(c *call) error {
	return c.done(a.Containers.Kill(c.ctx(), c.name, c.form.Get("signal")))
}

func (a *api) pause(c *call) error {
	return c.done(a.Containers.Pause(c.ctx(), c.name))
}

func (a *api) unpause(c *call) error {
	return c.done(a.Containers.Resume(c.ctx(), c.name))
}

func (a *api) rename(c *call) error {
	name := strings.TrimPrefix(c.form.Get("name"), "/")
	if name == "" {
		return invalid("Neither old nor new names may be empty")
	}
	return c.done(a.Containers.Rename(c.ctx(), c.name, name))
}

func (a *api) remove(c *call) error {
	if c.flag("link", false) {
		return errdefs.ErrNotImplemented.WithMessage("links are not supported yet")
	}
	// "v" removes anonymous volumes, of which there are none.
	return c.done(a.Containers.Remove(c.ctx(), c.name, c.flag("force", false)))
}

func (a *api) resize(c *call) error {
	h, w, err := c.window()
	if err != nil {
		return err
	}
	if err := a.Containers.Resize(c.ctx(), c.name, h, w); err != nil {
		return err
	}
	c.begin("", http.StatusOK)
	return nil
}

func (c *call) window() (h, w uint, err error) {
	if h, err = c.size("h"); err != nil {
		return 0, 0, err
	}
	w, err = c.size("w")
	return h, w, err
}

// done answers a request that has no content to return.
func (c *call) done(err error) error {
	if err != nil {
		return err
	}
	return c.noContent()
}

func (a *api) wait(c *call) error {
	cond := pod.WaitNotRunning
	if s := c.form.Get("condition"); s != "" && !c.before(30) {
		cond = pod.WaitCondition(s)
		if cond != pod.WaitNotRunning && cond != pod.WaitNextExit && cond != pod.WaitRemoved {
			return invalid("invalid condition: %q", s)
		}
	}
	status, err := a.Containers.Wait(c.ctx(), c.name, cond)
	if err != nil {
		return err
	}
	if !c.before(30) {
		// The client starts the container only once it has the headers.
		c.begin("application/json", http.StatusOK)
		c.flush()
	}
	var s pod.ExitStatus
	select {
	case s = <-status:
	case <-c.ctx().Done():
		return c.ctx().Err()
	}
	res := container.WaitResponse{StatusCode: int64(s.Code)}
	if s.Error != "" {
		res.Error = &container.WaitExitError{Message: s.Error}
	}
	if c.before(30) {
		return c.json(http.StatusOK, res)
	}
	return json.NewEncoder(c.w).Encode(res)
}
