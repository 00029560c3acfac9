package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/logs"
)

// A fanout hands one output stream of a container to everybody attached. It
// outlasts runs: clients attach before the start.
type fanout struct {
	mu    sync.Mutex // held while a chunk is logged: who attaches sees all that follows
	sinks []*sink
}

type sink struct {
	w    io.Writer
	open chan struct{} // closed when w has been given all that came before
	done chan struct{} // closed at the end of the stream, or when w failed
	err  error         // why w failed; valid once done
	once sync.Once
}

func (k *sink) end(err error) {
	k.once.Do(func() {
		k.err = err
		close(k.done)
	})
}

// addLocked attaches w. Precondition: f.mu is held.
func (f *fanout) addLocked(w io.Writer) *sink {
	k := &sink{w: w, open: make(chan struct{}), done: make(chan struct{})}
	f.sinks = append(f.sinks, k)
	return k
}

func (f *fanout) remove(k *sink) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, other := range f.sinks {
		if other == k {
			f.sinks = append(f.sinks[:i:i], f.sinks[i+1:]...)
			break
		}
	}
}

// write gives p to one who is attached. Who fails is dropped.
func (f *fanout) write(k *sink, p []byte) {
	select {
	case <-k.done:
		return
	case <-k.open:
	}
	if _, err := k.w.Write(p); err != nil {
		k.end(err)
		f.remove(k)
	}
}

// take removes everybody attached and returns them.
func (f *fanout) take() []*sink {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.sinks
	f.sinks = nil
	return all
}

// endSinks tells clients that their stream has ended.
func endSinks(sinks []*sink) {
	for _, k := range sinks {
		k.end(nil)
	}
}

// pump carries one output stream from the guest to the log and, through q, to
// those attached, until it ends, the VM is gone, or this hyperd lets go of it.
func (r *run) pump(s logs.Stream, q *queue) {
	defer q.close()
	next := r.log.Offset(s) // of the first byte not received
	if p := r.launched; p != nil {
		out := [...]*guest.Output{p.Out, p.Err}[s]
		if err := r.carry(s, q, out, &next); err == nil || r.gone() {
			r.flush(s)
			return
		}
	}
	for tries := 0; tries < redials; tries++ {
		before := next
		err := r.pumpOnce(s, q, &next)
		if err == nil || r.gone() {
			break
		}
		if next > before {
			tries = 0
		}
		r.c.set.log.Warn("output interrupted", "container", r.c.id, "stream", s, "err", err)
	}
	r.flush(s)
}

func (r *run) flush(s logs.Stream) {
	if r.vm.ctx.Err() != nil {
		return
	}
	if _, err := r.log.Flush(s); err != nil {
		r.c.set.log.Error("write log", "container", r.c.id, "err", err)
	}
}

// pumpOnce carries the stream over one connection; nil at its end.
func (r *run) pumpOnce(s logs.Stream, q *queue, next *uint64) error {
	kind := [...]wire.StreamHeader_Kind{wire.StreamHeader_STDOUT, wire.StreamHeader_STDERR}[s]
	g, err := r.vm.guest(r.vm.ctx)
	if err != nil {
		return err
	}
	out, err := g.Output(r.vm.ctx, r.c.id, "", kind, *next)
	if err != nil {
		return err
	}
	return r.carry(s, q, out, next)
}

// carry carries what out brings, which it closes.
func (r *run) carry(s logs.Stream, q *queue, out *guest.Output, next *uint64) error {
	defer out.Close()
	f := r.c.out[s]
	for {
		buf := q.buffer()
		n, err := out.Read(buf)
		if n > 0 {
			r.trace.output()
			*next += uint64(n)
			f.mu.Lock()
			safe, lerr := r.log.Write(s, buf[:n])
			sinks := f.sinks
			f.mu.Unlock()
			if lerr != nil {
				// A full disk must not stop the container: its output goes
				// on to those attached, and is missing in the log.
				r.logFailed(lerr)
			}
			q.push(chunk{buf[:n], sinks})
			if err := out.Ack(safe); err != nil {
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

func (r *run) logFailed(err error) {
	if time.Since(r.logErrAt) > time.Minute {
		r.logErrAt = time.Now()
		r.c.set.log.Error("write log", "container", r.c.id, "err", err)
	}
}

// Attach connects a client to a container's stdio, in this run or the next,
// and returns when the outputs it asked for have ended, a writer or reader
// failed, or ctx ends.
func (s *Set) Attach(ctx context.Context, ref string, o AttachOptions) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if !o.Stream {
		if o.Attached != nil {
			o.Attached()
		}
		if !o.Logs {
			return nil
		}
		logged, err := c.freezeLog()
		if err != nil {
			return err
		}
		return replay(ctx, logged, o)
	}
	sinks, logged, err := c.attachOutputs(o)
	if err != nil {
		return err
	}
	defer func() {
		for i, k := range sinks {
			if k != nil {
				k.end(nil) // the queue must not wait for one who has left
				c.out[i].remove(k)
			}
		}
	}()
	if o.Attached != nil {
		o.Attached()
	}
	if err := replay(ctx, logged, o); err != nil {
		return err
	}
	for _, k := range sinks {
		if k != nil {
			close(k.open)
		}
	}
	var input <-chan error
	if o.Stdin != nil && c.spec().Stdin {
		input = c.attachInput(ctx, o.Stdin)
	}
	s.publish(c, "attach")
	return c.attached(ctx, sinks, input)
}

// attachOutputs registers the client's writers and freezes what was logged
// before, when that is asked for: nothing is missing or doubled in between.
func (c *container) attachOutputs(o AttachOptions) (sinks [2]*sink, logged *logs.Frozen, err error) {
	for _, f := range c.out {
		f.mu.Lock()
		defer f.mu.Unlock()
	}
	if o.Logs {
		if logged, err = c.freezeLog(); err != nil {
			return sinks, nil, err
		}
	}
	if o.Stdout != nil {
		sinks[0] = c.out[0].addLocked(o.Stdout)
	}
	if o.Stderr != nil && !c.spec().TTY {
		sinks[1] = c.out[1].addLocked(o.Stderr)
	}
	return sinks, logged, nil
}

func (c *container) freezeLog() (*logs.Frozen, error) {
	c.mu.Lock()
	var log *logs.Log
	if c.run != nil {
		log = c.run.log
	}
	c.mu.Unlock()
	return logs.Freeze(c.set.cfg.Layout.ContainerLogs(c.id), log)
}

// attached waits for the end of an attachment: of its outputs, or when it
// has none of the run or its input. The end of the input ends nothing else; a
// broken one does.
func (c *container) attached(ctx context.Context, sinks [2]*sink, input <-chan error) error {
	var ends []<-chan struct{}
	for _, k := range sinks {
		if k != nil {
			ends = append(ends, k.done)
		}
	}
	inputOnly := len(ends) == 0
	if inputOnly {
		r, err := c.nextRun(ctx)
		if err != nil {
			return err
		}
		ends = append(ends, r.ended)
	}
	for len(ends) > 0 {
		select {
		case <-ends[0]:
			ends = ends[1:]
		case err := <-input:
			if input = nil; err != nil || inputOnly {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, k := range sinks {
		if k != nil && k.err != nil {
			return k.err
		}
	}
	return nil
}

// replay writes what was logged to the client; logged may be nil.
func replay(ctx context.Context, logged *logs.Frozen, o AttachOptions) error {
	if logged == nil {
		return nil
	}
	defer logged.Close()
	writers := [2]io.Writer{o.Stdout, o.Stderr}
	ro := logs.ReadOptions{Tail: -1, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil}
	for rec, err := range logged.Records(ctx, ro) {
		if err != nil {
			return err
		}
		if _, err := writers[rec.Stream].Write(rec.Line); err != nil {
			return err
		}
	}
	for i, w := range writers {
		if p := logged.Pending(logs.Stream(i)); w != nil && len(p) > 0 {
			if _, err := w.Write(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// attachInput copies a client's input to the container, waiting for its start.
// The channel gets nil at the end of the input, else what broke it.
func (c *container) attachInput(ctx context.Context, in io.Reader) <-chan error {
	result := make(chan error, 1)
	go func() {
		r, err := c.nextRun(ctx)
		if err == nil {
			err = r.copyInput(ctx, in)
		}
		if ctx.Err() == nil {
			result <- err
		}
	}()
	return result
}

// nextRun waits until the container runs.
func (c *container) nextRun(ctx context.Context) (*run, error) {
	for {
		c.mu.Lock()
		r, started := c.run, c.started
		c.mu.Unlock()
		if r != nil {
			return r, nil
		}
		select {
		case <-started:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (r *run) copyInput(ctx context.Context, in io.Reader) error {
	w, err := r.input(ctx)
	if err != nil {
		return err
	}
	sp := r.c.spec()
	_, err = io.Copy(lockedWriter{w, &r.inputMu}, in)
	if sp.StdinOnce && !sp.TTY {
		if cerr := r.closeInput(ctx); cerr != nil && !r.isEnded() && err == nil {
			err = fmt.Errorf("close stdin: %w", cerr)
		}
	}
	if r.isEnded() {
		return nil // the process left before its input ended
	}
	return err
}

type lockedWriter struct {
	w  io.Writer
	mu *sync.Mutex
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// input returns the stream to the process's standard input.
func (r *run) input(ctx context.Context) (io.Writer, error) {
	if err := r.opening.acquire(ctx); err != nil {
		return nil, fmt.Errorf("open stdin: %w", err)
	}
	defer r.opening.release()
	if r.stdin != nil {
		return r.stdin, nil
	}
	g, err := r.vm.guest(ctx)
	if err != nil {
		return nil, err
	}
	w, err := g.Stdin(ctx, r.c.id, "")
	if err != nil {
		return nil, fmt.Errorf("open stdin: %w", err)
	}
	r.stdin = w
	return w, nil
}

// closeInput closes the process's standard input after all that was written.
func (r *run) closeInput(ctx context.Context) error {
	if err := r.opening.acquire(ctx); err != nil {
		return fmt.Errorf("close stdin: %w", err)
	}
	w := r.stdin
	r.opening.release()
	if w != nil {
		if err := w.Close(); err != nil {
			return err
		}
	}
	g, err := r.vm.guest(ctx)
	if err != nil {
		return err
	}
	_, err = g.CloseStdin(ctx, &wire.CloseStdinRequest{ContainerId: r.c.id})
	return err
}
