package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/logs"
)

// inGuest calls f with the guest of a running container.
func (s *Set) inGuest(ctx context.Context, ref string, f func(g *guest.Client, id string) error) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	r, err := c.running()
	if err != nil {
		return err
	}
	g, err := r.vm.guest(ctx)
	if err != nil {
		return err
	}
	return f(g, c.id)
}

// Stats reads a running container's counters from the guest.
func (s *Set) Stats(ctx context.Context, ref string) (st *wire.StatsResponse, err error) {
	err = s.inGuest(ctx, ref, func(g *guest.Client, id string) (err error) {
		st, err = g.Stats(ctx, &wire.StatsRequest{ContainerId: id})
		return err
	})
	return st, err
}

// Processes lists a running container's processes.
func (s *Set) Processes(ctx context.Context, ref string) (ps []*wire.Process, err error) {
	err = s.inGuest(ctx, ref, func(g *guest.Client, id string) error {
		resp, err := g.Processes(ctx, &wire.ProcessesRequest{ContainerId: id})
		ps = resp.GetProcesses()
		return err
	})
	return ps, err
}

// Logs yields what a container printed, and says whether it has a terminal.
func (s *Set) Logs(ctx context.Context, ref string, o logs.ReadOptions) (iter.Seq2[logs.Record, error], bool, error) {
	c, err := s.find(ref)
	if err != nil {
		return nil, false, err
	}
	sp := c.view().Spec
	if sp.Log.Driver == "none" {
		return nil, false, textError{"configured logging driver does not support reading", errdefs.ErrNotImplemented}
	}
	var log *logs.Log
	if r, err := c.running(); err == nil {
		log, o.Done = r.log, r.ended
	}
	return logs.Read(ctx, s.cfg.Layout.ContainerLogs(c.id), log, o), sp.TTY, nil
}

// Resize sets the window size of a container's terminal.
func (s *Set) Resize(ctx context.Context, ref string, height, width uint) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	r, err := c.running()
	if err != nil {
		return err
	}
	return r.resize(ctx, "", height, width)
}

func (r *run) resize(ctx context.Context, execID string, height, width uint) error {
	g, err := r.vm.guest(ctx)
	if err != nil {
		return err
	}
	_, err = g.Resize(ctx, &wire.ResizeRequest{
		ContainerId: r.c.id, ExecId: execID, Height: uint32(min(height, 1<<16-1)), Width: uint32(min(width, 1<<16-1)),
	})
	return err
}

// Update changes a container's limits, at once when it runs.
func (s *Set) Update(ctx context.Context, ref string, res Resources) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	sp := c.spec()
	old := sp.Resources
	sp.Resources = merge(old, res)
	if err := s.check(sp); err != nil {
		return err
	}
	set := func(r Resources) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.rec.Spec.Resources = r
	}
	if r, err := c.running(); err == nil {
		p := c.pod
		p.op.Lock()
		defer p.op.Unlock()
		set(sp.Resources)
		if err := r.update(ctx, p, old, sp.Resources); err != nil {
			set(old)
			return fmt.Errorf("update container %s: %w", c.name(), err)
		}
	}
	set(sp.Resources)
	if err := c.save(); err != nil {
		return err
	}
	s.publish(c, "update")
	return nil
}

// SetRestart changes a container's restart policy.
func (s *Set) SetRestart(_ context.Context, ref string, policy RestartPolicy) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	sp := c.spec()
	sp.Restart = policy
	if sp.AutoRemove && sp.keeps() {
		return textError{"a container that removes itself is not restarted", errdefs.ErrInvalidArgument}
	}
	starts := c.pod.record().Starts
	c.mu.Lock()
	if c.run == nil && !c.rec.Spec.keeps() { // it counts when somebody has started it
		c.rec.Stopped, c.rec.StoppedIn = true, starts
	}
	c.rec.Spec.Restart = policy
	c.mu.Unlock()
	if err := c.save(); err != nil {
		return err
	}
	c.pod.keep()
	s.publish(c, "update")
	return nil
}

// update changes limits in the guest, and those of the pod if these change too. What shrinks does so
// before the pod does, so that the pod's limit never hits its neighbours. Precondition: the pod's op is
// held, and the container's spec has them already.
func (r *run) update(ctx context.Context, p *pod, old, res Resources) error {
	own := func() error { return r.updateOwn(ctx, old, res) }
	steps := []func() error{own}
	if old.MemoryBytes != res.MemoryBytes || quota(old) != quota(res) {
		z := p.sizeWith(r.vm)
		if err := r.vm.fits(&z); err != nil {
			return err
		}
		steps = []func() error{func() error { return r.vm.resize(ctx, z) }, own}
		if res.MemoryBytes > 0 && (old.MemoryBytes == 0 || res.MemoryBytes < old.MemoryBytes) {
			slices.Reverse(steps)
		}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// updateOwn changes the limits of the container itself.
func (r *run) updateOwn(ctx context.Context, old, res Resources) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	data, err := json.Marshal(resources(res))
	if err != nil {
		return err
	}
	req := &wire.UpdateRequest{ContainerId: r.c.id, Resources: data}
	if old.IO != res.IO {
		req.Io = res.IO.wire()
	}
	g, err := r.vm.guest(ctx)
	if err != nil {
		return err
	}
	if _, err := g.Update(ctx, req); err != nil {
		return fmt.Errorf("update limits: %w", err)
	}
	return nil
}

// merge lets what is set in over replace what is in base.
func merge(base, over Resources) Resources {
	pick(&base.MemoryBytes, over.MemoryBytes)
	pick(&base.MemorySwapBytes, over.MemorySwapBytes)
	pick(&base.MemoryReservationBytes, over.MemoryReservationBytes)
	pick(&base.NanoCPUs, over.NanoCPUs)
	pick(&base.CPUShares, over.CPUShares)
	pick(&base.CPUPeriodUs, over.CPUPeriodUs)
	pick(&base.CPUQuotaUs, over.CPUQuotaUs)
	pick(&base.CPUSet, over.CPUSet)
	pick(&base.PIDs, over.PIDs)
	pick(&base.IO, over.IO)
	return base
}

func pick[T comparable](to *T, v T) {
	var zero T
	if v != zero {
		*to = v
	}
}
