package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/hyper-run/hyper/internal/host"
	"github.com/hyper-run/hyper/internal/template"
	"github.com/hyper-run/hyper/internal/vmm"
)

// A Road is how a VM came to be.
type Road string

// The roads to a VM, the fastest first.
const (
	RoadWarm  Road = "warm"  // a clone that was made ahead
	RoadClone Road = "clone" // of a template
	RoadBoot  Road = "boot"
)

// machineFor returns a VM as planned, which may not have answered yet. On error
// nothing is left but what reclaim gives back in the background.
func (s *Set) machineFor(ctx context.Context, c *container, p *plan, tr *trace) (*machine, error) {
	if m := s.warm.take(p); m != nil {
		release, err := s.cfg.Memory.Admit(p.reserved)
		if err == nil {
			err = m.occupy(ctx, c, p)
			release()
		}
		tr.stage("fill")
		if err == nil {
			return m, nil
		}
		s.log.Warn("a warm VM could not be used", "vm", m.rec.ID, "err", err)
		m.destroy(ctx)
	}
	m, err := s.newVM(ctx, c.rec.PodID)
	if err != nil {
		return nil, err
	}
	if err := m.bringUp(ctx, c.spec().Network, p, tr); err != nil {
		c.reclaimed = m.destroy(ctx)
		return nil, err
	}
	return m, nil
}

// newVM puts the record of a VM that is to be made; podID is "" as long as it
// belongs to no pod.
func (s *Set) newVM(_ context.Context, podID string) (*machine, error) {
	m := newMachine(s, vmRecord{ID: short(newID()), PodID: podID, Containers: map[string]runRecord{}}, nil)
	if err := m.save(); err != nil {
		return nil, err
	}
	return m, nil
}

// short is how much of an ID names things on the host.
func short(id string) string { return id[:12] }

// bringUp makes the VM: all it needs, then a clone, or one that boots.
func (m *machine) bringUp(ctx context.Context, network string, p *plan, tr *trace) error {
	s := m.set
	m.trace = tr
	release, err := s.admit(p)
	if err != nil {
		return err
	}
	defer release()
	cfg := vmm.Config{ID: m.rec.ID, Dir: s.cfg.Layout.Pod(m.rec.ID), Accel: s.cfg.Accel, Disks: p.disks()}
	defer func() { closeFiles(cfg.Procs) }()
	var t *template.Template
	var g errgroup.Group
	g.Go(func() error { return m.attach(ctx, network, &cfg) })
	g.Go(func() error { return os.Mkdir(cfg.Dir, 0o700) })
	g.Go(func() (err error) {
		cfg.Procs, err = s.cfg.Groups.Create(m.rec.ID, hostLimits(p.memory, p.shape.MemMiB, p.quota))
		return err
	})
	g.Go(func() (err error) {
		t, err = s.template(ctx, p)
		return err
	})
	err = g.Wait()
	defer closeNICs(cfg)
	if err != nil {
		return err
	}
	tr.stage("prepare")
	m.rec.Info = VMInfo{Kernel: p.boot.Kernel, KernelName: p.boot.Name, Road: RoadClone}
	if t != nil {
		t.Clone(&cfg)
		m.template, m.rec.Info.Template = t, t.ID
	} else {
		m.bootConfig(p, &cfg)
	}
	m.rec.Info.CPUs, m.rec.Info.MemMiB = cfg.CPUs, cfg.MemMiB
	err = m.boot(ctx, cfg)
	tr.stage("vmm")
	var refused *vmm.StartError
	if errors.As(err, &refused) {
		err = m.cloneFailed(ctx, err)
	}
	return err
}

// cloneFailed is err, as a reason to boot instead if the VM is a clone and nobody
// gave up waiting for it.
func (m *machine) cloneFailed(ctx context.Context, err error) error {
	if m.template == nil || errors.Is(ctx.Err(), context.Canceled) || m.set.isClosing() {
		return err
	}
	return &spoiledError{m.template, err}
}

// template finds what to clone; nil when the VM has to boot, p.cold then says why.
func (s *Set) template(ctx context.Context, p *plan) (*template.Template, error) {
	if p.cold != "" {
		return nil, nil
	}
	t, err := s.cfg.Templates.Find(ctx, p.shape)
	var notReady *template.NotReadyError
	if errors.As(err, &notReady) {
		p.cold = notReady.Error()
		return nil, nil
	}
	return t, err
}

// bootConfig completes cfg for a VM that boots: no larger than needed, since
// a kernel takes longer to boot in a large one.
func (m *machine) bootConfig(p *plan, cfg *vmm.Config) {
	m.rec.Info.Road, m.rec.Info.Cold = RoadBoot, p.cold
	cfg.Kernel, cfg.Initrd, cfg.Cmdline, cfg.Machine = p.boot.Kernel, p.boot.Initrd, p.shape.Cmdline, p.shape.Machine
	cfg.CPUs = p.cpus
	const step = 128
	for cfg.MemMiB = step; vmRoom(cfg.MemMiB) < p.memory; {
		cfg.MemMiB += step
	}
}

// startBytes is what a VM takes of the host at once, before its containers do anything.
const startBytes = 64 * mib

// admit makes sure that the host has the memory, before anything is begun.
func (s *Set) admit(p *plan) (release func(), err error) {
	release, err = s.cfg.Memory.Admit(startBytes + p.reserved)
	if err != nil {
		return nil, fmt.Errorf("start a virtual machine: %w", err)
	}
	return release, nil
}

// hostLimits bound what the processes of a VM of memMiB may take: what the pod may, what the
// kernel's map of the VM's memory takes, and what the VMM needs for itself, emulation included.
func hostLimits(memory int64, memMiB int, quota float64) host.Limits {
	const vmmBytes, vmmCPUs = 384 * mib, 0.5
	l := host.Limits{MemoryBytes: memory + int64(memMiB/64+guestOverhead)*mib + vmmBytes}
	if quota > 0 {
		l.CPUs = quota + vmmCPUs
	}
	return l
}

func (m *machine) attach(ctx context.Context, name string, cfg *vmm.Config) error {
	if name == "none" {
		return nil
	}
	n := m.set.cfg.Network
	if n == nil {
		return fmt.Errorf("no network: %w (use --network none)", m.set.cfg.NetworkErr)
	}
	a, err := n.Attach(ctx, m.rec.ID)
	if err != nil {
		return fmt.Errorf("attach to network %s: %w", name, err)
	}
	m.rec.Attachment = &a
	if err := m.save(); err != nil {
		return err
	}
	tap, err := n.Open(ctx, a)
	if err != nil {
		return fmt.Errorf("open %s: %w", a.Device, err)
	}
	cfg.NICs = []vmm.NIC{{Tap: tap, MAC: a.MAC, MTU: a.MTU}}
	return nil
}

func closeNICs(cfg vmm.Config) {
	for _, n := range cfg.NICs {
		n.Tap.Close()
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// boot starts the VM, records it, and begins to talk to the guest.
func (m *machine) boot(ctx context.Context, cfg vmm.Config) error {
	m.bootedAt = time.Now()
	vm, err := m.set.cfg.Driver.Start(ctx, cfg)
	if err != nil {
		return err // it says which VM
	}
	m.vm = vm
	h := vm.Handle()
	m.rec.Handle = &h
	m.rec.Info.HostPID, m.rec.Info.Accel, m.rec.Info.Machine = h.PID, string(h.Accel), string(h.Machine)
	return m.save()
}

// occupy makes a warm VM the container's.
func (m *machine) occupy(ctx context.Context, c *container, p *plan) error {
	f, ok := m.vm.(vmm.Filler)
	if !ok {
		return fmt.Errorf("fill slots: %w", errdefs.ErrNotImplemented)
	}
	m.rec.PodID, m.rec.Info.Road = c.rec.PodID, RoadWarm
	if err := m.set.cfg.Groups.Update(m.rec.ID, hostLimits(p.memory, p.shape.MemMiB, p.quota)); err != nil {
		return err
	}
	return f.Fill(ctx, p.disks())
}
