package guesttest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/proc"
	"github.com/hyper-run/hyper/internal/guestinit/stdio"
)

// StartProcess implements wire.GuestService.
func (g *Guest) StartProcess(_ context.Context, r *wire.StartProcessRequest) (*wire.StartProcessResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c, err := g.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	p := c.spec.Process
	if len(r.Process) > 0 {
		p = new(specs.Process)
		if err := json.Unmarshal(r.Process, p); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "start process: %v", err)
		}
	}
	if p == nil || len(p.Args) == 0 {
		return nil, status.Error(codes.InvalidArgument, "start process: no arguments")
	}
	k := proc.Key{Container: r.ContainerId, Exec: r.ExecId}
	if k.Exec != "" {
		if own, err := g.Get(proc.Key{Container: k.Container}); err != nil || !own.Running() || c.paused {
			return nil, status.Errorf(codes.FailedPrecondition, "start process: container %s is not running", k.Container)
		}
	}
	if err := g.Reserve(k); err != nil {
		return nil, err
	}
	started, err := g.start(c, p, r.Stdin, k.Exec == "")
	if err != nil {
		g.Set(k, nil)
		return nil, err
	}
	g.Set(k, started)
	return &wire.StartProcessResponse{Pid: uint32(started.PID)}, nil
}

// start runs p; when it is a container's own process, its end is that of all others.
func (g *Guest) start(c *container, p *specs.Process, stdin, own bool) (*proc.Process, error) {
	path, err := lookPath(p.Args[0], p.Env)
	if err != nil {
		return nil, err
	}
	io, files, err := openStdio(p, stdin)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	cmd := &exec.Cmd{Path: path, Args: p.Args, Env: p.Env, Dir: p.Cwd,
		Stdin: files[0], Stdout: files[1], Stderr: files[2],
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Setctty: p.Terminal}}
	if _, err := os.Stat(p.Cwd); err != nil {
		cmd.Dir = "/"
	}
	err = cmd.Start()
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		io.Discard()
		return nil, startError(p.Args[0], err)
	}
	c.groups[cmd.Process.Pid] = true
	started := proc.New(cmd.Process.Pid, io, func(s syscall.Signal) error { return cmd.Process.Signal(s) })
	go g.reap(c, cmd, started, own)
	return started, nil
}

func (g *Guest) reap(c *container, cmd *exec.Cmd, p *proc.Process, own bool) {
	cmd.Wait()
	st := &wire.WaitResponse{ExitedAtNanos: time.Now().UnixNano()}
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		st.Signal = uint32(ws.Signal())
		st.ExitCode = 128 + st.Signal
	} else {
		st.ExitCode = uint32(ws.ExitStatus())
	}
	g.mu.Lock()
	if own {
		c.kill(syscall.SIGKILL)
	}
	g.mu.Unlock()
	p.Exit(st)
}

func openStdio(p *specs.Process, stdin bool) (*stdio.IO, [3]*os.File, error) {
	if !p.Terminal {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return nil, [3]*os.File{}, err
		}
		io, files, err := stdio.Pipes(stdin, null)
		if err != nil || stdin {
			null.Close()
		}
		return io, files, err
	}
	ptmx, err := syscall.Open("/dev/ptmx", syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, [3]*os.File{}, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	io, slave, err := stdio.OpenTerminal(ptmx)
	if err != nil {
		return nil, [3]*os.File{}, err
	}
	if s := p.ConsoleSize; s != nil {
		io.Resize(uint16(s.Height), uint16(s.Width))
	}
	return io, [3]*os.File{slave, slave, slave}, nil
}

// lookPath finds a program as the container's PATH says, on this machine.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if _, err := os.Stat(name); err != nil {
			return "", startError(name, err)
		}
		return name, nil
	}
	path := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, name)
		if fi, err := os.Stat(file); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", status.Errorf(codes.NotFound, "exec: %q: executable file not found in $PATH", name)
}

func startError(name string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return status.Errorf(codes.NotFound, "exec: %q: stat %s: no such file or directory", name, name)
	case errors.Is(err, fs.ErrPermission):
		return status.Errorf(codes.PermissionDenied, "exec: %q: permission denied", name)
	}
	return status.Errorf(codes.PermissionDenied, "exec %s: %v", name, err)
}
