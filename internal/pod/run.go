package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/logs"
	"github.com/hyper-run/hyper/internal/vmm"
)

// A run is what only a running container has. Its goroutines are the two
// pumps and supervise, which ends the run; released is closed when all are gone.
type run struct {
	c        *container
	vm       *machine
	pid      uint32
	log      *logs.Log
	launched *guest.Process // nil: adopted
	trace    *trace         // of the start; nil: adopted
	checks   *checks        // nil: none

	dead     chan struct{} // the process has ended, or its VM
	ended    chan struct{} // the run is over and the container's state says so
	released chan struct{} // no goroutine of the run is left
	pumps    sync.WaitGroup
	queues   []*queue
	logErrAt time.Time // when a log error was last reported; pumps may race on it harmlessly

	inputMu sync.Mutex // one writer to stdin at a time
	opening lock       // guards stdin; held while it is opened
	stdin   io.WriteCloser
	mu      sync.Mutex // guards what follows
	execs   map[string]*exec
	reason  End    // why it is being ended, if somebody here does that
	signals uint64 // that somebody sent, which are no reason by themselves: bits
}

func newRun(c *container, m *machine, rr runRecord, log *logs.Log) *run {
	return &run{
		c: c, vm: m, pid: rr.PID, log: log, execs: map[string]*exec{},
		dead: make(chan struct{}), ended: make(chan struct{}), released: make(chan struct{}), opening: newLock(),
	}
}

// begin starts what goes on as long as the container runs.
func (r *run) begin() {
	if r.launched != nil {
		r.stdin = r.launched.In
	}
	streams := []logs.Stream{logs.Stdout}
	if !r.c.spec().TTY {
		streams = append(streams, logs.Stderr)
	}
	for _, s := range streams {
		q := newQueue(r.c.out[s])
		r.queues = append(r.queues, q)
		r.pumps.Go(func() { r.pump(s, q) })
	}
	r.checks.begin()
	r.c.set.background.Go(func() {
		defer close(r.released)
		r.supervise()
	})
}

// gone says whether there is nothing left to talk to, or no reason to.
func (r *run) gone() bool {
	select {
	case <-r.vm.vm.Done():
		return true
	case <-r.vm.ctx.Done():
		return true
	default:
		return false
	}
}

func (r *run) isEnded() bool {
	select {
	case <-r.ended:
		return true
	default:
		return r.gone()
	}
}

// supervise waits for the container's process and then ends the run. It
// returns early, without ending it, when this hyperd lets go of the VM.
func (r *run) supervise() {
	e, ok := r.wait()
	if ok {
		close(r.dead)
	}
	r.checks.end()
	if !ok {
		r.letGo()
		return
	}
	r.c.op.Lock()
	defer r.c.op.Unlock()
	if !r.drain() {
		r.c.set.log.Warn("output did not end with its process", "container", r.c.id)
	}
	if r.vm.ctx.Err() != nil && !r.vm.isDestroyed() {
		r.letGo() // before all output came: the next hyperd gets it
		return
	}
	r.finish(e)
}

// letGo leaves the run to the next hyperd.
func (r *run) letGo() {
	r.liftQueues()
	r.pumps.Wait()
	r.log.Close()
	if r.launched != nil {
		r.launched.Close()
	}
}

// wait returns how the process ended; false when this hyperd lets go first.
func (r *run) wait() (End, bool) {
	type result struct {
		st  *wire.WaitResponse
		err error
	}
	exited := make(chan result, 1)
	ctx, cancel := context.WithCancel(r.vm.ctx)
	defer cancel()
	go func() {
		st, err := r.waitGuest(ctx)
		exited <- result{st, err}
	}()
	select {
	case x := <-exited:
		if x.err == nil {
			return r.exited(x.st), true
		}
		if r.vm.ctx.Err() != nil {
			return r.let()
		}
		if r.vm.dies() {
			return r.died(), true
		}
		return End{Cause: CauseVMM, ExitCode: 255, Error: oneLine("lost the guest: " + x.err.Error()), FinishedAt: time.Now()}, true
	case <-r.vm.vm.Done():
		return r.died(), true
	case <-r.vm.ctx.Done():
		return r.let()
	}
}

// let is the end of a run whose VM is let go of: there is none yet, unless the VM is destroyed.
func (r *run) let() (End, bool) {
	if !r.vm.isDestroyed() {
		return End{}, false
	}
	<-r.vm.vm.Done()
	return r.died(), true
}

// exited is how a process ended, as its guest says.
func (r *run) exited(st *wire.WaitResponse) End {
	e := End{Cause: CauseExit, ExitCode: int(st.ExitCode), Signal: int(st.Signal), OOMKilled: st.OomKilled, FinishedAt: time.Now()}
	oom := ""
	if st.OomKilled {
		const maxDetail = 4 << 10
		oom = vmm.LastLines([]byte(st.OomDetail[:min(len(st.OomDetail), maxDetail)]), vmm.ConsoleLines)
	}
	switch why := r.why(); {
	case why != End{}:
		e.Cause, e.Detail = why.Cause, why.Detail
	case st.OomKilled && e.ExitCode != 0: // else it got over it
		e.Cause = CauseOOM
	case r.wasSent(e.Signal):
		e.Cause, e.Detail = CauseStopped, sentTo(e.Signal)
	case e.Signal != 0:
		e.Cause = CauseSignal
	}
	e.Detail = strings.TrimSpace(e.Detail + "\n" + oom)
	return e
}

// sent notes that somebody sent a signal, which may or may not end the process.
func (r *run) sent(sig unix.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.signals |= 1 << (sig - 1)
}

func (r *run) wasSent(sig int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return sig > 0 && r.signals&(1<<(sig-1)) != 0
}

func sentTo(sig int) string { return fmt.Sprintf("signal %d was sent to it", sig) }

// end says why the run is about to be ended; the first reason counts.
func (r *run) end(cause Cause, detail string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reason == (End{}) {
		r.reason = End{Cause: cause, Detail: detail}
	}
}

func (r *run) why() End {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reason
}

// died is the end of a run whose VM has ended.
func (r *run) died() End {
	e := r.vm.died()
	if why := r.why(); why != (End{}) && r.vm.vm.Exit().Reason == vmm.ExitKilled {
		e.Cause, e.Detail = why.Cause, why.Detail
	}
	return e
}

// died describes the end of a VM.
func (m *machine) died() End {
	exit := m.vm.Exit()
	e := End{
		Cause: CauseVMM, ExitCode: 137, Error: oneLine("the virtual machine stopped: " + describeExit(exit)),
		Stderr: vmm.LastLines([]byte(exit.Stderr), vmm.ConsoleLines), FinishedAt: time.Now(),
	}
	if exit.Reason != vmm.ExitKilled { // it is gone, and was not the reason
		e.Console = m.console()
	}
	if exit.Reason == vmm.ExitPanic || exit.Reason == vmm.ExitReset {
		e.Cause = CausePanic
	}
	return e
}

// waitGuest asks the guest for the exit status, over as many connections as it takes.
func (r *run) waitGuest(ctx context.Context) (*wire.WaitResponse, error) {
	var err error
	if p := r.launched; p != nil {
		var st *wire.WaitResponse
		if st, err = p.Wait(ctx); !errdefs.IsUnavailable(err) {
			return st, err
		}
	}
	for range redials {
		g, gerr := r.vm.guest(ctx)
		if err = gerr; err != nil {
			continue
		}
		var st *wire.WaitResponse
		if st, err = g.Wait(ctx, &wire.WaitRequest{ContainerId: r.c.id}); err == nil {
			return st, nil
		}
		if g.Err() == nil || r.gone() {
			break // the guest answered, with an error
		}
	}
	return nil, err
}

// Times given to a guest that may be stuck.
var (
	answerTimeout = 10 * time.Second // to act upon a container; who waits may hold its op

	drainTimeout   = 10 * time.Second // for output to arrive after the exit
	unmountTimeout = 30 * time.Second // for a clean unmount
)

// finish ends the run, whose output is drained: a clean unmount, and its place in the
// VM, or the VM and all it had. Precondition: c.op is held.
func (r *run) finish(e End) {
	s, c := r.c.set, r.c
	ctx := context.Background()
	if r.launched != nil {
		r.launched.Close()
	}
	p := c.pod
	clean := false
	if e.Cause == CauseVMM && !isClosed(r.vm.vm.Done()) { // it does not answer any more
		if err := r.vm.vm.Kill(ctx); err != nil {
			s.log.Error("end virtual machine", "vm", r.vm.id(), "err", err)
		}
	}
	// Nobody looks at the disk again of one that removes itself with its VM.
	if e.Error == "" && !(c.spec().AutoRemove && p.alone(r.vm, c)) {
		if err := r.vm.setRun(c.id, func(rr *runRecord) { rr.Ended = &e }); err != nil && !errors.Is(err, vmm.ErrGone) {
			s.log.Error("record end", "container", c.id, "err", err)
		}
		if err := r.vm.deleteContainer(ctx, c.id, unmountTimeout); err != nil {
			s.log.Warn("unmount container", "container", c.id, "err", err)
		} else {
			clean = true
		}
	}
	p.op.Lock()
	over := p.endWith(ctx, r.vm, c.id)
	p.op.Unlock()
	r.pumps.Wait()
	r.forgetExecs()
	if err := r.log.Close(); err != nil {
		s.log.Error("close log", "container", c.id, "err", err)
	}
	r.settle(e)
	if !over { // the VM's record says how it ended until its own does
		p.op.Lock()
		if err := p.leave(ctx, r.vm, c.id, clean); err != nil {
			s.log.Error("take a container out of its VM", "container", c.id, "err", err)
		}
		p.op.Unlock()
	}
	if e.OOMKilled {
		s.publish(c, "oom")
	}
	s.publish(c, "die", "exitCode", strconv.Itoa(e.ExitCode))
	r.notify(e)
	if c.spec().AutoRemove {
		if err := c.removeLocked(ctx); err != nil {
			s.log.Error("remove container", "container", c.id, "err", err)
		}
	}
}

// alone says that the VM is there for one container only, and ends with it.
func (p *pod) alone(m *machine, c *container) bool {
	if p.explicit() {
		return false
	}
	running := m.record().Containers
	_, own := running[c.id]
	return own && len(running) == 1
}

// drain waits for the pumps to deliver all that the process printed.
func (r *run) drain() bool {
	r.liftQueues()
	done := make(chan struct{})
	go func() {
		r.pumps.Wait()
		close(done)
	}()
	t := time.NewTimer(drainTimeout)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-r.vm.vm.Done():
		return true
	case <-t.C:
		return false
	}
}

// liftQueues lets the pumps go on without the slowest client.
func (r *run) liftQueues() {
	for _, q := range r.queues {
		q.lift()
	}
}

// settle writes the end into the container's state.
func (r *run) settle(e End) {
	c := r.c
	// Together with the state, so that who attaches is either ended here or
	// waits for the next run.
	for _, f := range c.out {
		f.mu.Lock()
		endSinks(f.sinks)
		f.sinks = nil
		defer f.mu.Unlock()
	}
	starts := c.pod.record().Starts
	c.mu.Lock()
	if err := c.transitionLocked(StatusExited); err != nil {
		c.set.log.Error("end of a run", "err", err)
	}
	c.rec.End, c.rec.Tried = e, starts
	c.run = nil
	c.started = make(chan struct{})
	c.mu.Unlock()
	if err := c.save(); err != nil {
		c.set.log.Error("record exit", "container", c.id, "err", err)
	}
}

// notify tells everybody who waits, after the state says so.
func (r *run) notify(e End) {
	c := r.c
	close(r.ended)
	c.mu.Lock()
	c.notifyLocked(ExitStatus{Code: e.ExitCode, Error: e.text()}, WaitNotRunning, WaitNextExit)
	c.mu.Unlock()
	c.pod.wake()
}

// Wait returns a channel that gets the exit status once, unless ctx ends first.
func (s *Set) Wait(ctx context.Context, ref string, cond WaitCondition) (<-chan ExitStatus, error) {
	c, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan ExitStatus, 1)
	if c.removed || cond == WaitNotRunning && c.run == nil {
		ch <- ExitStatus{Code: c.rec.ExitCode, Error: c.rec.text()}
		return ch, nil
	}
	c.waiters = append(c.waiters, waiter{cond, ch})
	context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.waiters = slices.DeleteFunc(c.waiters, func(w waiter) bool { return w.ch == ch })
	})
	return ch, nil
}

// Pause freezes a running container's processes.
func (s *Set) Pause(ctx context.Context, ref string) error {
	return s.freeze(ctx, ref, StatusPaused)
}

// Resume lets a paused container's processes run on.
func (s *Set) Resume(ctx context.Context, ref string) error {
	return s.freeze(ctx, ref, StatusRunning)
}

func (s *Set) freeze(ctx context.Context, ref string, to Status) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	c.op.Lock()
	defer c.op.Unlock()
	r, err := c.running()
	if err != nil {
		return err
	}
	if c.view().Status == to {
		word := map[Status]string{StatusPaused: "already", StatusRunning: "not"}[to]
		return textError{fmt.Sprintf("Container %s is %s paused", c.id, word), conflict}
	}
	g, err := r.vm.guest(ctx)
	if err != nil {
		return err
	}
	action := "pause"
	r.checks.hold(true) // what is paused, or not yet taken for resumed, can't be asked
	defer func() { r.checks.hold(c.view().Status == StatusPaused) }()
	if to == StatusPaused {
		_, err = g.Pause(ctx, &wire.PauseRequest{ContainerId: c.id})
	} else {
		action = "unpause"
		_, err = g.Resume(ctx, &wire.ResumeRequest{ContainerId: c.id})
	}
	if err != nil {
		return fmt.Errorf("%s container %s: %w", action, c.id, err)
	}
	c.mu.Lock()
	err = c.transitionLocked(to)
	c.mu.Unlock()
	if err = errors.Join(err, r.vm.setRun(c.id, func(rr *runRecord) { rr.Paused = to == StatusPaused })); err != nil {
		return err
	}
	s.publish(c, action)
	return nil
}
