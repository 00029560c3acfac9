package pod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/keep"
)

// keep starts the pod's keeper if it has something to keep and has none. The keeper is a
// goroutine that asks keep.Next what to do whenever something has changed, until there is nothing
// to keep any more.
func (p *pod) keep() {
	if p.set.isClosing() {
		return
	}
	p.mu.Lock()
	start := !p.kept
	p.kept, p.quiet = true, false
	p.mu.Unlock()
	if start {
		p.set.background.Go(p.keeper)
	}
	p.wake()
}

// wake has the keeper look again, and who waits for the pod.
func (p *pod) wake() {
	p.mu.Lock()
	close(p.changed)
	p.changed = make(chan struct{})
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
		if !ok {
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
	state := keep.Pod{Now: time.Now()}
	members := p.set.members(p.id)
	rec, m := p.record(), p.running()
	any := rec.Name != "" && rec.Wanted
	for _, c := range members {
		kc := c.kept(rec, m != nil)
		sp := c.spec()
		any = any || sp.keeps() && !kc.Stopped || kc.Failing && kc.State == keep.StateRunning
		state.Containers = append(state.Containers, kc)
	}
	state.Stop = rec.Name != "" && !rec.Wanted
	plan := keep.Next(state)
	quiet := len(plan.Actions) == 0 && !slices.ContainsFunc(state.Containers, func(c keep.Container) bool { return c.State == keep.StateStarting })
	p.mu.Lock()
	p.phase, p.restarting, p.quiet = plan.Phase, plan.Restarting, quiet
	p.kept = any && !p.removed && p.closed == ""
	ok := p.kept
	close(p.changed)
	p.changed = make(chan struct{})
	p.mu.Unlock()
	if ok && plan.Done && len(plan.Actions) == 0 && rec.Name != "" && !keepsAlive(state.Containers) {
		p.over(rec)
		return plan, false
	}
	if !ok {
		return plan, false
	}
	return plan, true
}

func keepsAlive(all []keep.Container) bool {
	for _, c := range all {
		if c.State == keep.StateRunning || c.State == keep.StateStarting || c.State == keep.StateStopping {
			return true
		}
	}
	return false
}

// over is the end of a pod whose containers have all ended for good: its VM ends when it was
// there for them only.
func (p *pod) over(rec podRecord) {
	p.mu.Lock()
	p.kept = false
	p.mu.Unlock()
	if !rec.Spec.UntilDone {
		return
	}
	p.set.background.Go(func() {
		if err := p.set.StopPod(context.Background(), p.id, nil); err != nil && !errdefs.IsNotModified(err) && !errdefs.IsConflict(err) {
			p.set.log.Error("end pod", "pod", p.id, "err", err)
		}
	})
}

// kept is the container as its keeper sees it; vm says whether its pod has a VM.
func (c *container) kept(p podRecord, vm bool) keep.Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.rec
	k := keep.Container{
		ID: c.id, Role: r.Spec.Role, Policy: r.Spec.Restart, State: keep.StateExited, Stopped: r.Stopped,
		Old:     !vm || r.FinishedAt.Before(p.StartedAt),
		Failing: r.Cause == CauseProbe, StartFailed: r.Cause == CauseStart, ExitCode: r.ExitCode,
		StartedAt: r.StartedAt, FinishedAt: r.FinishedAt, Restarts: r.RestartCount, Streak: r.Streak,
	}
	switch {
	case c.doing != "":
		k.State = c.doing
	case c.run != nil:
		k.State = keep.StateRunning
	case r.Status == StatusCreated && r.Cause == "", r.Spec.Role != RoleInit && r.FinishedAt.Before(p.Asked):
		k.State = keep.StateCreated
	}
	if c.run != nil {
		k.Started, k.Failing, k.Grace = c.run.checks.state()
	}
	return k
}

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
	if a.Verb == keep.Restart {
		c.rec.RestartCount, c.rec.Streak = a.Restarts, a.Streak
	}
	c.mu.Unlock()
	s.background.Go(func() {
		err := p.do(c, a)
		c.mu.Lock()
		c.doing = ""
		c.mu.Unlock()
		if err != nil && !errdefs.IsNotModified(err) && !errdefs.IsNotFound(err) {
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
		if c.isStopped() {
			return nil // meanwhile
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
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Stopped
}

// waitTried waits until every container was started that can be at once, and
// fails when one of these starts did.
func (p *pod) waitTried(ctx context.Context) error {
	return p.waitFor(ctx, func(v PodInfo) (bool, error) {
		p.mu.Lock()
		quiet := p.quiet
		p.mu.Unlock()
		if !quiet {
			return false, nil
		}
		var errs []error
		for _, c := range v.Containers {
			if c.Cause == CauseStart {
				errs = append(errs, fmt.Errorf("start container %s: %s", c.Name, c.Error))
			}
		}
		return true, errors.Join(errs...)
	})
}

// waitReady waits until all containers are ready, and fails when one will not be.
func (p *pod) waitReady(ctx context.Context) error {
	err := p.waitFor(ctx, func(v PodInfo) (bool, error) {
		if v.Ready {
			return true, nil
		}
		if p.settled() == keep.Succeeded {
			return true, nil
		}
		if p.settled() == keep.Failed || v.Status == PodExited {
			return false, notReady(v)
		}
		return false, nil
	})
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return fmt.Errorf("%w: %w", notReady(p.view()), err)
	}
	return err
}

func (p *pod) settled() keep.Phase {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.phase
}

// notReady says which container is the reason.
func notReady(v PodInfo) error {
	for _, c := range v.Containers {
		why := ""
		switch {
		case c.Error != "":
			why = c.Error
		case c.Status == StatusExited && c.ExitCode != 0:
			why = fmt.Sprintf("it exited with code %d", c.ExitCode)
		case c.Status == StatusRunning && !c.Ready && c.Probe != "":
			why = "its probe says: " + c.Probe
		case c.Status == StatusRunning && !c.Ready:
			why = "its probes have not succeeded yet"
		default:
			continue
		}
		return fmt.Errorf("pod %s is not ready: container %s: %s: %w", v.Name, c.Name, why, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("pod %s is not ready: %w", v.Name, errdefs.ErrFailedPrecondition)
}

// waitFor waits until done says so.
func (p *pod) waitFor(ctx context.Context, done func(PodInfo) (bool, error)) error {
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		if ok, err := done(p.view()); ok || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-p.set.warm.ctx.Done():
			return fmt.Errorf("hyperd ends: %w", errdefs.ErrUnavailable)
		}
	}
}

// Revive starts what is to run again after the host or hyperd was down: pods
// that persist and ran, and containers as their policies say. It returns at once.
func (s *Set) Revive() {
	s.mu.Lock()
	pods := make([]*pod, 0, len(s.pods))
	for _, p := range s.pods {
		pods = append(pods, p)
	}
	s.mu.Unlock()
	for _, p := range pods {
		rec := p.record()
		switch {
		case p.explicit() && rec.Wanted && p.running() != nil:
			p.keep()
		case p.explicit() && rec.Wanted && rec.Spec.Persist:
			s.background.Go(func() {
				if err := s.StartPod(s.warm.ctx, p.id, false); err != nil && s.warm.ctx.Err() == nil {
					s.log.Error("start a pod again", "pod", p.id, "err", err)
				}
			})
		case p.explicit() && rec.Wanted:
			if err := p.want(false); err != nil {
				s.log.Error("record pod", "pod", p.id, "err", err)
			}
		default:
			s.reviveMembers(p)
		}
	}
}

func (s *Set) reviveMembers(p *pod) {
	needed := false
	for _, c := range s.members(p.id) {
		sp := c.spec()
		if !sp.keeps() {
			continue
		}
		k := c.kept(podRecord{}, false)
		if k.State != keep.StateRunning && keep.Revive(k) {
			c.mu.Lock()
			c.rec.Stopped = false
			c.mu.Unlock()
		}
		needed = true
	}
	if needed {
		p.keep()
	}
}
