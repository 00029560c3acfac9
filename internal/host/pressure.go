package host

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Memory is low when what is available falls below twice the reserve, or
// below four times when processes wait for memory at the same time; no longer
// when it is above that. Waiting alone does not count: a process that is at the
// limit of its own cgroup waits on a host with plenty.
const (
	lowReserves  = 2
	safeReserves = 4
)

// trigger asks for an event when processes waited for memory for 200 ms of
// 2 s (kernel: accounting/psi.rst). Shorter windows need CAP_SYS_RESOURCE.
const trigger = "some 200000 2000000\x00"

// calm is how long no event came before memory is looked at again.
const calm = 10 * time.Second

// judgeLocked decides whether memory is low, given what is available and
// whether processes wait for it.
func (m *Memory) judgeLocked(available int64, waiting bool) {
	low := m.low
	switch {
	case available < lowReserves*m.reserve || waiting && available < safeReserves*m.reserve:
		low = true
	case available >= safeReserves*m.reserve:
		low = false
	}
	if low != m.low {
		m.low = low
		if m.wake != nil {
			m.wake()
		}
	}
}

// Watch calls tell with true when memory gets low and with false when it no longer is, one call
// at a time, until ctx is done; then it returns nil. The kernel says when
// processes wait for memory; besides, and on kernels that don't (psi=0),
// each Admit looks. To be called once at a time. The error is that of a host
// without descriptors.
func (m *Memory) Watch(ctx context.Context, tell func(low bool)) error {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch memory: %w", err)
	}
	defer unix.Close(wake)
	poke := func() { _, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }
	m.mu.Lock()
	m.wake = poke
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.wake = nil
		m.mu.Unlock()
	}()
	// The one that runs must have ended before the descriptor is closed.
	poked := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { poke(); close(poked) })
	defer func() {
		if !stop() {
			<-poked
		}
	}()

	fds := []unix.PollFd{{Fd: int32(wake), Events: unix.POLLIN}, {Fd: -1}} // poll skips -1
	if psi, err := m.openTrigger(); err == nil {
		defer unix.Close(psi)
		fds[1] = unix.PollFd{Fd: int32(psi), Events: unix.POLLPRI}
	}
	told := false
	for ctx.Err() == nil {
		told = m.tell(told, tell)
		if err := m.await(fds, told); err != nil {
			return fmt.Errorf("watch memory: %w", err)
		}
	}
	return nil
}

// tell reports a change since the last time.
func (m *Memory) tell(told bool, tell func(low bool)) bool {
	m.mu.Lock()
	low := m.low
	m.mu.Unlock()
	if low != told {
		tell(low)
	}
	return low
}

// await returns when something may have changed. While memory is low that
// is also when no event comes for a time: of better times there is none.
func (m *Memory) await(fds []unix.PollFd, low bool) error {
	timeout := -1
	if low {
		timeout = int(calm.Milliseconds())
	}
	n, err := unix.Poll(fds, timeout)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	if fds[0].Revents != 0 {
		var b [8]byte
		_, _ = unix.Read(int(fds[0].Fd), b[:])
	}
	waiting := fds[1].Revents&unix.POLLPRI != 0
	if fds[1].Revents&unix.POLLERR != 0 {
		fds[1].Fd = -1 // the trigger is gone
	}
	if err != nil || !waiting && n > 0 {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if available, err := m.available(); err == nil {
		m.judgeLocked(available-m.pending, waiting)
	}
	return nil
}

// openTrigger has the kernel watch; the runtime's poller would not wait for POLLPRI.
func (m *Memory) openTrigger() (int, error) {
	fd, err := unix.Open(filepath.Join(m.proc, "pressure/memory"), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if _, err := unix.Write(fd, []byte(trigger)); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
