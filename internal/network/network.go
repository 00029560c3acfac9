// Package network is the contract for connecting pods: attach gives a pod
// an address and a device, detach takes both back. network/bridge
// implements it; network/networktest holds the suite and a fake.
//
// Addresses are decided here and persisted by the caller (pod), who hands
// what is in use back at start-up; one address is never given out twice.
package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/containerd/errdefs"
)

// A Driver connects pods to one kind of network. Methods may be called
// concurrently.
type Driver interface {
	// Name is the driver's short name, such as "bridge".
	Name() string

	// Attach reserves an address and makes the pod's device ready. The
	// result is recorded by the caller before the pod starts. On error
	// nothing is left behind: errdefs AlreadyExists when the pod (or one
	// whose ID begins with the same 12 characters) is attached,
	// ResourceExhausted when no address is free, and an *[UnavailableError]
	// when this host can't do it.
	Attach(ctx context.Context, podID string) (Attachment, error)

	// Open returns the device's descriptor to hand to the VMM; the caller
	// closes it. It re-creates a device that is gone (after a host reboot).
	Open(ctx context.Context, a Attachment) (*os.File, error)

	// Detach removes the device and gives back the address. Idempotent, also
	// when the address has another owner by now. After an error the address
	// stays reserved: call it again.
	Detach(ctx context.Context, a Attachment) error

	// Restore tells the driver at start-up what is in use. Devices, rules
	// and addresses of ours that are not in inUse are removed, what the host
	// lost (rules, bridge) is made again. Attachments to other networks are
	// skipped. When it fails with an *[UnavailableError], what is in use is
	// known all the same and later calls try again.
	Restore(ctx context.Context, inUse []Attachment) error

	// Close stops what the driver runs in this process (DNS); pods keep
	// their connectivity.
	Close() error
}

// A Preparer is a Driver that makes devices ahead of time.
type Preparer interface {
	// Prepare has the driver keep n devices ready, with addresses reserved, for Attach to
	// hand out, and refill in the background when no pod is being attached.
	// It returns at once, comes after Restore, and the last call counts. What
	// is ready is not in any record: Restore removes it and starts anew, Close
	// removes it and ends it. Attach never waits for it.
	Prepare(n int)

	// Spare returns the descriptor of a device like those of pods, but
	// connected to nothing; it goes when the descriptor is closed.
	Spare(ctx context.Context) (*os.File, error)
}

// An Attachment is one pod's connection to one network. It is persisted.
type Attachment struct {
	Network string           `json:"network"` // name of the network
	PodID   string           `json:"podID"`
	Device  string           `json:"device"` // host interface, such as a tap; its name need not tell the pod
	MAC     net.HardwareAddr `json:"mac"`
	Addrs   []netip.Prefix   `json:"addrs"` // the pod's addresses with their prefix length
	Gateway []netip.Addr     `json:"gateway"`
	DNS     []netip.Addr     `json:"dns"` // name servers for the pod's resolv.conf
	MTU     int              `json:"mtu"`
}

// An UnavailableError says why this host can't connect pods and how to mend
// it. Pods without a network are not concerned. It is of kind
// errdefs.ErrUnavailable.
type UnavailableError struct {
	Err error
	Fix string // what to do, in one line
}

func (e *UnavailableError) Error() string { return fmt.Sprintf("%v (%s)", e.Err, e.Fix) }

// Unwrap gives the cause and the kind.
func (e *UnavailableError) Unwrap() []error { return []error{e.Err, errdefs.ErrUnavailable} }

// A Blocker is a rule set of somebody else that drops what pods send or
// receive. Drivers find such and never touch them.
type Blocker struct {
	Where string // such as "ip filter FORWARD (Docker)"
	Fix   string // a command of that firewall which lets pods through
}
