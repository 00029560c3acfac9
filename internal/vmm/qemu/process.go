package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/vmm"
)

// process is a QEMU, our child or adopted, held by a pidfd: it is never
// mistaken for another one that got its number.
type process struct {
	pid   int
	pidfd *os.File    // non-blocking, so that waiting takes no thread
	child *os.Process // nil when adopted
}

func newProcess(pid, pidfd int, child *os.Process) (*process, error) {
	if err := unix.SetNonblock(pidfd, true); err != nil {
		unix.Close(pidfd)
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	return &process{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd"), child: child}, nil
}

// wait blocks until the process has ended, and reaps it when it is ours.
// status is like "signal: killed", "" when it cannot be known. An error means
// that the process was let go of meanwhile.
func (p *process) wait() (status string, err error) {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return "", err
	}
	// A pidfd becomes readable when its process ends (pidfd_open(2)).
	err = raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 && err == nil
	})
	if err != nil || p.child == nil {
		return "", err
	}
	state, err := p.child.Wait()
	if err != nil {
		return "", nil // reaped by someone else: ended all the same
	}
	return state.String(), nil
}

// kill sends SIGKILL. A process that has ended already is no error; os.ErrClosed is that of one
// that was let go of.
func (p *process) kill() error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var kerr error
	err = raw.Control(func(fd uintptr) { kerr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	switch {
	case err != nil:
		return os.ErrClosed // its only reason, which os does not give this kind
	case errors.Is(kerr, unix.ESRCH):
		return nil
	}
	return kerr
}

func (p *process) close() {
	p.pidfd.Close()
	if p.child != nil {
		_ = p.child.Release()
	}
}

// adoptProcess gets hold of the process that h describes.
func adoptProcess(h vmm.Handle) (*process, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if boot != h.BootID || h.PID <= 1 {
		return nil, vmm.ErrGone
	}
	fd, err := unix.PidfdOpen(h.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, vmm.ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd of process %d: %w", h.PID, err)
	}
	// What the start time is read of is the process that the pidfd holds,
	// or that one has ended.
	if start, err := startTime(h.PID); err != nil || start != h.StartTime {
		unix.Close(fd)
		return nil, vmm.ErrGone
	}
	return newProcess(h.PID, fd, nil)
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// statFields are the fields of /proc/PID/stat from the third on (proc(5)); the
// second, a name in parentheses, may hold anything.
func statFields(pid int) ([][]byte, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return fields, nil
}

// startTime is field 22 of stat. A zombie counts as ended.
func startTime(pid int) (uint64, error) {
	f, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	if state := f[0][0]; state == 'Z' || state == 'X' {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	return strconv.ParseUint(string(f[22-3]), 10, 64)
}

// cpuTime is user and system time, fields 14 and 15 in units of USER_HZ,
// which is 100 on every architecture there is.
func cpuTime(pid int) (time.Duration, error) {
	f, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	user, err := strconv.ParseInt(string(f[14-3]), 10, 64)
	system, err2 := strconv.ParseInt(string(f[15-3]), 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err, err2)
}

// pssBytes is the process's proportional set size.
func pssBytes(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(b, []byte("\nPss:"))
	fields := bytes.Fields(rest)
	if len(fields) == 0 {
		return 0, fmt.Errorf("/proc/%d/smaps_rollup has no Pss", pid)
	}
	kib, err := strconv.ParseUint(string(fields[0]), 10, 64)
	return kib << 10, err
}

// Sweep implements vmm.Sweeper: it finds QEMU by the name on its command line.
func (d *Driver) Sweep(ctx context.Context, id string) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || !isVM(pid, id) {
			continue
		}
		errs = append(errs, sweep(ctx, pid, id))
	}
	return errors.Join(errs...)
}

func sweep(ctx context.Context, pid int, id string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	p, err := newProcess(pid, fd, nil)
	if err != nil {
		return err
	}
	defer p.close()
	if !isVM(pid, id) { // it ended before it was held
		return nil
	}
	if err := p.kill(); err != nil {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	defer context.AfterFunc(ctx, p.close)()
	if _, err := p.wait(); err != nil {
		return fmt.Errorf("wait for process %d: %w", pid, errors.Join(err, context.Cause(ctx)))
	}
	return nil
}

// isVM reports whether process pid runs the VM named id: its command line
// begins as argv makes it.
func isVM(pid int, id string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := bytes.SplitN(b, []byte{0}, 4)
	return len(args) == 4 && bytes.Contains(args[0], []byte("qemu")) &&
		string(args[1]) == "-name" && string(args[2]) == processName(id)
}
