// Package keep decides what is done next to keep the containers of a pod as
// their roles and restart policies say.
//
// It is pure: it looks at how all is now, and says what to do, where the pod is
// in its life and when to look again. What happened before it knows only by what
// is left of it in the containers' states, so that nothing is lost when an event
// is, or when hyperd is started anew. It never does anything itself, has no
// clock, no goroutine and no lock.
//
//	row of init containers and sidecars          side by side
//	  init ──ended well──▶ sidecar ──started──▶ …  ──▶ mains ──all ended for good──▶ sidecars stop, last first
//
// Once a main container was started in a VM, the row is not looked at again in
// that VM but for keeping the sidecars running.
package keep

import "time"

// Next says what to do. Whoever does it sets the states of the containers
// (starting, stopping) before asking again: what is not under way is asked for again.
// It looks only; p stays as it is.
func Next(p Pod) Plan {
	v := view{Pod: p}
	v.look()
	switch {
	case p.Stop:
		v.stop()
	case v.plan.Done:
		v.stopSidecars()
	default:
		v.keep()
	}
	v.plan.Phase = v.phase()
	return v.plan
}

// Revive says whether a container that does not run when the host comes up
// again, or hyperd without its VM, is to be started then: with "always" also if
// it was stopped, as Docker does. One that was never started never is.
func Revive(c Container) bool {
	if c.State == StateCreated {
		return false
	}
	c.State = StateExited
	c.Stopped = c.Stopped && c.Policy.Policy != Always
	return c.again()
}

// A view is a pod while it is looked at.
type view struct {
	Pod
	plan    Plan
	initial bool // no main container was tried in this VM: the row matters
	through bool // all of the row are through, or it does not matter
	waiting bool // a main container has not been started yet
	needed  bool // a main container runs, or shall
	alive   bool // a container runs, or will or did in a moment
}

// look finds out how far the pod is.
func (v *view) look() {
	v.initial, v.through = true, true
	tried, broken := false, false
	for i := range v.Containers {
		c := &v.Containers[i]
		v.alive = v.alive || c.alive()
		if c.Role != RoleMain {
			v.through = v.through && c.through()
			broken = broken || c.Role == RoleInit && c.State == StateExited && c.failed() && !c.again()
			continue
		}
		if c.State != StateCreated {
			tried = true
			v.initial = v.initial && c.Old
		}
		v.needed = v.needed || c.alive() || c.wanted()
		v.waiting = v.waiting || c.State == StateStarting && c.Restarts == 0 || c.State == StateCreated && !c.Stopped
	}
	v.through = v.through || !v.initial
	v.plan.Done = tried && !v.needed || v.initial && broken
}

// keep starts what is to run and does not, and ends what fails.
func (v *view) keep() {
	through := true
	for i := range v.Containers {
		c := &v.Containers[i]
		if c.State == StateRunning && c.Failing {
			v.act(Action{Verb: Kill, ID: c.ID, Grace: c.Grace})
		}
		switch c.Role {
		case RoleInit:
			if v.initial && through && !c.through() {
				v.start(c)
			}
		case RoleSidecar:
			if !v.initial || through || c.State == StateExited && !c.Old {
				v.start(c)
			}
		default:
			if v.through {
				v.start(c)
			}
			continue
		}
		through = through && c.through()
	}
	for i := range v.Containers {
		c := &v.Containers[i]
		if c.State == StateExited && c.again() && (v.initial || c.Role != RoleInit) {
			v.plan.Restarting = append(v.plan.Restarting, c.ID)
		}
	}
}

// start starts a container that is wanted, when its time has come.
func (v *view) start(c *Container) {
	// What an init container did is gone with the VM, or was never done.
	undone := c.Role == RoleInit && (c.State == StateCreated || c.Old && !c.failed())
	switch {
	case c.alive():
	case undone && v.needed, !c.Stopped && (undone || c.State == StateCreated):
		v.act(Action{Verb: Start, ID: c.ID})
	case c.again():
		// An end in the future is one before the clock was set back.
		due := c.due()
		if v.Now.Before(due) && !v.Now.Before(c.FinishedAt) {
			if v.plan.Wake.IsZero() || due.Before(v.plan.Wake) {
				v.plan.Wake = due
			}
			return
		}
		v.act(Action{Verb: Restart, ID: c.ID, Restarts: c.Restarts + 1, Streak: c.streak() + 1})
	}
}

// stop ends all: first what is no sidecar, together.
func (v *view) stop() {
	busy := false
	for i := range v.Containers {
		c := &v.Containers[i]
		if c.Role == RoleSidecar || !c.alive() {
			continue
		}
		busy = true
		if c.State == StateRunning {
			v.act(Action{Verb: Stop, ID: c.ID})
		}
	}
	if !busy {
		v.stopSidecars()
	}
}

// stopSidecars ends the last sidecar of the row that runs.
func (v *view) stopSidecars() {
	for i := len(v.Containers) - 1; i >= 0; i-- {
		c := &v.Containers[i]
		if c.Role != RoleSidecar || !c.alive() {
			continue
		}
		if c.State == StateRunning {
			v.act(Action{Verb: Stop, ID: c.ID})
		}
		return
	}
}

func (v *view) act(a Action) { v.plan.Actions = append(v.plan.Actions, a) }

func (v *view) phase() Phase {
	over := (v.Stop || v.plan.Done) && !v.alive
	switch {
	case !over && (v.waiting || !v.through):
		return Pending
	case !over:
		return Running
	}
	phase := Pending // none was ever started
	for i := range v.Containers {
		c := &v.Containers[i]
		switch {
		case c.State != StateExited || c.Role == RoleSidecar:
		case c.Role == RoleInit && !v.initial:
		case c.failed():
			return Failed
		case c.Role == RoleMain:
			phase = Succeeded
		}
	}
	return phase
}

// alive says whether it has a process, or may have.
func (c *Container) alive() bool {
	return c.State == StateStarting || c.State == StateRunning || c.State == StateStopping
}

// failed says whether its last run, which has ended, did not go well.
func (c *Container) failed() bool { return c.ExitCode != 0 || c.StartFailed || c.Failing }

// through says whether the next of the row may start. A sidecar that somebody
// stopped holds up nobody; the work of an init container must have been done.
func (c *Container) through() bool {
	if c.Role == RoleSidecar {
		return c.State == StateRunning && c.Started || !c.alive() && c.Stopped
	}
	return c.State == StateExited && !c.Old && !c.failed()
}

// wanted says whether it does not run and shall.
func (c *Container) wanted() bool {
	return c.State == StateCreated && !c.Stopped || c.State == StateExited && c.again()
}

// again says whether it is restarted, now that it has ended.
func (c *Container) again() bool {
	switch {
	case c.Stopped:
		return false
	case c.Role == RoleSidecar:
		return true
	case c.Role == RoleInit && !c.failed():
		return false
	}
	switch c.Policy.Policy {
	case Always, UnlessStopped:
		return true
	case OnFailure:
		return c.failed() && (c.Policy.Max == 0 || c.Restarts < c.Policy.Max)
	}
	return false
}

// streak is how many restarts in a row came too soon.
func (c *Container) streak() int {
	if !c.StartFailed && c.FinishedAt.Sub(c.StartedAt) >= orDefault(c.Policy.ResetAfter, 10*time.Second) {
		return 0
	}
	return c.Streak
}

// due is when it may be restarted.
func (c *Container) due() time.Time {
	delay := orDefault(c.Policy.Delay, 100*time.Millisecond)
	most := orDefault(c.Policy.MaxDelay, time.Minute)
	for range c.streak() {
		if delay > most/2 {
			delay = most
			break
		}
		delay *= 2
	}
	return c.FinishedAt.Add(min(delay, most))
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}
