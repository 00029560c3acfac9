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
// on the container, so that a template has some ready for its clones.
type stage struct {
	machine *machine
	group   *cgroup.Group
	memory  *memoryWatch
	space   space
	ready   fittings
	todo    chan func() // one function for the thread, which ends after it
}

// spares is how many stages a template has. What no container of a clone takes
// costs it nothing, since it is shared with the template.
const spares = 4

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

// setStages has n stages ready for the next containers, and no others.
func (s *Service) setStages(n int, ordinary *specs.Spec) error {
	s.mu.Lock()
	old := s.spare
	s.spare, s.ordinary = nil, ordinary
	s.mu.Unlock()
	for _, st := range old {
		if err := st.release(); err != nil {
			return err
		}
	}
	for range n {
		if err := s.addStage(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) addStage() error {
	s.mu.Lock()
	s.stages++
	name := fmt.Sprintf("~spare%d", s.stages) // no container's id
	s.mu.Unlock()
	st, err := newStage(s.machine, name, s.ordinary)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.spare = append(s.spare, st)
	s.mu.Unlock()
	return nil
}

// restock has a stage ready where those of the template are used up. Without
// one the next container takes longer, so an error is none.
func (s *Service) restock() {
	s.restocking.Lock()
	defer s.restocking.Unlock()
	s.mu.Lock()
	wanted := len(s.spare) == 0
	s.mu.Unlock()
	if wanted && s.cloned.Load() {
		s.addStage() //nolint:errcheck // see above
	}
}

// stage returns a stage for a container: one that is ready, or a new one.
func (s *Service) stage(id string) (*stage, error) {
	s.mu.Lock()
	if n := len(s.spare); n > 0 {
		ready := s.spare[n-1]
		s.spare = s.spare[:n-1]
		s.mu.Unlock()
		return ready, nil
	}
	s.mu.Unlock()
	return newStage(s.machine, id, nil)
}
