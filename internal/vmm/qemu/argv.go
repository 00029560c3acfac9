package qemu

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/hyper-run/hyper/internal/vmm"
)

// spec is all that a command line is made of: numbers, validated names, and
// descriptors that QEMU inherits. No path and no free text of a user is in
// it, but for the kernel's command line, which is an argument of its own.
type spec struct {
	ID      string
	Accel   vmm.Accel   // kvm or tcg
	Machine vmm.Machine // q35 or microvm
	TSCKHz  uint64      // of the host, 0: unknown or not constant
	CPUs    int
	MemMiB  int
	Cmdline string
	Sandbox bool // this QEMU knows -sandbox

	MemoryFD   int  // the file that is the guest's memory; 0: anonymous memory
	StateFD    int  // what a clone restores; not an argument
	Unfiltered bool // has memory that can't be given back (giveback.go); not an argument
	Clone      bool // restores instead of booting; its memory is a private copy

	KernelFD int // not with Clone
	InitrdFD int // 0: no initrd
	QMPFD    int // listening unix socket
	GuestFD  int // listening unix socket
	Disks    []diskSpec
	NICs     []nicSpec
	Plug     bool // has a controller for further disks
}

type diskSpec struct {
	ID       string
	FD       int // 0: an empty slot
	ReadOnly bool
	Device   bool // a block device, not a file
}

type nicSpec struct {
	TapFD   int
	VhostFD int // 0: no vhost-net
	MAC     net.HardwareAddr
	MTU     int
}

// Names that argv and the QMP side share.
const (
	portName    = "hyper.guest"
	consoleDev  = "console"
	consoleSize = 64 << 10 // a power of two, as ringbuf wants it
)

// slots is how many virtio devices a machine has room for, fixedDevices how
// many every VM has: serial, random numbers, balloon.
//
// microvm has 24 virtio-mmio transports when it has ACPI (8 without), of which
// some can't be used (see place). A q35 has 32 PCI slots, of which QEMU takes
// those of the host bridge and of LPC; pvpanic takes one more.
var slots = map[vmm.Machine]int{vmm.MachineMicroVM: transports - len(taken), vmm.MachineQ35: 29}

// transports are microvm's with ACPI. Their interrupts are the lines of the
// second I/O APIC. With KVM QEMU routes both I/O APICs' lines under the same
// numbers: a device on a line that the first one uses (timer on 0 and 2,
// serial, ACPI) hangs. So these are left out; see test/lab.
const transports = 24

var taken = []int{0, 2, 4, 9}

// place gives each virtio device of a microvm its transport, from the last on.
func place(args []string) {
	bus := transports
	for i, a := range args {
		if i == 0 || args[i-1] != "-device" || !strings.HasPrefix(a, "virtio-") {
			continue
		}
		bus--
		for slices.Contains(taken, bus) {
			bus--
		}
		args[i] += fmt.Sprintf(",bus=virtio-mmio-bus.%d", bus)
	}
}

const fixedDevices = 3

// argv makes QEMU's command line, without argv[0].
//
// A guest that stops by itself (power-off, reset, panic) leaves QEMU paused,
// so that its console and the reason can be read until Kill.
func (s spec) argv() []string {
	args := []string{
		"-name", processName(s.ID),
		"-nodefaults", "-no-user-config", "-display", "none",
		"-action", "reboot=shutdown,shutdown=pause,panic=pause",
		"-machine", s.machine(),
		"-accel", s.accel(),
		"-cpu", s.cpu(),
		"-smp", strconv.Itoa(s.CPUs),
		"-m", strconv.Itoa(s.MemMiB) + "M",
		"-rtc", "base=utc,clock=host",
	}
	if s.Sandbox {
		args = append(args, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	}
	if s.MemoryFD != 0 {
		args = append(args, "-object", s.memory())
		if !s.Clone {
			// Else it is saved that the guest was stopped to be saved, and
			// its clones stay so.
			args = append(args, "-global", "migration.store-global-state=off")
		}
	}
	if s.Machine == vmm.MachineQ35 {
		// 0.1 s sooner than SeaBIOS under TCG; it can do all that -kernel needs.
		args = append(args, "-bios", "qboot.rom")
	}
	args = append(args, s.boot()...)
	args = append(args,
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", s.QMPFD),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("ringbuf,id=%s,size=%d", consoleDev, consoleSize),
		"-serial", "chardev:"+consoleDev,
		"-chardev", fmt.Sprintf("socket,id=guest,fd=%d,server=on,wait=off", s.GuestFD),
	)
	return append(args, s.devices()...)
}

// memory: the file is mapped shared to be saved, and private by its clones,
// which copy the pages that they write. It is never a reservation: a clone
// uses a small part of it.
func (s spec) memory() string {
	return fmt.Sprintf("memory-backend-file,id=mem,size=%dM,mem-path=%s,share=%s,reserve=off",
		s.MemMiB, fdPath(s.MemoryFD), onOff(!s.Clone))
}

// boot says where the guest comes from. With defer QEMU waits for
// migrate-incoming: what is being loaded is set up over QMP.
func (s spec) boot() []string {
	if s.Clone {
		return []string{"-incoming", "defer"}
	}
	args := []string{"-kernel", fdPath(s.KernelFD)}
	if s.InitrdFD != 0 {
		args = append(args, "-initrd", fdPath(s.InitrdFD))
	}
	return append(args, "-append", s.cmdline())
}

// processName is how ps shows the VM, and how Sweep finds it.
func processName(id string) string { return "hyper-" + id }

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func (s spec) machine() string {
	common := ",graphics=off,mem-merge=off,dump-guest-core=off"
	if s.MemoryFD != 0 {
		common += ",memory-backend=mem"
	}
	if s.Machine == vmm.MachineMicroVM {
		// With ACPI the guest can power off, has 24 transports instead of 8,
		// and skips 0.1 s of checking the APIC timer against a PIT.
		return "microvm,acpi=on,isa-serial=on" + common
	}
	return "q35,usb=off,vmport=off,hpet=off,sata=off,smbus=off,i8042=off,smm=off" + common
}

func (s spec) accel() string {
	if s.Accel == vmm.AccelTCG {
		// The buffer for translated code is a limit, not a reservation; QEMU
		// would take up to 1 GiB.
		return "tcg,thread=multi,tb-size=256"
	}
	return "kvm"
}

func (s spec) cpu() string {
	if s.Accel == vmm.AccelTCG {
		// Five-level paging only makes each TLB miss dearer.
		return "max,la57=off"
	}
	return "host"
}

// cmdline is what the guest's kernel is told. What the caller gave comes
// last, since of an option given twice the last counts.
func (s spec) cmdline() string {
	// swiotlb=noforce: no device here needs bounce buffers, for which a guest
	// of 4 GiB would set 64 MiB aside.
	words := []string{"console=ttyS0", "panic=-1", "quiet", "swiotlb=noforce"}
	if s.Machine == vmm.MachineMicroVM {
		words = append(words, "pci=off") // it has none; do not look for it
	}
	if s.Accel == vmm.AccelTCG {
		// noreplace-smp: with one CPU the kernel would patch thousands of lock
		// prefixes, each of which makes TCG translate anew (0.15 s).
		// no_timer_check: saves 40 ms, the timer is fine.
		words = append(words, "noreplace-smp", "no_timer_check")
		if s.TSCKHz != 0 {
			// Under TCG the guest's TSC is the host's. Told its frequency, the
			// guest need not measure it (which fails under load, and on microvm
			// would leave it without a clock finer than the tick).
			words = append(words, "tsc=reliable", fmt.Sprintf("tsc_early_khz=%d", s.TSCKHz))
			if s.CPUs > 1 {
				// Each further CPU would measure its own delay loop, 0.2 s. This is
				// the value for HZ=100; kernels that tick faster wait longer in
				// delays than they mean to, never shorter.
				words = append(words, fmt.Sprintf("lpj=%d", s.TSCKHz*1000/100))
			}
		}
	}
	if s.Plug {
		// Looking for disks that aren't there yet takes 0.1 s, while the rest
		// boots. (scan=manual would not find them after a lost event either.)
		// A disk that comes waits for several grace periods of RCU, each of which
		// would wait a tick before it looks whether it is over.
		words = append(words, "scsi_mod.scan=async", "rcutree.jiffies_till_first_fqs=0")
	}
	if s.Cmdline != "" {
		words = append(words, s.Cmdline)
	}
	return strings.Join(words, " ")
}

func (s spec) devices() []string {
	args := []string{
		// Two ports: number 0 is reserved for a console.
		"-device", s.virtio("virtio-serial", "max_ports=2"),
		"-device", "virtserialport,chardev=guest,name=" + portName,
		"-device", s.virtio("virtio-rng", ""),
		"-device", s.virtio("virtio-balloon", "free-page-reporting=on,deflate-on-oom=on"),
	}
	if s.Machine == vmm.MachineMicroVM {
		args = append(args, "-global", "virtio-mmio.force-legacy=off")
	} else {
		args = append(args, "-device", "pvpanic-pci")
	}
	if s.Plug {
		args = append(args, "-device", s.virtio("virtio-scsi",
			fmt.Sprintf("id=%s,num_queues=1,virtqueue_size=%d", controller, diskQueue)))
	}
	for i, d := range s.Disks {
		args = append(args, s.disk(i, d)...)
	}
	for i, n := range s.NICs {
		args = append(args, s.nic(i, n)...)
	}
	if s.Machine == vmm.MachineMicroVM {
		place(args)
	}
	return args
}

// virtio names a device for the machine's bus.
func (s spec) virtio(kind, options string) string {
	name := kind + "-pci,disable-legacy=on"
	if s.Machine == vmm.MachineMicroVM {
		name = kind + "-device"
	}
	if options != "" {
		name += "," + options
	}
	return name
}

// disk: the host's page cache is shared by all VMs that read the same file; a
// flush of the guest is an fdatasync of the file (cache.no-flush is off).
// The image lock stays on, so that two VMs never write one disk. A full disk
// of the host is an error for the guest; QEMU would stop it for that.
//
// One queue on every bus, where PCI's default is one for each CPU, and a short
// one: each request that it has room for takes of the guest's memory, and a
// longer one was not faster.
func (s spec) disk(i int, d diskSpec) []string {
	device := s.virtio("virtio-blk", fmt.Sprintf("drive=%s,serial=%s,num-queues=1,queue-size=%d,werror=report,rerror=report",
		diskNode(d.ID), d.ID, diskQueue))
	// The device's own node is a filter, below which another node can take the
	// place of the first: see Fill.
	args := []string{
		"-blockdev", fmt.Sprintf("driver=null-co,node-name=%s,size=%d,read-zeroes=on,read-only=%s",
			emptyNode(d.ID), int64(vmm.SlotBytes), onOff(d.ReadOnly)),
	}
	below := emptyNode(d.ID)
	if d.FD != 0 {
		below = fileNode(d.ID)
		args = []string{
			"-add-fd", fmt.Sprintf("fd=%d,set=%d", d.FD, diskSet(i)),
			"-blockdev", fmt.Sprintf("driver=%s,node-name=%s,filename=%s,read-only=%s,discard=unmap,aio=threads",
				fileDriver(d.Device), below, fdset(diskSet(i)), onOff(d.ReadOnly)),
		}
	}
	return append(args,
		"-blockdev", fmt.Sprintf("driver=raw,node-name=%s,file=%s,read-only=%s,discard=unmap", diskNode(d.ID), below, onOff(d.ReadOnly)),
		"-device", device,
	)
}

// diskQueue is how many requests a disk has room for.
const diskQueue = 64

func fileDriver(device bool) string {
	if device {
		return "host_device"
	}
	return "file"
}

func (s spec) nic(i int, n nicSpec) []string {
	tap := fmt.Sprintf("tap,id=net%d,fd=%d", i, n.TapFD)
	if n.VhostFD != 0 {
		tap += fmt.Sprintf(",vhost=on,vhostfd=%d", n.VhostFD)
	}
	// A clone has no address yet that could be announced.
	options := fmt.Sprintf("netdev=net%d,mac=%s,guest_announce=off", i, n.MAC)
	if n.MTU != 0 {
		options += fmt.Sprintf(",host_mtu=%d", n.MTU)
	}
	if s.Machine == vmm.MachineQ35 {
		options += ",romfile=" // no PXE
	}
	return []string{"-netdev", tap, "-device", s.virtio("virtio-net", options)}
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}
