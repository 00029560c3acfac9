package pod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/vmm"
)

// want records whether the pod is to run.
func (p *pod) want(wanted bool) error {
	p.mu.Lock()
	p.rec.Wanted = wanted
	p.mu.Unlock()
	return p.save()
}

// StartPod implements Pods.
func (s *Set) StartPod(ctx context.Context, ref string, wait bool) error {
	p, err := s.findPod(ref)
	if err != nil {
		return err
	}
	if !p.explicit() {
		return s.eachMember(p, func(c *container) error { return s.Start(ctx, c.id) })
	}
	if err := p.startAll(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	if wait {
		return p.waitReady(ctx)
	}
	return p.waitTried(ctx)
}

// startAll starts the VM if it does not run, and has the keeper start the containers.
func (p *pod) startAll(ctx context.Context) error {
	if err := p.begin(); err != nil {
		return err
	}
	defer p.ended()
	p.set.warm.startBegins()
	defer p.set.warm.startEnds()
	p.op.Lock()
	defer p.op.Unlock()
	p.countStart(1)
	var err error
	if p.running() != nil {
		err = p.want(true)
	} else {
		err = p.startVM(ctx, p.set.newTrace(p.id, time.Now()))
	}
	if err != nil {
		p.countStart(-1)
		return errors.Join(err, p.save())
	}
	p.keep()
	return nil
}

func (p *pod) countStart(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rec.Starts += uint64(n)
}

// eachMember does f to every container of a pod, side by side.
func (s *Set) eachMember(p *pod, f func(c *container) error) error {
	var g errgroup.Group
	for _, c := range s.members(p.id) {
		g.Go(func() error { return f(c) })
	}
	return g.Wait()
}

// StopPod implements Pods.
func (s *Set) StopPod(ctx context.Context, ref string, timeout *int) error {
	p, err := s.findPod(ref)
	if err != nil {
		return err
	}
	if !p.explicit() {
		return s.stopMembers(ctx, p, timeout)
	}
	if err := p.close(ctx, beingStopped); err != nil {
		return err
	}
	defer p.open()
	// What has begun is finished, also when the client goes away.
	return p.stop(s.warm.ctx, timeout)
}

// stop ends all that runs in the pod, and its VM. Precondition: it is closed.
func (p *pod) stop(ctx context.Context, timeout *int) error {
	if err := p.idle(ctx); err != nil {
		return err
	}
	wanted, runs := p.record().Wanted, p.running() != nil
	if !wanted && !runs {
		return textError{"pod " + p.label() + " is already stopped", errdefs.ErrNotModified}
	}
	if err := p.want(false); err != nil || !runs {
		return err
	}
	if err := p.set.stopMembers(ctx, p, timeout); err != nil {
		return err
	}
	p.op.Lock()
	defer p.op.Unlock()
	p.mu.Lock()
	m := p.machine
	if m != nil {
		p.rec.End = End{Cause: CauseStopped, FinishedAt: time.Now()}
	}
	p.mu.Unlock()
	if m != nil {
		p.shutdown(ctx, m)
		p.destroyMachine(ctx)
	}
	p.set.publishPod(p, "stop")
	p.wake()
	return p.save()
}

// shutdown has the guest write back what the pod's volumes still hold.
func (p *pod) shutdown(ctx context.Context, m *machine) {
	if !slices.ContainsFunc(p.record().Spec.Volumes, func(v Volume) bool { return !v.Memory }) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, unmountTimeout)
	defer cancel()
	g, err := m.guest(ctx)
	if err == nil {
		_, err = g.Shutdown(ctx, &wire.ShutdownRequest{})
	}
	if err == nil {
		select {
		case <-m.vm.Done():
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		p.set.log.Warn("unmount the volumes of a pod", "pod", p.id, "err", err)
	}
}

// stopMembers stops a pod's containers: first mains, then sidecars, the last first.
func (s *Set) stopMembers(ctx context.Context, p *pod, timeout *int) error {
	members := s.members(p.id)
	var g errgroup.Group
	for _, c := range members {
		if c.spec().Role != RoleSidecar {
			g.Go(func() error { return s.stopMember(ctx, c, timeout) })
		}
	}
	errs := []error{g.Wait()}
	for _, c := range slices.Backward(members) {
		if c.spec().Role == RoleSidecar {
			errs = append(errs, s.stopMember(ctx, c, timeout))
		}
	}
	return errors.Join(errs...)
}

func (s *Set) stopMember(ctx context.Context, c *container, timeout *int) error {
	if err := s.Stop(ctx, c.id, "", timeout); err != nil && !errdefs.IsNotModified(err) && !errdefs.IsNotFound(err) {
		return fmt.Errorf("stop container %s: %w", c.name(), err)
	}
	return nil
}

// RestartPod implements Pods.
func (s *Set) RestartPod(ctx context.Context, ref string, timeout *int) error {
	if err := s.StopPod(ctx, ref, timeout); err != nil && !errdefs.IsNotModified(err) {
		return err
	}
	return s.StartPod(ctx, ref, false)
}

// KillPod implements Pods.
func (s *Set) KillPod(ctx context.Context, ref, signal string) error {
	if _, err := parseSignal(signal, unix.SIGKILL); err != nil {
		return err
	}
	any := false
	err := s.inPod(ref, func(c *container) error {
		any = true
		return s.Kill(ctx, c.id, signal)
	})
	if err == nil && !any {
		err = textError{"cannot kill pod: " + ref + ": no container of it runs", conflict}
	}
	return err
}

// PausePod implements Pods.
func (s *Set) PausePod(ctx context.Context, ref string) error {
	return s.inPod(ref, func(c *container) error {
		if c.view().Status == StatusPaused {
			return nil
		}
		return s.Pause(ctx, c.id)
	})
}

// ResumePod implements Pods.
func (s *Set) ResumePod(ctx context.Context, ref string) error {
	return s.inPod(ref, func(c *container) error {
		if c.view().Status != StatusPaused {
			return nil
		}
		return s.Resume(ctx, c.id)
	})
}

// inPod does f to all containers of a pod that run, one after the other.
func (s *Set) inPod(ref string, f func(c *container) error) error {
	p, err := s.findPod(ref)
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range s.members(p.id) {
		r, err := c.running()
		if err != nil {
			continue
		}
		if err := f(c); err != nil && !r.isEnded() {
			errs = append(errs, fmt.Errorf("container %s: %w", c.name(), err))
		}
	}
	return errors.Join(errs...)
}

// RemovePod implements Pods.
func (s *Set) RemovePod(ctx context.Context, ref string, force bool) error {
	p, err := s.findPod(ref)
	if err != nil {
		return err
	}
	if !p.explicit() {
		if err := p.removable(force); err != nil {
			return err
		}
		return s.eachMember(p, func(c *container) error { return s.removeMember(ctx, c, force) })
	}
	if force { // who stops it need not wait any longer
		if err := p.killVM(ctx); err != nil {
			return err
		}
	}
	if err := p.close(ctx, beingRemoved); err != nil {
		return err
	}
	defer p.open()
	return p.remove(context.WithoutCancel(ctx), force)
}

// removable says whether nothing of the pod runs, which force makes no difference to.
func (p *pod) removable(force bool) error {
	for _, c := range p.set.members(p.id) {
		if _, err := c.running(); (err == nil || c.isRestarting()) && !force {
			return textError{fmt.Sprintf("cannot remove pod \"%s\": container %s is %s: stop the pod before removing or force remove", p.label(), c.name(), c.view().Status), conflict}
		}
	}
	return nil
}

// remove removes the pod with its containers. Precondition: it is closed.
func (p *pod) remove(ctx context.Context, force bool) error {
	if err := p.idle(ctx); err != nil {
		return err
	}
	if err := p.removable(force); err != nil {
		return err
	}
	if err := p.killVM(ctx); err != nil {
		return err
	}
	if err := p.setHalf(true); err != nil {
		return err
	}
	err := p.set.eachMember(p, func(c *container) error { return p.set.removeMember(ctx, c, force) })
	if err == nil {
		err = p.unmake(ctx)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("remove pod %s: %w", p.label(), err), p.setHalf(false))
	}
	p.set.publishPod(p, "remove")
	p.wake()
	return nil
}

func (s *Set) removeMember(ctx context.Context, c *container, force bool) error {
	if err := s.Remove(ctx, c.id, force); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// setHalf records whether the pod is being made or removed: if hyperd is killed over it, what
// there is of it goes at the next start.
func (p *pod) setHalf(half bool) error {
	p.mu.Lock()
	p.rec.Half = half
	if half {
		p.rec.Wanted = false
	}
	p.mu.Unlock()
	return p.save()
}

// killVM ends the pod's VM at once, with all that runs in it: the guest is not asked.
func (p *pod) killVM(ctx context.Context) error {
	m := p.running()
	if m == nil {
		return nil
	}
	for _, c := range p.set.members(p.id) {
		if r, err := c.running(); err == nil && r.vm == m {
			r.end(CauseStopped, "its pod was removed")
		}
	}
	if err := m.vm.Kill(ctx); err != nil {
		return fmt.Errorf("end the virtual machine of pod %s: %w", p.label(), err)
	}
	return nil
}

// label is what to call the pod.
func (p *pod) label() string {
	if name := p.record().Name; name != "" {
		return name
	}
	return short(p.id)
}

// UpdatePod implements Pods.
func (s *Set) UpdatePod(ctx context.Context, ref string, res PodResources) error {
	p, err := s.findPod(ref)
	if err != nil {
		return err
	}
	if !p.explicit() {
		members := s.members(p.id)
		if len(members) != 1 {
			return textError{"the pod was made for a container: update its containers", errdefs.ErrInvalidArgument}
		}
		return s.Update(ctx, members[0].id, Resources{MemoryBytes: res.MemoryBytes, NanoCPUs: res.NanoCPUs})
	}
	if err := s.checkPodResources(res); err != nil {
		return err
	}
	p.op.Lock()
	defer p.op.Unlock()
	p.mu.Lock()
	old := p.rec.Spec.Resources
	pick(&p.rec.Spec.Resources.MemoryBytes, res.MemoryBytes)
	pick(&p.rec.Spec.Resources.NanoCPUs, res.NanoCPUs)
	p.mu.Unlock()
	if m := p.running(); m != nil {
		if err = m.resize(ctx, p.sizeWith(m)); err != nil {
			p.mu.Lock()
			p.rec.Spec.Resources = old
			p.mu.Unlock()
			return fmt.Errorf("update pod %s: %w", p.label(), err)
		}
	}
	s.publishPod(p, "update")
	return p.save()
}

// resize changes what the pod may use of its VM, in the guest and of the host. Of
// the host's memory it is never less than before: what the guest gives back
// arrives later, and the VM must not be ended for that. Precondition: the pod's op is held.
func (m *machine) resize(ctx context.Context, z size) error {
	if err := m.fits(&z); err != nil {
		return err
	}
	most, err := m.grow(z)
	if err != nil {
		return err
	}
	if err := m.set.cfg.Groups.Update(m.id(), most.onHost(m.info().MemMiB)); err != nil {
		return err
	}
	m.sizing(z, 0)
	if err := m.tell(ctx, z); err != nil {
		return fmt.Errorf("limits of the pod: %w", err)
	}
	return nil
}

// GetPod implements Pods.
func (s *Set) GetPod(ref string) (PodInfo, error) {
	p, err := s.findPod(ref)
	if err != nil {
		return PodInfo{}, err
	}
	return p.view(), nil
}

// ListPods implements Pods.
func (s *Set) ListPods() []PodInfo {
	s.mu.Lock()
	all := make([]*pod, 0, len(s.pods))
	for _, p := range s.pods {
		all = append(all, p)
	}
	s.mu.Unlock()
	views := make([]PodInfo, 0, len(all))
	for _, p := range all {
		views = append(views, p.view())
	}
	slices.SortFunc(views, func(a, b PodInfo) int { return b.Created.Compare(a.Created) })
	return views
}

func (p *pod) view() PodInfo {
	rec, m := p.record(), p.running()
	v := PodInfo{
		ID: p.id, Name: rec.Name, Created: rec.Created, Spec: rec.Spec, Status: PodExited, Ready: m != nil,
		Error: rec.text(), StartedAt: rec.StartedAt, FinishedAt: rec.FinishedAt,
	}
	running, paused, missing := 0, 0, 0
	for _, c := range p.set.members(p.id) {
		cv := c.view()
		v.Containers = append(v.Containers, cv)
		switch cv.Status {
		case StatusRunning:
			running++
		case StatusPaused:
			paused++
		default:
			if cv.Spec.Role == RoleMain && cv.Status != StatusCreated {
				missing++
			}
		}
		v.Ready = v.Ready && (cv.Ready || cv.Spec.Role == RoleInit && cv.Status == StatusExited)
		if rec.Name == "" && (v.Created.IsZero() || cv.Created.Before(v.Created)) {
			v.Created, v.StartedAt, v.FinishedAt = cv.Created, cv.StartedAt, cv.FinishedAt
		}
	}
	switch {
	case m == nil && v.StartedAt.IsZero():
		v.Status = PodCreated
	case m == nil:
	case paused > 0 && running == 0:
		v.Status = PodPaused
	case missing > 0:
		v.Status = PodDegraded
	default:
		v.Status = PodRunning
	}
	if m != nil {
		info := m.info()
		v.VM, v.Net = &info, networkInfo(m.attachment())
	}
	return v
}

// machineOf returns the VM of a pod that runs.
func (s *Set) machineOf(ref string) (*pod, *machine, error) {
	p, err := s.findPod(ref)
	if err != nil {
		return nil, nil, err
	}
	m := p.running()
	if m == nil {
		return nil, nil, textError{"pod " + p.label() + " is not running", conflict}
	}
	return p, m, nil
}

// PodStats implements Pods.
func (s *Set) PodStats(ctx context.Context, ref string) (*PodStats, error) {
	p, m, err := s.machineOf(ref)
	if err != nil {
		return nil, err
	}
	g, err := m.guest(ctx)
	if err != nil {
		return nil, err
	}
	st := &PodStats{Containers: map[string]*wire.StatsResponse{}}
	if st.Guest, err = g.Stats(ctx, &wire.StatsRequest{}); err != nil {
		return nil, err
	}
	if meter, ok := m.vm.(vmm.Meter); ok {
		if st.Host, err = meter.HostUsage(ctx); err != nil {
			return nil, err
		}
	}
	for _, c := range s.members(p.id) {
		if r, err := c.running(); err != nil || r.vm != m {
			continue
		}
		cs, err := g.Stats(ctx, &wire.StatsRequest{ContainerId: c.id})
		if err != nil {
			continue // it has just ended
		}
		st.Containers[c.id] = cs
	}
	return st, nil
}

// PodConsole implements Pods.
func (s *Set) PodConsole(ctx context.Context, ref string) ([]byte, error) {
	_, m, err := s.machineOf(ref)
	if err != nil {
		return nil, err
	}
	return m.vm.Console(ctx)
}
