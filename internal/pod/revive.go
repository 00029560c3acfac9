package pod

import (
	"context"
	"maps"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/keep"
)

// Revive starts what is to run again after the host or hyperd was down: pods
// that persist and ran, and containers as their policies say. It returns at once.
func (s *Set) Revive() {
	s.mu.Lock()
	pods := slices.Collect(maps.Values(s.pods))
	s.mu.Unlock()
	for _, p := range pods {
		rec, runs := p.record(), p.running() != nil
		switch {
		case !p.explicit():
			p.reviveMembers()
			p.keep()
		case rec.Wanted && runs:
			p.keep()
		case rec.Wanted && rec.Spec.Persist:
			p.revive(func(ctx context.Context) error { return s.StartPod(ctx, p.id, false) })
		case rec.Wanted && p.reviveMembers():
			p.revive(p.bringBack)
		case rec.Wanted:
			if err := p.want(false); err != nil {
				s.log.Error("record pod", "pod", p.id, "err", err)
			}
		case runs: // a stop was under way
			p.revive(func(ctx context.Context) error { return s.StopPod(ctx, p.id, nil) })
		}
	}
}

// revive does what is to be done of a pod at the start of hyperd, in the background.
func (p *pod) revive(do func(context.Context) error) {
	s := p.set
	s.background.Go(func() {
		if err := do(s.warm.ctx); err != nil && s.warm.ctx.Err() == nil && !errdefs.IsNotModified(err) {
			s.log.Error("go on with a pod", "pod", p.id, "err", err)
		}
	})
}

// bringBack starts the pod's VM for those of its containers whose policies say so.
func (p *pod) bringBack(ctx context.Context) error {
	if err := p.ensureVM(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	p.keep()
	return nil
}

// reviveMembers says whether a container of the pod is to run by its policy, and has those run
// that were stopped, but shall not stay so.
func (p *pod) reviveMembers() (any bool) {
	rec := p.record()
	for _, c := range p.set.members(p.id) {
		k := c.kept(rec, false)
		if !c.spec().keeps() || k.State == keep.StateRunning || !keep.Revive(k) {
			continue
		}
		any = true
		c.mu.Lock()
		c.rec.Stopped = false
		c.mu.Unlock()
	}
	return any
}
