package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"

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
	if r, err := c.running(); err == nil {
		ctx, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		if err := r.updatePod(ctx, old, sp.Resources); err != nil {
			return fmt.Errorf("update container %s: %w", c.name(), err)
		}
		if err := r.update(ctx, sp.Resources); err != nil {
			return err
		}
	}
	c.mu.Lock()
	c.rec.Spec.Resources = sp.Resources
	c.mu.Unlock()
	if err := c.save(); err != nil {
		return err
	}
	s.publish(c, "update")
	return nil
}

// updatePod changes what the pod may use, in the guest and of the host, if that
// changes. Of the host's memory it is never less than before: what the guest
// gives back arrives later, and the VM must not be ended for that.
func (r *run) updatePod(ctx context.Context, old, res Resources) error {
	if old.MemoryBytes == res.MemoryBytes && old.NanoCPUs == res.NanoCPUs && quota(old) == quota(res) {
		return nil
	}
	s, info := r.c.set, r.vm.rec.Info
	memory, cpus := s.podMemory(res), s.podCPUs(res)
	if why := info.fits(memory, cpus); why != "" {
		return fmt.Errorf("%s; stop it to give it more: %w", why, conflict)
	}
	l := hostLimits(max(memory, s.podMemory(old)), info.MemMiB, quota(res))
	if err := s.cfg.Groups.Update(r.vm.rec.ID, l); err != nil {
		return err
	}
	g, err := r.vm.guest(ctx)
	if err == nil {
		_, err = g.Configure(ctx, &wire.ConfigureRequest{MemoryMaxBytes: uint64(memory), Cpus: uint32(cpus)})
	}
	if err != nil {
		return fmt.Errorf("limits of the pod: %w", err)
	}
	return nil
}

func (r *run) update(ctx context.Context, res Resources) error {
	data, err := json.Marshal(resources(res))
	if err != nil {
		return err
	}
	g, err := r.vm.guest(ctx)
	if err != nil {
		return err
	}
	if _, err := g.Update(ctx, &wire.UpdateRequest{ContainerId: r.c.id, Resources: data}); err != nil {
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
	return base
}

func pick[T comparable](to *T, v T) {
	var zero T
	if v != zero {
		*to = v
	}
}
