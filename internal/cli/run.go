package cli

import (
	"context"
	"errors"
	"io"

	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hyper-run/hyper/client"
	"github.com/hyper-run/hyper/internal/cli/stdio"
)

// runFlags are the flags of run.
type runFlags struct {
	*createFlags
	detach, sigProxy, trace bool
	keys                    string
}

func newRun(a *app) *cobra.Command {
	c := command("run [OPTIONS] IMAGE [COMMAND] [ARG...]", "Create and run a new container from an image", args(1, -1),
		"hyper container run", "hyper run")
	f := addRunFlags(c.Flags())
	c.ValidArgsFunction = a.completeImages(1)
	a.completeFlag(c, "pod", a.completePods(-1, anyPod))
	c.RunE = run(func(ctx context.Context, args []string) error {
		p, err := a.createToRun(ctx, f, args)
		if err != nil {
			return withCode(createCode(err), cannot(err, "run"))
		}
		return a.startCreated(ctx, p, p.id)
	})
	return c
}

func addRunFlags(fs *pflag.FlagSet) *runFlags {
	f := &runFlags{createFlags: addCreateFlags(fs)}
	fs.BoolVarP(&f.detach, "detach", "d", false, "Run container in background and print container ID")
	fs.BoolVar(&f.sigProxy, "sig-proxy", true, "Proxy received signals to the process")
	fs.BoolVar(&f.trace, "trace", false, "Print where the time of the start went, to standard error")
	fs.StringVar(&f.keys, "detach-keys", "", "Override the key sequence for detaching a container")
	return f
}

// A created container is to be started as run does.
type created struct {
	*runFlags
	id   string
	req  moby.ContainerCreateOptions
	keys []byte // that detach
}

func (a *app) createToRun(ctx context.Context, f *runFlags, args []string) (*created, error) {
	req, err := f.request(args)
	if err != nil {
		return nil, err
	}
	keys, err := stdio.DetachKeys(f.keys)
	if err != nil {
		return nil, err
	}
	cfg := req.Config
	if f.detach {
		if f.Attached() {
			return nil, errors.New("--attach and --detach exclude each other")
		}
		cfg.AttachStdin, cfg.AttachStdout, cfg.AttachStderr, cfg.StdinOnce = false, false, false, false
	} else if err := a.checkTTY(cfg.AttachStdin, cfg.Tty); err != nil {
		return nil, err
	}
	if cfg.Tty {
		h, w := stdio.ConsoleSize(a.out)
		req.HostConfig.ConsoleSize = [2]uint{h, w}
	}
	id, err := a.create(ctx, f.createFlags, req)
	return &created{f, id, req, keys}, err
}

// startCreated starts a container, attached unless it shall be in the
// background; then it prints name.
func (a *app) startCreated(ctx context.Context, p *created, name string) error {
	cfg := p.req.Config
	if p.trace {
		defer a.showTrace(context.WithoutCancel(ctx), p.id)
	}
	if !cfg.AttachStdin && !cfg.AttachStdout && !cfg.AttachStderr {
		if _, err := a.api().ContainerStart(ctx, p.id, moby.ContainerStartOptions{}); err != nil {
			return withCode(startCode(err), cannot(err, "run"))
		}
		a.println(name)
		return nil
	}
	r := foreground{
		app: a, id: p.id, action: "run", sigProxy: p.sigProxy, keys: p.keys, keysText: p.runFlags.keys,
		tty: cfg.Tty, stdin: cfg.AttachStdin, stdout: cfg.AttachStdout, stderr: cfg.AttachStderr,
		autoRemove: p.req.HostConfig.AutoRemove, size: p.req.HostConfig.ConsoleSize,
	}
	return r.run(ctx)
}

// A foreground run starts a container that exists with hyper's own streams
// attached to it, and ends as it does.
type foreground struct {
	*app
	id, action                 string
	sigProxy, autoRemove       bool
	tty, stdin, stdout, stderr bool
	keys                       []byte
	keysText                   string
	size                       [2]uint // height and width that it is created with
	plainStartCode             bool    // 1 when it doesn't start, as docker start
}

func (r *foreground) run(ctx context.Context) error {
	if r.sigProxy {
		var stop func()
		ctx, stop = r.proxySignals(ctx, r.id)
		defer stop()
	}
	// Both before the start: nothing that is written is lost, nor the exit.
	exit := r.awaitExit(ctx)
	conn, err := r.api().Attach(ctx, r.id, moby.ContainerAttachOptions{
		Stream: true, Stdin: r.stdin, Stdout: r.stdout, Stderr: r.stderr, DetachKeys: r.keysText,
	})
	if err != nil {
		return withCode(exitRefused, cannot(err, "%s", r.action))
	}
	streams := r.streams(conn)
	ended := make(chan error, 1)
	streamCtx, stopStreams := context.WithCancel(ctx)
	defer stopStreams()
	go func() { ended <- streams.Run(streamCtx) }()
	if err := <-exit.ready; err != nil {
		stopStreams()
		<-ended
		return withCode(exitRefused, cannot(err, "%s", r.action))
	}
	if _, err := r.api().ContainerStart(ctx, r.id, moby.ContainerStartOptions{}); err != nil {
		stopStreams()
		<-ended // the terminal is as it was
		return r.notStarted(err, exit)
	}
	if r.tty {
		defer r.followSize(ctx, r.size[0], r.size[1], func(ctx context.Context, h, w uint) {
			_, _ = r.api().ContainerResize(ctx, r.id, moby.ContainerResizeOptions{Height: h, Width: w})
		})()
	}
	if r.stdout || r.stderr {
		return r.finish(ended, exit)
	}
	// With its input alone a container is in the background once it has that.
	r.println(r.id)
	if err := <-ended; err != nil && !errors.Is(err, stdio.ErrDetached) {
		return withCode(exitRefused, cannot(err, "%s", r.action))
	}
	return nil
}

func (r *foreground) streams(conn *client.Stream) *stdio.Session {
	s := &stdio.Session{Conn: conn, TTY: r.tty, Keys: r.keys}
	if r.stdin {
		s.In = r.in
	}
	if r.stdout {
		s.Out = r.out
	}
	if r.stderr && !r.tty {
		s.Err = r.app.err
	}
	if r.tty && r.stderr && !r.stdout {
		s.Out = r.app.out
	}
	return s
}

// finish waits for the end of the output and of the container.
func (r *foreground) finish(ended <-chan error, exit *exitWaiter) error {
	fail := func(err error) error { return withCode(exitRefused, cannot(err, "%s", r.action)) }
	over := func(res exitResult) error {
		switch {
		case res.err == nil:
			return status(res.code)
		case res.code != 0: // its VM ended, not it
			return withCode(res.code, cannot(res.err, "%s", r.action))
		}
		return fail(res.err)
	}
	select {
	case err := <-ended:
		if errors.Is(err, stdio.ErrDetached) {
			return nil
		}
		if err != nil {
			return fail(err)
		}
		return over(<-exit.done)
	case res := <-exit.done:
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, stdio.ErrDetached) {
			return fail(err)
		}
		return over(res)
	}
}

// notStarted ends a run whose container did not start.
func (r *foreground) notStarted(err error, exit *exitWaiter) error {
	if r.autoRemove {
		_, _ = exit.wait()
	}
	if r.plainStartCode {
		return cannot(err, "%s", r.action)
	}
	return withCode(startCode(err), cannot(err, "%s", r.action))
}

// An exitWaiter waits for a container's next exit, or its removal when it
// removes itself.
type exitWaiter struct {
	ready <-chan error // one value: nil once the daemon waits
	done  <-chan exitResult
}

// An exitResult is how a container ended. With an error and a code, its VM
// ended for a reason of its own; with an error alone, nobody knows.
type exitResult struct {
	code int
	err  error
}

func (w *exitWaiter) wait() (int, error) {
	r := <-w.done
	return r.code, r.err
}

// awaitExit begins to wait. It owns a goroutine until the container exits.
func (r *foreground) awaitExit(ctx context.Context) *exitWaiter {
	cond := container.WaitConditionNextExit
	if r.autoRemove {
		cond = container.WaitConditionRemoved
	}
	ready, done := make(chan error, 1), make(chan exitResult, 1)
	go func() {
		res := r.api().ContainerWait(ctx, r.id, moby.ContainerWaitOptions{Condition: cond})
		select {
		case err := <-res.Error: // the daemon refused
			ready <- err
			done <- exitResult{err: err}
			return
		default:
			ready <- nil
		}
		done <- waited(res)
	}()
	return &exitWaiter{ready: ready, done: done}
}

// waited is the outcome of a wait.
func waited(res moby.ContainerWaitResult) exitResult {
	select {
	case v := <-res.Result:
		if v.Error != nil {
			return exitResult{code: int(v.StatusCode), err: errors.New(v.Error.Message)}
		}
		return exitResult{code: int(v.StatusCode)}
	case err := <-res.Error:
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = hinted{errLostDaemon, "the container may still run: 'hyper ps' and 'hyper logs' tell"}
		}
		return exitResult{err: err}
	}
}

var errLostDaemon = errors.New("the connection to hyperd was lost")
