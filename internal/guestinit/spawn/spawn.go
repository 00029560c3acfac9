// Package spawn starts processes from PID 1 without forking its memory and
// without a helper program: a child is made with clone3(CLONE_VM), makes the
// system calls of a Plan in assembly, and executes its program. The parent
// goes on running meanwhile.
//
// It also reaps: every child, and every orphan that the kernel hands to
// PID 1.
//
// Goroutines: one on a thread of its own that makes the children (a child's
// PID namespace is a property of the thread that makes it), one that waits
// for them. Both live as long as the program.
package spawn

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// clone makes a child that runs the ops from first on. It returns the
// child's pid or a negative errno.
//
//go:noescape
func clone(args *cloneArgs, size uintptr, first *op, report uintptr) (pid uintptr)

// cloneArgs is the kernel's struct clone_args, version 2.
type cloneArgs struct {
	flags, pidfd, _, _, exitSignal uint64 // child_tid, parent_tid
	stack, stackSize, _, _, _      uint64 // tls, set_tid, set_tid_size
	cgroup                         uint64
}

// stackSize is more than a child needs: 16 bytes.
const stackSize = 512

// An ExecError says that the child could not become its program.
type ExecError struct {
	Step  string // what it was doing
	Errno syscall.Errno
}

func (e *ExecError) Error() string { return e.Step + ": " + e.Errno.Error() }
func (e *ExecError) Unwrap() error { return e.Errno }

// Program says whether it was the program itself that could not be executed.
func (e *ExecError) Program() bool { return e.Step == execStep }

// A Child is a process that was started.
type Child struct {
	PID    int
	pidfd  *os.File
	ended  chan struct{}
	status syscall.WaitStatus
}

// Ended is closed when the child has ended and was reaped.
func (c *Child) Ended() <-chan struct{} { return c.ended }

// Status says how the child ended. Valid once Ended is closed.
func (c *Child) Status() syscall.WaitStatus { return c.status }

// Signal sends a signal to the child, never to a later process with its id.
func (c *Child) Signal(sig syscall.Signal) error {
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		return syscall.ESRCH
	}
	serr := error(syscall.ESRCH)
	raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	return serr
}

// A Request says where a child is born and what it does.
type Request struct {
	Plan   *Plan
	Cgroup int // descriptor of its cgroup's directory, -1: this process's
	// PIDNS is the descriptor of its PID namespace, -1: a new one.
	PIDNS int
}

// A Spawner makes children and reaps them. There is one in a program.
type Spawner struct {
	requests chan *job
	stops    chan stop
	own      int // this process's PID namespace

	mu       sync.Mutex
	started  *sync.Cond // broadcast when a child was made
	children map[int]*Child
}

type job struct {
	r      Request
	report int
	child  *Child
	err    error
	done   chan struct{}
}

// A stop is of a child that has made its parent its tracer (PTRACE_TRACEME).
type stop struct {
	pid    int
	signal syscall.Signal
}

// New starts the two goroutines.
func New() (*Spawner, error) {
	own, err := unix.Open("/proc/self/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open own PID namespace: %w", err)
	}
	s := &Spawner{requests: make(chan *job), stops: make(chan stop), own: own, children: map[int]*Child{}}
	s.started = sync.NewCond(&s.mu)
	go s.make()
	go s.reap()
	return s, nil
}

// Start makes a child and returns once it executes its program. On error
// there is no child; an *ExecError says that the plan failed.
func (s *Spawner) Start(r Request) (*Child, error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("start process: %w", err)
	}
	syscall.SetNonblock(fds[0], true)
	report := os.NewFile(uintptr(fds[0]), "report")
	defer report.Close()
	j := &job{r: r, report: fds[1], done: make(chan struct{})}
	s.requests <- j
	<-j.done
	syscall.Close(fds[1])
	if j.err != nil {
		return nil, fmt.Errorf("start process: %w", j.err)
	}
	var msg [16]byte
	_, err := io.ReadFull(report, msg[:])
	r.Plan.alive() // until here the child could look at it
	if err == io.EOF {
		return j.child, nil
	}
	<-j.child.ended
	if err != nil {
		return nil, fmt.Errorf("start process: read the child's report: %w", err)
	}
	return nil, r.Plan.failure(msg)
}

// failure decodes what a child reported: the address of the op and the errno.
func (p *Plan) failure(msg [16]byte) error {
	at := uintptr(binary.NativeEndian.Uint64(msg[:])) - uintptr(unsafe.Pointer(&p.ops[0]))
	i := at / unsafe.Sizeof(op{})
	if i >= uintptr(len(p.ops)) {
		return errors.New("start process: the child's report makes no sense")
	}
	return &ExecError{Step: p.steps[i], Errno: syscall.Errno(binary.NativeEndian.Uint64(msg[8:]))}
}

// make is the goroutine that makes children, on one thread forever.
func (s *Spawner) make() {
	runtime.LockOSThread()
	current := s.own
	for {
		var j *job
		select {
		case j = <-s.requests:
		case st := <-s.stops:
			st.release()
			continue
		}
		ns := s.own
		if j.r.PIDNS >= 0 {
			ns = j.r.PIDNS
		}
		// The descriptor's number may have been reused: always set what is not our own.
		if ns != s.own || current != s.own {
			if err := unix.Setns(ns, unix.CLONE_NEWPID); err != nil {
				j.err = fmt.Errorf("choose PID namespace: %w", err)
				close(j.done)
				continue
			}
			current = ns
		}
		j.child, j.err = s.clone(j)
		close(j.done)
	}
}

// release lets a child run on untraced, with the signal that stopped it. The
// thread that made the child is its tracer, so this is for that thread alone.
func (st stop) release() {
	if st.signal == syscall.SIGTRAP { // what a trace makes of an execve
		st.signal = 0
	}
	// An error means that the child was killed meanwhile.
	unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(st.pid), 0, uintptr(st.signal), 0, 0)
}

func (s *Spawner) clone(j *job) (*Child, error) {
	// Both must stay where they are: not on this goroutine's stack.
	pidfd, stack := new(int32), make([]byte, stackSize)
	j.r.Plan.keep = append(j.r.Plan.keep, pidfd, stack)
	args := &cloneArgs{
		flags:      unix.CLONE_VM | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND,
		pidfd:      uint64(uintptr(unsafe.Pointer(pidfd))),
		exitSignal: uint64(syscall.SIGCHLD),
		stack:      uint64(uintptr(unsafe.Pointer(&stack[0]))),
		stackSize:  stackSize,
	}
	if j.r.Cgroup >= 0 {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(j.r.Cgroup)
	}
	if j.r.PIDNS < 0 {
		args.flags |= unix.CLONE_NEWPID
	}
	// The lock keeps the reaper from looking a child up before it is known.
	s.mu.Lock()
	defer s.mu.Unlock()
	pid := clone(args, unsafe.Sizeof(*args), &j.r.Plan.ops[0], uintptr(j.report))
	if e := -int(pid); e > 0 {
		return nil, fmt.Errorf("clone: %w", syscall.Errno(e))
	}
	c := &Child{PID: int(pid), pidfd: os.NewFile(uintptr(*pidfd), "pidfd"), ended: make(chan struct{})}
	s.children[c.PID] = c
	s.started.Broadcast()
	return c, nil
}

// reap is the goroutine that waits for children.
func (s *Spawner) reap() {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil: // ECHILD: no child, hence no orphan either
			s.mu.Lock()
			for len(s.children) == 0 {
				s.started.Wait()
			}
			s.mu.Unlock()
		case ws.Stopped(): // only a traced child tells so
			s.stops <- stop{pid, ws.StopSignal()}
		default:
			s.reaped(pid, ws)
		}
	}
}

func (s *Spawner) reaped(pid int, ws syscall.WaitStatus) {
	s.mu.Lock()
	c := s.children[pid]
	delete(s.children, pid)
	s.mu.Unlock()
	if c == nil {
		return // an orphan
	}
	c.pidfd.Close()
	c.status = ws
	close(c.ended)
}
