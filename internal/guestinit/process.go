package guestinit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/proc"
	"github.com/hyper-run/hyper/internal/guestinit/spawn"
	"github.com/hyper-run/hyper/internal/guestinit/stdio"
)

func now() int64 { return time.Now().UnixNano() }

// A launch is one process on its way.
type launch struct {
	s     *Service
	c     *container
	r     *wire.StartProcessRequest
	p     *specs.Process
	own   bool // the container's own process
	user  *identity
	io    *stdio.IO
	files [3]*os.File // its ends of the streams
}

// StartProcess implements wire.GuestService.
func (s *Service) StartProcess(_ context.Context, r *wire.StartProcessRequest) (*wire.StartProcessResponse, error) {
	c, err := s.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	l := &launch{s: s, c: c, r: r, p: c.spec.Process, own: r.ExecId == ""}
	if len(r.Process) > 0 {
		l.p = new(specs.Process)
		if err := json.Unmarshal(r.Process, l.p); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "start process: read process: %v", err)
		}
		if err := checkProcess(l.p); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "start process: %v", err)
		}
	}
	if l.p == nil || len(l.p.Args) == 0 {
		return nil, status.Error(codes.InvalidArgument, "start process: no arguments")
	}
	if !l.own {
		if err := checkID(r.ExecId); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := l.allowed(); err != nil {
		return nil, err
	}
	k := proc.Key{Container: c.id, Exec: r.ExecId}
	if err := s.Reserve(k); err != nil {
		return nil, err
	}
	p, err := l.start()
	s.Set(k, p)
	if err != nil {
		return nil, err
	}
	return &wire.StartProcessResponse{Pid: uint32(p.PID)}, nil
}

// allowed says whether the container is in a state to start the process.
func (l *launch) allowed() error {
	c := l.c
	switch {
	case c.root == nil:
		return status.Errorf(codes.NotFound, "no container %s", c.id)
	case l.own && c.init != nil:
		return status.Errorf(codes.AlreadyExists, "container %s was started already", c.id)
	case l.own:
		return nil
	case c.paused:
		return status.Errorf(codes.FailedPrecondition, "container %s is paused", c.id)
	case c.init == nil || ended(c.init):
		return status.Errorf(codes.FailedPrecondition, "container %s is not running", c.id)
	}
	return nil
}

func ended(c *spawn.Child) bool {
	select {
	case <-c.Ended():
		return true
	default:
		return false
	}
}

func (l *launch) start() (*proc.Process, error) {
	var err error
	if l.user, err = l.s.identify(l.c.root, l.p, l.r); err != nil {
		return nil, err
	}
	l.prepareDir()
	if err := l.openStdio(); err != nil {
		return nil, status.Errorf(codes.Internal, "start process: %v", err)
	}
	child, err := l.spawn()
	for _, f := range l.files {
		if f != l.s.machine.null {
			f.Close()
		}
	}
	if err != nil {
		l.io.Exited()
		l.io.Discard()
		return nil, l.startError(err)
	}
	p := proc.New(child.PID, l.io, child.Signal)
	killed := uint64(0) // before
	if !l.own {
		killed = l.c.memory.kills()
	}
	go func() {
		<-child.Ended()
		st := exitStatus(child.Status())
		if l.own && l.c.joins != nil {
			l.c.outlived()
		}
		if l.c.memory.kills() > killed {
			st.OomKilled, st.OomDetail = true, l.c.oomDetail()
		}
		p.Exit(st)
	}()
	return p, nil
}

// outlived ends what the container's own process has left, as the end of a
// PID namespace would. One is still born that was about to be, and none later.
func (c *container) outlived() {
	c.births.Lock()
	err := c.group.Kill()
	c.births.Unlock()
	if err == nil {
		c.group.Drain(drainPatience) // who deletes the container learns of an error
	}
}

func exitStatus(ws syscall.WaitStatus) *wire.WaitResponse {
	st := &wire.WaitResponse{ExitedAtNanos: now()}
	if ws.Signaled() {
		st.Signal = uint32(ws.Signal())
		st.ExitCode = 128 + st.Signal
	} else {
		st.ExitCode = uint32(ws.ExitStatus())
	}
	return st
}

// prepareDir makes the working directory of a container's own process, as
// Docker does. What can't be made is reported by chdir(2).
func (l *launch) prepareDir() {
	if l.p.Cwd == "" {
		l.p.Cwd = "/"
	}
	if !l.own {
		return
	}
	if f, err := l.c.root.MkdirAll(l.p.Cwd, 0o755); err == nil {
		f.Close()
	}
}

func (l *launch) openStdio() error {
	var err error
	if !l.p.Terminal {
		l.io, l.files, err = stdio.Pipes(l.r.Stdin, l.s.machine.null)
		if err == nil && l.user.uid != 0 {
			// So that the process may open /dev/stdout again.
			for _, f := range l.files {
				if f != l.s.machine.null {
					f.Chown(int(l.user.uid), -1)
				}
			}
		}
		return err
	}
	ptmx, err := l.c.root.OpenFile("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer ptmx.Close()
	fd, err := unix.FcntlInt(ptmx.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	var tty *os.File
	if l.io, tty, err = stdio.OpenTerminal(fd); err != nil {
		return err
	}
	l.files = [3]*os.File{tty, tty, tty}
	if b := l.p.ConsoleSize; b != nil && b.Height <= 0xffff && b.Width <= 0xffff {
		if err := l.io.Resize(uint16(b.Height), uint16(b.Width)); err != nil {
			return err
		}
	}
	return tty.Chown(int(l.user.uid), -1)
}

// spawn starts the child and takes note of what later ones need of it.
func (l *launch) spawn() (*spawn.Child, error) {
	if !l.own {
		if err := l.c.findSpaces(); err != nil {
			return nil, err
		}
	}
	plan, err := l.plan()
	if err != nil {
		return nil, err
	}
	group, err := l.c.group.Open()
	if err != nil {
		return nil, err
	}
	defer unix.Close(group)
	child, err := l.born(plan, group)
	if err != nil {
		return nil, err
	}
	if l.own {
		l.c.init = child
	}
	if adj := l.p.OOMScoreAdj; adj != nil && *adj != 0 { // ours is 0
		// Not before execve: the value belongs to the memory, which was ours.
		werr := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", child.PID), fmt.Append(nil, *adj), 0)
		if werr != nil && !isGone(werr) {
			err = werr
		}
	}
	if err != nil {
		child.Signal(syscall.SIGKILL)
		<-child.Ended()
		return nil, err
	}
	return child, nil
}

// born starts the child in the container's cgroup and PID namespace.
func (l *launch) born(plan *spawn.Plan, group int) (*spawn.Child, error) {
	r := spawn.Request{Plan: plan, Cgroup: group, PIDNS: -1}
	l.c.births.Lock()
	defer l.c.births.Unlock()
	switch {
	case !l.own && ended(l.c.init):
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is not running", l.c.id)
	case !l.own:
		r.PIDNS = int(l.c.pids.Fd())
	case l.c.joins != nil:
		r.PIDNS = int(l.c.joins.Fd())
	}
	return l.s.spawner.Start(r)
}

// isGone says whether /proc answered so because the process has ended: its
// files are gone, or still there but of no task. We are root in our own PID
// namespace: nothing else makes ns/ links say EACCES (proc_ns_get_link).
func isGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EACCES)
}

// findSpaces opens the namespaces that the container's own process has made,
// when another process is to enter them: most containers have no other.
func (c *container) findSpaces() error {
	if c.pids != nil {
		return nil
	}
	pids, err := openPIDs(c.init)
	var cgroups *os.File
	if err == nil {
		cgroups, err = os.Open(fmt.Sprintf("/proc/%d/ns/cgroup", c.init.PID))
	}
	if isGone(err) || err == nil && c.init.Signal(0) != nil {
		err = status.Errorf(codes.FailedPrecondition, "container %s is not running", c.id)
	}
	if err != nil {
		pids.Close() // also of nil, which does nothing
		cgroups.Close()
		return err
	}
	c.pids = pids
	c.spaces = append(c.spaces, space{"cgroup", unix.CLONE_NEWCGROUP, cgroups})
	return nil
}

// startError says why a process was not started, as runc and Docker do, with
// the code that becomes exit status 127 (not found) or 126.
func (l *launch) startError(err error) error {
	var ee *spawn.ExecError
	if _, isStatus := status.FromError(err); isStatus {
		return err
	}
	if !errors.As(err, &ee) || !ee.Program() {
		code := codes.Internal
		if errors.Is(err, syscall.ENOMEM) && (!l.own || l.c.joins != nil) {
			code = codes.FailedPrecondition // the PID namespace has just died
		}
		if ee != nil && strings.HasPrefix(ee.Step, "change to working directory") {
			code = codes.InvalidArgument
		}
		return status.Errorf(code, "start process: %v", err)
	}
	name := l.p.Args[0]
	switch {
	case ee.Errno == syscall.ENOENT && !strings.Contains(name, "/"):
		return status.Errorf(codes.NotFound, "exec: %q: executable file not found in $PATH", name)
	case ee.Errno == syscall.ENOENT:
		return status.Errorf(codes.NotFound, "exec: %q: stat %s: no such file or directory", name, name)
	case ee.Errno == syscall.EACCES && l.isDir(name):
		return status.Errorf(codes.PermissionDenied, "exec: %q: is a directory", name)
	case ee.Errno == syscall.EACCES:
		return status.Errorf(codes.PermissionDenied, "exec: %q: permission denied", name)
	}
	return status.Errorf(codes.PermissionDenied, "exec %s: %v", name, ee.Errno)
}

func (l *launch) isDir(name string) bool {
	f, err := l.c.root.OpenFile(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}
