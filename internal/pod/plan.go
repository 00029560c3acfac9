package pod

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/template"
	"github.com/hyper-run/hyper/internal/vmm"
)

// A plan is what VM is wanted.
type plan struct {
	boot  BootFiles
	shape template.Shape
	size  size
	first *needs // of the container that it is started for; nil: none yet
	cold  string // why the VM has to boot; "": it may be a clone

	attachment *network.Attachment // that the pod has already; nil: none
}

// Slots of a VM. A microvm has 20 places for devices, of which five are taken
// by the serial ports, random numbers, the balloon, the controller of plugged
// disks and a NIC. An image of more layers has them merged.
const (
	layerSlots = 11
	diskSlots  = 4
)

// guestOverhead is what kernel and hyperstart need beside what containers
// have, MiB; to it comes 1/64 of the memory, which the kernel's map of it takes.
const guestOverhead = 128

const mib = 1 << 20

// plan decides what VM the pod wants that is to be started for containers;
// first is what one of them needs of it at once. What is independent runs side by side.
func (p *pod) plan(ctx context.Context, first *container, all ...*container) (*plan, error) {
	s, ps := p.set, p.record().Spec
	kernel, network := ps.Kernel, ps.Network
	if !p.explicit() {
		kernel, network = first.spec().Kernel, first.spec().Network
	}
	var specs []Spec
	for _, c := range all {
		specs = append(specs, c.spec())
	}
	pl := &plan{size: s.sizeOfPod(specs, ps.Resources), attachment: p.record().Attachment}
	var g errgroup.Group
	if first != nil {
		g.Go(func() (err error) {
			pl.first, err = first.needs(ctx)
			return err
		})
	}
	g.Go(func() (err error) {
		pl.boot, err = s.cfg.Boot(kernel)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	pl.shape = s.shape(pl.boot, pl.size.memory, pl.size.cpus)
	pl.shape.NIC = network != "none"
	switch {
	case s.cfg.Templates == nil:
		pl.cold = "templates are off"
	case kernel != "":
		pl.cold = "it has a kernel of its own"
	case len(ps.KernelArgs) > 0:
		pl.cold = "it has kernel parameters of its own"
	}
	for _, arg := range ps.KernelArgs {
		pl.shape.Cmdline += " " + arg
	}
	return pl, nil
}

// needs is what the container needs of a VM: its image and its own disk.
func (c *container) needs(ctx context.Context) (*needs, error) {
	layers, err := c.set.cfg.Layers(ctx, c.spec(), layerSlots)
	if err != nil {
		return nil, err
	}
	// What lies below the same layer once more is hidden by it.
	n := &needs{user: c.id, disk: c.set.cfg.Layout.ContainerDisk(c.id)}
	for i, l := range layers {
		if !slices.Contains(layers[i+1:], l) {
			n.layers = append(n.layers, l)
		}
	}
	return n, nil
}

// shape is the machine that containers of this size run in: the usual one
// as long as they fit, since its clones cost no more than those of a small one.
func (s *Set) shape(boot BootFiles, memory int64, cpus int) template.Shape {
	sh := template.Shape{
		Kernel: boot.Kernel, Initrd: boot.Initrd, Cmdline: "hyper.log=warn",
		CPUs: max(cpus, s.cfg.VM.CPUs), MemMiB: s.cfg.VM.MemMiB, Layers: layerSlots, Disks: diskSlots, Plug: true,
	}
	if boot.Stock {
		sh.Machine = vmm.MachineQ35
	}
	for vmRoom(sh.MemMiB) < memory {
		sh.MemMiB += s.cfg.VM.MemMiB
	}
	return sh
}

// vmRoom is how much of a VM's memory containers can have, bytes.
func vmRoom(memMiB int) int64 { return int64(memMiB-memMiB/64-guestOverhead) * mib }

// quota is how many CPUs a container may use, 0: all there are.
func quota(r Resources) float64 {
	if r.CPUQuotaUs > 0 {
		const usual = 100_000 // microseconds, the kernel's period
		period := r.CPUPeriodUs
		if period == 0 {
			period = usual
		}
		return float64(r.CPUQuotaUs) / float64(period)
	}
	return float64(r.NanoCPUs) / 1e9
}

// Shape is that of a template for containers of this size; zero is the usual.
// Errors: errdefs InvalidArgument.
func (s *Set) Shape(cpus, memMiB int, nic bool) (template.Shape, error) {
	if cpus < 0 || cpus > s.maxCPUs() || memMiB < 0 || memMiB > vmm.MaxMemMiB {
		return template.Shape{}, textError{fmt.Sprintf("a template of %d CPUs and %d MiB: want at most %d CPUs and %d MiB", cpus, memMiB, s.maxCPUs(), vmm.MaxMemMiB), errdefs.ErrInvalidArgument}
	}
	boot, err := s.cfg.Boot("")
	if err != nil {
		return template.Shape{}, err
	}
	sh := s.shape(boot, s.sizeOf([]Resources{{MemoryBytes: int64(memMiB) * mib}}, PodResources{}).memory, cpus)
	sh.NIC = nic
	return sh, nil
}

// Warm is how many VMs are kept ready, and how many there would be.
func (s *Set) Warm() (ready, wanted int) { return s.warm.count() }

// VMRoom is how much of a VM of memMiB containers can have, in MiB.
func VMRoom(memMiB int) int { return int(vmRoom(memMiB) / mib) }

// Prepare makes ahead what starts will want: the usual template, and clones
// of it. It returns at once.
func (s *Set) Prepare() {
	if s.cfg.Templates == nil || s.cfg.Network == nil {
		return
	}
	s.background.Go(func() {
		sh, err := s.Shape(0, 0, true)
		if err == nil {
			_, err = s.cfg.Templates.Make(s.warm.ctx, sh)
		}
		if err != nil {
			if s.warm.ctx.Err() == nil {
				s.log.Warn("make the usual template", "err", err)
			}
			return
		}
		boot, err := s.cfg.Boot("")
		if err == nil {
			s.warm.want(&plan{shape: sh, boot: boot})
		}
	})
}

// MemoryShort says whether the host is short of memory: then no VMs are kept warm.
func (s *Set) MemoryShort(short bool) { s.warm.setShort(short) }
