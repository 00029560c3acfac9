package networktest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/network/ipam"
)

// A Fake is a network.Driver that needs no rights and touches nothing on the
// host. It keeps the contract; only its devices are /dev/null.
type Fake struct {
	mu   sync.Mutex
	pool *ipam.Pool                    // addresses are owned by devices
	pods map[string]network.Attachment // by device
	idle []network.Attachment          // made ahead of time
	want int
}

var (
	_ network.Driver   = (*Fake)(nil)
	_ network.Preparer = (*Fake)(nil)
)

// FakeNetwork is the name of the one network a Fake has.
const FakeNetwork = "default"

var (
	fakeSubnet = netip.MustParsePrefix("198.18.0.0/16") // RFC 2544: routed nowhere
	podID      = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)
)

// NewFake returns a network without pods.
func NewFake() *Fake {
	f := &Fake{}
	f.reset()
	return f
}

func (f *Fake) reset() {
	f.pool, _ = ipam.New(fakeSubnet) // the subnet is a good one
	f.pods = map[string]network.Attachment{}
	f.idle = nil
}

// Name is "fake".
func (f *Fake) Name() string { return "fake" }

// Attach gives the pod the next address.
func (f *Fake) Attach(ctx context.Context, id string) (network.Attachment, error) {
	if err := ctx.Err(); err != nil {
		return network.Attachment{}, err
	}
	if !podID.MatchString(id) {
		return network.Attachment{}, fmt.Errorf("attach pod %q: not an ID: %w", id, errdefs.ErrInvalidArgument)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.pods {
		if short(a.PodID) == short(id) {
			return network.Attachment{}, fmt.Errorf("attach pod %s: %w", id, errdefs.ErrAlreadyExists)
		}
	}
	var a network.Attachment
	var err error
	if len(f.idle) > 0 {
		a, f.idle = f.idle[0], f.idle[1:]
		f.refillLocked()
	} else if a, err = f.makeLocked(); err != nil {
		return network.Attachment{}, fmt.Errorf("attach pod %s: %w", id, err)
	}
	a.PodID = id
	f.pods[a.Device] = a
	return a, nil
}

func short(id string) string { return id[:min(len(id), 12)] }

// makeLocked makes an attachment that is nobody's yet.
func (f *Fake) makeLocked() (network.Attachment, error) {
	device := "fak" + strings.ToLower(rand.Text()[:12])
	addr, err := f.pool.Reserve(device)
	if err != nil {
		return network.Attachment{}, err
	}
	b := addr.As4()
	return network.Attachment{
		Network: FakeNetwork,
		Device:  device,
		MAC:     net.HardwareAddr{2, 'f', b[0], b[1], b[2], b[3]},
		Addrs:   []netip.Prefix{netip.PrefixFrom(addr, fakeSubnet.Bits())},
		Gateway: []netip.Addr{f.pool.Gateway()},
		DNS:     []netip.Addr{f.pool.Gateway()},
		MTU:     1500,
	}, nil
}

// Prepare makes n attachments at once.
func (f *Fake) Prepare(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.want = n
	f.refillLocked()
}

func (f *Fake) refillLocked() {
	for len(f.idle) > f.want {
		f.pool.Release(f.idle[0].Addrs[0].Addr(), f.idle[0].Device)
		f.idle = f.idle[1:]
	}
	for len(f.idle) < f.want {
		a, err := f.makeLocked()
		if err != nil {
			return
		}
		f.idle = append(f.idle, a)
	}
}

// Spare opens /dev/null.
func (f *Fake) Spare(context.Context) (*os.File, error) {
	return os.OpenFile(os.DevNull, os.O_RDWR, 0)
}

// Open opens /dev/null.
func (f *Fake) Open(_ context.Context, a network.Attachment) (*os.File, error) {
	f.mu.Lock()
	known, ok := f.pods[a.Device]
	f.mu.Unlock()
	if !ok || known.PodID != a.PodID {
		return nil, fmt.Errorf("open device %s of pod %s: %w", a.Device, a.PodID, errdefs.ErrNotFound)
	}
	return os.OpenFile(os.DevNull, os.O_RDWR, 0)
}

// Detach forgets the pod.
func (f *Fake) Detach(_ context.Context, a network.Attachment) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if known, ok := f.pods[a.Device]; ok && known.PodID == a.PodID {
		delete(f.pods, a.Device)
		f.pool.Release(known.Addrs[0].Addr(), a.Device)
	}
	return nil
}

// Restore knows inUse and nothing else.
func (f *Fake) Restore(_ context.Context, inUse []network.Attachment) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reset()
	var errs error
	for _, a := range inUse {
		if a.Network != FakeNetwork {
			continue
		}
		if err := f.pool.Take(a.Addrs[0].Addr(), a.Device); err != nil {
			errs = errors.Join(errs, fmt.Errorf("restore pod %s: %w", a.PodID, err))
			continue
		}
		f.pods[a.Device] = a
	}
	f.refillLocked()
	return errs
}

// Close gives back what no pod has.
func (f *Fake) Close() error {
	f.Prepare(0)
	return nil
}
