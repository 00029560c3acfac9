package pod

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/keep"
)

// keep starts the pod's keeper if it has none. The keeper is a goroutine that asks keep.Next what to
// do whenever something has changed, until there is nothing to keep any more. There is none before
// all is adopted: what is not yet known to run would be started again.
func (p *pod) keep() {
	if p.set.isClosing() || !p.set.isAdopted() {
		return
	}
	p.mu.Lock()
	start := !p.kept
	p.kept, p.asked, p.outlook = true, true, outlook{}
	p.mu.Unlock()
	if start {
		p.set.background.Go(p.keeper)
	}
	p.wake()
}

// wake has the keeper look again, and who waits for the pod.
func (p *pod) wake() {
	p.mu.Lock()
	p.changeLocked()
	p.mu.Unlock()
	select {
	case p.again <- struct{}{}:
	default:
	}
}

// keeps says whether a container needs a keeper although its pod was made for it.
func (sp Spec) keeps() bool {
	return sp.Restart.Policy != "" && sp.Restart.Policy != keep.Never
}

func (p *pod) keeper() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		plan, ok := p.next()
		if !ok || p.set.warm.ctx.Err() != nil {
			return
		}
		for _, a := range plan.Actions {
			p.act(a)
		}
		timer.Stop()
		if !plan.Wake.IsZero() {
			timer.Reset(time.Until(plan.Wake))
		}
		select {
		case <-p.again:
		case <-timer.C:
		case <-p.set.warm.ctx.Done(): // hyperd ends
			return
		}
	}
}

// next decides what to do; false ends the keeper.
func (p *pod) next() (keep.Plan, bool) {
	p.mu.Lock()
	p.asked = false
	p.mu.Unlock()
	rec, m := p.record(), p.running()
	named := rec.Name != ""
	state := keep.Pod{Now: time.Now(), Stop: named && !rec.Wanted}
	needed := named && rec.Wanted
	for _, c := range p.set.members(p.id) {
		kc := c.kept(rec, m != nil)
		alive := isAlive(kc)
		needed = needed || alive && (c.spec().keeps() && !kc.Stopped || kc.Failing)
		state.Containers = append(state.Containers, kc)
	}
	plan := keep.Next(state)
	needed = needed || len(plan.Actions)+len(plan.Restarting) > 0
	over := named && plan.Done && len(plan.Actions) == 0 && !slices.ContainsFunc(state.Containers, isAlive)

	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asked { // for something that may not have been looked at
		return keep.Plan{}, true
	}
	p.outlook = look(state.Containers, plan)
	p.kept = needed && !over && !p.removed && p.closed == ""
	p.changeLocked()
	if over && p.kept != needed && rec.Spec.UntilDone && !p.removed && p.closed == "" {
		p.set.background.Go(p.over)
	}
	return plan, p.kept
}

func isAlive(c keep.Container) bool {
	return c.State == keep.StateRunning || c.State == keep.StateStarting || c.State == keep.StateStopping
}

// look is what follows from a plan for those who wait for the pod.
func look(all []keep.Container, plan keep.Plan) outlook {
	o := outlook{phase: plan.Phase, restarting: plan.Restarting, over: map[string]bool{}, quiet: len(plan.Actions) == 0}
	for _, c := range all {
		o.quiet = o.quiet && c.State != keep.StateStarting
		again := slices.Contains(plan.Restarting, c.ID) || slices.ContainsFunc(plan.Actions, func(a keep.Action) bool { return a.ID == c.ID })
		if c.State == keep.StateExited && !again {
			o.over[c.ID] = c.ExitCode == 0 && !c.StartFailed && !c.Failing
		}
	}
	return o
}

// over is the end of a pod whose containers have all ended for good, and that was there for them only.
func (p *pod) over() {
	s := p.set
	if !p.tryClose(beingStopped) {
		return
	}
	defer p.open()
	err := p.idle(s.warm.ctx)
	for _, c := range s.members(p.id) {
		if _, rerr := c.running(); rerr == nil {
			return // somebody has started one meanwhile
		}
	}
	if err == nil {
		err = p.stop(s.warm.ctx, nil)
	}
	if err != nil && !errdefs.IsNotModified(err) && s.warm.ctx.Err() == nil {
		s.log.Error("end pod", "pod", p.id, "err", err)
	}
}

// kept is the container as its keeper sees it; vm says whether its pod has a VM.
func (c *container) kept(p podRecord, vm bool) keep.Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.rec
	k := keep.Container{
		ID: c.id, Role: r.Spec.Role, Policy: r.Spec.Restart, State: keep.StateExited, Stopped: r.isStopped(p),
		Old:     !vm || r.FinishedAt.Before(p.StartedAt),
		Failing: r.Cause == CauseProbe, StartFailed: r.Cause == CauseStart, ExitCode: r.ExitCode,
		StartedAt: r.StartedAt, FinishedAt: r.FinishedAt, Restarts: r.RestartCount, Streak: r.Streak,
	}
	bad := k.Failing || k.StartFailed || k.ExitCode != 0
	switch {
	case c.doing != "":
		k.State = c.doing
	case c.run != nil:
		k.State = keep.StateRunning
	case c.busy > 0:
		k.State = keep.StateStarting
	case r.Status == StatusCreated && r.Cause == "":
		k.State = keep.StateCreated
	case r.Tried < p.Starts && (r.Spec.Role != RoleInit || k.Old || bad):
		k.State = keep.StateCreated
	}
	if c.run != nil {
		k.Started, k.Failing, k.Grace = c.run.checks.state()
	}
	return k
}

// isStopped says whether a container is to be left alone until somebody starts it.
func (r *record) isStopped(p podRecord) bool { return r.Stopped && r.StoppedIn >= p.Starts }

// act does what was decided, in the background.
func (p *pod) act(a keep.Action) {
	s := p.set
	c, err := s.find(a.ID)
	if err != nil {
		return
	}
	doing := keep.StateStarting
	if a.Verb == keep.Kill || a.Verb == keep.Stop {
		doing = keep.StateStopping
	}
	c.mu.Lock()
	c.doing = doing
	switch a.Verb {
	case keep.Start:
		c.rec.RestartCount, c.rec.Streak = 0, 0
	case keep.Restart:
		c.rec.RestartCount, c.rec.Streak = a.Restarts, a.Streak
	}
	c.mu.Unlock()
	s.background.Go(func() {
		err := p.do(c, a)
		c.mu.Lock()
		c.doing = ""
		c.mu.Unlock()
		if err != nil && !errdefs.IsNotModified(err) && !errdefs.IsNotFound(err) && s.warm.ctx.Err() == nil {
			s.log.Warn("keep container", "action", string(a.Verb), "container", c.id, "err", err)
		}
		p.wake()
	})
}

func (p *pod) do(c *container, a keep.Action) error {
	s := p.set
	ctx := s.warm.ctx
	switch a.Verb {
	case keep.Start, keep.Restart:
		c.op.Lock()
		defer c.op.Unlock()
		// Meanwhile somebody may have stopped it. An init container's work is needed all the same.
		if c.isStopped() && c.spec().Role != RoleInit {
			return nil
		}
		return s.startLocked(ctx, c, time.Now())
	default:
		r, err := c.running()
		if err != nil {
			return nil
		}
		if a.Verb == keep.Stop {
			r.end(CauseStopped, "the containers that it was there for have ended")
		}
		return r.stop(ctx, "", a.Grace)
	}
}

func (c *container) isStopped() bool {
	p := c.pod.record()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.isStopped(p)
}

// busily does f while the keeper takes the container for one that is being started: it is
// neither started, nor missed.
func (c *container) busily(f func() error) error {
	c.setBusy(1)
	defer func() {
		c.setBusy(-1)
		c.pod.wake()
	}()
	return f()
}

func (c *container) setBusy(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy += n
}

// ensureVM brings up the VM of a pod that was made as such, if there is none.
func (p *pod) ensureVM(ctx context.Context) error {
	if err := p.begin(); err != nil {
		return err
	}
	defer p.ended()
	p.op.Lock()
	defer p.op.Unlock()
	if p.running() != nil {
		return nil
	}
	return p.startVM(ctx, p.set.newTrace(p.id, time.Now()))
}
