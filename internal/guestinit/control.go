package guestinit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/cgroup"
	"github.com/hyper-run/hyper/internal/guestinit/proc"
)

const maxSignal = 64

// Signal implements wire.GuestService.
func (s *Service) Signal(_ context.Context, r *wire.SignalRequest) (*wire.SignalResponse, error) {
	if r.Signal < 1 || r.Signal > maxSignal {
		return nil, status.Errorf(codes.InvalidArgument, "no signal %d", r.Signal)
	}
	sig := syscall.Signal(r.Signal)
	if r.All {
		return &wire.SignalResponse{}, s.signalAll(r.ContainerId, sig)
	}
	p, err := s.Get(proc.Key{Container: r.ContainerId, Exec: r.ExecId})
	if err != nil {
		return nil, err
	}
	switch err := p.Signal(sig); err {
	case nil:
		return &wire.SignalResponse{}, nil
	case syscall.ESRCH:
		return nil, status.Error(codes.NotFound, "signal process: it has ended")
	default:
		return nil, status.Errorf(codes.Internal, "signal process: %v", err)
	}
}

func (s *Service) signalAll(id string, sig syscall.Signal) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	if sig == syscall.SIGKILL {
		err = c.group.Kill()
	} else {
		var pids []int
		pids, err = c.group.PIDs()
		for _, pid := range pids {
			syscall.Kill(pid, sig)
		}
	}
	if err != nil {
		return status.Errorf(codes.Internal, "signal container %s: %v", id, err)
	}
	return nil
}

// Pause implements wire.GuestService.
func (s *Service) Pause(_ context.Context, r *wire.PauseRequest) (*wire.PauseResponse, error) {
	return &wire.PauseResponse{}, s.freeze(r.ContainerId, true)
}

// Resume implements wire.GuestService.
func (s *Service) Resume(_ context.Context, r *wire.ResumeRequest) (*wire.ResumeResponse, error) {
	return &wire.ResumeResponse{}, s.freeze(r.ContainerId, false)
}

func (s *Service) freeze(id string, on bool) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.init == nil || ended(c.init) {
		return status.Errorf(codes.FailedPrecondition, "container %s is not running", id)
	}
	if err := c.group.Freeze(on); err != nil {
		return status.Errorf(codes.Internal, "container %s: %v", id, err)
	}
	c.paused = on
	return nil
}

// Update implements wire.GuestService.
func (s *Service) Update(_ context.Context, r *wire.UpdateRequest) (*wire.UpdateResponse, error) {
	c, err := s.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	res := new(specs.LinuxResources)
	if len(r.Resources) > 0 {
		if err := json.Unmarshal(r.Resources, res); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "update container %s: read resources: %v", c.id, err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err = c.limitIO(r.Io)
	if err == nil {
		err = c.group.Set(res)
	}
	if err == nil {
		err = s.opened(c, res)
	}
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "update container %s: %v", c.id, err)
	}
	return &wire.UpdateResponse{}, nil
}

// limitIO bounds what the container reads and writes of its disk; nil leaves
// it as it is. A container that keeps its files in memory has no disk to bound.
func (c *container) limitIO(l *wire.IOLimit) error {
	if l == nil {
		return nil
	}
	most := cgroup.IO{ReadBytes: l.ReadBytes, WriteBytes: l.WriteBytes, Reads: l.Reads, Writes: l.Writes}
	if c.upper == "" {
		if most != (cgroup.IO{}) {
			return errors.New("limit I/O: the container has no writable disk")
		}
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(c.upper, &st); err != nil {
		return fmt.Errorf("limit I/O: %w", err)
	}
	return c.group.SetIO(st.Rdev, most)
}
