package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/format"
	"github.com/hyper-run/hyper/internal/cli/show"
)

// statsInterval is how often the screen is written.
const statsInterval = 500 * time.Millisecond

type statsFlags struct {
	all, noStream, noTrunc bool
	format                 string
}

func newStats(a *app) *cobra.Command {
	c := command("stats [OPTIONS] [CONTAINER...]", "Display a live stream of container(s) resource usage statistics", args(0, -1),
		"hyper container stats", "hyper stats")
	var f statsFlags
	c.Flags().BoolVarP(&f.all, "all", "a", false, "Show all containers (default shows just running)")
	addFormat(c.Flags(), &f.format)
	c.Flags().BoolVar(&f.noStream, "no-stream", false, "Disable streaming stats and only pull the first result")
	c.Flags().BoolVar(&f.noTrunc, "no-trunc", false, "Do not truncate output")
	c.ValidArgsFunction = a.completeContainers(-1, running)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return cannot(a.stats(ctx, f, args), "show statistics")
	})
	return c
}

func (a *app) stats(ctx context.Context, f statsFlags, names []string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b := &statsBoard{app: a, flags: f}
	lost := make(chan error, 1)
	if len(names) == 0 {
		if err := b.watchAll(ctx, lost); err != nil {
			return err
		}
	} else {
		for _, n := range names {
			b.add(ctx, n)
		}
	}
	b.first.Wait()
	if len(names) > 0 {
		if err := b.errors(); err != nil {
			return err
		}
	}
	if f.noStream {
		return b.write(a.out)
	}
	tick := time.NewTicker(statsInterval)
	defer tick.Stop()
	for {
		if err := b.draw(); err != nil {
			return err
		}
		if len(names) > 0 && b.empty() {
			return nil
		}
		select {
		case <-tick.C:
		case err := <-lost:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A statsBoard holds the newest figures of every container shown. Each
// container has a goroutine that reads its stream and ends with it.
type statsBoard struct {
	*app
	flags statsFlags
	first sync.WaitGroup // every container's first figures

	mu    sync.Mutex
	lines []*statsLine
}

type statsLine struct {
	name  string // as asked for
	stats *container.StatsResponse
	err   error
}

// watchAll shows the containers that are there and those that come. What ends
// it later goes to lost.
func (b *statsBoard) watchAll(ctx context.Context, lost chan<- error) error {
	var changes moby.EventsResult
	if !b.flags.noStream { // before the list, so that none is missed
		changes = b.api().Events(ctx, moby.EventsListOptions{Filters: moby.Filters{}.Add("type", string(events.ContainerEventType))})
	}
	res, err := b.api().ContainerList(ctx, moby.ContainerListOptions{All: b.flags.all})
	if err != nil {
		return err
	}
	for _, c := range res.Items {
		b.add(ctx, c.ID)
	}
	if b.flags.noStream {
		return nil
	}
	go func() {
		for {
			select {
			case e := <-changes.Messages:
				switch {
				case e.Action == events.ActionStart, e.Action == events.ActionCreate && b.flags.all:
					b.add(ctx, e.Actor.ID)
				case e.Action == events.ActionDestroy, e.Action == events.ActionDie && !b.flags.all:
					b.remove(e.Actor.ID)
				}
			case err := <-changes.Err:
				lost <- err
				return
			}
		}
	}()
	return nil
}

func (b *statsBoard) add(ctx context.Context, name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.ContainsFunc(b.lines, func(l *statsLine) bool { return l.name == name }) {
		return
	}
	l := &statsLine{name: name}
	b.lines = append(b.lines, l)
	b.first.Add(1)
	go b.follow(ctx, l)
}

func (b *statsBoard) remove(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = slices.DeleteFunc(b.lines, func(l *statsLine) bool { return l.name == name })
}

func (b *statsBoard) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.lines) == 0
}

func (b *statsBoard) errors() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, l := range b.lines {
		errs = append(errs, l.err)
	}
	return errors.Join(errs...)
}

// follow reads a container's figures until they end.
func (b *statsBoard) follow(ctx context.Context, l *statsLine) {
	done := sync.OnceFunc(b.first.Done)
	defer done()
	err := func() error {
		res, err := b.api().ContainerStats(ctx, l.name, moby.ContainerStatsOptions{Stream: !b.flags.noStream, IncludePreviousSample: b.flags.noStream})
		if err != nil {
			return err
		}
		defer res.Body.Close()
		dec := json.NewDecoder(res.Body)
		for {
			v := new(container.StatsResponse)
			if err := dec.Decode(v); err != nil {
				return err
			}
			b.mu.Lock()
			l.stats = v
			b.mu.Unlock()
			done()
		}
	}()
	if b.flags.noStream && errors.Is(err, io.EOF) {
		return
	}
	b.mu.Lock()
	l.err = err
	b.mu.Unlock()
	if errdefs.IsNotFound(err) || errors.Is(err, io.EOF) {
		done()
		if !errdefs.IsNotFound(err) {
			b.remove(l.name)
		}
	}
}

// draw writes the screen anew.
func (b *statsBoard) draw() error {
	var text bytes.Buffer
	if err := b.write(&text); err != nil {
		return err
	}
	return b.redrawScreen(&text)
}

// redrawScreen writes text over what the terminal shows.
func (a *app) redrawScreen(text fmt.Stringer) error {
	var screen bytes.Buffer
	screen.WriteString("\x1b[H") // to the top; then each line's rest is erased, and the screen's
	for line := range strings.SplitSeq(text.String(), "\n") {
		screen.WriteString(line + "\x1b[K\n")
	}
	screen.WriteString("\x1b[J")
	_, err := screen.WriteTo(a.out)
	return err
}

func (b *statsBoard) write(w io.Writer) error {
	b.mu.Lock()
	rows := make([]format.Row, len(b.lines))
	for i, l := range b.lines {
		rows[i] = show.Figure(l.name, l.stats, !b.flags.noTrunc)
	}
	b.mu.Unlock()
	return show.Figures.Write(w, b.flags.format, rows)
}
