package cli

import (
	"context"
	"errors"

	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/stdio"
)

func newAttach(a *app) *cobra.Command {
	c := command("attach [OPTIONS] CONTAINER", "Attach local standard input, output, and error streams to a running container", args(1, 1),
		"hyper container attach", "hyper attach")
	var keys string
	var noStdin, sigProxy bool
	c.Flags().StringVar(&keys, "detach-keys", "", "Override the key sequence for detaching a container")
	c.Flags().BoolVar(&noStdin, "no-stdin", false, "Do not attach STDIN")
	c.Flags().BoolVar(&sigProxy, "sig-proxy", true, "Proxy all received signals to the process")
	c.ValidArgsFunction = a.completeContainers(1, running)
	c.RunE = run(func(ctx context.Context, args []string) error {
		err := a.attach(ctx, args[0], keys, !noStdin, sigProxy)
		if e := (*exitError)(nil); errors.As(err, &e) {
			return err
		}
		return cannot(err, "attach to %s", args[0])
	})
	return c
}

func (a *app) attach(ctx context.Context, name, keysText string, stdin, sigProxy bool) error {
	keys, err := stdio.DetachKeys(keysText)
	if err != nil {
		return err
	}
	c, err := a.attachable(ctx, name)
	if err != nil {
		return err
	}
	if err := a.checkTTY(stdin, c.Config.Tty); err != nil {
		return err
	}
	// Before attaching, so that the exit is not missed.
	exit := a.api().ContainerWait(ctx, c.ID, moby.ContainerWaitOptions{})
	stdin = stdin && c.Config.OpenStdin
	conn, err := a.api().Attach(ctx, c.ID, moby.ContainerAttachOptions{Stream: true, Stdin: stdin, Stdout: true, Stderr: true, DetachKeys: keysText})
	if err != nil {
		return err
	}
	s := &stdio.Session{Conn: conn, TTY: c.Config.Tty, Out: a.out, Keys: keys}
	if stdin {
		s.In = a.in
	}
	if !s.TTY {
		s.Err = a.err
	}
	if sigProxy && !s.TTY {
		var stop func()
		ctx, stop = a.proxySignals(ctx, c.ID)
		defer stop()
	}
	if s.TTY {
		defer a.redraw(ctx, c.ID)()
	}
	if err := s.Run(ctx); errors.Is(err, stdio.ErrDetached) {
		return nil
	} else if err != nil {
		return err
	}
	res := waited(exit)
	if res.err != nil {
		return res.err
	}
	return status(res.code)
}

// attachable inspects a container and refuses one that has no live streams.
func (a *app) attachable(ctx context.Context, name string) (*container.InspectResponse, error) {
	res, err := a.api().ContainerInspect(ctx, name, moby.ContainerInspectOptions{})
	if err != nil {
		return nil, err
	}
	c := &res.Container
	switch {
	case !c.State.Running:
		return nil, hinted{errors.New("it is not running"), "'hyper start -a' starts it and attaches"}
	case c.State.Paused:
		return nil, hinted{errors.New("it is paused"), "'hyper unpause' lets it go on"}
	case c.State.Restarting:
		return nil, errors.New("it is restarting")
	}
	return c, nil
}

// redraw makes a program in a terminal draw its screen anew, by changing the
// size of its terminal, and follows the size from then on.
func (a *app) redraw(ctx context.Context, id string) (stop func()) {
	resize := func(ctx context.Context, h, w uint) {
		_, _ = a.api().ContainerResize(ctx, id, moby.ContainerResizeOptions{Height: h, Width: w})
	}
	if h, w := stdio.ConsoleSize(a.out); h != 0 && w != 0 {
		resize(ctx, h+1, w+1)
	}
	return a.followSize(ctx, 0, 0, resize)
}
