package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How a clone gives memory back.
//
// A page that its guest reports as free, or puts into the balloon, QEMU gives
// back in two steps (ram_block_discard_range): it punches a hole into the
// file that the memory is of, then drops the page from its own mapping. For a
// clone the first is as wrong as can be, since the file is the template; the
// template's seal makes it fail, and QEMU then leaves out the second, which is
// the one that counts.
//
// So a clone's QEMU runs under a seccomp filter, which lets exactly this call
// succeed without being made: fallocate(2) of a hole, on the descriptor that QEMU
// opened for the memory. Its number is known beforehand: everything until
// then happens in one order, in one thread. For each layout of descriptors it is
// learned from the first clone, and looked up again in every other; one that
// has the wrong filter, which could hit a disk, is started anew.

// filterTries is how often a clone is started anew; the last goes without the
// filter, if descriptors should be numbered differently each time.
const filterTries = 2

// memoryFDs are the numbers of QEMU's own descriptors for clones' memory.
type memoryFDs struct {
	mu    sync.Mutex
	known map[string]int // by layout
}

func (m *memoryFDs) get(layout string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.known[layout]
}

func (m *memoryFDs) learn(layout string, fd int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		m.known = make(map[string]int)
	}
	m.known[layout] = fd
}

// layout is all that the numbers of QEMU's descriptors depend on.
func (s spec) layout(program string) string {
	b := fmt.Appendf(nil, "%s %s %s %t ", program, s.Accel, s.Machine, s.Plug)
	for _, d := range s.Disks {
		b = fmt.Appendf(b, "%t%t%t ", d.FD != 0, d.Device, d.ReadOnly)
	}
	for _, n := range s.NICs {
		b = fmt.Appendf(b, "%t ", n.VhostFD != 0)
	}
	return string(b)
}

// memoryFD finds the descriptor that a QEMU opened for the file that it
// inherited as number inherited. guess is looked at first. 0: there is none.
func memoryFD(pid, inherited, guess int) int {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	memory, err := os.Stat(filepath.Join(dir, strconv.Itoa(inherited)))
	if err != nil {
		return 0
	}
	is := func(fd int) bool {
		info, err := os.Stat(filepath.Join(dir, strconv.Itoa(fd)))
		return err == nil && fd != inherited && os.SameFile(info, memory)
	}
	if guess != 0 && is(guess) {
		return guess
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && is(fd) {
			return fd
		}
	}
	return 0
}

// unconfined in the place of a descriptor stands for no filter.
const unconfined = -1

// confined calls start on a thread where punching a hole into descriptor fd
// seems to succeed and does nothing, and where loop devices can't be
// controlled: their ioctls ask for no privilege, and with LOOP_CHANGE_FD whoever has a
// template's device open puts another file into it. The process that start
// makes inherits that, and the thread ends. For fd 0, /dev/null, only the second counts.
func confined(fd int, start func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread goes with the goroutine
		err := filter(fd)
		if err == nil {
			err = start()
		}
		done <- err
	}()
	return <-done
}

// Offsets in struct seccomp_data (linux/seccomp.h): the low halves of the
// first two arguments, on a little-endian machine.
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16
	dataArg1 = 24
)

const (
	x32Bit = 0x40000000 // of the numbers of another ABI's calls
	// _IOC_TYPE of an ioctl, and that of loop devices (linux/loop.h).
	ioctlType, ioctlLoop = 0xff00, 'L' << 8
)

// filter installs the filter on this thread only.
func filter(fd int) error {
	const ld, jeq, jge, jset, and, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K,
		unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K,
		unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	filter := []unix.SockFilter{
		{Code: ld, K: dataArch},
		{Code: jeq, K: unix.AUDIT_ARCH_X86_64, Jf: 13},
		{Code: ld, K: dataNr},
		{Code: jge, K: x32Bit, Jt: 11},
		{Code: jeq, K: unix.SYS_IOCTL, Jt: 5},
		{Code: jeq, K: unix.SYS_FALLOCATE, Jf: 8},
		{Code: ld, K: dataArg0},
		{Code: jeq, K: uint32(fd), Jf: 6},
		{Code: ld, K: dataArg1},
		{Code: jset, K: unix.FALLOC_FL_PUNCH_HOLE, Jt: 6, Jf: 4},
		{Code: ld, K: dataArg1}, // an ioctl
		{Code: jeq, K: unix.BLKROSET, Jt: 3},
		{Code: and, K: ioctlType},
		{Code: jeq, K: ioctlLoop, Jt: 1},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO}, // errno 0: success
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: unsafe.SliceData(slices.Clip(filter))}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("install seccomp filter: %w", errno)
	}
	return nil
}
