package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hyper-run/hyper/internal/probe"
	"github.com/hyper-run/hyper/internal/vmm"
)

// checks are what is done to a running container to see that it is well: its
// hook after the start, then its probes. Nil: nothing is.
type checks struct {
	r    *run
	ctx  context.Context
	stop context.CancelFunc
	done chan struct{} // closed when the hook and the prober have ended

	probes Probes // its container's: who holds that one's mu may ask for the state

	mu     sync.Mutex // guards what follows
	hooked bool       // PostStart is done
	held   bool       // the container is paused
	prober *probe.Prober
	failed string // what failed for good, "": nothing
	grace  *int
}

// newChecks returns what is to be done to a container that runs, nil for nothing. rr is what
// an earlier hyperd has done of it.
func newChecks(r *run, rr runRecord) *checks {
	sp := r.c.spec()
	if sp.Hooks.PostStart == nil && sp.Probes == (Probes{}) {
		return nil
	}
	k := &checks{r: r, done: make(chan struct{}), probes: sp.Probes, hooked: sp.Hooks.PostStart == nil || rr.Hooked, held: rr.Paused}
	k.ctx, k.stop = context.WithCancel(r.vm.ctx)
	return k
}

// begin begins. k may be nil.
func (k *checks) begin() {
	if k != nil {
		k.r.c.set.background.Go(k.watch)
	}
}

func (k *checks) watch() {
	defer close(k.done)
	if !k.isHooked() {
		res := k.r.c.spec().Hooks.PostStart.Run(k.ctx, k)
		if k.ctx.Err() != nil {
			return // the next hyperd does it again
		}
		if res.Outcome == probe.Failure {
			k.fail("the hook after the start failed: "+res.Message, nil)
			return
		}
		k.record(func(rr *runRecord) { rr.Hooked = true })
		k.mu.Lock()
		k.hooked = true
		k.mu.Unlock()
		k.wake()
	}
	if k.probes == (Probes{}) {
		return
	}
	rr, _ := k.r.vm.runRecord(k.r.c.id)
	if rr.Probed.Failing != "" { // an earlier hyperd was killed over it
		k.fail(rr.Probed.Message, rr.Probed.Grace)
		return
	}
	pr := probe.New(k, k.probes, rr.StartedAt, rr.Probed, k.changed)
	k.mu.Lock()
	k.prober = pr
	pr.Hold(k.held)
	k.mu.Unlock()
	k.wake()
	<-k.ctx.Done()
	pr.Stop()
}

func (k *checks) isHooked() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.hooked
}

// end ends all checks. k may be nil.
func (k *checks) end() {
	if k != nil {
		k.stop()
		<-k.done
	}
}

func (k *checks) wake() {
	p := k.r.c.pod
	p.wake()
}

// changed gets every change of what the probes say.
func (k *checks) changed(st probe.State) {
	k.record(func(rr *runRecord) { rr.Probed = st })
	if st.Failing != "" {
		k.fail(st.Message, st.Grace)
		return
	}
	k.wake()
}

func (k *checks) record(change func(*runRecord)) {
	if err := k.r.vm.setRun(k.r.c.id, change); err != nil && !errors.Is(err, vmm.ErrGone) {
		k.r.c.set.log.Error("record what probes say", "container", k.r.c.id, "err", err)
	}
}

// fail has the container killed, by the pod's keeper.
func (k *checks) fail(why string, grace *int) {
	k.mu.Lock()
	k.failed, k.grace = why, grace
	k.mu.Unlock()
	k.r.end(CauseProbe, why)
	k.r.c.pod.keep()
}

// state is what the keeper asks for.
func (k *checks) state() (started, failing bool, grace *int) {
	if k == nil {
		return true, false, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	st := k.probed()
	return k.hooked && st.Started, k.failed != "", k.grace
}

// view is what others see of it.
func (k *checks) view() (started, ready bool, failed string) {
	if k == nil {
		return true, true, ""
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	st := k.probed()
	if k.failed != "" {
		return k.hooked && st.Started, false, k.failed
	}
	return k.hooked && st.Started, k.hooked && st.Ready, st.Message
}

// probed is what the probes say; before they begin, that nothing is known. Precondition: k.mu is held.
func (k *checks) probed() probe.State {
	if k.prober != nil {
		return k.prober.State()
	}
	return probe.State{Started: k.probes.Startup == nil, Ready: k.probes.Startup == nil && k.probes.Readiness == nil}
}

// hold keeps the probes from asking a container that is paused. k may be nil.
func (k *checks) hold(paused bool) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = paused
	if k.prober != nil {
		k.prober.Hold(paused)
	}
}

var _ probe.Target = (*checks)(nil)

// Exec implements probe.Target: it runs a command in the container.
func (k *checks) Exec(ctx context.Context, args []string) (int, []byte, error) {
	s := k.r.c.set
	id, err := s.CreateExec(ctx, k.r.c.id, ExecSpec{Args: args, Stdout: true, Stderr: true})
	if err != nil {
		return 0, nil, err
	}
	var out probe.Tail
	w := lockedWriter{&out, new(sync.Mutex)}
	ended := make(chan error, 1)
	s.background.Go(func() {
		err := s.StartExec(ctx, id, &AttachOptions{Stdout: w, Stderr: w})
		if err != nil {
			s.killExec(id)
		}
		ended <- err
	})
	select {
	case err = <-ended:
	case <-ctx.Done(): // a guest may take its time to begin, too
		err = ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	said := bytes.Clone(out.Bytes())
	if err != nil {
		return 0, said, err
	}
	e, err := s.GetExec(id)
	if err != nil {
		return 0, said, err
	}
	if e.ExitCode == nil {
		return 0, said, fmt.Errorf("the command has not ended")
	}
	return *e.ExitCode, said, nil
}

// Dial implements probe.Target: it connects to a port in the pod.
func (k *checks) Dial(ctx context.Context, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if net.ParseIP(host) == nil { // the guest takes no names
		addrs, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			return nil, err
		}
		address = net.JoinHostPort(addrs[0], port)
	}
	g, err := k.r.vm.guest(ctx)
	if err != nil {
		return nil, err
	}
	return g.DialTCP(ctx, "", address)
}

// leastToStop is how long a process has to act on the stop signal, however
// long the hook before took, as with the kubelet.
const leastToStop = 2 * time.Second

// preStop does what is to be done before the stop signal, and returns how much of
// timeout is left. A negative timeout is none.
func (r *run) preStop(ctx context.Context, timeout time.Duration) time.Duration {
	h := r.c.spec().Hooks.PreStop
	if h == nil || timeout == 0 {
		return timeout
	}
	begin := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	go func() {
		select {
		case <-r.dead: // nothing is left to be told
			cancel()
		case <-ctx.Done():
		}
	}()
	if res := h.Run(ctx, &checks{r: r}); res.Outcome == probe.Failure {
		r.c.set.log.Warn("the hook before the stop failed", "container", r.c.id, "err", res.Message)
	}
	return max(timeout-time.Since(begin), leastToStop)
}
