// Package vmm is the contract between Hyper and a virtual machine monitor:
// a configuration goes in, a VM comes out. Drivers (vmm/qemu) implement it,
// vmm/vmmtest holds the suite every driver passes and a fake that passes it
// too. Nothing above this package knows which driver it talks to.
//
// The package never decides what a VM is for; it knows disks, NICs, a kernel
// and one byte stream to the guest, but no container, image or network.
//
// A VM outlives the process that started it. Whoever starts one records its
// [Handle] before relying on it and gets the VM back with [Driver.Adopt].
package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// A Driver starts virtual machines and finds them again.
// All methods may be called concurrently.
type Driver interface {
	// Name is the driver's short name, such as "qemu".
	Name() string

	// Probe says what the driver can do on this host. It is cheap after the
	// first call. The error says what is missing and how to mend it.
	Probe(ctx context.Context) (Capabilities, error)

	// Start creates the VM's processes and returns once the VM executes its
	// first instruction; the guest is not up yet. On error nothing is left:
	// no process, no file in cfg.Dir that was not there before. The error is
	// a *[StartError] when the VMM itself refused or died.
	// Descriptors in cfg stay the caller's; the driver duplicates them.
	// Cancelling ctx after Start returned has no effect on the VM.
	Start(ctx context.Context, cfg Config) (VM, error)

	// Adopt finds a VM that an earlier process started. It returns
	// [ErrGone] when that VM no longer runs (never another process that
	// happens to have the same id).
	Adopt(ctx context.Context, h Handle) (VM, error)

	// Close lets go of all VMs: connections to them end, they run on and can
	// be adopted again. Their VM values must not be used any more.
	Close()
}

// A VM is one running virtual machine. Its methods may be called
// concurrently and repeatedly; after the VM is gone they return an error
// that wraps [ErrGone].
type VM interface {
	// Handle is what Adopt needs; it does not change while the VM lives.
	Handle() Handle

	// Dial opens the byte stream to the guest. There is one stream: a
	// second Dial while the first connection is open is an error. A new
	// stream may begin with what the guest sent to an earlier one (see
	// guest/wire for how the two ends synchronise).
	Dial(ctx context.Context) (net.Conn, error)

	// Pause stops all vCPUs, Resume lets them run on. Both are idempotent.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error

	// Console returns the last lines (at most maxConsole bytes) that the
	// guest's kernel console printed, oldest first. It works on a VM that
	// has stopped by itself until Kill.
	Console(ctx context.Context) ([]byte, error)

	// Done is closed when the guest has stopped for good: it powered off,
	// panicked or reset, or the VMM died. Exit then says why.
	Done() <-chan struct{}

	// Exit says how the VM ended. Valid once Done is closed.
	Exit() Exit

	// Kill ends the VM at once and returns when its processes are gone.
	// Idempotent; nil when they were gone already.
	Kill(ctx context.Context) error
}

// Optional abilities of a driver or a VM, asserted in one place (pod).
type (
	// A Sweeper is a Driver that finds VMs whose handle was never recorded.
	Sweeper interface {
		// Sweep ends every process of ours started for the VM with this
		// Config.ID; nil when there is none.
		Sweep(ctx context.Context, id string) error
	}

	// A Saver is a VM that clones can be made of.
	Saver interface {
		// Save stops the guest and writes the state of its devices to state.
		// The VM was started with Config.Memory, which holds its memory from
		// now on, with empty slots only and nothing plugged in; it is good for Kill only, after an error too.
		Save(ctx context.Context, state *os.File) error
	}

	// A Filler is a VM with slots that can be filled while it runs.
	Filler interface {
		// Fill puts the files of disks behind the empty slots with their IDs. The
		// guest must not use these slots before it returns. All are filled or none.
		Fill(ctx context.Context, disks []Disk) error
		// Empty takes the files from behind the slots with these IDs and closes
		// them; they can be filled again. A clone's slots also had files from the
		// start; a disk that a VM booted with keeps the size that it had. The guest must
		// not use these slots any more. All are emptied or none. Idempotent: a slot
		// that is empty already stays so. InvalidArgument: there is no such slot.
		Empty(ctx context.Context, ids []string) error
	}

	// A Plugger is a VM that disks can be added to while it runs, beside its
	// slots, if it was started with Config.Plug.
	Plugger interface {
		// Plug gives the guest a further disk, which it finds by its ID in a
		// moment, and with the size of its file. Errors: NotImplemented when the VM has no
		// Config.Plug, AlreadyExists when a disk or slot has that ID,
		// InvalidArgument, ResourceExhausted beyond MaxPlugged.
		Plug(ctx context.Context, d Disk) error
		// Unplug takes it away and closes its file. The guest is not asked, and
		// must not use it any more. Idempotent: nil when there is none with that
		// ID. It takes longer than Plug, and does not keep others waiting.
		Unplug(ctx context.Context, id string) error
	}

	// A Meter is a VM that reports what it costs the host.
	Meter interface {
		// HostUsage sums over all processes of the VM.
		HostUsage(ctx context.Context) (HostUsage, error)
	}
)

// ErrGone is returned for a VM that does not exist (any more).
var ErrGone = errors.New("virtual machine is gone")

// Accel names how guest instructions are executed.
type Accel string

// Accelerators. AccelAuto picks KVM where it works and TCG where not.
const (
	AccelAuto Accel = "auto"
	AccelKVM  Accel = "kvm"
	AccelTCG  Accel = "tcg"
)

// Machine names a family of virtual hardware.
type Machine string

// Machines. MachineAuto lets the driver choose by what the configuration
// needs; it supposes a kernel that can do either, as HyperKernel. MachineQ35
// has PCI, where any kernel finds its devices. MachineMicroVM is lighter and
// boots sooner, but its kernel needs ACPI and virtio-mmio built in.
const (
	MachineAuto    Machine = "auto"
	MachineQ35     Machine = "q35"
	MachineMicroVM Machine = "microvm"
)

// Config says what VM to make. It is one value, complete before Start.
type Config struct {
	// ID names the VM on the host: 1 to 64 of [a-z0-9-].
	ID string
	// Dir is an existing empty directory of the VM's own, short enough for
	// unix sockets in it (at most 80 bytes). The driver keeps its sockets
	// and its log there; whoever made Dir removes it after the VM is gone.
	Dir string

	Accel   Accel   // "" means AccelAuto
	Machine Machine // "" means MachineAuto

	Kernel  string // path of a vmlinux or bzImage; not needed with Restore
	Initrd  string // path of an initrd
	Cmdline string // appended to what the driver itself needs

	// Memory is the file, MemMiB large, that the guest's memory is to be, so
	// that it is still there after Save. Nil: memory of the VM's own.
	Memory *os.File
	// Restore makes the VM a clone of a saved one instead of booting it. The
	// configuration has to be the saved one's in all that a guest can see:
	// machine, CPUs, MemMiB, Plug, the IDs and ReadOnly of the disks in their order, the number of
	// NICs. Different may be the files behind the disks, and the NICs' MAC,
	// which the guest learns only from whoever tells it.
	Restore *Saved

	// Procs are open cgroup.procs files; the driver puts all processes of
	// the VM into these cgroups.
	Procs []*os.File

	CPUs   int // 1 to MaxCPUs
	MemMiB int // MinMemMiB to MaxMemMiB

	Disks []Disk // in order; the guest finds each by its ID
	NICs  []NIC
	// Plug prepares the VM for disks that come later, see [Plugger]. It takes
	// the place of one disk.
	Plug bool
}

// What a Config may ask for.
const (
	MinMemMiB = 64      // the least memory a guest boots with
	MaxMemMiB = 1 << 20 // 1 TiB
	MaxCPUs   = 64
	MaxDisks  = 20 // the largest machine has slots for them beside one NIC
	// MaxPlugged is how many disks can be plugged into a VM at one time.
	MaxPlugged = 200
	MaxNICs    = 4
)

// A Disk is a raw file or block device given to the guest as a disk.
type Disk struct {
	// ID is what the guest sees as the disk's serial: 1 to 20 of [a-z0-9-].
	ID string
	// Path of the file. "": an empty slot, SlotBytes of zeros; a clone may have a
	// file in its place, and [Filler] puts one there later. The guest
	// goes on seeing SlotBytes; what is beyond the file fails to read.
	Path     string
	ReadOnly bool // enforced by the VMM, not the guest
}

// SlotBytes is the apparent size of an empty slot, more than any file in it.
const SlotBytes = 16 << 40

// Saved is what Save left of a VM: clones are made of it, any number, and
// none can change it. Both files are read only, also by a VMM that has been
// taken over by its guest: Memory is a memfd sealed against writing, or a
// read-only loop device of MemMiB, whose ioctls the driver keeps from the VMM.
type Saved struct {
	Memory *os.File // the guest's memory, mapped copy-on-write by clones
	State  *os.File // of the devices, read from its beginning
}

// A NIC is one network interface of the guest.
type NIC struct {
	// Tap is the open descriptor of a tap device (IFF_TAP|IFF_NO_PI|IFF_VNET_HDR).
	// To be saved and cloned a VM needs one too, connected to nothing, or
	// its clones' NICs have no offloads.
	Tap *os.File
	// MAC is the guest's hardware address, six bytes.
	MAC net.HardwareAddr
	MTU int // 0 means 1500
}

// A Handle is what is persisted of a VM so that it can be adopted: enough to
// find the processes and to be sure they are the same ones.
type Handle struct {
	Driver    string  `json:"driver"`
	ID        string  `json:"id"`
	Dir       string  `json:"dir"`
	PID       int     `json:"pid"`
	StartTime uint64  `json:"startTime"` // field 22 of /proc/PID/stat, clock ticks since boot
	BootID    string  `json:"bootID"`    // /proc/sys/kernel/random/boot_id of the host
	Accel     Accel   `json:"accel"`
	Machine   Machine `json:"machine"`
}

// Capabilities is what a driver can do on this host.
type Capabilities struct {
	Version string // of the VMM, such as "7.2.22"
	// Identity changes whenever what one VMM saved could not be restored by
	// this one: another build, another accelerator, another host CPU.
	Identity string
	// Clones says that VMs are Savers, and that Config.Restore works.
	Clones bool
	// Accel is what AccelAuto resolves to, AccelWhy one sentence on why.
	Accel    Accel
	AccelWhy string
}

// ExitReason says in one word how a VM ended.
type ExitReason string

// The reasons a VM ends.
const (
	ExitPowerOff ExitReason = "poweroff" // the guest shut down
	ExitReset    ExitReason = "reset"    // the guest reset itself; a kernel panic ends like this too
	ExitPanic    ExitReason = "panic"    // the guest's kernel panicked
	ExitKilled   ExitReason = "killed"   // Kill
	ExitCrashed  ExitReason = "crashed"  // the VMM died or was killed from outside
)

// An Exit says how a VM ended.
type Exit struct {
	Reason ExitReason
	Detail string // such as "qemu: signal: killed", or the panic message; may be empty
	Stderr string // last lines of the VMM's own output
}

// HostUsage is what a VM costs the host.
type HostUsage struct {
	CPU      time.Duration // user + system
	PSSBytes uint64        // proportional set size
}

// A StartError says why a VM did not come up, with all there is to see.
type StartError struct {
	Tried   string // what was tried, such as the command line
	Err     error
	Stderr  string // the VMM's own output
	Console string // last lines of the guest's console
}

// ConsoleLines is how many lines of console a StartError shows.
const ConsoleLines = 40

func (e *StartError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v", e.Err)
	section := func(name, text string) {
		if text = strings.TrimSpace(text); text != "" {
			fmt.Fprintf(&b, "\n%s:\n  %s", name, strings.ReplaceAll(text, "\n", "\n  "))
		}
	}
	section("tried", e.Tried)
	section("VMM output", e.Stderr)
	section("guest console", e.Console)
	return b.String()
}

func (e *StartError) Unwrap() error { return e.Err }

// Interface guards for what callers rely on in net.Conn.
var _ io.ReadWriteCloser = net.Conn(nil)
