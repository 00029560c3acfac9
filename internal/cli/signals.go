package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	moby "github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/cli/stdio"
)

// proxied are the signals that --sig-proxy passes on. Not SIGPIPE: a broken
// pipe shall end hyper as any other program. Not those that the kernel sends
// to a background process that uses the terminal, and not SIGWINCH, which has
// servers such as nginx shut down when the user resizes a window.
var proxied = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGVTALRM,
	unix.SIGPROF, unix.SIGTSTP, unix.SIGCONT, unix.SIGIO, unix.SIGPWR,
}

// errGaveUp is how a session ends when the container does not.
var errGaveUp = errors.New("interrupted three times; the container goes on running")

// proxySignals passes on every signal that hyper gets, in order, until stop is
// called. The context that it returns ends no longer with a signal, but with
// the third of those that ask to end (errGaveUp).
func (a *app) proxySignals(ctx context.Context, container string) (_ context.Context, stop func()) {
	ctx, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	c := make(chan os.Signal, 64)
	signal.Notify(c, proxied...)
	done := make(chan struct{})
	go func() {
		for asked := 0; ; {
			select {
			case s := <-c:
				_, _ = a.api().ContainerKill(ctx, container, moby.ContainerKillOptions{Signal: unix.SignalName(s.(syscall.Signal))})
				if s == unix.SIGINT || s == unix.SIGTERM {
					asked++
				}
				if asked == 3 {
					giveUp(errGaveUp)
				}
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(c)
		close(done)
		giveUp(nil)
	}
}

// followSize calls resize with the size of the terminal out now, unless it is
// the one that the process was started with, and whenever it changes until
// stop is called.
func (a *app) followSize(ctx context.Context, height, width uint, resize func(ctx context.Context, height, width uint)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGWINCH)
	update := func() {
		if h, w := stdio.ConsoleSize(a.out); (h != height || w != width) && h != 0 && w != 0 {
			height, width = h, w
			resize(ctx, h, w)
		}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		update()
		for {
			select {
			case <-c:
				update()
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		signal.Stop(c)
		cancel()
		<-ended
	}
}
