// Package template keeps saved VMs that clones start from.
//
// A template is made by booting a VM of a [Shape] with empty slots, waiting
// until hyperstart answers and has come to rest, and saving it. Making takes
// seconds and goes on in the background; until a template is there, VMs boot.
//
// The memory of a template is a file, which clones map through a read-only loop
// device, so that the host can take back what is cached of it; where there is
// none it is a sealed memfd, as the state of the devices always is. No VMM
// writes either. The files survive the daemon; they are checked by their
// hashes when they are loaded, and thrown away and made anew when anything about them is wrong. The
// key of a template is a hash of all that shapes it (see key.go), so a new
// QEMU, kernel or hyperstart never meets an old template.
//
// The package never decides what a clone is for. It owns a goroutine per
// template that is being loaded or made, and ends them in Close.
package template

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/vmm"
)

// A Shape is all that tells one template from another on the same host.
type Shape struct {
	Kernel  string      `json:"kernel"`  // path
	Initrd  string      `json:"initrd"`  // path
	Cmdline string      `json:"cmdline"` // see vmm.Config
	Machine vmm.Machine `json:"machine"` // MachineAuto: the driver's choice
	CPUs    int         `json:"cpus"`
	MemMiB  int         `json:"memMiB"`
	Layers  int         `json:"layers"` // read-only slots
	Disks   int         `json:"disks"`  // writable slots
	NIC     bool        `json:"nic"`    // has one
	Plug    bool        `json:"plug"`   // disks can be plugged in, see vmm.Plugger
}

// LayerSlot and DiskSlot are the IDs of a shape's slots, from 0 on.
func LayerSlot(i int) string { return fmt.Sprintf("l%d", i) }

// DiskSlot is the ID of the i-th writable slot.
func DiskSlot(i int) string { return fmt.Sprintf("w%d", i) }

// Slots are the disks of a VM of this shape, all empty, in their order.
func (s Shape) Slots() []vmm.Disk {
	var disks []vmm.Disk
	for i := range s.Layers {
		disks = append(disks, vmm.Disk{ID: LayerSlot(i), ReadOnly: true})
	}
	for i := range s.Disks {
		disks = append(disks, vmm.Disk{ID: DiskSlot(i)})
	}
	return disks
}

// NICAddress is the hardware address that the NIC of every template has; a
// clone's guest is told to change it.
var NICAddress = net.HardwareAddr{0x02, 'h', 't', 0, 0, 1}

// Status is where a template is in its life: loading or making, then ready or
// failed. A failed one is tried again when it is asked for after a while.
type Status string

// The states of a template.
const (
	StatusLoading Status = "loading"
	StatusMaking  Status = "making"
	StatusReady   Status = "ready"
	StatusFailed  Status = "failed"
)

// Info describes a template as it was at one moment.
type Info struct {
	ID       string    `json:"id"` // 16 hex digits of its key
	Status   Status    `json:"status"`
	Error    string    `json:"error,omitempty"` // why it failed, or could not be kept on disk
	Shape    Shape     `json:"shape"`
	VMM      string    `json:"vmm"` // its identity
	Accel    vmm.Accel `json:"accel"`
	Created  time.Time `json:"created"`
	LastUsed time.Time `json:"lastUsed"`
	Clones   int       `json:"clones"` // made of it by this daemon
	// MemoryBytes is what the template itself takes of the host's memory. Of a
	// device it is the data; that is only cached, and the host takes it back
	// when it is short. (The zeros between them are cached besides once they are touched.)
	MemoryBytes int64   `json:"memoryBytes"`
	DiskBytes   int64   `json:"diskBytes"` // of its files
	MakeTime    float64 `json:"makeTime"`  // seconds
}

// Config is what a Store works with.
type Config struct {
	Dir     string // of files that survive the daemon
	RunDir  string // of the VMs that become templates; short, sockets are in it
	Driver  vmm.Driver
	Accel   vmm.Accel
	Log     *slog.Logger
	Timeout time.Duration // for a guest to boot, or to settle
	// Unused is how long a template that nobody clones is kept; 0: for ever.
	Unused time.Duration
	// DialGuest is guest.Dial.
	DialGuest func(ctx context.Context, conn net.Conn) (*guest.Client, error)
	// Spare returns a tap for the NIC of a VM that becomes a template; nil
	// when there is no network.
	Spare func(ctx context.Context) (*os.File, error)
	// Spec is the OCI runtime spec of an ordinary container, which clones are
	// made ready for; empty: for none.
	Spec []byte
	// Keep says whether a template of that shape would still be asked for;
	// files of others are removed when the Store opens. Nil: all.
	Keep func(Shape) bool
}
