package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/api"
	"github.com/hyper-run/hyper/internal/cli/stdio"
)

type podLogsFlags struct {
	moby.ContainerLogsOptions
	container string
}

func newPodLogs(a *app) *cobra.Command {
	c := command("logs [OPTIONS] POD", "Fetch the logs of all containers of a pod", args(1, 1))
	c.Long = "Each line begins with the name of its container; lines are in the order of their time.\n\n  hyper pod logs -f --tail 10 shop"
	var f podLogsFlags
	c.Flags().StringVarP(&f.container, "container", "c", "", "Only of this container")
	c.Flags().BoolVarP(&f.Follow, "follow", "f", false, "Follow log output")
	c.Flags().StringVar(&f.Since, "since", "", `Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	c.Flags().StringVarP(&f.Tail, "tail", "n", "all", "Number of lines to show from the end of the logs of each container")
	c.Flags().BoolVarP(&f.Timestamps, "timestamps", "t", false, "Show timestamps")
	c.Flags().StringVar(&f.Until, "until", "", `Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	c.ValidArgsFunction = a.completePods(1, anyPod)
	c.RunE = run(func(ctx context.Context, args []string) error {
		f.Since, f.Until = pointInTime(f.Since), pointInTime(f.Until)
		return cannot(a.podLogs(ctx, f, args[0]), "show the logs of pod %s", args[0])
	})
	return c
}

func (a *app) podLogs(ctx context.Context, f podLogsFlags, pod string) error {
	p, err := a.api().Pod(ctx, pod)
	if err != nil {
		return err
	}
	containers := p.Containers
	if f.container != "" {
		c, err := mainContainer(p, f.container)
		if err != nil {
			return err
		}
		containers = []api.PodContainer{c}
	}
	width := 0
	for _, c := range containers {
		width = max(width, len(c.Name))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := &logMerger{out: a.out, err: a.err, timestamps: f.Timestamps}
	o := f.ContainerLogsOptions
	o.ShowStdout, o.ShowStderr, o.Timestamps = true, true, true
	for _, c := range containers {
		s := &logSource{prefix: fmt.Sprintf("%-*s | ", width, c.Name), lines: make(chan logLine, 64)}
		m.sources = append(m.sources, s)
		go func() {
			defer close(s.lines)
			s.err = a.readLog(ctx, c.ID, o, s)
		}()
	}
	if f.Follow {
		return m.follow()
	}
	return m.merge()
}

// A logLine is one line of a log, without its end, and when it was written.
type logLine struct {
	time  string // RFC 3339 with nine digits, so that it sorts as text
	text  []byte
	isErr bool
}

// A logSource is the log of one container. Its goroutine closes lines; err is
// why it ended.
type logSource struct {
	prefix string
	lines  chan logLine
	err    error
}

// readLog sends the lines of a container's log until it or ctx ends.
func (a *app) readLog(ctx context.Context, id string, o moby.ContainerLogsOptions, s *logSource) error {
	c, err := a.api().ContainerInspect(ctx, id, moby.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	r, err := a.api().ContainerLogs(ctx, id, o)
	if err != nil {
		return err
	}
	defer r.Close()
	in := bufio.NewReaderSize(r, 64<<10)
	var parts [2]logLine // of stdout and stderr: what has no end of line yet
	add := func(record []byte, isErr bool) error {
		p := &parts[0]
		if isErr {
			p = &parts[1]
		}
		stamp, text, _ := bytes.Cut(record, []byte{' '})
		if p.text == nil {
			p.time, p.isErr = string(stamp), isErr
		}
		p.text = append(p.text, text...)
		if !bytes.HasSuffix(p.text, []byte{'\n'}) {
			return nil
		}
		line := *p
		line.text = line.text[:len(line.text)-1]
		p.text = nil
		return s.send(ctx, line)
	}
	if c.Container.Config.Tty {
		err = eachLine(in, add)
	} else {
		err = stdio.Records(in, add)
	}
	for _, p := range parts {
		if p.text != nil {
			err = errors.Join(err, s.send(ctx, p))
		}
	}
	return err
}

func (s *logSource) send(ctx context.Context, l logLine) error {
	select {
	case s.lines <- l:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// eachLine reads the log of a terminal, which has no frames.
func eachLine(r *bufio.Reader, f func(record []byte, isErr bool) error) error {
	for {
		line, err := r.ReadBytes('\n')
		if len(line) > 0 {
			line = bytes.TrimSuffix(line, []byte("\n"))
			if err := f(append(bytes.TrimSuffix(line, []byte("\r")), '\n'), false); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// A logMerger prints the logs of several containers as one.
type logMerger struct {
	out, err   io.Writer
	timestamps bool
	sources    []*logSource

	mu sync.Mutex // guards writing
}

// merge prints all lines there are in the order of their time.
func (m *logMerger) merge() error {
	heads := make([]*logLine, len(m.sources))
	next := func(i int) {
		heads[i] = nil
		if l, ok := <-m.sources[i].lines; ok {
			heads[i] = &l
		}
	}
	for i := range m.sources {
		next(i)
	}
	for {
		first := -1
		for i, h := range heads {
			if h != nil && (first < 0 || h.time < heads[first].time) {
				first = i
			}
		}
		if first < 0 {
			return m.errors()
		}
		if err := m.write(m.sources[first], *heads[first]); err != nil {
			return err
		}
		next(first)
	}
}

// follow prints lines as they come, until all logs have ended.
func (m *logMerger) follow() error {
	var wg sync.WaitGroup
	failed := make([]error, len(m.sources))
	for i, s := range m.sources {
		wg.Go(func() {
			for l := range s.lines {
				if failed[i] == nil {
					failed[i] = m.write(s, l)
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(append(failed, m.errors())...)
}

func (m *logMerger) errors() error {
	var errs []error
	for _, s := range m.sources {
		errs = append(errs, s.err)
	}
	return errors.Join(errs...)
}

func (m *logMerger) write(s *logSource, l logLine) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.out
	if l.isErr {
		w = m.err
	}
	line := []byte(s.prefix)
	if m.timestamps {
		line = append(append(line, l.time...), ' ')
	}
	_, err := w.Write(append(append(line, l.text...), '\n'))
	return err
}
