package guestinit

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guestinit/cgroup"
)

// A stage is where a container is put together: its cgroup, and a thread in a
// mount namespace of its own, where workDir is a tmpfs. Nothing in it depends
// on the container, so that a template has one ready for its clones.
type stage struct {
	machine *machine
	group   *cgroup.Group
	memory  *memoryWatch
	space   space
	ready   fittings
	todo    chan func() // one function for the thread, which ends after it
}

// spareGroup is the cgroup of the stage that is ready: no container's id.
const spareGroup = "~spare"

// newStage makes a stage, with what the container of ordinary, nil for none,
// asks for.
func newStage(m *machine, name string, ordinary *specs.Spec) (*stage, error) {
	group, err := m.cgroups.Create(name)
	if err != nil {
		return nil, err
	}
	s := &stage{machine: m, group: group, todo: make(chan func())}
	if s.memory, err = m.memory.add(group); err != nil {
		s.release()
		return nil, err
	}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock
		err := s.set()
		if err == nil && ordinary != nil {
			err = s.fit(ordinary)
		}
		made <- err
		if f := <-s.todo; f != nil {
			f()
		}
	}()
	if err := <-made; err != nil {
		s.release()
		return nil, err
	}
	return s, nil
}

// set makes this thread's namespace. What later is mounted outside of it is
// not seen there.
func (s *stage) set() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	syscall.Umask(0)
	f, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return err
	}
	s.space = space{"mount", unix.CLONE_NEWNS, f}
	if err := unix.Mount("tmpfs", workDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return fmt.Errorf("mount %s: %w", workDir, err)
	}
	// Short relative names: mount(2) takes no more than a page of options.
	return os.Chdir(workDir)
}

// do runs f on the stage's thread, once.
func (s *stage) do(f func() error) error {
	done := make(chan error)
	s.todo <- func() { done <- f() }
	s.todo = nil
	return <-done
}

// release gives everything back that no container has taken.
func (s *stage) release() error {
	if s.todo != nil {
		close(s.todo)
	}
	if s.space.f != nil {
		s.space.f.Close()
	}
	if s.memory != nil {
		s.machine.memory.remove(s.memory)
	}
	return s.group.Remove()
}

// setStage has a stage ready for the next container.
func (s *Service) setStage(ordinary *specs.Spec) error {
	s.mu.Lock()
	old := s.spare
	s.spare = nil
	s.mu.Unlock()
	if old != nil {
		if err := old.release(); err != nil {
			return err
		}
	}
	spare, err := newStage(s.machine, spareGroup, ordinary)
	s.mu.Lock()
	s.spare = spare
	s.mu.Unlock()
	return err
}

// stage returns a stage for a container: the one that is ready, or a new one.
func (s *Service) stage(id string) (*stage, error) {
	s.mu.Lock()
	ready := s.spare
	s.spare = nil
	s.mu.Unlock()
	if ready != nil {
		return ready, nil
	}
	return newStage(s.machine, id, nil)
}
