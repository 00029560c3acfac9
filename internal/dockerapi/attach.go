package dockerapi

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/coder/websocket"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/term"

	"github.com/hyper-run/hyper/internal/pod"
)

func (a *api) attach(c *call) error {
	ct, keys, err := a.attachable(c)
	if err != nil {
		return err
	}
	s, ctx := newSession(c, !ct.Spec.TTY, keys)
	defer s.finish()
	o := pod.AttachOptions{Logs: c.flag("logs", false), Stream: c.flag("stream", false), Attached: func() { _ = s.open() }}
	if c.flag("stdin", false) {
		o.Stdin = s.stdin
	}
	if c.flag("stdout", false) {
		o.Stdout = s.output(stdcopy.Stdout)
	}
	if c.flag("stderr", false) {
		o.Stderr = s.output(stdcopy.Stderr)
	}
	err = a.Containers.Attach(ctx, ct.ID, o)
	if err != nil && !s.opened() {
		return err
	}
	if openErr := s.open(); openErr != nil {
		return nil // the client is gone
	}
	if err != nil && !ended(err) {
		fmt.Fprintln(s.output(stdcopy.Stdout), "Error attaching:", err)
	}
	return nil
}

// attachable is the container to attach to, and the keys that detach.
func (a *api) attachable(c *call) (pod.Container, []byte, error) {
	ct, err := a.Containers.Get(c.name)
	if err != nil {
		return ct, nil, err
	}
	switch ct.Status {
	case pod.StatusPaused:
		return ct, nil, conflict("container %s is paused, unpause the container before attach", c.name)
	case pod.StatusRestarting:
		return ct, nil, conflict("container %s is restarting, wait until the container is running", c.name)
	}
	keys, err := detachKeys(c.form.Get("detachKeys"), ct.Spec.TTY)
	return ct, keys, err
}

// ended says that an attachment ended because the client left it.
func ended(err error) bool {
	var escape term.EscapeError
	return errors.Is(err, context.Canceled) || errors.As(err, &escape)
}

// attachWebsocket carries the same over a websocket: binary messages, stdout
// and stderr not told apart.
func (a *api) attachWebsocket(c *call) error {
	ct, keys, err := a.attachable(c)
	if err != nil {
		return err
	}
	ws, err := websocket.Accept(c.w, c.r, nil)
	c.begun = true
	if err != nil {
		return nil // Accept has answered
	}
	ctx, cancel := context.WithCancel(c.ctx())
	defer cancel()
	kind := websocket.MessageBinary
	if c.before(28) {
		kind = websocket.MessageText
	}
	conn := websocket.NetConn(ctx, ws, kind)
	defer conn.Close()

	all := c.before(42) // older clients get everything
	r, w := io.Pipe()
	defer r.Close()
	pumped := make(chan struct{})
	go func() {
		defer close(pumped)
		_, err := io.Copy(w, term.NewEscapeProxy(conn, keys))
		w.CloseWithError(err)
		cancel() // a websocket has no half-close: the client left
	}()
	o := pod.AttachOptions{Logs: c.flag("logs", false), Stream: c.flag("stream", false)}
	if all || c.flag("stdin", false) {
		o.Stdin = r
	}
	if all || c.flag("stdout", false) {
		o.Stdout = conn
	}
	if all || c.flag("stderr", false) {
		o.Stderr = conn
	}
	if err := a.Containers.Attach(ctx, ct.ID, o); err != nil && !ended(err) {
		fmt.Fprintln(conn, "Error attaching:", err)
	}
	r.Close()
	_ = conn.Close()
	<-pumped
	return nil
}
