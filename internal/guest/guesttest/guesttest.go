// Package guesttest is a guest without a VM: it answers as hyperstart does,
// on the same wire and with the same stdio code, and runs the processes of
// containers as plain processes of this machine.
//
// There is no isolation, no root file system, no user and no limit: what a
// test asks for of these is accepted and not done. Programs are looked up on
// this machine, and connections are made from it. Volumes can't be had, and are
// refused.
package guesttest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/dial"
	"github.com/hyper-run/hyper/internal/guestinit/proc"
	"github.com/hyper-run/hyper/internal/guestinit/session"
)

// A Guest is the fake's state; it lives on while connections come and go.
type Guest struct {
	proc.Table

	mu         sync.Mutex
	containers map[string]*container
	configured *wire.ConfigureRequest
	started    time.Time
	off        chan struct{}
	isOff      bool
}

type container struct {
	request *wire.CreateContainerRequest
	spec    specs.Spec
	groups  map[int]bool // process groups (sessions) of the processes started
	paused  bool
}

// New returns a guest that has just booted.
func New() *Guest {
	return &Guest{containers: map[string]*container{}, started: time.Now(), off: make(chan struct{})}
}

// Serve serves one connection until it breaks.
func (g *Guest) Serve(conn io.ReadWriteCloser) error {
	return session.Serve(wire.ServeLink(conn), g, func() {})
}

// Off is closed when the guest was told to shut down.
func (g *Guest) Off() <-chan struct{} { return g.off }

// Close kills all processes, as ending a VM does. Idempotent.
func (g *Guest) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.containers {
		c.kill(syscall.SIGKILL)
	}
	return nil
}

// Configured returns what the last Configure said, nil before it.
func (g *Guest) Configured() *wire.ConfigureRequest {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.configured
}

// Created returns what a container was created with.
func (g *Guest) Created(id string) *wire.CreateContainerRequest {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.containers[id]; c != nil {
		return c.request
	}
	return nil
}

func (c *container) kill(sig syscall.Signal) {
	for pgid := range c.groups {
		syscall.Kill(-pgid, sig)
	}
}

func (g *Guest) container(id string) (*container, error) {
	if c := g.containers[id]; c != nil {
		return c, nil
	}
	return nil, status.Errorf(codes.NotFound, "no container %s", id)
}

// Info implements wire.GuestService.
func (g *Guest) Info(context.Context, *wire.InfoRequest) (*wire.InfoResponse, error) {
	var u unix.Utsname
	unix.Uname(&u)
	g.mu.Lock()
	defer g.mu.Unlock()
	return &wire.InfoResponse{
		Protocol: wire.Protocol, Version: "fake", KernelRelease: unix.ByteSliceToString(u.Release[:]),
		MemTotalBytes: 128 << 20, Cpus: 1, Containers: slices.Sorted(maps.Keys(g.containers)),
		UptimeNanos: uint64(time.Since(g.started)),
	}, nil
}

// Configure implements wire.GuestService.
func (g *Guest) Configure(_ context.Context, r *wire.ConfigureRequest) (*wire.ConfigureResponse, error) {
	if len(r.Volumes) > 0 {
		return nil, status.Errorf(codes.Unimplemented, "volume %s: not without a VM", r.Volumes[0].Name)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.configured = r
	return &wire.ConfigureResponse{}, nil
}

// CreateContainer implements wire.GuestService.
func (g *Guest) CreateContainer(_ context.Context, r *wire.CreateContainerRequest) (*wire.CreateContainerResponse, error) {
	c := &container{request: r, groups: map[int]bool{}}
	if err := json.Unmarshal(r.Spec, &c.spec); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "create container %s: %v", r.Id, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.checkPIDs(r.PidNamespace); err != nil {
		return nil, err
	}
	if g.containers[r.Id] != nil {
		return nil, status.Errorf(codes.AlreadyExists, "container %s exists already", r.Id)
	}
	g.containers[r.Id] = c
	return &wire.CreateContainerResponse{}, nil
}

// checkPIDs says whether there is the PID namespace that a container shall be in.
func (g *Guest) checkPIDs(name string) error {
	if name == "" || name == "pod" || name == "vm" {
		return nil
	}
	if own, err := g.Get(proc.Key{Container: name}); err != nil || !own.Running() {
		return status.Errorf(codes.FailedPrecondition, "share PID namespace of container %s: it is not running", name)
	}
	return nil
}

// Dial implements session.Handler.
func (g *Guest) Dial(id, address string) (session.Conn, error) {
	g.mu.Lock()
	var err error
	if id != "" {
		_, err = g.container(id)
	}
	g.mu.Unlock()
	if err != nil {
		return nil, err
	}
	conn, err := dial.Open(address, nil)
	if err != nil {
		return nil, err
	}
	if err := conn.Connect(); err != nil {
		return nil, err
	}
	return conn, nil
}

// DeleteContainer implements wire.GuestService.
func (g *Guest) DeleteContainer(ctx context.Context, r *wire.DeleteContainerRequest) (*wire.DeleteContainerResponse, error) {
	g.mu.Lock()
	c, err := g.container(r.Id)
	if err == nil {
		delete(g.containers, r.Id)
		c.kill(syscall.SIGKILL)
	}
	g.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if p, err := g.Get(proc.Key{Container: r.Id}); err == nil {
		select {
		case <-p.Ended():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	g.Forget(r.Id)
	return &wire.DeleteContainerResponse{}, nil
}

// Signal implements wire.GuestService.
func (g *Guest) Signal(_ context.Context, r *wire.SignalRequest) (*wire.SignalResponse, error) {
	if r.All {
		g.mu.Lock()
		defer g.mu.Unlock()
		c, err := g.container(r.ContainerId)
		if err != nil {
			return nil, err
		}
		c.kill(syscall.Signal(r.Signal))
		return &wire.SignalResponse{}, nil
	}
	p, err := g.Get(proc.Key{Container: r.ContainerId, Exec: r.ExecId})
	if err != nil {
		return nil, err
	}
	if err := p.Signal(syscall.Signal(r.Signal)); err != nil {
		if errors.Is(err, syscall.ESRCH) || errors.Is(err, os.ErrProcessDone) {
			return nil, status.Error(codes.NotFound, "signal process: it has ended")
		}
		return nil, status.Errorf(codes.InvalidArgument, "signal process: %v", err)
	}
	return &wire.SignalResponse{}, nil
}

// Pause implements wire.GuestService.
func (g *Guest) Pause(_ context.Context, r *wire.PauseRequest) (*wire.PauseResponse, error) {
	return &wire.PauseResponse{}, g.freeze(r.ContainerId, true)
}

// Resume implements wire.GuestService.
func (g *Guest) Resume(_ context.Context, r *wire.ResumeRequest) (*wire.ResumeResponse, error) {
	return &wire.ResumeResponse{}, g.freeze(r.ContainerId, false)
}

func (g *Guest) freeze(id string, paused bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	c, err := g.container(id)
	if err != nil {
		return err
	}
	c.paused = paused
	if paused {
		c.kill(syscall.SIGSTOP)
	} else {
		c.kill(syscall.SIGCONT)
	}
	return nil
}

// Update implements wire.GuestService.
func (g *Guest) Update(_ context.Context, r *wire.UpdateRequest) (*wire.UpdateResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := g.container(r.ContainerId)
	return &wire.UpdateResponse{}, err
}

// Events implements wire.GuestService: nothing ever happens here.
func (g *Guest) Events(ctx context.Context, _ *wire.EventsRequest, _ wire.Guest_EventsServer) error {
	<-ctx.Done()
	return ctx.Err()
}

// Shutdown implements wire.GuestService.
func (g *Guest) Shutdown(context.Context, *wire.ShutdownRequest) (*wire.ShutdownResponse, error) {
	g.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.isOff {
		g.isOff = true
		close(g.off)
	}
	return &wire.ShutdownResponse{}, nil
}
