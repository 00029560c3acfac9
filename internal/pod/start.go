package pod

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/logs"
	"github.com/hyper-run/hyper/internal/vmm"
)

// Start runs a container that does not run. The road of one whose pod has no VM:
//
//	1 plan      image layers, kernel, what VM that wants
//	2 machine   a warm one; or address, cgroup, and a clone of a
//	            template; or the same booted                       (undone by reclaim)
//	3 run       hyperstart is told who it is, mounts the root, starts the process, in
//	            one call; from here on finish ends the run
//
// In a VM that runs, 2 is to put its disks into slots (undone by vacate), and 3
// tells what the pod may use from now on. Before 2 the VM's record is put, and again after each step that leaves
// something on the host; reclaim takes a record and gives all of it back.
// Error kinds: NotModified when it runs already.
func (s *Set) Start(ctx context.Context, ref string) error {
	begin := time.Now()
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.setAsked(true)
	defer c.setAsked(false)
	err = s.startLocked(ctx, c, begin)
	if err != nil && !errdefs.IsNotModified(err) {
		err = errors.Join(err, c.setStopped()) // who has asked knows of it: that is no case for its policy
	}
	return err
}

func (c *container) setAsked(asked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = asked
}

// startLocked is Start with c.op held.
func (s *Set) startLocked(ctx context.Context, c *container, begin time.Time) error {
	if _, err := c.running(); err == nil {
		if c.view().Status == StatusPaused {
			return textError{"cannot start a paused container, try unpause instead", errdefs.ErrConflict}
		}
		return textError{"container " + c.id + " is already running", errdefs.ErrNotModified}
	}
	if c.isRemoved() {
		return notFound("No such container: " + c.id)
	}
	s.warm.startBegins()
	defer s.warm.startEnds()
	// What has begun is finished or undone as a whole, also when the client goes away.
	ctx = context.WithoutCancel(ctx)
	tr := s.newTrace(c.id, begin)
	if err := s.start(ctx, c, tr); err != nil {
		return c.startFailed(ctx, err, tr)
	}
	s.publish(c, "start")
	return nil
}

func (c *container) isRemoved() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.removed || c.rec.Status == StatusRemoving
}

func (s *Set) start(ctx context.Context, c *container, tr *trace) error {
	p := c.pod
	if err := p.joinable(c); err != nil {
		return err
	}
	if err := p.begin(); err != nil {
		return err
	}
	defer p.ended()
	if err := p.letGoOf(ctx, c); err != nil {
		return fmt.Errorf("start container %s: %w", c.name(), err)
	}
	p.op.Lock()
	m := p.running()
	if m == nil && p.explicit() {
		if err := p.startVM(ctx, tr); err != nil {
			p.op.Unlock()
			return err
		}
		m = p.running()
	}
	if m != nil {
		return p.startNext(ctx, m, c, tr) // unlocks p.op
	}
	defer p.op.Unlock()
	switch id := c.spec().JoinNet; {
	case p.explicit():
		return fmt.Errorf("start container %s: the pod's virtual machine has just ended: %w", c.name(), errdefs.ErrUnavailable)
	case id != "":
		return notRunning(id)
	}
	return p.startFirst(ctx, c, tr)
}

func notRunning(id string) error {
	return textError{"cannot join network of a non running container: " + id, errdefs.ErrConflict}
}

// joinable says whether the container whose pod c joined is there.
func (p *pod) joinable(c *container) error {
	id := c.spec().JoinNet
	if id == "" {
		return nil
	}
	other, err := p.set.find(id)
	if err != nil {
		return err
	}
	if _, err := other.running(); err != nil {
		return notRunning(other.id)
	}
	return nil
}

// startFirst starts a container in a VM that is made for it. Precondition: p.op is held.
func (p *pod) startFirst(ctx context.Context, c *container, tr *trace) error {
	pl, err := p.plan(ctx, c, c)
	if err != nil {
		return err
	}
	tr.stage("plan")
	return p.inNewVM(ctx, pl, tr, func(m *machine) error {
		conf := m.configuration(pl.size)
		sp := c.spec()
		conf.Hostname, conf.Domainname, conf.ShmBytes = c.hostname(), sp.Domainname, uint64(max(sp.ShmBytes, 0))
		launched, err := m.run(ctx, c, conf, pl.first, tr)
		if err != nil {
			return err
		}
		return c.enter(m, launched, tr)
	})
}

// startNext starts a container in a VM that runs. Precondition: p.op is held; it is
// given up while the guest works, so that several start side by side.
func (p *pod) startNext(ctx context.Context, m *machine, c *container, tr *trace) error {
	z, n, err := p.makeRoom(ctx, m, c, tr)
	p.op.Unlock()
	if err != nil {
		return err
	}
	launched, err := m.run(ctx, c, z.conf(), n, tr)
	if err == nil {
		if err = c.enter(m, launched, tr); err != nil {
			launched.Close()
		}
	}
	if uerr := p.unifySize(ctx, m); uerr != nil {
		p.set.log.Error("limits of a pod", "pod", p.id, "err", uerr)
	}
	if err == nil {
		return nil
	}
	var spoiled *spoiledError
	if errors.As(err, &spoiled) {
		err = spoiled.err // the VM ran: its template was not the reason
	}
	return errors.Join(err, p.letGo(ctx, m, c.id))
}

// makeRoom has a VM take one more container: its memory, its disks. Precondition: p.op is held.
func (p *pod) makeRoom(ctx context.Context, m *machine, c *container, tr *trace) (size, *needs, error) {
	s := p.set
	z := p.sizeWith(m, c)
	info := m.info()
	if why := info.fit(&z); why != "" {
		return z, nil, fmt.Errorf("start container %s in its pod: %s, and its containers would have %d MiB and %d CPUs with it: %w",
			c.name(), why, z.limits/mib, z.cpus, errdefs.ErrResourceExhausted)
	}
	release, err := s.cfg.Memory.Admit(c.spec().Resources.MemoryReservationBytes)
	if err != nil {
		return z, nil, fmt.Errorf("start container %s in its pod: %w", c.name(), err)
	}
	defer release()
	n, err := c.needs(ctx)
	if err != nil {
		return z, nil, err
	}
	tr.stage("plan")
	if err := m.setRun(c.id, func(*runRecord) {}); err != nil {
		return z, nil, err
	}
	most, err := m.grow(z)
	if err == nil {
		err = s.cfg.Groups.Update(m.id(), most.onHost(info.MemMiB))
	}
	if err == nil {
		err = m.place(ctx, n)
	}
	tr.stage("fill")
	if err != nil { // the guest has never heard of it
		return z, nil, errors.Join(err, p.leave(ctx, m, c.id, true))
	}
	m.sizing(z, 1)
	return z, n, nil
}

// endWith ends the VM if it was there for containers only and that with the ID, which does not run
// any more, was the last, and says whether the VM is ended. Precondition: p.op is held.
func (p *pod) endWith(ctx context.Context, m *machine, id string) (ended bool) {
	p.mu.Lock()
	mine := p.machine == m
	p.mu.Unlock()
	if !mine || p.explicit() { // which watches its VM
		return !mine
	}
	for other, rr := range m.record().Containers {
		if other != id && !rr.Left {
			return false
		}
	}
	p.destroyMachine(ctx)
	return true
}

// leave takes a container that does not run any more out of the pod's VM, which goes on. clean says that
// the guest has let go of it; else its disks stay where they are. Precondition: p.op is held.
func (p *pod) leave(ctx context.Context, m *machine, id string, clean bool) error {
	if p.endWith(ctx, m, id) {
		return nil
	}
	var err error
	if !isClosed(m.vm.Done()) {
		if clean {
			err = m.vacate(ctx, id)
		}
		if !clean || err != nil {
			return errors.Join(err, m.setRun(id, func(rr *runRecord) { rr.Left = true }))
		}
	}
	return m.update(func(r *vmRecord) { delete(r.Containers, id) })
}

// letGo has the guest let go of a container that does not run, and then takes it out of the VM. The
// container's op is held, if there is one, but not the pod's: others need not wait for this guest.
func (p *pod) letGo(ctx context.Context, m *machine, id string) error {
	derr := m.deleteContainer(ctx, id, answerTimeout)
	p.op.Lock()
	defer p.op.Unlock()
	if derr != nil && !isClosed(m.vm.Done()) {
		derr = fmt.Errorf("the guest does not let go of it: %w", derr)
	} else {
		derr = nil
	}
	return errors.Join(derr, p.leave(ctx, m, id, derr == nil))
}

// letGoOf is letGo of what the pod's VM may still have of a container that does not run.
func (p *pod) letGoOf(ctx context.Context, c *container) error {
	m := p.running()
	if m == nil {
		return nil
	}
	if _, there := m.runRecord(c.id); !there {
		return nil
	}
	return p.letGo(ctx, m, c.id)
}

// deleteContainer has the guest let go of a container.
func (m *machine) deleteContainer(ctx context.Context, id string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	g, err := m.guest(ctx)
	if err != nil {
		return err
	}
	if _, err = g.DeleteContainer(ctx, &wire.DeleteContainerRequest{Id: id}); errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// enter makes the container running in m. tr is nil when it has been running
// and a new hyperd found it; launched too.
func (c *container) enter(m *machine, launched *guest.Process, tr *trace) error {
	fresh := tr != nil
	rr, _ := m.runRecord(c.id)
	log, err := logs.Open(c.set.cfg.Layout.ContainerLogs(c.id), logs.Options{
		Discard: c.spec().Log.Driver == "none", MaxBytes: c.spec().Log.MaxBytes, MaxFiles: c.spec().Log.MaxFiles,
	})
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if fresh {
		log.Rewind()
	}
	r := newRun(c, m, rr, log)
	r.launched, r.trace = launched, tr
	r.checks = newChecks(r, rr)
	starts := c.pod.record().Starts
	c.mu.Lock()
	if fresh {
		err = c.transitionLocked(StatusRunning)
	}
	if err != nil {
		c.mu.Unlock()
		return errors.Join(err, log.Close())
	}
	c.rec.Status, c.rec.StartedAt = StatusRunning, rr.StartedAt
	if rr.Paused {
		c.rec.Status = StatusPaused
	}
	c.rec.End, c.rec.Tried = End{}, starts
	if c.asked {
		c.rec.Stopped, c.rec.RestartCount, c.rec.Streak = false, 0, 0
	}
	c.run = r
	close(c.started)
	c.mu.Unlock()
	r.begin()
	if fresh {
		tr.end(m.info().Road)
	}
	if c.spec().keeps() || c.pod.explicit() {
		c.pod.keep()
	}
	if fresh && !c.spec().AutoRemove {
		// Only for what a host crash leaves behind: off the start's road.
		c.set.background.Go(func() {
			if err := c.save(); err != nil {
				c.set.log.Error("record start", "container", c.id, "err", err)
			}
		})
	}
	return nil
}

// startFailed leaves the container as it was, with the reason.
func (c *container) startFailed(ctx context.Context, err error, tr *trace) error {
	endSinks(append(c.out[0].take(), c.out[1].take()...))
	starts := c.pod.record().Starts
	var closed *closedError
	c.mu.Lock()
	if !errors.As(err, &closed) { // else it was not tried
		c.rec.End, c.rec.Tried = startEnd(err, tr), starts
	}
	remove := c.rec.Spec.AutoRemove
	if remove {
		c.notifyLocked(ExitStatus{Code: c.rec.ExitCode, Error: c.rec.text()}, WaitNextExit, WaitNotRunning)
	}
	c.mu.Unlock()
	if remove {
		return errors.Join(err, c.removeLocked(ctx))
	}
	return errors.Join(err, c.save())
}

// startEnd describes a start that failed.
func startEnd(err error, tr *trace) End {
	e := End{Cause: CauseStart, ExitCode: 128, Error: err.Error(), Stage: tr.failedAt(), FinishedAt: time.Now()}
	var se *vmm.StartError
	if errors.As(err, &se) {
		e.Error = strings.Replace(e.Error, se.Error(), se.Err.Error(), 1)
		e.Detail, e.Console = se.Tried, se.Console
		e.Stderr = vmm.LastLines([]byte(se.Stderr), vmm.ConsoleLines)
	}
	e.Error = oneLine(e.Error)
	var ee *execError
	if errors.As(err, &ee) {
		e.ExitCode = ee.code
	}
	return e
}

// An execError says that the program itself could not be run. Code is what a
// shell would exit with.
type execError struct {
	err  error
	code int
}

func (e *execError) Error() string { return e.err.Error() }

// Unwrap gives the kind that clients expect: the request was wrong.
func (e *execError) Unwrap() []error { return []error{e.err, errdefs.ErrInvalidArgument} }

// startError sorts out why a guest did not start a process.
func startError(arg0 string, err error) error {
	err = fmt.Errorf("start %q: %w", arg0, err)
	switch {
	case errdefs.IsNotFound(err):
		return &execError{errors.New(err.Error()), 127}
	case errdefs.IsPermissionDenied(err):
		return &execError{errors.New(err.Error()), 126}
	case errdefs.IsInvalidArgument(err):
		return &execError{errors.New(err.Error()), 126}
	}
	return err
}
