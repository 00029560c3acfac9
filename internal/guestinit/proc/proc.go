// Package proc keeps the processes that hyperd has started in a guest, from
// their start until they are forgotten, and answers the calls that concern
// one of them. How a process is started is its caller's business.
package proc

import (
	"context"
	"sync"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/session"
	"github.com/hyper-run/hyper/internal/guestinit/stdio"
)

// A Key names a process; Exec is empty for a container's own.
type Key struct{ Container, Exec string }

// A Process is one process that was started.
type Process struct {
	PID    int // in the VM
	IO     *stdio.IO
	Signal func(syscall.Signal) error // ESRCH when it has ended

	ended  chan struct{}
	status *wire.WaitResponse // valid once ended is closed
}

// New returns a running process.
func New(pid int, io *stdio.IO, signal func(syscall.Signal) error) *Process {
	return &Process{PID: pid, IO: io, Signal: signal, ended: make(chan struct{})}
}

// Exit records how the process ended; it is called once.
func (p *Process) Exit(s *wire.WaitResponse) {
	p.status = s
	close(p.ended)
	p.IO.Exited()
}

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Running says whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// A Table holds processes. The zero Table is empty.
type Table struct {
	mu sync.Mutex
	m  map[Key]*Process // nil: the key is taken, the process not yet started
}

// Reserve takes a key for a process that is about to start.
func (t *Table) Reserve(k Key) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, taken := t.m[k]; taken {
		return status.Errorf(codes.AlreadyExists, "process %s of container %s was started already", name(k), k.Container)
	}
	if t.m == nil {
		t.m = map[Key]*Process{}
	}
	t.m[k] = nil
	return nil
}

// Set gives a reserved key its process; nil gives the key back.
func (t *Table) Set(k Key, p *Process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p == nil {
		delete(t.m, k)
		return
	}
	t.m[k] = p
}

// Get returns a started process.
func (t *Table) Get(k Key) (*Process, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.m[k]; p != nil {
		return p, nil
	}
	return nil, status.Errorf(codes.NotFound, "no process %s in container %s", name(k), k.Container)
}

// Of returns the started processes of a container.
func (t *Table) Of(container string) []*Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*Process
	for k, p := range t.m {
		if k.Container == container && p != nil {
			list = append(list, p)
		}
	}
	return list
}

func name(k Key) string {
	if k.Exec == "" {
		return "1"
	}
	return k.Exec
}

// Forget removes a container's processes and gives up their output.
func (t *Table) Forget(container string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, p := range t.m {
		if k.Container == container {
			if p != nil {
				p.IO.Discard()
			}
			delete(t.m, k)
		}
	}
}

// Stdio implements session.Handler.
func (t *Table) Stdio(container, exec string) (*stdio.IO, error) {
	p, err := t.Get(Key{container, exec})
	if err != nil {
		return nil, err
	}
	return p.IO, nil
}

// Resize implements wire.GuestService.
func (t *Table) Resize(_ context.Context, r *wire.ResizeRequest) (*wire.ResizeResponse, error) {
	p, err := t.Get(Key{r.ContainerId, r.ExecId})
	if err != nil {
		return nil, err
	}
	if r.Height > 0xffff || r.Width > 0xffff {
		return nil, status.Errorf(codes.InvalidArgument, "resize terminal to %dx%d: too large", r.Width, r.Height)
	}
	if err := p.IO.Resize(uint16(r.Height), uint16(r.Width)); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &wire.ResizeResponse{}, nil
}

// CloseStdin implements wire.GuestService.
func (t *Table) CloseStdin(ctx context.Context, r *wire.CloseStdinRequest) (*wire.CloseStdinResponse, error) {
	p, err := t.Get(Key{r.ContainerId, r.ExecId})
	if err != nil {
		return nil, err
	}
	p.IO.In.CloseAfter(session.From(ctx), r.Sent)
	return &wire.CloseStdinResponse{}, nil
}

// Wait implements wire.GuestService.
func (t *Table) Wait(ctx context.Context, r *wire.WaitRequest) (*wire.WaitResponse, error) {
	p, err := t.Get(Key{r.ContainerId, r.ExecId})
	if err != nil {
		return nil, err
	}
	select {
	case <-p.ended:
		return p.status, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// DeleteProcess implements wire.GuestService.
func (t *Table) DeleteProcess(_ context.Context, r *wire.DeleteProcessRequest) (*wire.DeleteProcessResponse, error) {
	k := Key{r.ContainerId, r.ExecId}
	if k.Exec == "" {
		return nil, status.Error(codes.InvalidArgument, "delete process: a container's own process goes with the container")
	}
	p, err := t.Get(k)
	if err != nil {
		return nil, err
	}
	if p.Running() {
		return nil, status.Errorf(codes.FailedPrecondition, "delete process %s: it is running", k.Exec)
	}
	p.IO.Discard()
	t.Set(k, nil)
	return &wire.DeleteProcessResponse{}, nil
}
