package pod

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/keep"
)

// An outlook is what a pod's keeper thinks of it.
type outlook struct {
	phase      keep.Phase
	restarting []string        // IDs of containers that have ended and will be started again
	over       map[string]bool // by the ID of those that have ended for good: whether that was well
	quiet      bool            // nothing is left to do, or under way, until something changes
}

// waitTried waits until every container was started that can be at once, and
// fails when one of these starts did.
func (p *pod) waitTried(ctx context.Context) error {
	return p.waitFor(ctx, func(o outlook, kept bool) (bool, error) {
		if !o.quiet && kept {
			return false, nil
		}
		starts := p.record().Starts
		var errs []error
		for _, c := range p.set.members(p.id) {
			c.mu.Lock()
			rec := c.rec
			c.mu.Unlock()
			if rec.Cause == CauseStart && rec.Tried == starts {
				errs = append(errs, fmt.Errorf("start container %s: %s", rec.Name, rec.text()))
			}
		}
		return true, errors.Join(errs...)
	})
}

// waitReady waits until all containers are ready or have ended well, and fails when one will not be.
func (p *pod) waitReady(ctx context.Context) error {
	err := p.waitFor(ctx, func(o outlook, kept bool) (bool, error) {
		v := p.view()
		ready, never := o.readiness(v)
		switch {
		case ready, o.phase == keep.Succeeded:
			return true, nil
		case never, o.phase == keep.Failed, !kept:
			return false, notReady(v)
		}
		return false, nil
	})
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return fmt.Errorf("%w (the time to wait is over)", notReady(p.view()))
	}
	return err
}

// readiness says whether all of a pod's containers are ready that have not ended well, or one never will be.
func (o outlook) readiness(v PodInfo) (ready, never bool) {
	ready = v.VM != nil
	for _, c := range v.Containers {
		well, over := o.over[c.ID]
		over = over && (c.Status == StatusExited || c.Status == StatusCreated)
		switch {
		case c.Ready, over && (well || c.Spec.Role == RoleSidecar):
		case over:
			never = true
		default:
			ready = false
		}
	}
	return ready && !never, never
}

// notReady says which container is the reason.
func notReady(v PodInfo) error {
	for _, c := range v.Containers {
		why := ""
		switch {
		case c.Error != "":
			why = c.Error
		case (c.Status == StatusExited || c.Status == StatusRestarting) && c.Probe != "":
			why = "it was killed: " + c.Probe
		case (c.Status == StatusExited || c.Status == StatusRestarting) && c.ExitCode != 0:
			why = fmt.Sprintf("it exited with code %d", c.ExitCode)
		case c.Status == StatusRunning && !c.Ready && c.Probe != "":
			why = "its probe says: " + c.Probe
		case c.Status == StatusRunning && !c.Ready:
			why = "its probes have not succeeded yet"
		default:
			continue
		}
		why, _, _ = strings.Cut(why, "\n") // the rest is in Why
		return textError{fmt.Sprintf("pod %s is not ready: container %s: %s", v.Name, c.Name, why), errdefs.ErrFailedPrecondition}
	}
	return textError{fmt.Sprintf("pod %s is not ready", v.Name), errdefs.ErrFailedPrecondition}
}

// waitFor waits until done says so, which is asked whenever something of the pod has changed. It gets
// what the keeper thinks, and whether there is one: without, nothing will change by itself.
func (p *pod) waitFor(ctx context.Context, done func(o outlook, kept bool) (bool, error)) error {
	for {
		p.mu.Lock()
		changed, o, kept := p.changed, p.outlook, p.kept
		p.mu.Unlock()
		if p.set.isClosing() {
			return fmt.Errorf("hyperd ends: %w", errdefs.ErrUnavailable)
		}
		if ok, err := done(o, kept); ok || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-p.set.warm.ctx.Done():
		}
	}
}
