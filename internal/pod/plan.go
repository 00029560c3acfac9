package pod

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/template"
	"github.com/hyper-run/hyper/internal/vmm"
)

// A plan is what VM a container wants.
type plan struct {
	boot   BootFiles
	shape  template.Shape
	layers []string // paths, lowest first
	disk   string   // path of the writable disk
	memory int64    // of the pod's containers and their page cache, bytes
	cpus   int      // of the VM's, that containers may run on
	cold   string   // why the VM has to boot; "": it may be a clone

	quota    float64 // CPUs that the container may use, 0: all it sees
	reserved int64   // bytes that it was promised
}

// Slots of a VM. A microvm has 20 places for devices, of which four are taken
// by the serial ports, random numbers, the balloon and a NIC.
// The last of each kind is left to the rehearsal of warm VMs.
const (
	layerSlots = 12 // so more than 11 layers are merged
	diskSlots  = 4
)

// guestOverhead is what kernel and hyperstart need beside what containers
// have, MiB; to it comes 1/64 of the memory, which the kernel's map of it takes.
const guestOverhead = 128

const mib = 1 << 20

// plan decides. What is independent runs side by side.
func (s *Set) plan(ctx context.Context, c *container) (*plan, error) {
	sp := c.spec()
	r := sp.Resources
	p := &plan{
		disk: s.cfg.Layout.ContainerDisk(c.id), memory: s.podMemory(r), cpus: s.podCPUs(r),
		quota: quota(r), reserved: r.MemoryReservationBytes,
	}
	var g errgroup.Group
	g.Go(func() (err error) {
		p.layers, err = s.cfg.Layers(ctx, sp, layerSlots-1)
		return err
	})
	g.Go(func() (err error) {
		p.boot, err = s.cfg.Boot(sp.Kernel)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	p.shape = s.shape(p.boot, p.memory, p.cpus)
	p.shape.NIC = sp.Network != "none"
	switch {
	case s.cfg.Templates == nil:
		p.cold = "templates are off"
	case sp.Kernel != "":
		p.cold = "it has a kernel of its own"
	}
	return p, nil
}

// shape is the machine that containers of this size run in: the usual one
// as long as they fit, since its clones cost no more than those of a small one.
func (s *Set) shape(boot BootFiles, memory int64, cpus int) template.Shape {
	sh := template.Shape{
		Kernel: boot.Kernel, Initrd: boot.Initrd, Cmdline: "hyper.log=warn",
		CPUs: max(cpus, s.cfg.VM.CPUs), MemMiB: s.cfg.VM.MemMiB, Layers: layerSlots, Disks: diskSlots,
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

// podMemory is what a pod of one container may use, bytes.
func (s *Set) podMemory(r Resources) int64 {
	if r.MemoryBytes == 0 {
		return int64(s.cfg.MemMiB) * mib
	}
	// Room for what hyperstart keeps for the pod, which must not push a
	// container below its own limit.
	return r.MemoryBytes + 16*mib
}

// podCPUs is how many CPUs containers see, as with Docker those of the host unless
// they are promised more.
func (s *Set) podCPUs(r Resources) int {
	return max(s.cfg.CPUs, int((r.NanoCPUs+1e9-1)/1e9))
}

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

// fits says why a running VM has no room for what p wants, "" when it has.
func (i VMInfo) fits(memory int64, cpus int) string {
	if room := vmRoom(i.MemMiB); memory > room || cpus > i.CPUs {
		return fmt.Sprintf("its running VM has room for %d MiB and %d CPUs", room/mib, i.CPUs)
	}
	return ""
}

// disks are the VM's disks for this plan: with the IDs of slots, whether it
// is a clone or boots, so that the guest is told the same in both cases.
func (p *plan) disks() []vmm.Disk {
	var disks []vmm.Disk
	for i, path := range p.layers {
		disks = append(disks, vmm.Disk{ID: template.LayerSlot(i), Path: path, ReadOnly: true})
	}
	if p.disk != "" {
		disks = append(disks, vmm.Disk{ID: template.DiskSlot(0), Path: p.disk})
	}
	return disks
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
	sh := s.shape(boot, s.podMemory(Resources{MemoryBytes: int64(memMiB) * mib}), cpus)
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
