package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/wire"
)

// An exec is a further process of a running container. Finished ones are
// remembered for a while, so that clients can ask for the exit code.
type exec struct {
	id   string
	c    *container
	spec ExecSpec

	mu       sync.Mutex // guards what follows
	run      *run       // the run it belongs to
	started  bool
	running  bool
	pid      uint32
	exitCode *int
	endedAt  time.Time
	done     chan struct{} // closed when it has ended
}

// An execRecord is what is kept of a started exec, in the runtime store, so
// that a new hyperd goes on draining it.
type execRecord struct {
	ContainerID string
	Spec        ExecSpec
}

// How long finished execs are remembered, and how many of a container at most.
const (
	execMemory  = 5 * time.Minute
	execHistory = 100
)

// CreateExec prepares a process in a running container.
func (s *Set) CreateExec(_ context.Context, ref string, sp ExecSpec) (string, error) {
	c, err := s.find(ref)
	if err != nil {
		return "", err
	}
	if len(sp.Args) == 0 || sp.Args[0] == "" {
		return "", textError{"no exec command specified", errdefs.ErrInvalidArgument}
	}
	r, err := c.live()
	if err != nil {
		return "", err
	}
	e := &exec{id: newID(), c: c, spec: sp, run: r, done: make(chan struct{})}
	s.mu.Lock()
	s.execs[e.id] = e
	s.mu.Unlock()
	r.mu.Lock()
	r.execs[e.id] = e
	r.mu.Unlock()
	r.sweepExecs()
	return e.id, nil
}

// sweepExecs forgets finished execs that are old, or the oldest when many.
func (r *run) sweepExecs() {
	r.mu.Lock()
	defer r.mu.Unlock()
	var oldest *exec
	var oldestAt time.Time
	finished := 0
	for _, e := range r.execs {
		e.mu.Lock()
		ended, at := e.exitCode != nil, e.endedAt
		e.mu.Unlock()
		if !ended {
			continue
		}
		finished++
		if time.Since(at) > execMemory {
			r.forgetLocked(e)
		} else if oldest == nil || at.Before(oldestAt) {
			oldest, oldestAt = e, at
		}
	}
	if finished > execHistory && oldest != nil {
		r.forgetLocked(oldest)
	}
}

func (r *run) forgetLocked(e *exec) {
	delete(r.execs, e.id)
	r.c.set.mu.Lock()
	delete(r.c.set.execs, e.id)
	r.c.set.mu.Unlock()
}

// forgetExecs drops all execs at the end of a run. Those that still run ended
// with the container.
func (r *run) forgetExecs() {
	r.mu.Lock()
	all := make([]*exec, 0, len(r.execs))
	for _, e := range r.execs {
		all = append(all, e)
		r.forgetLocked(e)
	}
	r.mu.Unlock()
	for _, e := range all {
		e.settle(137)
		if err := r.c.set.cfg.Runtime.Delete(bucketExecs, e.id); err != nil {
			r.c.set.log.Error("forget exec", "exec", e.id, "err", err)
		}
	}
}

func (r *run) execIDs() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []string
	for id := range r.execs {
		ids = append(ids, id)
	}
	return ids
}

func (s *Set) findExec(id string) (*exec, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.execs[id]
	if e == nil {
		return nil, notFound("No such exec instance: " + id)
	}
	return e, nil
}

// StartExec runs the exec.
func (s *Set) StartExec(ctx context.Context, execID string, o *AttachOptions) error {
	e, err := s.findExec(execID)
	if err != nil {
		return err
	}
	r, err := e.c.live()
	if err != nil {
		return err
	}
	e.mu.Lock()
	if e.started {
		e.mu.Unlock()
		return textError{"exec " + execID + " has already run", errdefs.ErrConflict}
	}
	e.started = true
	e.mu.Unlock()
	g, err := r.vm.guest(ctx)
	if err == nil {
		// Begun is begun, also when the client leaves: somebody must drain it.
		err = e.begin(context.WithoutCancel(ctx), g)
	}
	if err != nil {
		e.launchFailed(err)
		return err
	}
	s.publish(e.c, "exec_start", "execID", e.id)
	e.follow(g, o)
	if o == nil {
		return nil
	}
	if o.Attached != nil {
		o.Attached()
	}
	if o.Stdin != nil && e.spec.Stdin {
		e.feed(ctx, g, o.Stdin)
	}
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
		return ctx.Err() // it runs on, its output is discarded
	}
}

// begin is launch, bounded: a guest may never answer.
func (e *exec) begin(ctx context.Context, g *guest.Client) error {
	d := e.c.set.cfg.StartTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, d, fmt.Errorf("the guest did not answer within %v: %w", d, errdefs.ErrUnavailable))
	defer cancel()
	err := e.launch(ctx, g)
	if err != nil && ctx.Err() != nil {
		e.c.set.killExec(e.id) // should it begin after all
		return context.Cause(ctx)
	}
	return err
}

func (e *exec) launch(ctx context.Context, g *guest.Client) error {
	data, err := e.process()
	if err != nil {
		return err
	}
	user := e.spec.User
	if user == "" {
		user = e.c.spec().User
	}
	// First, so that a hyperd that comes after a crash drains it too.
	rec := execRecord{ContainerID: e.c.id, Spec: e.spec}
	if err := e.c.set.cfg.Runtime.Put(bucketExecs, e.id, rec); err != nil {
		return err
	}
	started, err := g.StartProcess(ctx, &wire.StartProcessRequest{
		ContainerId: e.c.id, ExecId: e.id, Process: data, User: user,
		AdditionalGroups: e.c.spec().Groups, Stdin: e.spec.Stdin,
	})
	if err != nil {
		return errors.Join(startError(e.spec.Args[0], err), e.c.set.cfg.Runtime.Delete(bucketExecs, e.id))
	}
	e.mu.Lock()
	e.pid, e.running = started.Pid, true
	e.mu.Unlock()
	return nil
}

// process is the exec's OCI process: the container's, with its own command.
func (e *exec) process() ([]byte, error) {
	csp, err := e.c.startSpec(e.run.vm.attachment())
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(csp.Privileged || e.spec.Privileged, csp.CapAdd, csp.CapDrop)
	if err != nil {
		return nil, err
	}
	limits, err := rlimits(csp.Ulimits)
	if err != nil {
		return nil, err
	}
	csp.TTY = e.spec.TTY
	dir := e.spec.Dir
	if dir == "" {
		dir = csp.Dir
	}
	p := processSpec(e.spec.Args, mergeEnv(environment(csp, e.c.hostname()), e.spec.Env), dir, caps)
	p.Terminal, p.Rlimits, p.NoNewPrivileges = e.spec.TTY, limits, csp.NoNewPrivs
	if cs := e.spec.ConsoleSize; cs[0] > 0 && cs[1] > 0 {
		p.ConsoleSize = &specs.Box{Height: cs[0], Width: cs[1]}
	}
	return json.Marshal(p)
}

func (e *exec) launchFailed(err error) {
	code := 126
	var ee *execError
	if errors.As(err, &ee) {
		code = ee.code
	}
	e.settle(code)
}

// settle records the end; the first call counts.
func (e *exec) settle(code int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.exitCode != nil {
		return
	}
	e.running, e.exitCode, e.endedAt = false, &code, time.Now()
	close(e.done)
}

// follow delivers the exec's output and waits for its end, in the background.
// o is nil for an exec that nobody is attached to: its output is discarded.
func (e *exec) follow(g *guest.Client, o *AttachOptions) {
	out, errw := io.Discard, io.Discard
	if o != nil && o.Stdout != nil {
		out = o.Stdout
	}
	if o != nil && o.Stderr != nil {
		errw = o.Stderr
	}
	s := e.c.set
	s.background.Go(func() {
		var pumps sync.WaitGroup
		pumps.Go(func() { e.pump(g, wire.StreamHeader_STDOUT, out) })
		if !e.spec.TTY {
			pumps.Go(func() { e.pump(g, wire.StreamHeader_STDERR, errw) })
		}
		st, err := e.wait()
		pumps.Wait()
		if e.run.vm.ctx.Err() != nil {
			return // another hyperd goes on with it
		}
		code := 137
		if err == nil {
			code = int(st.ExitCode)
		}
		e.settle(code)
		s.publish(e.c, "exec_die", "execID", e.id, "exitCode", fmt.Sprint(code))
		e.forgetGuest()
	})
}

// forgetGuest tells the guest, and the store, that nobody will ask any more.
func (e *exec) forgetGuest() {
	ctx, cancel := context.WithTimeout(e.run.vm.ctx, killTimeout)
	defer cancel()
	g, err := e.run.vm.guest(ctx)
	if err == nil {
		_, err = g.DeleteProcess(ctx, &wire.DeleteProcessRequest{ContainerId: e.c.id, ExecId: e.id})
	}
	if err != nil && !e.run.gone() && !e.run.isEnded() {
		e.c.set.log.Warn("forget exec", "exec", e.id, "err", err)
	}
	if err := e.c.set.cfg.Runtime.Delete(bucketExecs, e.id); err != nil {
		e.c.set.log.Error("forget exec", "exec", e.id, "err", err)
	}
}

func (e *exec) wait() (*wire.WaitResponse, error) {
	ctx, cancel := context.WithCancel(e.run.vm.ctx)
	defer cancel()
	go func() {
		select {
		case <-e.run.vm.vm.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	var err error
	for range redials {
		var g *guest.Client
		if g, err = e.run.vm.guest(ctx); err != nil {
			continue
		}
		var st *wire.WaitResponse
		if st, err = g.Wait(ctx, &wire.WaitRequest{ContainerId: e.c.id, ExecId: e.id}); err == nil || g.Err() == nil {
			return st, err
		}
	}
	return nil, err
}

// pump delivers one output. When the client is gone the rest is discarded, so
// that the process is not stopped by a full window.
func (e *exec) pump(g *guest.Client, kind wire.StreamHeader_Kind, w io.Writer) {
	out, err := g.Output(e.run.vm.ctx, e.c.id, e.id, kind, 0)
	if err != nil {
		return
	}
	defer out.Close()
	buf := make([]byte, outputBuffer)
	var off uint64
	for {
		n, err := out.Read(buf)
		if n > 0 {
			off += uint64(n)
			if _, werr := w.Write(buf[:n]); werr != nil {
				w = io.Discard
			}
			if out.Ack(off) != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// feed copies the client's input to the exec, in the background: the exec may
// end first.
func (e *exec) feed(ctx context.Context, g *guest.Client, in io.Reader) {
	go func() {
		w, err := g.Stdin(ctx, e.c.id, e.id)
		if err != nil {
			return
		}
		_, err = io.Copy(w, in)
		cerr := w.Close()
		if e.spec.TTY || err != nil || cerr != nil {
			return
		}
		// An error means that the exec has ended: nothing to close.
		g.CloseStdin(ctx, &wire.CloseStdinRequest{ContainerId: e.c.id, ExecId: e.id}) //nolint:errcheck
	}()
}

// killExec ends an exec that nobody waits for any more.
func (s *Set) killExec(id string) {
	e, err := s.findExec(id)
	if err != nil {
		return
	}
	s.background.Go(func() {
		ctx, cancel := context.WithTimeout(e.run.vm.ctx, killTimeout)
		defer cancel()
		g, err := e.run.vm.guest(ctx)
		if err == nil {
			_, err = g.Signal(ctx, &wire.SignalRequest{ContainerId: e.c.id, ExecId: id, Signal: uint32(unix.SIGKILL)})
		}
		if err != nil && !errdefs.IsNotFound(err) && !e.run.isEnded() {
			s.log.Warn("end exec", "exec", id, "err", err)
		}
	})
}

// ResizeExec sets the window size of an exec's terminal.
func (s *Set) ResizeExec(ctx context.Context, execID string, height, width uint) error {
	e, err := s.findExec(execID)
	if err != nil {
		return err
	}
	e.mu.Lock()
	running := e.running
	e.mu.Unlock()
	if !running {
		return textError{"exec " + execID + " is not running", errdefs.ErrConflict}
	}
	return e.run.resize(ctx, e.id, height, width)
}

// GetExec describes an exec.
func (s *Set) GetExec(execID string) (Exec, error) {
	e, err := s.findExec(execID)
	if err != nil {
		return Exec{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return Exec{
		ID: e.id, ContainerID: e.c.id, Spec: e.spec, Running: e.running, Started: e.started, PID: e.pid, ExitCode: e.exitCode,
	}, nil
}
