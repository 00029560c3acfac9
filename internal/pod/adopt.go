package pod

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/store"
	"github.com/hyper-run/hyper/internal/vmm"
)

// Adopt makes the Set what the stores and the host say: containers are known
// again, running VMs are taken over, half-made ones are undone, and what
// belongs to nobody is removed. Call it once, before anything else.
func (s *Set) Adopt(ctx context.Context) error {
	for _, st := range []*store.Store{s.cfg.Store, s.cfg.Runtime} {
		recs, err := store.Load[record](st, bucketContainers)
		if err != nil {
			return err
		}
		for _, rec := range recs {
			s.know(rec)
		}
	}
	vms, err := store.Load[vmRecord](s.cfg.Runtime, bucketVMs)
	if err != nil {
		return err
	}
	execs, err := store.Load[execRecord](s.cfg.Runtime, bucketExecs)
	if err != nil {
		return err
	}
	if err := s.restoreNetwork(ctx, vms); err != nil {
		s.log.Error("restore network", "err", err)
	}
	var g errgroup.Group
	for _, rec := range vms {
		g.Go(func() error {
			if err := s.adoptVM(ctx, rec, execs); err != nil {
				s.log.Error("adopt virtual machine", "vm", rec.ID, "err", err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	s.settleStale()
	return errors.Join(s.sweep(ctx, vms), s.sweepGroups())
}

func (s *Set) newContainer(rec record) *container {
	return &container{set: s, id: rec.ID, rec: rec, started: make(chan struct{}), out: [2]*fanout{{}, {}}}
}

func (s *Set) know(rec record) {
	c := s.newContainer(rec)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[rec.ID] = c
	s.names[rec.Name] = rec.ID
}

func (s *Set) restoreNetwork(ctx context.Context, vms map[string]vmRecord) error {
	if s.cfg.Network == nil {
		return nil
	}
	var inUse []network.Attachment
	for _, rec := range vms {
		if rec.Attachment != nil {
			inUse = append(inUse, *rec.Attachment)
		}
	}
	return s.cfg.Network.Restore(ctx, inUse)
}

// adoptVM takes over the VM of a record, or gives back what is left of it.
func (s *Set) adoptVM(ctx context.Context, rec vmRecord, execs map[string]execRecord) error {
	var c *container
	for id := range rec.Containers {
		s.mu.Lock()
		c = s.containers[id]
		s.mu.Unlock()
	}
	vm, err := s.adopted(ctx, rec)
	if err != nil {
		return err
	}
	if c == nil || vm == nil || rec.Containers[c.id].Ended != nil {
		// Nothing ran in it yet, or it is gone, or nothing runs in it any more.
		if c != nil && !c.rec.FinishedAt.After(rec.Containers[c.id].StartedAt) {
			c.lost(rec.Containers[c.id])
		}
		return s.reclaim(ctx, rec, vm)
	}
	m := newMachine(s, rec, vm)
	c.op.Lock()
	defer c.op.Unlock()
	if err := c.enter(m, false); err != nil {
		c.reclaimed = m.destroy(ctx)
		return err
	}
	for id, e := range execs {
		if e.ContainerID == c.id {
			c.adoptExec(id, e)
		}
	}
	return nil
}

// adopted returns the VM of a record, nil when it is gone.
func (s *Set) adopted(ctx context.Context, rec vmRecord) (vmm.VM, error) {
	if rec.Handle == nil {
		// hyperd died between starting the VMM and recording it, or before.
		if sw, ok := s.cfg.Driver.(vmm.Sweeper); ok {
			return nil, sw.Sweep(ctx, rec.ID)
		}
		return nil, nil
	}
	vm, err := s.cfg.Driver.Adopt(ctx, *rec.Handle)
	if errors.Is(err, vmm.ErrGone) {
		return nil, nil
	}
	if sw, ok := s.cfg.Driver.(vmm.Sweeper); err != nil && ctx.Err() == nil && ok {
		// Nobody could ever control it, and it holds the container's disk.
		s.log.Error("end a virtual machine that can't be adopted", "vm", rec.ID, "err", err)
		return nil, sw.Sweep(ctx, rec.ID)
	}
	return vm, err
}

// lost records that a container's VM ended while no hyperd was there to see.
func (c *container) lost(rr runRecord) {
	c.mu.Lock()
	c.rec.Status, c.rec.ExitCode, c.rec.StartedAt, c.rec.FinishedAt = StatusExited, 255, rr.StartedAt, time.Now()
	c.rec.Error = "the virtual machine ended while hyperd was not running"
	if e := rr.Ended; e != nil {
		c.rec.ExitCode, c.rec.OOMKilled, c.rec.FinishedAt, c.rec.Error = e.Code, e.OOM, e.At, ""
	}
	c.mu.Unlock()
	if err := c.save(); err != nil {
		c.set.log.Error("record exit", "container", c.id, "err", err)
	}
}

// adoptExec goes on draining an exec whose client is gone.
func (c *container) adoptExec(id string, rec execRecord) {
	r := c.run
	e := &exec{id: id, c: c, spec: rec.Spec, run: r, started: true, running: true, done: make(chan struct{})}
	c.set.mu.Lock()
	c.set.execs[id] = e
	c.set.mu.Unlock()
	r.mu.Lock()
	r.execs[id] = e
	r.mu.Unlock()
	c.set.background.Go(func() {
		if g, err := r.vm.guest(r.vm.ctx); err == nil {
			e.follow(g, nil)
		}
	})
}

// settleStale ends what the records call running but no VM carries: the host
// was rebooted, or crashed. Containers that remove themselves are removed.
func (s *Set) settleStale() {
	s.mu.Lock()
	all := s.allLocked()
	s.mu.Unlock()
	for _, c := range all {
		c.mu.Lock()
		stale := c.run == nil
		changed := stale && (c.rec.Status == StatusRunning || c.rec.Status == StatusPaused)
		if changed {
			c.rec.Status, c.rec.ExitCode, c.rec.FinishedAt = StatusExited, 255, time.Now()
			c.rec.Error = "the host went down while it ran"
		}
		if c.rec.Status == StatusRemoving {
			c.rec.Status, changed = StatusExited, true
		}
		remove := stale && c.rec.Spec.AutoRemove
		c.mu.Unlock()
		var err error
		if remove {
			c.op.Lock()
			err = c.removeLocked(context.Background())
			c.op.Unlock()
		} else if changed {
			err = c.save()
		}
		if err != nil {
			s.log.Error("settle container", "container", c.id, "err", err)
		}
	}
}

// sweep removes what belongs to no container and no pod: directories, and the
// VM of a pod's directory.
func (s *Set) sweep(ctx context.Context, vms map[string]vmRecord) error {
	keep := map[string]bool{}
	for _, rec := range vms {
		keep[s.cfg.Layout.Pod(rec.ID)] = true
	}
	s.mu.Lock()
	for id := range s.containers {
		keep[s.cfg.Layout.Container(id)] = true
	}
	s.mu.Unlock()
	sweeper, _ := s.cfg.Driver.(vmm.Sweeper)
	for _, dir := range []string{s.cfg.Layout.Pods(), s.cfg.Layout.Containers()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			p := filepath.Join(dir, e.Name())
			if keep[p] {
				continue
			}
			var err error
			if dir == s.cfg.Layout.Pods() && sweeper != nil {
				err = sweeper.Sweep(ctx, e.Name()) // a pod's directory has its VM's name
			}
			s.log.Warn("remove what belongs to nobody", "path", p, "err", errors.Join(err, os.RemoveAll(p)))
		}
	}
	return nil
}

// sweepGroups removes the cgroups of VMs that are gone.
func (s *Set) sweepGroups() error {
	vms, err := store.Load[vmRecord](s.cfg.Runtime, bucketVMs)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for id := range vms {
		keep[id] = true
	}
	return s.cfg.Groups.Sweep(keep)
}
