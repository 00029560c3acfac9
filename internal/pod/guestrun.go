package pod

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/template"
	"github.com/hyper-run/hyper/internal/vmm"
)

// run has the guest run the container: it is told who it is, mounts the root
// file system and starts the process, all in one call, which is sent before
// the guest is known to live.
func (m *machine) run(ctx context.Context, c *container, conf *wire.ConfigureRequest, n *needs, tr *trace) (*guest.Process, error) {
	sp, err := c.startSpec(m.attachment())
	if err != nil {
		return nil, err
	}
	create, err := m.createRequest(c, sp, m.placed(n))
	if err != nil {
		return nil, err
	}
	ctx, done := m.awaitAnswer(ctx)
	defer done()
	g, err := m.guest(ctx)
	if err != nil {
		return nil, m.noAnswer(ctx, g, err)
	}
	answered := m.answered(g)
	resp, launched, err := g.Launch(ctx, &wire.RunRequest{
		Configure: conf,
		Create:    create,
		Start:     &wire.StartProcessRequest{ContainerId: c.id, User: sp.User, AdditionalGroups: sp.Groups, Stdin: sp.Stdin, Init: sp.Init},
	}, sp.TTY)
	if err != nil {
		return nil, m.noAnswer(ctx, g, err)
	}
	at := <-answered
	if m.info().BootTime == 0 {
		tr.until("answer", at)
	}
	tr.guest(resp)
	if err := runFailure(resp, sp.Args[0]); err != nil {
		return nil, err
	}
	err = m.update(func(r *vmRecord) {
		if r.Info.BootTime == 0 {
			r.Info.BootTime = at.Sub(m.bootedAt)
		}
		r.Containers[c.id] = runRecord{PID: resp.Pid, StartedAt: time.Now(), Stdin: sp.Stdin}
	})
	if err != nil {
		launched.Close()
		return nil, err
	}
	return launched, nil
}

// configure is the first call to the guest of a VM that has no container yet.
func (m *machine) configure(ctx context.Context, conf *wire.ConfigureRequest, tr *trace) error {
	ctx, done := m.awaitAnswer(ctx)
	defer done()
	g, err := m.guest(ctx)
	if err != nil {
		return m.noAnswer(ctx, g, err)
	}
	answered := m.answered(g)
	if _, err := g.Configure(ctx, conf); err != nil {
		return m.noAnswer(ctx, g, fmt.Errorf("configure guest: %w", err))
	}
	at := <-answered
	if m.info().BootTime == 0 {
		tr.until("answer", at)
	}
	return m.update(func(r *vmRecord) {
		if r.Info.BootTime == 0 {
			r.Info.BootTime = at.Sub(m.bootedAt)
		}
	})
}

// awaitAnswer bounds a wait for a new guest.
func (m *machine) awaitAnswer(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.set.cfg.StartTimeout,
		fmt.Errorf("the guest did not answer within %v", m.set.cfg.StartTimeout))
	stop := m.cancelAtEnd(ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// answered gets the time at which the guest first answered, also that of the end of
// the connection if it never does.
func (m *machine) answered(g *guest.Client) <-chan time.Time {
	at := make(chan time.Time, 1)
	go func() {
		select {
		case <-g.Answered():
		case <-g.Done():
		}
		at <- time.Now()
	}()
	return at
}

// runFailure is which part of Run the guest could not do, and why.
func runFailure(resp *wire.RunResponse, arg0 string) error {
	if resp.Failed == "" {
		return nil
	}
	err := guest.CodeError(resp.Code, resp.Message)
	switch resp.Failed {
	case "configure":
		return fmt.Errorf("configure guest: %w", err)
	case "start":
		return startError(arg0, err)
	}
	return err
}

// configuration tells a new guest who it is. A warm VM has its network already.
func (m *machine) configuration(z size) *wire.ConfigureRequest {
	road := m.info().Road
	req := m.identity(road == RoadClone)
	req.MemoryMaxBytes, req.Cpus = uint64(z.memory), uint32(z.cpus)
	if road == RoadWarm {
		req.Interfaces, req.Routes = nil, nil
	}
	return req
}

// identity is what makes one VM another than its template's other clones.
func (m *machine) identity(clone bool) *wire.ConfigureRequest {
	entropy := make([]byte, 64)
	rand.Read(entropy)
	req := &wire.ConfigureRequest{WallClockNanos: time.Now().UnixNano(), Entropy: entropy}
	a := m.attachment()
	if a == nil {
		return req
	}
	nic := &wire.Interface{Mac: a.MAC.String(), Name: "eth0", Mtu: uint32(a.MTU)}
	if clone {
		nic.CurrentMac = template.NICAddress.String()
	}
	for _, p := range a.Addrs {
		nic.Addresses = append(nic.Addresses, p.String())
	}
	req.Interfaces = []*wire.Interface{nic}
	for _, gw := range a.Gateway {
		req.Routes = append(req.Routes, &wire.Route{Gateway: gw.String(), Interface: "eth0"})
	}
	return req
}

// createRequest has the guest mount the container's root from the VM's disks.
func (m *machine) createRequest(c *container, sp Spec, root *wire.RootFS) (*wire.CreateContainerRequest, error) {
	var size *specs.Box
	if cs := sp.ConsoleSize; cs[0] > 0 && cs[1] > 0 {
		size = &specs.Box{Height: cs[0], Width: cs[1]}
	}
	spec, filter, err := ociSpec(sp, c.hostname(), size)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	root.ReadOnly = sp.ReadOnly
	req := &wire.CreateContainerRequest{
		Id: c.id, Spec: data, Files: files(sp, c.hostname(), m.attachment()), Rootfs: root, PidNamespace: sp.PIDMode,
	}
	if sp.Resources.IO != (IOLimit{}) {
		req.Io = sp.Resources.IO.wire()
	}
	if filter != nil {
		req.SeccompFilter, req.SeccompFlags = filter.Program, filter.Flags
	}
	return req, nil
}

func (l IOLimit) wire() *wire.IOLimit {
	return &wire.IOLimit{ReadBytes: l.ReadBytes, WriteBytes: l.WriteBytes, Reads: l.Reads, Writes: l.Writes}
}

// cancelAtEnd cancels a wait for the guest when its VM ends.
func (m *machine) cancelAtEnd(ctx context.Context, cancel context.CancelFunc) (stop func()) {
	done := make(chan struct{})
	go func() {
		select {
		case <-m.vm.Done():
			cancel()
		case <-ctx.Done():
		case <-done:
		}
	}()
	return func() { close(done) }
}

// noAnswer explains why a new guest did not answer a call, with all there is to
// see. g is nil when there is no connection.
func (m *machine) noAnswer(ctx context.Context, g *guest.Client, err error) error {
	se := &vmm.StartError{Err: err}
	cause := context.Cause(ctx)
	switch {
	case cause != nil && !errors.Is(cause, context.Canceled):
		se.Err = cause
	case m.dies():
		exit := m.vm.Exit()
		se.Err = fmt.Errorf("the virtual machine stopped before the guest answered: %s", describeExit(exit))
		se.Stderr = exit.Stderr
	}
	i := m.info()
	se.Tried = fmt.Sprintf("%s on %s (%s), %d CPU, %d MiB, kernel %s (%s)", i.Machine, m.set.cfg.Driver.Name(), i.Accel, i.CPUs, i.MemMiB, i.Kernel, i.KernelName)
	se.Console = m.console()
	if g != nil && isClosed(g.Answered()) {
		return se // it lived, and may have begun to run the container
	}
	return m.cloneFailed(ctx, se)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
