package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/hyper-run/hyper/internal/host"
	"github.com/hyper-run/hyper/internal/network"
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

// inNewVM gets a VM as planned, has use do the first thing in it, and makes it
// the pod's. A clone that never answers is replaced by a VM that boots. On error nothing is left but what
// reclaim gives back in the background. Precondition: p.op is held.
func (p *pod) inNewVM(ctx context.Context, pl *plan, tr *trace, use func(*machine) error) error {
	s := p.set
	p.destroyMachine(ctx) // one that has ended by itself, which nobody has noticed yet
	p.waitReclaimed()
	tr.stage("wait")
	err := p.tryNewVM(ctx, pl, tr, use)
	var spoiled *spoiledError
	if !errors.As(err, &spoiled) {
		return err
	}
	// A template that does not make good clones costs this start some time, no more.
	s.log.Warn("boot instead of a clone", "pod", p.id, "template", spoiled.t.ID, "err", spoiled.err)
	why, _, _ := strings.Cut(spoiled.err.Error(), "\n")
	pl.cold = "its template did not work: " + why
	p.waitReclaimed()
	err = p.tryNewVM(ctx, pl, tr, use)
	if err == nil {
		s.cfg.Templates.Spoiled(spoiled.t, spoiled.err) // since it was not the host's fault
	}
	return err
}

// A spoiledError says that a clone never answered, though a VM that boots may.
type spoiledError struct {
	t   *template.Template
	err error
}

func (e *spoiledError) Error() string { return e.err.Error() }
func (e *spoiledError) Unwrap() error { return e.err }

func (p *pod) tryNewVM(ctx context.Context, pl *plan, tr *trace, use func(*machine) error) error {
	m, err := p.newMachine(ctx, pl, tr)
	if err != nil {
		return err
	}
	p.setMachine(m)
	if err := use(m); err != nil {
		p.destroyMachine(ctx)
		return err
	}
	return nil
}

// newMachine returns a VM as planned, which may not have answered yet.
func (p *pod) newMachine(ctx context.Context, pl *plan, tr *trace) (*machine, error) {
	s := p.set
	if m := s.warm.take(pl); m != nil { // with an address of its own
		release, err := s.cfg.Memory.Admit(pl.size.reserved)
		if err == nil {
			err = m.occupy(ctx, p.id, pl)
			release()
		}
		tr.stage("fill")
		if err == nil {
			return m, nil
		}
		s.log.Warn("a warm VM could not be used", "vm", m.id(), "err", err)
		m.destroy(ctx)
	}
	m, err := s.newVM(p.id, pl)
	if err != nil {
		return nil, err
	}
	if err := m.bringUp(ctx, pl, tr); err != nil {
		p.reclaimed = m.destroy(ctx)
		return nil, err
	}
	return m, nil
}

// newVM puts the record of a VM that is to be made; podID is "" as long as it
// belongs to no pod.
func (s *Set) newVM(podID string, pl *plan) (*machine, error) {
	m := newMachine(s, vmRecord{ID: short(newID()), PodID: podID, Containers: map[string]runRecord{}}, nil)
	m.fresh = true
	err := m.update(func(r *vmRecord) {
		if pl.first != nil {
			r.Containers[pl.first.user] = runRecord{}
		}
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// short is how much of an ID names things on the host.
func short(id string) string { return id[:12] }

// bringUp makes the VM: all it needs, then a clone, or one that boots.
func (m *machine) bringUp(ctx context.Context, pl *plan, tr *trace) error {
	s := m.set
	release, err := s.admit(pl)
	if err != nil {
		return err
	}
	defer release()
	cfg := vmm.Config{ID: m.id(), Dir: s.cfg.Layout.Pod(m.id()), Accel: s.cfg.Accel, Disks: pl.first.disks()}
	defer func() { closeFiles(cfg.Procs) }()
	var t *template.Template
	var g errgroup.Group
	if pl.shape.NIC {
		g.Go(func() error { return m.attach(ctx, pl.attachment, &cfg) })
	}
	g.Go(func() error { return os.Mkdir(cfg.Dir, 0o700) })
	g.Go(func() (err error) {
		cfg.Procs, err = s.cfg.Groups.Create(m.id(), pl.size.onHost(pl.shape.MemMiB))
		return err
	})
	g.Go(func() (err error) {
		t, err = s.template(ctx, pl)
		return err
	})
	err = g.Wait()
	defer closeNICs(cfg)
	if err != nil {
		return err
	}
	tr.stage("prepare")
	info := VMInfo{Kernel: pl.boot.Kernel, KernelName: pl.boot.Name, Road: RoadClone}
	if t != nil {
		t.Clone(&cfg)
		m.template, info.Template = t, t.ID
	} else {
		info.Road, info.Cold = RoadBoot, pl.cold
		bootConfig(pl, &cfg)
	}
	info.CPUs, info.MemMiB = cfg.CPUs, cfg.MemMiB
	err = m.boot(ctx, cfg, info, pl)
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
func (s *Set) template(ctx context.Context, pl *plan) (*template.Template, error) {
	if pl.cold != "" {
		return nil, nil
	}
	t, err := s.cfg.Templates.Find(ctx, pl.shape)
	var notReady *template.NotReadyError
	if errors.As(err, &notReady) {
		pl.cold = notReady.Error()
		return nil, nil
	}
	return t, err
}

// bootConfig completes cfg for a VM that boots: no larger than needed, since
// a kernel takes longer to boot in a large one.
func bootConfig(pl *plan, cfg *vmm.Config) {
	sh := pl.shape
	cfg.Kernel, cfg.Initrd, cfg.Cmdline, cfg.Machine, cfg.Plug = pl.boot.Kernel, pl.boot.Initrd, sh.Cmdline, sh.Machine, sh.Plug
	cfg.CPUs = pl.size.cpus
	if pl.first == nil {
		cfg.Disks = sh.Slots() // for the containers that are to come
	}
	const step = 128
	for cfg.MemMiB = step; vmRoom(cfg.MemMiB) < pl.size.memory; {
		cfg.MemMiB += step
	}
}

// startBytes is what a VM takes of the host at once, before its containers do anything.
const startBytes = 64 * mib

// admit makes sure that the host has the memory, before anything is begun.
func (s *Set) admit(pl *plan) (release func(), err error) {
	release, err = s.cfg.Memory.Admit(startBytes + pl.size.reserved)
	if err != nil {
		return nil, fmt.Errorf("start a virtual machine: %w", err)
	}
	return release, nil
}

// onHost bounds what the processes of a VM of memMiB may take: what the pod may, what the
// kernel's map of the VM's memory takes, and what the VMM needs for itself, emulation included.
func (z size) onHost(memMiB int) host.Limits {
	const vmmBytes, vmmCPUs = 384 * mib, 0.5
	l := host.Limits{MemoryBytes: z.memory + int64(memMiB/64+guestOverhead)*mib + vmmBytes}
	if z.quota > 0 {
		l.CPUs = z.quota + vmmCPUs
	}
	return l
}

// attach connects the VM to the network: with the attachment that its pod keeps, or a new one.
func (m *machine) attach(ctx context.Context, kept *network.Attachment, cfg *vmm.Config) error {
	n := m.set.cfg.Network
	if n == nil {
		return fmt.Errorf("no network: %w (use --network none)", m.set.cfg.NetworkErr)
	}
	if kept != nil {
		err := m.plugIn(ctx, *kept, cfg)
		if !errdefs.IsNotFound(err) {
			return err
		}
		// The network is another than it was: its addresses are too.
		m.set.log.Warn("a pod can't have the addresses that it had", "pod", m.record().PodID, "err", err)
	}
	a, err := n.Attach(ctx, m.id())
	if err != nil {
		return fmt.Errorf("attach to the network: %w", err)
	}
	return m.plugIn(ctx, a, cfg)
}

func (m *machine) plugIn(ctx context.Context, a network.Attachment, cfg *vmm.Config) error {
	if err := m.update(func(r *vmRecord) { r.Attachment = &a }); err != nil {
		return err
	}
	tap, err := m.set.cfg.Network.Open(ctx, a)
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
func (m *machine) boot(ctx context.Context, cfg vmm.Config, info VMInfo, pl *plan) error {
	m.bootedAt = time.Now()
	vm, err := m.set.cfg.Driver.Start(ctx, cfg)
	if err != nil {
		return err // it says which VM
	}
	m.vm = vm
	h := vm.Handle()
	info.HostPID, info.Accel, info.Machine = h.PID, string(h.Accel), string(h.Machine)
	return m.update(func(r *vmRecord) {
		r.Handle, r.Info, r.Slots, r.Memory = &h, info, slotsOf(cfg.Disks, pl.user()), pl.size.memory
	})
}

// user is whom the disks are for that the VM is started with.
func (pl *plan) user() string {
	if pl.first == nil {
		return ""
	}
	return pl.first.user
}

// occupy makes a warm VM the pod's.
func (m *machine) occupy(ctx context.Context, podID string, pl *plan) error {
	if err := m.set.cfg.Groups.Update(m.id(), pl.size.onHost(pl.shape.MemMiB)); err != nil {
		return err
	}
	err := m.update(func(r *vmRecord) {
		r.PodID, r.Info.Road, r.Memory = podID, RoadWarm, pl.size.memory
		if pl.first != nil {
			r.Containers[pl.first.user] = runRecord{}
		}
	})
	if err != nil || pl.first == nil {
		return err
	}
	return m.place(ctx, pl.first)
}
