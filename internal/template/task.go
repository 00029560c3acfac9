package template

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/vmm"
)

// startLocked begins to load e, or to make it, unless the Store is closed.
func (s *Store) startLocked(e *entry, shape Shape) {
	ctx, cancel := context.WithCancelCause(s.ctx)
	t := &task{cancel: cancel, loaded: make(chan struct{}), done: make(chan struct{})}
	e.task = t
	if e.ready == nil {
		e.info.Error = ""
		e.info.Status = StatusMaking
		if e.kept {
			e.info.Status = StatusLoading
		}
	}
	if !e.kept {
		close(t.loaded)
	}
	load := e.kept
	s.tasks.Go(func() {
		defer cancel(nil)
		s.run(ctx, e, shape, load)
	})
}

// run does the task of e.
func (s *Store) run(ctx context.Context, e *entry, shape Shape, load bool) {
	if load {
		err := s.load(ctx, e)
		if err == nil {
			return
		}
		if ctx.Err() != nil || isShort(err) {
			s.fail(e, fmt.Errorf("load template %s: %w", e.id, because(ctx, err)))
			return
		}
		s.cfg.Log.Warn("template is no good, make it anew", "id", e.id, "err", err)
		s.mu.Lock()
		s.warn(s.throwAwayLocked(e))
		if e.ready == nil {
			e.info.Status = StatusMaking
		}
		close(e.task.loaded)
		s.mu.Unlock()
	}
	if err := s.create(ctx, e, shape); err != nil {
		s.fail(e, fmt.Errorf("make template %s: %w", e.id, because(ctx, err)))
	}
}

// isShort tells that the host lacks memory, which no other template changes.
func isShort(err error) bool {
	return errdefs.IsResourceExhausted(err) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM)
}

// load makes e ready with its files.
func (s *Store) load(ctx context.Context, e *entry) error {
	m, saved, err := s.read(ctx, s.dir(e.id), e.key)
	if err != nil {
		return err
	}
	s.publish(e, m, saved)
	return nil
}

// create makes e ready by booting a VM, and keeps it in files if it can.
func (s *Store) create(ctx context.Context, e *entry, shape Shape) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	begin := time.Now()
	saved, handle, err := s.make(ctx, shape, e.id)
	if err != nil {
		return err
	}
	now, err := s.key(ctx, shape)
	if err == nil && now != e.key {
		err = errors.New("the kernel, the initrd or the VMM was replaced meanwhile")
	}
	if err != nil {
		closeSaved(saved)
		return err
	}
	m := manifest{Key: e.key, Shape: shape, Machine: handle.Machine, Created: time.Now().UTC(), MakeTime: time.Since(begin).Seconds()}
	m, err = s.keep(ctx, e, m, &saved)
	s.mu.Lock()
	e.kept = err == nil
	s.mu.Unlock()
	if ctx.Err() != nil {
		closeSaved(saved)
		return context.Cause(ctx)
	}
	if err != nil {
		s.cfg.Log.Warn("template lasts only as long as hyperd", "id", e.id, "err", err)
	}
	s.mu.Lock()
	e.info.Error = ""
	if err != nil {
		e.info.Error = "not kept on disk: " + brief(err)
	}
	s.dropStaleLocked(e)
	s.mu.Unlock()
	s.publish(e, m, saved)
	return nil
}

// keep writes the files of e, and puts a device in the place of the memory in saved.
func (s *Store) keep(ctx context.Context, e *entry, m manifest, saved *vmm.Saved) (manifest, error) {
	dir := s.dir(e.id)
	m, err := write(ctx, dir, filepath.Join(s.cfg.Dir, e.id+".new"), m, *saved)
	if err != nil {
		return m, err
	}
	dev, err := s.device(ctx, filepath.Join(dir, memoryName), m.Memory)
	if err != nil {
		return m, errors.Join(err, os.RemoveAll(dir))
	}
	if dev != nil {
		saved.Memory.Close()
		saved.Memory = dev
	}
	return m, nil
}

// publish makes e ready and ends its task.
func (s *Store) publish(e *entry, m manifest, saved vmm.Saved) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.endLocked(e, nil)
	if s.closed {
		closeSaved(saved)
		return
	}
	s.dropLocked(e)
	e.ready = &Template{
		ID: e.id, Shape: m.Shape, saved: saved, machine: m.Machine, accel: e.key.Accel, created: m.Created, clones: &e.clones,
	}
	if isDevice(saved.Memory) {
		e.ready.cached = m.Memory.Used
	}
	e.fresh, e.failures = occupied(saved.Memory), 0
	e.info.Status, e.info.Shape, e.info.Created, e.info.MakeTime = StatusReady, m.Shape, m.Created, m.MakeTime
	if s.cfg.Unused > 0 {
		t := e.ready
		e.unused = time.AfterFunc(s.cfg.Unused, func() { s.dropUnused(e, t) })
	}
}

// dropUnused drops e from memory, and forgets it when it has no files.
func (s *Store) dropUnused(e *entry, t *Template) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.ready != t || time.Since(e.info.LastUsed) < s.cfg.Unused {
		return
	}
	if e.task != nil { // it is being loaded anew
		e.unused.Reset(s.cfg.Unused)
		return
	}
	s.cfg.Log.Info("drop template from memory: nothing was cloned of it lately", "id", e.id)
	s.dropLocked(e)
	if !e.kept {
		delete(s.entries, e.id)
	}
}

// dropStaleLocked forgets the templates that e, which is new, takes the place
// of: of the same shape, but of an earlier kernel, hyperstart or VMM.
func (s *Store) dropStaleLocked(e *entry) {
	for _, old := range s.entries {
		a, b := old.info.Shape, e.info.Shape
		a.Initrd = b.Initrd // its name has its hash
		if old != e && old.task == nil && a == b {
			s.cfg.Log.Info("remove stale template", "id", old.id)
			s.warn(s.forgetLocked(old))
		}
	}
}

// fail ends the task of e. It may be tried again after a while.
func (s *Store) fail(e *entry, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.endLocked(e, err)
	if s.ctx.Err() != nil {
		return
	}
	s.cfg.Log.Warn("no template, virtual machines boot", "id", e.id, "err", err)
	e.failures++
	e.retry = time.Now().Add(backoff(e.failures))
	if e.ready == nil {
		e.info.Status, e.info.Error = StatusFailed, brief(err)
	}
}

func (s *Store) endLocked(e *entry, err error) {
	t := e.task
	t.err = err
	e.task = nil
	select {
	case <-t.loaded:
	default:
		close(t.loaded)
	}
	close(t.done)
}
