package guestinit

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/cgroup"
)

// A broadcaster hands events to those who listen. One who does not keep up
// loses the oldest.
type broadcaster struct {
	mu        sync.Mutex
	listeners map[chan *wire.Event]bool
}

func (b *broadcaster) send(e *wire.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for l := range b.listeners {
		for sent := false; !sent; {
			select {
			case l <- e:
				sent = true
			default:
				select {
				case <-l:
				default:
				}
			}
		}
	}
}

func (b *broadcaster) listen() (chan *wire.Event, func()) {
	l := make(chan *wire.Event, 64)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.listeners == nil {
		b.listeners = map[chan *wire.Event]bool{}
	}
	b.listeners[l] = true
	return l, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.listeners, l)
	}
}

// Events implements wire.GuestService.
func (s *Service) Events(ctx context.Context, _ *wire.EventsRequest, out wire.Guest_EventsServer) error {
	l, stop := s.events.listen()
	defer stop()
	for {
		select {
		case e := <-l:
			if err := out.Send(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A memoryWatch, once started, calls back when the kernel kills a process of
// a group for memory (cgroup-v2.rst, memory.events).
type memoryWatch struct {
	group   *cgroup.Group
	inotify *os.File
}

func watchMemory(g *cgroup.Group) (*memoryWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch memory: %w", err)
	}
	w := &memoryWatch{group: g, inotify: os.NewFile(uintptr(fd), "inotify")}
	_, err = unix.InotifyAddWatch(fd, filepath.Join(g.Dir(), "memory.events"), unix.IN_MODIFY)
	if err != nil && err != syscall.ENOENT { // a kernel without the controller
		w.inotify.Close()
		return nil, fmt.Errorf("watch memory: %w", err)
	}
	return w, nil
}

func (w *memoryWatch) start(killed func()) { go w.run(killed) }

func (w *memoryWatch) run(killed func()) {
	buf := make([]byte, 256)
	seen := uint64(0) // the group is new
	for {
		if _, err := w.inotify.Read(buf); err != nil {
			return
		}
		for n := w.kills(); seen < n; seen++ {
			killed()
		}
	}
}

// kills is how many processes of the group were killed for memory so far.
func (w *memoryWatch) kills() uint64 { return w.group.Keyed("memory.events")["oom_kill"] }

func (w *memoryWatch) close() { w.inotify.Close() }
