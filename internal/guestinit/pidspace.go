package guestinit

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guestinit/spawn"
)

// PID namespaces that containers share: what ends with the namespace when a
// container has its own is then found by its cgroup.

// The two that are not a container's.
const (
	podPIDs = "pod"
	vmPIDs  = "vm"
)

// drainPatience is how long processes that were killed may take to end.
const drainPatience = 10 * time.Second

// joinPIDs opens the PID namespace that a container joins; nil: none.
func (s *Service) joinPIDs(name string) (*os.File, error) {
	switch name {
	case "":
		return nil, nil
	case podPIDs:
		return s.pod.open(s)
	case vmPIDs:
		s.shielded.Do(shield)
		return os.Open("/proc/self/ns/pid")
	}
	c, err := s.container(name)
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "share PID namespace of container %s: there is none", name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.root == nil || c.init == nil || ended(c.init) {
		return nil, status.Errorf(codes.FailedPrecondition, "share PID namespace of container %s: it is not running", name)
	}
	f, err := openPIDs(c.init)
	if isGone(err) {
		return nil, status.Errorf(codes.FailedPrecondition, "share PID namespace of container %s: it is not running", name)
	}
	return f, err
}

// openPIDs opens the PID namespace of a child.
func openPIDs(c *spawn.Child) (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", c.PID))
	if err != nil {
		return nil, err
	}
	// Not reaped yet, so that the file is not that of a later process with its id.
	if err := c.Signal(0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// shield has hyperstart survive the signals that root of a container which
// sees it can send: Go's runtime would end it, and with it the VM. (KILL and
// STOP do not reach PID 1.)
func shield() {
	var all []os.Signal
	for n := syscall.Signal(1); n <= maxSignal; n++ {
		if n != syscall.SIGCHLD && n != syscall.SIGURG { // which Go's runtime handles
			all = append(all, n)
		}
	}
	signal.Notify(make(chan os.Signal, 1), all...)
}

// A podSpace is the PID namespace that containers of the pod share. It has an
// init from the first one on, which reaps.
type podSpace struct {
	mu   sync.Mutex
	init *spawn.Child
}

func (p *podSpace) open(s *Service) (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.init == nil || ended(p.init) {
		var err error
		if p.init, err = s.startPodInit(); err != nil {
			return nil, fmt.Errorf("make the pod's PID namespace: %w", err)
		}
	}
	f, err := openPIDs(p.init)
	if err != nil {
		return nil, fmt.Errorf("open the pod's PID namespace: %w", err)
	}
	return f, nil
}

// startPodInit starts the init of the pod's PID namespace, in hyperstart's own
// cgroup. It keeps all capabilities: what has fewer can't look into it, and
// through it at the VM's files (ptrace(2), access mode checking).
func (s *Service) startPodInit() (*spawn.Child, error) {
	fd, err := unix.MemfdCreate("pod-init", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, program(podInit)); err != nil {
		return nil, err
	}
	null := int(s.machine.null.Fd())
	p := new(spawn.Plan)
	p.NewSession()
	p.Stdio([3]int{null, null, null})
	p.CloseOthers()
	p.ExecFD(fd, []string{"pod-init"}, nil)
	c, err := s.spawner.Start(spawn.Request{Plan: p, Cgroup: -1, PIDNS: -1})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.PID), []byte("-1000"), 0); err != nil {
		c.Signal(syscall.SIGKILL)
		return nil, err
	}
	return c, nil
}

// podInit ignores SIGCHLD, which has the kernel reap what it is left with
// (wait(2), NOTES), and sleeps. That is two pages of memory instead of a Go program's.
var podInit = []byte{
	0x31, 0xc0, 0x50, 0x50, 0x50, 0x6a, 0x01, // struct sigaction: SIG_IGN and zeros
	0x48, 0x89, 0xe6, // mov rsi,rsp
	0x6a, byte(unix.SIGCHLD), 0x5f, // mov rdi,SIGCHLD
	0x31, 0xd2, // xor edx,edx
	0x6a, 0x08, 0x41, 0x5a, // mov r10,8
	0x6a, unix.SYS_RT_SIGACTION, 0x58, 0x0f, 0x05, // syscall
	0x6a, unix.SYS_PAUSE, 0x58, 0x0f, 0x05, // sleep: syscall
	0xeb, 0xf9, // jmp sleep
}

// program makes a static ELF program for x86-64 of code (elf(5)): a file
// header, one program header, the code.
func program(code []byte) []byte {
	const base, headers = 0x400000, 64 + 56
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	le := binary.LittleEndian
	b = le.AppendUint16(b, 2) // executable
	b = le.AppendUint16(b, 62)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, base+headers) // entry
	b = le.AppendUint64(b, 64)           // program headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} { // sizes and counts of headers
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // load
	b = le.AppendUint32(b, 5) // read and execute
	for _, v := range []uint64{0, base, base, uint64(headers + len(code)), uint64(headers + len(code)), 4096} {
		b = le.AppendUint64(b, v)
	}
	return append(b, code...)
}
