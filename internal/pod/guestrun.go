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
// the guest is known to live. The process is then m.launched.
func (m *machine) run(ctx context.Context, c *container, p *plan, tr *trace) error {
	sp := c.spec()
	create, err := m.createRequest(c, p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, m.set.cfg.StartTimeout,
		fmt.Errorf("the guest did not answer within %v", m.set.cfg.StartTimeout))
	defer cancel()
	stop := m.cancelAtEnd(ctx, cancel)
	defer stop()
	g, err := m.guest(ctx)
	if err != nil {
		return m.noAnswer(ctx, g, err)
	}
	answered := m.answered(g)
	resp, launched, err := g.Launch(ctx, &wire.RunRequest{
		Configure: m.configuration(c, p),
		Create:    create,
		Start:     &wire.StartProcessRequest{ContainerId: c.id, User: sp.User, AdditionalGroups: sp.Groups, Stdin: sp.Stdin, Init: sp.Init},
	}, sp.TTY)
	if err != nil {
		return m.noAnswer(ctx, g, err)
	}
	m.launched = launched
	if at := <-answered; m.rec.Info.BootTime == 0 {
		m.rec.Info.BootTime = at.Sub(m.bootedAt)
		tr.until("answer", at)
	}
	tr.guest(resp)
	if err := runFailure(resp, sp.Args[0]); err != nil {
		return err
	}
	m.rec.Containers[c.id] = runRecord{PID: resp.Pid, StartedAt: time.Now(), Stdin: sp.Stdin}
	return m.save()
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

// configuration tells the guest who it is. A warm VM has its network already.
func (m *machine) configuration(c *container, p *plan) *wire.ConfigureRequest {
	req := m.identity(m.rec.Info.Road == RoadClone)
	req.Hostname, req.Domainname = c.hostname(), c.spec().Domainname
	req.ShmBytes = uint64(max(c.spec().ShmBytes, 0))
	req.MemoryMaxBytes, req.Cpus = uint64(p.memory), uint32(p.cpus)
	if m.rec.Info.Road == RoadWarm {
		req.Interfaces, req.Routes = nil, nil
	}
	return req
}

// identity is what makes one VM another than its template's other clones.
func (m *machine) identity(clone bool) *wire.ConfigureRequest {
	entropy := make([]byte, 64)
	rand.Read(entropy)
	req := &wire.ConfigureRequest{WallClockNanos: time.Now().UnixNano(), Entropy: entropy}
	a := m.rec.Attachment
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

func (c *container) hostname() string {
	if c.spec().Hostname != "" {
		return c.spec().Hostname
	}
	return short(c.id)
}

// createRequest has the guest mount the container's root from the VM's disks.
func (m *machine) createRequest(c *container, p *plan) (*wire.CreateContainerRequest, error) {
	var size *specs.Box
	if cs := c.spec().ConsoleSize; cs[0] > 0 && cs[1] > 0 {
		size = &specs.Box{Height: cs[0], Width: cs[1]}
	}
	spec, filter, err := ociSpec(c.spec(), c.hostname(), size)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	req := &wire.CreateContainerRequest{
		Id: c.id, Spec: data, Files: c.files(m.rec.Attachment),
		Rootfs: &wire.RootFS{ReadOnly: c.spec().ReadOnly, Upper: template.DiskSlot(0)},
	}
	if filter != nil {
		req.SeccompFilter, req.SeccompFlags = filter.Program, filter.Flags
	}
	for i := range p.layers {
		req.Rootfs.Layers = append(req.Rootfs.Layers, template.LayerSlot(i))
	}
	return req, nil
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
	i := m.rec.Info
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
