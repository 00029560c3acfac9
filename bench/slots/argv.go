package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A kind of device for the layers of images.
const (
	blk  = "blk"  // virtio-blk: the guest copies what it reads into its memory
	pmem = "pmem" // virtio-pmem, DAX: the guest sees the host's page cache
)

// A road is one way to give an image to a VM.
type road struct{ machine, kind string }

func (r road) String() string { return r.machine + "-" + r.kind }

// roads are all that work: microvm takes a bare virtio-pmem too, but in QEMU
// only the PCI device has its memory mapped.
var roads = []road{{"microvm", blk}, {"q35", blk}, {"q35", pmem}, {"pc", blk}, {"pc", pmem}}

// shape is what all templates have in common.
type shape struct {
	cpus, memMiB int
	slots        int
	slotMiB      int // size of a pmem slot
	tscKHz       int // the host's; 0: unknown
}

// spec is what QEMU's command line is made of: numbers and descriptors.
type spec struct {
	road
	shape
	clone bool

	kernelFD, initrdFD int // not with clone
	memoryFD           int
	qmpFD, guestFD     int // listening sockets
	emptyFD            int // of a pmem slot with nothing in it
	imageFD            int // what is in the first slot; 0: nothing
}

// argv is the command line without argv[0]. The options are those that
// internal/vmm/qemu uses, but for devices that play no part here.
func (s spec) argv() []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", s.machineOptions(),
		"-accel", "tcg,thread=multi,tb-size=256",
		"-cpu", "max,la57=off",
		"-smp", strconv.Itoa(s.cpus),
		"-m", s.memory(),
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-object", fmt.Sprintf("memory-backend-file,id=mem,size=%dM,mem-path=%s,share=%s,reserve=off", s.memMiB, fdPath(s.memoryFD), onOff(!s.clone)),
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", s.qmpFD),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", "stdio,id=console,signal=off",
		"-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=guest,fd=%d,server=on,wait=off", s.guestFD),
		"-device", s.virtio("virtio-serial", "max_ports=2"),
		"-device", "virtserialport,chardev=guest,name=slots",
		"-device", s.virtio("virtio-rng", ""),
	}
	if s.machine == "microvm" {
		args = append(args, "-global", "virtio-mmio.force-legacy=off")
	} else {
		args = append(args, "-bios", "qboot.rom")
	}
	if s.clone {
		args = append(args, "-incoming", "defer")
	} else {
		args = append(args, "-global", "migration.store-global-state=off",
			"-kernel", fdPath(s.kernelFD), "-initrd", fdPath(s.initrdFD), "-append", s.cmdline())
	}
	for i := range s.slots {
		args = append(args, s.slot(i)...)
	}
	return args
}

func (s spec) machineOptions() string {
	const common = ",graphics=off,mem-merge=off,dump-guest-core=off,memory-backend=mem"
	switch s.machine {
	case "microvm":
		return "microvm,acpi=on,isa-serial=on" + common
	case "pc":
		return "pc,usb=off,vmport=off,hpet=off,smbus=off,i8042=off,smm=off" + common
	}
	return s.machine + ",usb=off,vmport=off,hpet=off,sata=off,smbus=off,i8042=off,smm=off" + common
}

// memory: pmem slots are in the part of the address space that is kept for
// memory to be plugged.
func (s spec) memory() string {
	if s.kind != pmem {
		return fmt.Sprintf("%dM", s.memMiB)
	}
	return fmt.Sprintf("%dM,slots=%d,maxmem=%dM", s.memMiB, s.slots, s.memMiB+s.slots*s.slotMiB)
}

func (s spec) cmdline() string {
	words := []string{"console=ttyS0", "panic=-1", "quiet", "swiotlb=noforce", "noreplace-smp", "no_timer_check"}
	if s.machine == "microvm" {
		words = append(words, "pci=off")
	}
	if s.tscKHz != 0 {
		words = append(words, "tsc=reliable", fmt.Sprintf("tsc_early_khz=%d", s.tscKHz), fmt.Sprintf("lpj=%d", s.tscKHz*10))
	}
	return strings.Join(words, " ")
}

func (s spec) virtio(kind, options string) string {
	name := kind + "-pci,disable-legacy=on"
	if s.machine == "microvm" {
		name = kind + "-device"
	}
	if options != "" {
		name += "," + options
	}
	return name
}

// slot is one place for a layer. What is in it is not part of a saved state,
// its size is.
func (s spec) slot(i int) []string {
	image := i == 0 && s.imageFD != 0
	if s.kind == pmem {
		fd := s.emptyFD
		if image {
			fd = s.imageFD
		}
		return []string{
			"-object", fmt.Sprintf("memory-backend-file,id=p%d,size=%dM,mem-path=%s,share=on,readonly=on", i, s.slotMiB, fdPath(fd)),
			"-device", fmt.Sprintf("virtio-pmem-pci,disable-legacy=on,memdev=p%d", i),
		}
	}
	node := fmt.Sprintf("driver=null-co,node-name=s%d,size=%d,read-zeroes=on,read-only=on", i, int64(1)<<40)
	var args []string
	if image {
		args = []string{"-add-fd", fmt.Sprintf("fd=%d,set=1", s.imageFD)}
		node = fmt.Sprintf("driver=file,node-name=s%d,filename=/dev/fdset/1,read-only=on,aio=threads", i)
	}
	device := s.virtio("virtio-blk", fmt.Sprintf("drive=s%d,serial=slot%02d,num-queues=1,queue-size=64", i, i))
	return append(args, "-blockdev", node, "-device", device)
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// parseRoads reads a list such as "microvm-blk,q35-pmem".
func parseRoads(list string) ([]road, error) {
	var chosen []road
	for word := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(roads, func(r road) bool { return r.String() == word })
		if i < 0 {
			return nil, fmt.Errorf("%q is none of %v", word, roads)
		}
		chosen = append(chosen, roads[i])
	}
	return chosen, nil
}
