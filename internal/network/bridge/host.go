package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/network/dns"
)

// MTUs that make sense: the least IPv6 allows, the most a tap takes.
const (
	minMTU     = 1280
	defaultMTU = 1500
	maxMTU     = 65535
)

// hostNames is how pods call the host.
var hostNames = []string{"host.hyper.internal", "host.docker.internal"}

// unavailable says what this host refused and how to mend it. fix is used
// unless rights are what is missing.
func unavailable(what string, err error, fix string) error {
	if errors.Is(err, os.ErrPermission) { // EPERM, EACCES
		fix = "run hyperd as root, or give it CAP_NET_ADMIN"
	}
	return &network.UnavailableError{Err: fmt.Errorf("%s: %w", what, err), Fix: fix}
}

// ensureLocked sets up bridge, sysctls, rules and DNS, unless it is known to
// be done. Each step leaves alone what is as it should be.
func (d *Driver) ensureLocked() error {
	if d.ready {
		return nil
	}
	if err := checkTun(); err != nil {
		return err
	}
	if err := d.chooseLocked(); err != nil {
		return err
	}
	if err := d.ensureBridgeLocked(); err != nil {
		return err
	}
	if err := d.setSysctls(); err != nil {
		return err
	}
	if err := d.ensureDNSLocked(); err != nil {
		return err
	}
	if err := d.writeRulesLocked(); err != nil {
		return err
	}
	d.ready = true
	return nil
}

func checkTun() error {
	f, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		return unavailable("use taps", err, "modprobe tun")
	}
	return f.Close()
}

// ensureBridgeLocked makes the bridge with its addresses, and has the taps
// in use on it.
func (d *Driver) ensureBridgeLocked() error {
	gateway := d.pool.Gateway()
	want := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	want.Name = d.cfg.Bridge
	want.MTU = d.mtu
	want.HardwareAddr = macOf(gateway) // else it changes with the ports
	link, err := netlink.LinkByName(d.cfg.Bridge)
	if isNotFound(err) {
		if err := netlink.LinkAdd(want); err != nil && !errors.Is(err, unix.EEXIST) {
			return unavailable("make bridge "+d.cfg.Bridge, err, "modprobe bridge")
		}
		link, err = netlink.LinkByName(d.cfg.Bridge)
	}
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", d.cfg.Bridge, err)
	}
	if link.Type() != "bridge" {
		return unavailable("make bridge "+d.cfg.Bridge,
			fmt.Errorf("an interface of that name exists and is a %s", link.Type()), "rename that interface")
	}
	if err := d.configureBridge(link, want); err != nil {
		return unavailable("set up bridge "+d.cfg.Bridge, err, "ip link delete "+d.cfg.Bridge)
	}
	d.bridge = link.Attrs().Index
	for _, a := range d.portsLocked() {
		// A tap that is gone is made by Open.
		if err := connectTap(a, d.bridge); err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	return nil
}

func (d *Driver) configureBridge(link netlink.Link, want *netlink.Bridge) error {
	have := link.Attrs()
	if have.HardwareAddr.String() != want.HardwareAddr.String() {
		if err := netlink.LinkSetHardwareAddr(link, want.HardwareAddr); err != nil {
			return fmt.Errorf("set MAC %v: %w", want.HardwareAddr, err)
		}
	}
	if have.MTU != want.MTU {
		if err := netlink.LinkSetMTU(link, want.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", want.MTU, err)
		}
	}
	if d.v6.IsValid() {
		if err := setSysctl("net/ipv6/conf/"+d.cfg.Bridge+"/disable_ipv6", "0"); err != nil {
			return err
		}
	}
	if err := d.setAddrs(link); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	return nil
}

// setAddrs gives the bridge the gateways' addresses and no others.
func (d *Driver) setAddrs(link netlink.Link) error {
	missing := map[netip.Prefix]bool{netip.PrefixFrom(d.pool.Gateway(), d.pool.Prefix().Bits()): true}
	if d.v6.IsValid() {
		missing[netip.PrefixFrom(gatewayOf(d.v6), d.v6.Bits())] = true
	}
	have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range have {
		p := prefixOf(a.IPNet)
		if missing[p] {
			delete(missing, p)
		} else if !p.Addr().IsLinkLocalUnicast() {
			if err := netlink.AddrDel(link, &a); err != nil {
				return fmt.Errorf("remove address %v: %w", p, err)
			}
		}
	}
	for p := range missing {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // usable at once; nobody else can have it
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("add address %v: %w", p, err)
		}
	}
	return nil
}

func deleteBridge(name string) error { return deleteLink(name, "bridge", "modprobe bridge") }

// setSysctls has the host forward packets, and the bridge not listen to what
// guests say about routes. Values that are right are not written.
//
// Turning on IPv6 forwarding stops interfaces with accept_ra=1 from using
// router advertisements, and the host might lose its default route: they get
// accept_ra=2 first (kernel: networking/ip-sysctl.rst).
func (d *Driver) setSysctls() error {
	type sysctl struct{ key, value string }
	on4 := "net/ipv4/conf/" + d.cfg.Bridge
	want := []sysctl{
		{"net/ipv4/ip_forward", "1"},
		{on4 + "/forwarding", "1"},
		{on4 + "/accept_redirects", "0"},
		{on4 + "/send_redirects", "0"},
	}
	if d.v6.IsValid() {
		const forwarding = "net/ipv6/conf/all/forwarding"
		want = append(want, sysctl{"net/ipv6/conf/" + d.cfg.Bridge + "/accept_ra", "0"})
		if v, err := readSysctl(forwarding); err == nil && v == "0" {
			keys, _ := filepath.Glob(filepath.Join(procSys, "net/ipv6/conf/*/accept_ra"))
			for _, k := range keys {
				k = strings.TrimPrefix(k, procSys+"/")
				if v, err := readSysctl(k); err == nil && v == "1" && !strings.HasPrefix(k, "net/ipv6/conf/"+d.cfg.Bridge+"/") {
					want = append(want, sysctl{k, "2"})
				}
			}
		}
		want = append(want, sysctl{forwarding, "1"})
	}
	for _, s := range want {
		if err := setSysctl(s.key, s.value); err != nil {
			return unavailable("set up forwarding", err,
				fmt.Sprintf("sysctl -w %s=%s", strings.ReplaceAll(s.key, "/", "."), s.value))
		}
	}
	return nil
}

const procSys = "/proc/sys"

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join(procSys, key))
	return strings.TrimSpace(string(b)), err
}

func setSysctl(key, value string) error {
	if v, err := readSysctl(key); err == nil && v == value {
		return nil
	}
	return os.WriteFile(filepath.Join(procSys, key), []byte(value), 0o644)
}

// ensureDNSLocked has the name server listen on the gateway's address, on
// another port than 53 when somebody has that on all addresses: a rule then
// leads there.
func (d *Driver) ensureDNSLocked() error {
	if d.dns != nil && d.server == d.bridge {
		return nil
	}
	if d.dns != nil {
		// Its sockets are bound to a bridge that is gone.
		if err := d.dns.Close(); err != nil {
			return err
		}
		d.dns = nil
	}
	cfg := dns.Config{Lookup: d.lookup(), ResolvConf: d.cfg.ResolvConf, Device: d.cfg.Bridge}
	server, err := dns.Listen(netip.AddrPortFrom(d.pool.Gateway(), dnsPort), cfg)
	if errors.Is(err, unix.EADDRINUSE) {
		server, err = dns.Listen(netip.AddrPortFrom(d.pool.Gateway(), 0), cfg)
	}
	if err != nil {
		return unavailable("set up DNS", err, "see `ss -lunp sport = 53`")
	}
	d.dns, d.server = server, d.bridge
	return nil
}

// lookup answers the host's names, then what the configuration knows.
func (d *Driver) lookup() dns.Lookup {
	gateways := []netip.Addr{d.pool.Gateway()}
	if d.v6.IsValid() {
		gateways = append(gateways, gatewayOf(d.v6))
	}
	names := map[string][]netip.Addr{}
	for _, n := range hostNames {
		names[n] = gateways
	}
	hosts, more := dns.Hosts(names), d.cfg.Lookup
	return func(name string) ([]netip.Addr, bool) {
		if addrs, ok := hosts(name); ok || more == nil {
			return addrs, ok
		}
		return more(name)
	}
}
