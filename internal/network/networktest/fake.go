package networktest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/network/ipam"
)

// A Fake is a network.Driver that needs no rights and touches nothing on the
// host. It keeps the contract; only its devices are /dev/null.
type Fake struct {
	mu   sync.Mutex
	pool *ipam.Pool
	pods map[string]network.Attachment // by device
}

var _ network.Driver = (*Fake)(nil)

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
	device := "fak" + id[:min(len(id), 12)]
	if _, ok := f.pods[device]; ok {
		return network.Attachment{}, fmt.Errorf("attach pod %s: %w", id, errdefs.ErrAlreadyExists)
	}
	addr, err := f.pool.Reserve(id)
	if err != nil {
		return network.Attachment{}, fmt.Errorf("attach pod %s: %w", id, err)
	}
	b := addr.As4()
	a := network.Attachment{
		Network: FakeNetwork,
		PodID:   id,
		Device:  device,
		MAC:     net.HardwareAddr{2, 'f', b[0], b[1], b[2], b[3]},
		Addrs:   []netip.Prefix{netip.PrefixFrom(addr, fakeSubnet.Bits())},
		Gateway: []netip.Addr{f.pool.Gateway()},
		DNS:     []netip.Addr{f.pool.Gateway()},
		MTU:     1500,
	}
	f.pods[device] = a
	return a, nil
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
		f.pool.Release(known.Addrs[0].Addr(), a.PodID)
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
		if err := f.pool.Take(a.Addrs[0].Addr(), a.PodID); err != nil {
			errs = errors.Join(errs, fmt.Errorf("restore pod %s: %w", a.PodID, err))
			continue
		}
		f.pods[a.Device] = a
	}
	return errs
}

// Close does nothing.
func (f *Fake) Close() error { return nil }
