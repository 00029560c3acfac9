// Package bridge connects pods to the host through a bridge: each pod has a
// tap on it, an IPv4 and (where the host has IPv6) a unique local IPv6
// address, and reaches the outside behind the host's address.
//
//	pod's VM ── tap hyp<id> ─┐
//	                         ├─ bridge hyper0 ── host's routing ── uplink
//	pod's VM ── tap hyp<id> ─┘  gateway, DNS     nftables: masquerade
//
// On the host the package touches: the bridge, the taps named after its
// prefix, the nftables tables `inet hyper` and `bridge hyper`, and the
// sysctls listed in host.go. It never touches rules of anybody else. All of
// it can be made again from the attachments the caller has recorded.
//
// The driver runs one name server (package dns), and while devices are made
// ahead of time one goroutine that does so (prepare.go).
package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/network/dns"
	"github.com/hyper-run/hyper/internal/network/ipam"
)

// Config names a network and all it makes on the host. Zero values are the
// defaults.
type Config struct {
	Network   string // "default"
	Bridge    string // "hyper0"
	TapPrefix string // "hyp", at most 3 characters
	Table     string // "hyper", of the nftables tables

	// Subnet of the network, IPv4. Zero: that of the bridge if there is
	// one, else the first of a list that the host neither has an address in
	// nor a route to. What attached pods have goes before: a change takes
	// effect when the driver starts with no pod attached.
	Subnet netip.Prefix
	NoIPv6 bool
	MTU    int // 0: that of the interface of the default route, at most 1500

	ResolvConf string     // of the host, "/etc/resolv.conf"
	Lookup     dns.Lookup // further names, besides those of the host; may be nil
}

// A Driver implements network.Driver.
type Driver struct {
	cfg Config

	// Lock order: filling, mu, rules.mu.
	filling sync.Mutex // held while devices are made ahead of time, and by what must not meet that
	rules   ruleConn

	mu     sync.Mutex // held while the host's network is set up
	pool   *ipam.Pool // nil until the subnet is known; addresses are owned by devices
	v6     netip.Prefix
	mtu    int
	ports  map[string]*port // by device
	idle   []*port          // of ports, those of no pod, the oldest first
	want   int              // how many of them there should be
	last   time.Time        // when one was last taken or asked for
	timer  *time.Timer      // refills; nil until needed
	ready  bool             // bridge, rules and DNS are as they should be
	bridge int              // index of the bridge's interface
	dns    *dns.Server
	server int // index of the interface that dns listens on
}

var (
	_ network.Driver   = (*Driver)(nil)
	_ network.Preparer = (*Driver)(nil)
)

// A port is a place on the bridge.
type port struct {
	network.Attachment          // PodID is "" while it is idle
	tap                *os.File // open since the tap was made, until Open hands it out; else nil
}

const (
	maxIfName  = 15 // IFNAMSIZ - 1
	podIDChars = 12
)

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

// New returns the driver of a network and changes nothing on the host.
// Restore comes next. Errors are errdefs InvalidArgument.
func New(cfg Config) (*Driver, error) {
	setDefault(&cfg.Network, "default")
	setDefault(&cfg.Bridge, "hyper0")
	setDefault(&cfg.TapPrefix, "hyp")
	setDefault(&cfg.Table, "hyper")
	d := &Driver{cfg: cfg, ports: map[string]*port{}}
	for _, n := range []struct {
		what, name string
		max        int
	}{
		{"bridge", cfg.Bridge, maxIfName},
		{"tap prefix", cfg.TapPrefix, maxIfName - podIDChars},
		{"table", cfg.Table, 64},
	} {
		if !validName.MatchString(n.name) || len(n.name) > n.max {
			return nil, fmt.Errorf("%s %q: want 1 to %d of a-z, 0-9 and -: %w", n.what, n.name, n.max, errdefs.ErrInvalidArgument)
		}
	}
	if cfg.Subnet.IsValid() {
		if _, err := ipam.New(cfg.Subnet); err != nil {
			return nil, err
		}
	}
	if cfg.MTU != 0 && (cfg.MTU < minMTU || cfg.MTU > maxMTU) {
		return nil, fmt.Errorf("MTU %d: want %d to %d: %w", cfg.MTU, minMTU, maxMTU, errdefs.ErrInvalidArgument)
	}
	return d, nil
}

func setDefault(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

// Name is "bridge".
func (d *Driver) Name() string { return "bridge" }

// Attach gives a pod an address and a tap: those made ahead of time, if
// there are any. What has happened to them since, Open finds.
func (d *Driver) Attach(ctx context.Context, podID string) (network.Attachment, error) {
	a, err := d.attach(ctx, podID)
	if err != nil {
		return network.Attachment{}, fmt.Errorf("attach pod %s to network %s: %w", podID, d.cfg.Network, err)
	}
	return a, nil
}

func (d *Driver) attach(ctx context.Context, podID string) (network.Attachment, error) {
	if err := ctx.Err(); err != nil {
		return network.Attachment{}, err
	}
	if !validName.MatchString(podID) {
		return network.Attachment{}, fmt.Errorf("pod ID %q: want a-z, 0-9 and -: %w", podID, errdefs.ErrInvalidArgument)
	}
	p, ready, err := d.reserve(podID)
	if err == nil && !ready {
		err = d.equip(ctx, p)
	}
	if err != nil {
		return network.Attachment{}, err
	}
	return p.Attachment, nil
}

// equip makes the tap of a port that was just reserved. On error the port is
// given back.
func (d *Driver) equip(ctx context.Context, p *port) error {
	f, err := d.plug(ctx, p.Attachment)
	if err != nil {
		return errors.Join(err, d.Detach(context.WithoutCancel(ctx), p.Attachment))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p.tap = f
	return nil
}

// reserve decides on a pod's port: an idle one, which is ready, or a new one
// without a tap.
func (d *Driver) reserve(podID string) (p *port, ready bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	short := func(id string) string { return id[:min(len(id), podIDChars)] }
	for _, p := range d.ports {
		if short(p.PodID) == short(podID) {
			return nil, false, fmt.Errorf("device %s belongs to pod %s: %w", p.Device, p.PodID, errdefs.ErrAlreadyExists)
		}
	}
	defer d.restLocked()
	if len(d.idle) > 0 {
		p := d.idle[0]
		d.idle = d.idle[1:]
		p.PodID = podID
		return p, true, nil
	}
	p, err = d.newPortLocked(podID, short(podID))
	return p, false, err
}

// newPortLocked notes a port as in use, named after id, with addresses of its own.
func (d *Driver) newPortLocked(podID, id string) (*port, error) {
	if err := d.ensureLocked(); err != nil {
		return nil, err
	}
	device := d.cfg.TapPrefix + id
	if _, ok := d.ports[device]; ok {
		return nil, fmt.Errorf("device %s: %w", device, errdefs.ErrAlreadyExists)
	}
	addr, err := d.pool.Reserve(device)
	if err != nil {
		return nil, err
	}
	p := &port{Attachment: network.Attachment{
		Network: d.cfg.Network,
		PodID:   podID,
		Device:  device,
		MAC:     macOf(addr),
		Addrs:   []netip.Prefix{netip.PrefixFrom(addr, d.pool.Prefix().Bits())},
		Gateway: []netip.Addr{d.pool.Gateway()},
		DNS:     []netip.Addr{d.pool.Gateway()},
		MTU:     d.mtu,
	}}
	if d.v6.IsValid() {
		addr6 := ipam.At(d.v6, ipam.Offset(d.pool.Prefix(), addr))
		p.Addrs = append(p.Addrs, netip.PrefixFrom(addr6, d.v6.Bits()))
		p.Gateway = append(p.Gateway, gatewayOf(d.v6))
	}
	d.ports[device] = p
	return p, nil
}

// macOf derives a locally administered address from the IPv4 address: it is
// unique on the bridge, and a neighbour's ARP entry stays true when the
// address changes hands.
func macOf(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 'h', b[0], b[1], b[2], b[3]}
}

func gatewayOf(p netip.Prefix) netip.Addr { return ipam.At(p, 1) }

// plug makes the pod's tap, on the bridge and up, and lets its addresses
// through. When that fails it looks once whether the bridge or the rules
// have gone (`ip link del`, `nft flush ruleset`) and makes them again.
func (d *Driver) plug(ctx context.Context, a network.Attachment) (*os.File, error) {
	var errs error
	for range 2 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d.mu.Lock()
		err := d.ensureLocked()
		bridge := d.bridge
		d.mu.Unlock()
		if err != nil {
			return nil, err
		}
		f, err := d.plugInto(a, bridge)
		if err == nil {
			return f, nil
		}
		errs = err
		d.mu.Lock()
		d.ready = false
		d.mu.Unlock()
	}
	return nil, errs
}

func (d *Driver) plugInto(a network.Attachment, bridge int) (*os.File, error) {
	f, err := openTap(a.Device)
	if err != nil {
		return nil, err
	}
	if err := connectTap(a, bridge); err != nil {
		f.Close()
		return nil, err
	}
	if err := d.allow(a); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Open returns the tap of an attachment: the descriptor from when it was
// made, once, as long as all is well; else a new one of a tap that is made
// again where needed.
func (d *Driver) Open(ctx context.Context, a network.Attachment) (*os.File, error) {
	d.mu.Lock()
	known, ok := d.ports[a.Device]
	if !ok || known.PodID != a.PodID {
		d.mu.Unlock()
		return nil, fmt.Errorf("open device %s of pod %s: not attached to network %s: %w",
			a.Device, a.PodID, d.cfg.Network, errdefs.ErrNotFound)
	}
	f, bridge := known.tap, d.bridge
	known.tap = nil
	d.mu.Unlock()
	if f != nil {
		if d.intact(a.Device, bridge) && drain(f) == nil {
			return f, nil
		}
		f.Close()
		d.mu.Lock()
		d.ready = false
		d.mu.Unlock()
	}
	f, err := d.plug(ctx, known.Attachment)
	if err != nil {
		return nil, fmt.Errorf("open device %s of pod %s: %w", a.Device, a.PodID, err)
	}
	return f, nil
}

// Detach removes the tap and gives back the address. The address goes last:
// until then nobody else may have it. A used tap is not kept for the next pod: its
// VMM may have left filters and flags on it, and its address rests.
func (d *Driver) Detach(_ context.Context, a network.Attachment) error {
	if a.Network != d.cfg.Network || !d.isTapName(a.Device) {
		return fmt.Errorf("detach device %q of network %q: not of network %s: %w",
			a.Device, a.Network, d.cfg.Network, errdefs.ErrInvalidArgument)
	}
	d.mu.Lock()
	known, ok := d.ports[a.Device]
	if ok && known.PodID != a.PodID {
		d.mu.Unlock()
		return nil // the device belongs to a later pod
	}
	if ok {
		known.close()
	}
	d.mu.Unlock()

	err := errors.Join(d.disallow(a), deleteTap(a.Device))
	if err != nil {
		return fmt.Errorf("detach pod %s from network %s: %w", a.PodID, d.cfg.Network, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.ports, a.Device)
	if d.pool != nil && len(a.Addrs) > 0 {
		d.pool.Release(a.Addrs[0].Addr(), a.Device)
	}
	return nil
}

// close closes the tap's descriptor; the tap stays.
func (p *port) close() {
	if p.tap != nil {
		p.tap.Close()
		p.tap = nil
	}
}

// isTapName says whether an interface of that name may be one of our taps.
func (d *Driver) isTapName(name string) bool {
	id := name[min(len(name), len(d.cfg.TapPrefix)):]
	return name == d.cfg.TapPrefix+id && len(id) <= podIDChars && validName.MatchString(id)
}

// Restore takes over what is in use, removes what is not, and sets up the
// host's side.
func (d *Driver) Restore(_ context.Context, inUse []network.Attachment) error {
	d.filling.Lock()
	defer d.filling.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ready, d.pool, d.v6 = false, nil, netip.Prefix{}
	d.forgetLocked()
	defer d.restLocked()
	var errs error
	for _, a := range inUse {
		if a.Network != d.cfg.Network {
			continue
		}
		if err := d.adoptLocked(a); err != nil {
			errs = errors.Join(errs, fmt.Errorf("restore pod %s on network %s: %w", a.PodID, d.cfg.Network, err))
		}
	}
	if err := errors.Join(d.ensureLocked(), d.removeTapsLocked()); err != nil {
		errs = errors.Join(errs, fmt.Errorf("restore network %s: %w", d.cfg.Network, err))
	}
	return errs
}

// adoptLocked notes a recorded attachment as in use. The first one decides
// on the subnets.
func (d *Driver) adoptLocked(a network.Attachment) error {
	if !d.isTapName(a.Device) || len(a.MAC) != 6 || len(a.Addrs) == 0 {
		return fmt.Errorf("attachment %+v is not one of this driver: %w", a, errdefs.ErrInvalidArgument)
	}
	if d.pool == nil {
		pool, err := ipam.New(a.Addrs[0].Masked())
		if err != nil {
			return err
		}
		d.pool = pool
	}
	if other, ok := d.ports[a.Device]; ok {
		return fmt.Errorf("device %s belongs to pod %s: %w", a.Device, other.PodID, errdefs.ErrConflict)
	}
	if err := d.pool.Take(a.Addrs[0].Addr(), a.Device); err != nil {
		return err
	}
	if len(a.Addrs) > 1 && a.Addrs[1].Addr().Is6() {
		d.v6 = a.Addrs[1].Masked()
	}
	d.ports[a.Device] = &port{Attachment: a}
	return nil
}

// forgetLocked lets go of all ports; what they have on the host stays.
func (d *Driver) forgetLocked() {
	for _, p := range d.ports {
		p.close()
	}
	clear(d.ports)
	d.idle = nil
}

// removeTapsLocked removes our taps that nothing uses, together: for each
// the kernel waits, not works.
func (d *Driver) removeTapsLocked() error {
	taps, err := listTaps(d.isTapName)
	if err != nil {
		return err
	}
	var g errgroup.Group
	errs := make([]error, len(taps))
	for i, name := range taps {
		if _, ok := d.ports[name]; !ok {
			g.Go(func() error {
				errs[i] = deleteTap(name)
				return nil
			})
		}
	}
	_ = g.Wait() // they are in errs
	return errors.Join(errs...)
}

// Close stops the name server, and gives back what no pod has. Pods stay connected.
func (d *Driver) Close() error {
	d.filling.Lock()
	defer d.filling.Unlock()
	err := d.giveBack()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.ports {
		p.close()
	}
	return errors.Join(err, d.closeLocked())
}

func (d *Driver) closeLocked() error {
	d.ready = false
	err := d.rules.close()
	if d.dns == nil {
		return err
	}
	err = errors.Join(err, d.dns.Close())
	d.dns = nil
	return err
}

// Remove closes the driver and takes away all it has on the host, whether or
// not pods use it; sysctls stay as they are, others may rely on them by now.
// The driver can be used again after Restore.
func (d *Driver) Remove(_ context.Context) error {
	d.filling.Lock()
	defer d.filling.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.want = 0
	d.forgetLocked()
	d.pool = nil
	err := errors.Join(d.removeTapsLocked(), deleteBridge(d.cfg.Bridge), d.removeRules(), d.closeLocked())
	if err != nil {
		return fmt.Errorf("remove network %s: %w", d.cfg.Network, err)
	}
	return nil
}

// portsLocked are the attachments in use, in a fixed order.
func (d *Driver) portsLocked() []network.Attachment {
	ports := make([]network.Attachment, 0, len(d.ports))
	for _, p := range d.ports {
		ports = append(ports, p.Attachment)
	}
	slices.SortFunc(ports, func(a, b network.Attachment) int {
		return a.Addrs[0].Addr().Compare(b.Addrs[0].Addr())
	})
	return ports
}
