package bridge

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	mdns "github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/network/ipam"
)

// candidates are the subnets tried in turn, out of the way of the usual
// home routers, clouds and of what Docker takes first.
var candidates = []netip.Prefix{
	netip.MustParsePrefix("172.30.0.0/16"),
	netip.MustParsePrefix("172.29.0.0/16"),
	netip.MustParsePrefix("172.28.0.0/16"),
	netip.MustParsePrefix("10.230.0.0/16"),
	netip.MustParsePrefix("10.130.0.0/16"),
	netip.MustParsePrefix("192.168.208.0/20"),
	netip.MustParsePrefix("192.168.176.0/20"),
}

// chooseLocked decides on subnets and MTU. What pods have was decided
// earlier and stays.
func (d *Driver) chooseLocked() error {
	d.mtu = d.cfg.MTU
	if d.mtu == 0 {
		d.mtu = uplinkMTU()
	}
	have4, have6, err := d.bridgeSubnets()
	if err != nil {
		return err
	}
	if d.pool == nil {
		subnet := d.cfg.Subnet
		if !subnet.IsValid() {
			subnet = have4
		}
		if !subnet.IsValid() {
			if subnet, err = d.freeSubnet(); err != nil {
				return err
			}
		}
		if d.pool, err = ipam.New(subnet); err != nil {
			return err
		}
	}
	if !d.v6.IsValid() && !d.cfg.NoIPv6 && hostHasIPv6() {
		if d.v6 = have6; !d.v6.IsValid() {
			d.v6 = uniqueLocal(d.cfg.Bridge)
		}
	}
	return nil
}

// bridgeSubnets are those of the bridge as it is; zero when there is none.
func (d *Driver) bridgeSubnets() (v4, v6 netip.Prefix, err error) {
	link, err := netlink.LinkByName(d.cfg.Bridge)
	if isNotFound(err) {
		return v4, v6, nil
	}
	if err != nil {
		return v4, v6, fmt.Errorf("find bridge %s: %w", d.cfg.Bridge, err)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return v4, v6, fmt.Errorf("list addresses of bridge %s: %w", d.cfg.Bridge, err)
	}
	for _, a := range addrs {
		p := prefixOf(a.IPNet)
		if p.Addr() != gatewayOf(p.Masked()) || !p.Addr().IsPrivate() {
			continue
		}
		switch {
		case p.Addr().Is4() && p.Bits() <= 30 && !v4.IsValid():
			v4 = p.Masked()
		case p.Addr().Is6() && p.Bits() == 64 && !v6.IsValid():
			v6 = p.Masked()
		}
	}
	return v4, v6, nil
}

// freeSubnet is the first candidate that the host has nothing to do with.
func (d *Driver) freeSubnet() (netip.Prefix, error) {
	used, err := usedByHost()
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, c := range candidates {
		if !overlapsAny(c, used) {
			return c, nil
		}
	}
	return netip.Prefix{}, unavailable("choose a subnet",
		fmt.Errorf("all of %v overlap addresses, routes or name servers of this host", candidates),
		"set the network's subnet in hyperd's configuration")
}

func overlapsAny(p netip.Prefix, others []netip.Prefix) bool {
	for _, o := range others {
		if p.Overlaps(o) {
			return true
		}
	}
	return false
}

// usedByHost is what the host has addresses in, routes to (in any table), or
// name servers at, which may lie behind the default route.
func usedByHost() ([]netip.Prefix, error) {
	var used []netip.Prefix
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	for _, a := range addrs {
		used = append(used, prefixOf(a.IPNet))
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4,
		&netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	for _, r := range routes {
		// Default routes, also those that VPNs make of two or four halves.
		if r.Dst == nil || prefixOf(r.Dst).Bits() < 8 {
			continue
		}
		used = append(used, prefixOf(r.Dst))
	}
	if c, err := mdns.ClientConfigFromFile("/etc/resolv.conf"); err == nil {
		for _, s := range c.Servers {
			if a, err := netip.ParseAddr(s); err == nil && a.Is4() {
				used = append(used, netip.PrefixFrom(a, 32))
			}
		}
	}
	return used, nil
}

// prefixOf converts; host bits stay.
func prefixOf(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}

// uplinkMTU is what packets to the outside may have.
func uplinkMTU() int {
	routes, err := netlink.RouteGet(net.IPv4(1, 1, 1, 1)) // any public address; nothing is sent
	if err != nil || len(routes) == 0 {
		return defaultMTU
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return defaultMTU
	}
	return min(max(link.Attrs().MTU, minMTU), defaultMTU)
}

func hostHasIPv6() bool {
	v, err := readSysctl("net/ipv6/conf/all/disable_ipv6")
	return err == nil && v == "0"
}

// uniqueLocal is a /64 of RFC 4193 that is the same each time on this
// machine for this bridge.
func uniqueLocal(bridge string) netip.Prefix {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil || len(id) == 0 {
		id = []byte(rand.Text())
	}
	sum := sha256.Sum256(append([]byte("hyper "+bridge+" "), id...))
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:6], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}
