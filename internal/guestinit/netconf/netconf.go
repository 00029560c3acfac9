// Package netconf sets up the pod's network interfaces by rtnetlink(7), as
// hyperd decided. It never asks anyone on the network.
package netconf

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// Loopback brings lo up, by netdevice(7): that is a tenth of rtnetlink's time
// in an emulated guest that is just booting.
func Loopback() error {
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	defer unix.Close(fd)
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	return nil
}

// Links is what is known of the VM's interfaces. The zero Links knows nothing.
// It is used by one goroutine at a time.
type Links struct{ known []net.Interface }

// Learn looks at all interfaces, so that the next Apply need not.
func (l *Links) Learn() error {
	all, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	l.known = all
	return nil
}

// Settle brings all interfaces up, so that a clone need not, and learns them.
// They have no addresses and make none themselves: nothing is sent, and
// nothing is left to be done later, which each clone would do.
func (l *Links) Settle() error {
	if err := l.Learn(); err != nil {
		return err
	}
	b := new(batch)
	for _, dev := range l.known {
		if dev.Flags&net.FlagLoopback != 0 {
			continue
		}
		for _, set := range quiet {
			err := os.WriteFile("/proc/sys/net/ipv6/conf/"+dev.Name+"/"+set.file, []byte(set.value), 0)
			if err != nil && !os.IsNotExist(err) { // a kernel without IPv6
				return fmt.Errorf("quieten interface %s: %w", dev.Name, err)
			}
		}
		b.add("bring up "+dev.Name, unix.RTM_NEWLINK, 0).ifinfo(dev.Index, unix.IFF_UP)
	}
	if len(b.messages) == 0 {
		return nil
	}
	return b.send()
}

// quiet is how an interface neither makes addresses (Apply does) nor asks for
// routers, of which hyperd's networks have none that answer.
var quiet = []struct{ file, value string }{{"addr_gen_mode", "1"}, {"accept_ra", "0"}, {"router_solicitations", "0"}}

// Apply makes interfaces and routes what they say, in one request to the
// kernel. It can be repeated: addresses that an interface has stay, a route
// replaces the one to the same destination.
func (l *Links) Apply(interfaces []*wire.Interface, routes []*wire.Route) error {
	if len(interfaces)+len(routes) == 0 {
		return nil
	}
	b := new(batch)
	index := map[string]int{}
	for _, i := range interfaces {
		dev, err := l.find(i)
		if err == nil {
			index[i.Name] = dev.Index
			err = b.configure(dev, i)
		}
		if err != nil {
			return fmt.Errorf("configure interface %s: %w", i.Name, err)
		}
	}
	for _, r := range routes {
		if err := b.route(r, index); err != nil {
			return err
		}
	}
	l.known = nil // names and addresses change
	return b.send()
}

// find returns the interface that i means: the one with the address that it
// has now or, when that was changed already, with the one it is to get.
func (l *Links) find(i *wire.Interface) (net.Interface, error) {
	for _, address := range []string{i.CurrentMac, i.Mac} {
		if address == "" {
			continue
		}
		mac, err := net.ParseMAC(address)
		if err != nil {
			return net.Interface{}, err
		}
		if dev, ok := l.lookup(mac); ok {
			return dev, nil
		}
		if err := l.Learn(); err != nil {
			return net.Interface{}, err
		}
		if dev, ok := l.lookup(mac); ok {
			return dev, nil
		}
	}
	if i.CurrentMac != "" {
		return net.Interface{}, fmt.Errorf("the VM has none with address %s or %s", i.CurrentMac, i.Mac)
	}
	return net.Interface{}, fmt.Errorf("the VM has none with address %s", i.Mac)
}

func (l *Links) lookup(mac net.HardwareAddr) (net.Interface, bool) {
	for _, dev := range l.known {
		if bytes.Equal(dev.HardwareAddr, mac) {
			return dev, true
		}
	}
	return net.Interface{}, false
}

// configure adds what makes dev what i says.
func (b *batch) configure(dev net.Interface, i *wire.Interface) error {
	mac, err := net.ParseMAC(i.Mac)
	if err != nil || len(mac) != 6 {
		return fmt.Errorf("address %q is not an Ethernet address", i.Mac)
	}
	// The kernel goes by the order here, and brings the interface up last.
	m := b.add("configure interface "+i.Name, unix.RTM_NEWLINK, 0)
	m.ifinfo(dev.Index, unix.IFF_UP)
	if !bytes.Equal(mac, dev.HardwareAddr) {
		m.attr(unix.IFLA_ADDRESS, mac)
	}
	if i.Mtu != 0 && int(i.Mtu) != dev.MTU {
		m.attr(unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, i.Mtu))
	}
	if i.Name != "" && i.Name != dev.Name {
		m.attr(unix.IFLA_IFNAME, append([]byte(i.Name), 0))
	}
	addresses := i.Addresses
	if i.CurrentMac != "" && slices.ContainsFunc(addresses, func(a string) bool { return strings.Contains(a, ":") }) {
		addresses = append(slices.Clone(addresses), linkLocal(mac).String())
	}
	for _, a := range addresses {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			return err
		}
		b.address(fmt.Sprintf("configure interface %s: add address %s", i.Name, a), dev.Index, p)
	}
	return nil
}

// linkLocal is the address that IPv6 wants an interface to have (RFC 4291,
// appendix A); a settled one makes none itself.
func linkLocal(mac net.HardwareAddr) netip.Prefix {
	a := [16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// route adds a route; index has the interfaces that are being configured.
func (b *batch) route(r *wire.Route, index map[string]int) error {
	what := "add route " + cmp.Or(r.Destination, "default")
	gateway, err := netip.ParseAddr(r.Gateway)
	if r.Gateway != "" && err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	dst := netip.Prefix{}
	if r.Destination != "" {
		if dst, err = netip.ParsePrefix(r.Destination); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	out := index[r.Interface]
	if r.Interface != "" && out == 0 {
		dev, err := net.InterfaceByName(r.Interface)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		out = dev.Index
	}
	b.via(what, out, dst, gateway)
	return nil
}

func (b *batch) address(what string, index int, p netip.Prefix) {
	m := b.add(what, unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	m.there = true
	a := p.Addr().AsSlice()
	flags := byte(0)
	if p.Addr().Is6() {
		flags = unix.IFA_F_NODAD // hyperd gives no address twice; do not wait a second
	}
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	if p.Addr().IsLinkLocalUnicast() && p.Addr().Is6() {
		scope = unix.RT_SCOPE_LINK
	}
	m.b = append(m.b, family(p.Addr()), byte(p.Bits()), flags, scope)
	m.b = binary.NativeEndian.AppendUint32(m.b, uint32(index))
	m.attr(unix.IFA_LOCAL, a)
	m.attr(unix.IFA_ADDRESS, a)
	if p.Addr().Is4() && p.Bits() < 31 {
		m.attr(unix.IFA_BROADCAST, broadcast(p))
	}
}

func broadcast(p netip.Prefix) []byte {
	a := p.Addr().As4()
	v := binary.BigEndian.Uint32(a[:]) | uint32(1<<(32-p.Bits())-1)
	return binary.BigEndian.AppendUint32(nil, v)
}

func (b *batch) via(what string, index int, dst netip.Prefix, gateway netip.Addr) {
	m := b.add(what, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	fam := byte(unix.AF_INET)
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	switch {
	case gateway.IsValid():
		fam = family(gateway)
	case dst.IsValid():
		fam = family(dst.Addr())
		if fam == unix.AF_INET {
			scope = unix.RT_SCOPE_LINK
		}
	}
	bits := 0
	if dst.IsValid() {
		bits = dst.Bits()
	}
	m.b = append(m.b, fam, byte(bits), 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, scope, unix.RTN_UNICAST, 0, 0, 0, 0)
	if bits > 0 {
		m.attr(unix.RTA_DST, dst.Masked().Addr().AsSlice())
	}
	if gateway.IsValid() {
		m.attr(unix.RTA_GATEWAY, gateway.AsSlice())
	}
	if index != 0 {
		m.attr(unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
	}
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// A batch is several rtnetlink requests, made in order. The kernel answers
// those that fail, and the last one.
type batch struct{ messages []*message }

// A message is one request. Its sequence number is its place in the batch.
type message struct {
	b     []byte
	what  string // it does, for an error
	there bool   // what there is already is no error
}

func (b *batch) add(what string, kind, flags uint16) *message {
	m := &message{b: make([]byte, 0, 128), what: what}
	m.b = binary.NativeEndian.AppendUint32(m.b, 0) // length, by send
	m.b = binary.NativeEndian.AppendUint16(m.b, kind)
	m.b = binary.NativeEndian.AppendUint16(m.b, flags|unix.NLM_F_REQUEST)
	m.b = binary.NativeEndian.AppendUint32(m.b, uint32(len(b.messages)))
	m.b = binary.NativeEndian.AppendUint32(m.b, 0)
	b.messages = append(b.messages, m)
	return m
}

func (m *message) ifinfo(index int, up uint32) {
	m.b = append(m.b, unix.AF_UNSPEC, 0, 0, 0)
	m.b = binary.NativeEndian.AppendUint32(m.b, uint32(index))
	m.b = binary.NativeEndian.AppendUint32(m.b, up) // flags
	m.b = binary.NativeEndian.AppendUint32(m.b, up) // which flags to change
}

func (m *message) attr(kind uint16, value []byte) {
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(4+len(value)))
	m.b = binary.NativeEndian.AppendUint16(m.b, kind)
	m.b = append(m.b, value...)
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
}

// send makes the requests. All are tried; the first error is returned.
func (b *batch) send() error {
	last := len(b.messages) - 1
	b.messages[last].b[6] |= unix.NLM_F_ACK
	var all []byte
	for _, m := range b.messages {
		binary.NativeEndian.PutUint32(m.b, uint32(len(m.b)))
		all = append(all, m.b...)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open rtnetlink: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, all, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to rtnetlink: %w", err)
	}
	var first error
	buf := make([]byte, os.Getpagesize())
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("read from rtnetlink: %w", err)
		}
		if n < 20 || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
			return fmt.Errorf("rtnetlink answered %d bytes of type %d", n, binary.NativeEndian.Uint16(buf[4:]))
		}
		at := min(int(binary.NativeEndian.Uint32(buf[8:])), last)
		errno := syscall.Errno(-int32(binary.NativeEndian.Uint32(buf[16:])))
		m := b.messages[at]
		if errno != 0 && !(m.there && errno == syscall.EEXIST) && first == nil {
			first = fmt.Errorf("%s: %w", m.what, errno)
		}
		if at == last {
			return first
		}
	}
}
