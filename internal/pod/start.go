package pod

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/logs"
	"github.com/hyper-run/hyper/internal/template"
)

// Start runs a container that does not run. The road:
//
//	1 plan      image layers, kernel, what VM that wants
//	2 machine   a warm one; or address, cgroup, and a clone of a
//	            template; or the same booted                       (undone by reclaim)
//	3 run       hyperstart is told who it is, mounts the root, starts the process, in
//	            one call; from here on finish ends the run
//
// Before 2 the VM's record is put, and again after each step that leaves
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
	if _, err := c.running(); err == nil {
		if c.view().Status == StatusPaused {
			return textError{"cannot start a paused container, try unpause instead", errdefs.ErrConflict}
		}
		return textError{"container " + c.id + " is already running", errdefs.ErrNotModified}
	}
	if c.isRemoved() {
		return notFound("No such container: " + ref)
	}
	s.warm.startBegins()
	defer s.warm.startEnds()
	// What has begun is finished or undone as a whole, also when the client goes away.
	ctx = context.WithoutCancel(ctx)
	if err := s.start(ctx, c, s.newTrace(c.id, begin)); err != nil {
		return c.startFailed(ctx, err)
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
	if c.reclaimed != nil {
		<-c.reclaimed
	}
	tr.stage("wait")
	p, err := s.plan(ctx, c)
	if err != nil {
		return err
	}
	tr.stage("plan")
	err = s.startIn(ctx, c, p, tr)
	var spoiled *spoiledError
	if !errors.As(err, &spoiled) {
		return err
	}
	// A template that does not make good clones costs this start some time, no more.
	s.log.Warn("boot instead of a clone", "container", c.id, "template", spoiled.t.ID, "err", spoiled.err)
	why, _, _ := strings.Cut(spoiled.err.Error(), "\n")
	p.cold = "its template did not work: " + why
	if c.reclaimed != nil {
		<-c.reclaimed
	}
	err = s.startIn(ctx, c, p, tr)
	if err == nil {
		s.cfg.Templates.Spoiled(spoiled.t, spoiled.err) // since it was not the host's fault
	}
	return err
}

// A spoiledError says that a clone never answered, though a VM that boots may.
type spoiledError struct {
	t   *template.Template
	err error
}

func (e *spoiledError) Error() string { return e.err.Error() }
func (e *spoiledError) Unwrap() error { return e.err }

// startIn starts the container in a VM as planned.
func (s *Set) startIn(ctx context.Context, c *container, p *plan, tr *trace) error {
	m, err := s.machineFor(ctx, c, p, tr)
	if err != nil {
		return err
	}
	m.trace = tr
	err = m.run(ctx, c, p, tr)
	if err == nil {
		err = c.enter(m, true)
	}
	if err == nil {
		tr.end(m.rec.Info.Road)
		return nil
	}
	c.reclaimed = m.destroy(ctx)
	return err
}

// enter makes the container running in m. fresh is false when it has been
// running and a new hyperd found it.
func (c *container) enter(m *machine, fresh bool) error {
	rr := m.rec.Containers[c.id]
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
	c.rec.ExitCode, c.rec.OOMKilled, c.rec.Error, c.rec.FinishedAt = 0, false, "", time.Time{}
	c.run = r
	close(c.started)
	c.mu.Unlock()
	r.begin()
	if c.set.isClosing() {
		m.release() // Close did not see this run any more
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
func (c *container) startFailed(ctx context.Context, err error) error {
	endSinks(append(c.out[0].take(), c.out[1].take()...))
	c.mu.Lock()
	c.rec.Error, c.rec.ExitCode = err.Error(), 128
	var ee *execError
	if errors.As(err, &ee) {
		c.rec.ExitCode = ee.code
	}
	remove := c.rec.Spec.AutoRemove
	if remove {
		c.notifyLocked(ExitStatus{Code: c.rec.ExitCode, Error: c.rec.Error}, WaitNextExit, WaitNotRunning)
	}
	c.mu.Unlock()
	if remove {
		return errors.Join(err, c.removeLocked(ctx))
	}
	return errors.Join(err, c.save())
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
