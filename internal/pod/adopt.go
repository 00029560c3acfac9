package pod

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
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
	pods, err := store.Load[podRecord](s.cfg.Store, bucketPods)
	if err != nil {
		return err
	}
	for _, rec := range pods {
		s.knowPod(rec)
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
	s.settlePods(ctx)
	s.mu.Lock()
	s.settled = true
	s.mu.Unlock()
	return errors.Join(s.sweep(ctx, vms), s.sweepGroups())
}

func (s *Set) newContainer(rec record) *container {
	return &container{set: s, id: rec.ID, podID: rec.PodID, pod: s.newPod(rec.PodID), rec: rec, started: make(chan struct{}), out: [2]*fanout{{}, {}}}
}

func (s *Set) know(rec record) {
	c := s.newContainer(rec)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[rec.ID] = c
	s.names[rec.Name] = rec.ID
	c.pod = s.podLocked(rec.PodID)
}

func (s *Set) knowPod(rec podRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.podLocked(rec.ID).rec = rec
	s.podNames[rec.Name] = rec.ID
}

func (s *Set) restoreNetwork(ctx context.Context, vms map[string]vmRecord) error {
	if s.cfg.Network == nil {
		return nil
	}
	var inUse []network.Attachment
	kept := map[string]bool{} // by the ID it was made for
	s.mu.Lock()
	for _, p := range s.pods {
		if a := p.record().Attachment; a != nil && !p.record().Half {
			kept[a.PodID] = true
			inUse = append(inUse, *a)
		}
	}
	s.mu.Unlock()
	for _, rec := range vms {
		if rec.Attachment != nil && !kept[rec.Attachment.PodID] {
			inUse = append(inUse, *rec.Attachment)
		}
	}
	return s.cfg.Network.Restore(ctx, inUse)
}

// adoptVM takes over the VM of a record, or gives back what is left of it.
func (s *Set) adoptVM(ctx context.Context, rec vmRecord, execs map[string]execRecord) error {
	s.mu.Lock()
	p := s.pods[rec.PodID]
	s.mu.Unlock()
	vm, err := s.adopted(ctx, rec)
	if err != nil {
		return err
	}
	var running []*container
	for _, c := range s.members(rec.PodID) {
		rr, ok := rec.Containers[c.id]
		switch {
		case !ok || rr.PID == 0: // not in it, or never started
		case vm == nil || rr.Ended != nil:
			if !c.rec.FinishedAt.After(rr.StartedAt) {
				c.lost(rr)
			}
		default:
			running = append(running, c)
		}
	}
	if p == nil || vm == nil || p.rec.Half || len(running) == 0 && !(p.explicit() && p.rec.Wanted && rec.Begun) {
		return s.reclaim(ctx, rec, vm)
	}
	m := newMachine(s, rec, vm)
	p.op.Lock()
	defer p.op.Unlock()
	p.setMachine(m)
	if p.explicit() {
		p.adopted(m)
	}
	if err := s.adoptContainers(ctx, p, m, running, execs); err != nil {
		p.destroyMachine(ctx)
		return err
	}
	return nil
}

// adopted makes an adopted VM that of a pod that was made as such. Precondition: p.op is held.
func (p *pod) adopted(m *machine) {
	p.mu.Lock()
	news := p.rec.Attachment == nil && m.rec.Attachment != nil
	p.rec.Attachment, p.rec.End = m.rec.Attachment, End{}
	p.mu.Unlock()
	if news { // hyperd was killed before it could be recorded
		if err := p.save(); err != nil {
			p.set.log.Error("record addresses of pod", "pod", p.id, "err", err)
		}
	}
	p.set.background.Go(func() { p.watch(m) })
}

// adoptContainers goes on with what runs in an adopted VM and takes out what does not.
// Precondition: p.op is held.
func (s *Set) adoptContainers(ctx context.Context, p *pod, m *machine, running []*container, execs map[string]execRecord) error {
	users := map[string]bool{"": true}
	for _, c := range running { // nobody else knows of them yet
		if err := c.enter(m, nil, nil); err != nil {
			if len(running) == 1 && !p.explicit() {
				return err
			}
			s.log.Error("go on with a container", "container", c.id, "err", err)
			continue // it is taken out of the VM
		}
		users[c.id] = true
		for id, e := range execs {
			if e.ContainerID == c.id {
				c.adoptExec(id, e)
			}
		}
	}
	for _, v := range p.record().Spec.Volumes {
		users[volumeUser(v)] = true
	}
	stale := map[string]bool{}
	rec := m.record()
	for id := range rec.Containers {
		stale[id] = !users[id]
	}
	for _, sl := range rec.Slots {
		for _, u := range sl.Users {
			stale[u] = !users[u]
		}
	}
	for user, is := range stale {
		if is {
			s.background.Go(func() { p.evict(m, user) })
		}
	}
	return nil
}

// evict takes a container out of a VM that a hyperd was killed over starting
// or ending it.
func (p *pod) evict(m *machine, id string) {
	p.set.mu.Lock()
	c := p.set.containers[id]
	p.set.mu.Unlock()
	if c != nil {
		c.op.Lock()
		defer c.op.Unlock()
		if _, err := c.running(); err == nil {
			return // somebody has started it, and has done this before
		}
	}
	if err := p.letGo(m.ctx, m, id); err != nil && m.ctx.Err() == nil {
		p.set.log.Error("take what is left of a container out of its VM", "container", id, "err", err)
	}
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
	starts := c.pod.record().Starts
	c.mu.Lock()
	c.rec.Tried = starts
	c.rec.Status, c.rec.StartedAt = StatusExited, rr.StartedAt
	c.rec.End = End{Cause: CauseHost, ExitCode: 255, Error: "the virtual machine ended while hyperd was not running", FinishedAt: time.Now()}
	if e := rr.Ended; e != nil {
		c.rec.End = *e
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
		starts := c.pod.record().Starts
		c.mu.Lock()
		stale := c.run == nil
		changed := stale && (c.rec.Status == StatusRunning || c.rec.Status == StatusPaused)
		if changed {
			c.rec.Status, c.rec.Tried = StatusExited, starts
			c.rec.End = End{Cause: CauseHost, ExitCode: 255, Error: "the host went down while it ran", FinishedAt: time.Now()}
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

// settlePods records the end of pods that had a VM and have none, and removes those that a hyperd
// was killed over making or removing, or of which all is gone that they were there for.
func (s *Set) settlePods(ctx context.Context) {
	s.mu.Lock()
	pods := slices.Collect(maps.Values(s.pods))
	s.mu.Unlock()
	for _, p := range pods {
		rec := p.record()
		if rec.Name == "" || p.running() != nil {
			continue
		}
		empty := rec.Spec.AutoRemove && !rec.StartedAt.IsZero() && len(s.members(p.id)) == 0
		switch {
		case rec.Half || empty:
			if !p.tryClose(beingRemoved) {
				continue // its last container has just gone
			}
			if err := p.unmake(ctx); err != nil {
				s.log.Error("remove what is left of a pod", "pod", p.id, "err", err)
			}
			p.open()
		case !rec.StartedAt.IsZero() && rec.FinishedAt.IsZero():
			p.lost()
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
	for id := range s.pods {
		keep[s.cfg.Layout.PodDisks(id)] = true
	}
	s.mu.Unlock()
	sweeper, _ := s.cfg.Driver.(vmm.Sweeper)
	for _, dir := range []string{s.cfg.Layout.Pods(), s.cfg.Layout.Containers(), s.cfg.Layout.AllPodDisks()} {
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
