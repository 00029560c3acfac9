package probe

import (
	"context"
	"sync"
	"time"
)

// A Kind names one of a container's probes.
type Kind string

// Kinds.
const (
	Startup   Kind = "startup"
	Liveness  Kind = "liveness"
	Readiness Kind = "readiness"
)

// A State is what a container's probes say of it.
type State struct {
	Started bool // its startup probe, if any, has succeeded
	Ready   bool // it has started, and its readiness probe, if any, says so
	// Failing is the probe because of which it is to be killed, Startup or Liveness;
	// "": it need not be. Nothing is checked any more then.
	Failing Kind
	Grace   *int   // of the probe that is Failing
	Message string // which check failed last, and what it said: "readiness: …"
}

// A Prober makes the checks of one run of a container. Liveness and readiness wait
// until it has started. A probe is made for the first time InitialDelay after the
// container's start, and every Period from then on, but never twice at a time.
type Prober struct {
	target  Target
	changed func(State)
	cancel  context.CancelFunc
	wake    chan struct{} // says that held changed
	answers chan answer   // has room for all that can be under way
	checks  sync.WaitGroup
	done    chan struct{} // closed when nothing goes on any more

	mu    sync.Mutex
	state State
	held  bool

	readiness bool // there is a readiness probe
}

// New begins to check a container that was started at since; was is what an earlier
// Prober knew of this run of it, zero: nothing. Whenever Started, Ready or Failing
// changes, changed is called with the new state, from a goroutine of the Prober's, one
// call after the other. It must not call Stop, nor wait for anybody who is in it.
func New(t Target, p Probes, since time.Time, was State, changed func(State)) *Prober {
	ctx, cancel := context.WithCancel(context.Background())
	pr := &Prober{
		target: t, changed: changed, cancel: cancel, readiness: p.Readiness != nil,
		wake: make(chan struct{}, 1), done: make(chan struct{}), state: was,
	}
	pr.state.Started = was.Started || p.Startup == nil
	pr.state.Ready = was.Failing == "" && pr.state.Started && (was.Ready || !pr.readiness)
	all := newSeries(p, since)
	if len(all) == 0 {
		cancel()
		close(pr.done)
		return pr
	}
	pr.answers = make(chan answer, len(all))
	go pr.run(ctx, all)
	return pr
}

// State returns the present state, after Stop the last one.
func (pr *Prober) State() State {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	return pr.state
}

// Hold has no checks made, and none under way count, until it is called with
// false: a container that is paused can't answer. It does not block.
func (pr *Prober) Hold(held bool) {
	pr.mu.Lock()
	pr.held = held
	pr.mu.Unlock()
	select {
	case pr.wake <- struct{}{}:
	default:
	}
}

// Stop ends it, and what check is under way. After it has returned changed is
// not called any more. Idempotent.
func (pr *Prober) Stop() {
	pr.cancel()
	<-pr.done
}

// A series is one probe and how its checks go. Only run's goroutine uses it.
type series struct {
	*Probe
	kind Kind
	due  time.Time          // of the next check
	stop context.CancelFunc // ends the check under way; nil: there is none
	last Outcome
	row  int // how often in a row that was the outcome
}

func newSeries(p Probes, since time.Time) []*series {
	all := make([]*series, 0, 3)
	add := func(kind Kind, p *Probe) {
		if p != nil {
			all = append(all, &series{Probe: p, kind: kind, due: since.Add(p.InitialDelay)})
		}
	}
	add(Startup, p.Startup)
	add(Liveness, p.Liveness)
	add(Readiness, p.Readiness)
	return all
}

// An answer is what came of a check of a series.
type answer struct {
	*series
	Result
}

// run makes checks until ctx ends or there is none to make any more.
func (pr *Prober) run(ctx context.Context, all []*series) {
	defer close(pr.done)
	defer pr.checks.Wait()
	defer pr.cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		active := pr.active(all)
		if len(active) == 0 {
			return
		}
		timer.Stop()
		if next := pr.launch(ctx, active); !next.IsZero() {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-pr.wake:
		case a := <-pr.answers:
			a.stop()
			a.stop = nil
			if pr.count(a) {
				pr.changed(pr.State())
			}
		}
	}
}

// active are the probes whose turn it is.
func (pr *Prober) active(all []*series) []*series {
	state := pr.State()
	switch {
	case state.Failing != "":
		return nil
	case !state.Started:
		return all[:1] // it is the first, see newSeries
	case all[0].kind == Startup:
		return all[1:]
	}
	return all
}

// launch makes the checks that are due, and returns when the next is; zero: when
// one of those under way has ended, or when there is no hold any more.
func (pr *Prober) launch(ctx context.Context, active []*series) (next time.Time) {
	pr.mu.Lock()
	held := pr.held
	pr.mu.Unlock()
	now := time.Now()
	for _, s := range active {
		switch {
		case held && s.stop != nil:
			s.stop()
		case held || s.stop != nil:
		case !s.due.After(now):
			s.due = now.Add(s.Period)
			checkCtx, stop := context.WithTimeout(ctx, s.Timeout)
			s.stop = stop
			pr.checks.Go(func() { pr.answers <- answer{s, s.Run(checkCtx, pr.target)} })
		case next.IsZero() || s.due.Before(next):
			next = s.due
		}
	}
	return next
}

// count has an answer count, and says whether anything has changed but the message.
func (pr *Prober) count(a answer) bool {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	if a.Outcome == Unknown || pr.held {
		return false
	}
	if a.Outcome != a.last {
		a.last, a.row = a.Outcome, 0
	}
	a.row++
	before := pr.state
	well := a.Outcome == Success
	if !well {
		pr.state.Message = string(a.kind) + ": " + a.Message
	}
	switch {
	case well && a.row < a.SuccessThreshold, !well && a.row < a.FailureThreshold:
		return false
	case a.kind == Readiness:
		pr.state.Ready = well
	case !well:
		pr.state.Ready, pr.state.Failing, pr.state.Grace = false, a.kind, a.Grace
	case a.kind == Startup:
		pr.state.Started, pr.state.Ready = true, !pr.readiness
	}
	before.Message = pr.state.Message
	return pr.state != before
}
