// Package netconf sets up the pod's network interfaces by rtnetlink(7), as
// hyperd decided. It never asks anyone on the network.
package netconf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
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

// Interface makes the interface with a hardware address what i says. It can
// be repeated: addresses that it has stay.
func Interface(i *wire.Interface) error {
	mac, err := net.ParseMAC(i.Mac)
	if err != nil {
		return fmt.Errorf("configure interface %q: %w", i.Name, err)
	}
	all, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("configure interface %s: %w", i.Name, err)
	}
	for _, dev := range all {
		if bytes.Equal(dev.HardwareAddr, mac) {
			if err := configure(dev, i); err != nil {
				return fmt.Errorf("configure interface %s: %w", i.Name, err)
			}
			return nil
		}
	}
	return fmt.Errorf("configure interface %s: the VM has none with address %s", i.Name, i.Mac)
}

func configure(dev net.Interface, i *wire.Interface) error {
	name := i.Name
	if name == dev.Name {
		name = ""
	}
	// A name can be changed only while the interface is down, or by a recent kernel.
	if err := setLink(dev.Index, name, i.Mtu); err != nil {
		return err
	}
	for _, a := range i.Addresses {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			return err
		}
		if err := addAddress(dev.Index, p); err != nil && err != syscall.EEXIST {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	return nil
}

// Route adds a route, or replaces the one to the same destination.
func Route(r *wire.Route) error {
	what := r.Destination
	if what == "" {
		what = "default"
	}
	gateway, err := netip.ParseAddr(r.Gateway)
	if r.Gateway != "" && err != nil {
		return fmt.Errorf("add route %s: %w", what, err)
	}
	dst := netip.Prefix{}
	if r.Destination != "" {
		if dst, err = netip.ParsePrefix(r.Destination); err != nil {
			return fmt.Errorf("add route %s: %w", what, err)
		}
	}
	index := 0
	if r.Interface != "" {
		dev, err := net.InterfaceByName(r.Interface)
		if err != nil {
			return fmt.Errorf("add route %s: %w", what, err)
		}
		index = dev.Index
	}
	if err := addRoute(index, dst, gateway); err != nil {
		return fmt.Errorf("add route %s: %w", what, err)
	}
	return nil
}

func setLink(index int, name string, mtu uint32) error {
	rename := newMessage(unix.RTM_NEWLINK, 0)
	rename.ifinfo(index, 0)
	if name != "" {
		rename.attr(unix.IFLA_IFNAME, append([]byte(name), 0))
	}
	if mtu != 0 {
		rename.attr(unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, mtu))
	}
	if err := rename.send(); err != nil {
		return fmt.Errorf("set name or MTU: %w", err)
	}
	up := newMessage(unix.RTM_NEWLINK, 0)
	up.ifinfo(index, unix.IFF_UP)
	if err := up.send(); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	return nil
}

func addAddress(index int, p netip.Prefix) error {
	m := newMessage(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	a := p.Addr().AsSlice()
	flags := byte(0)
	if p.Addr().Is6() {
		flags = unix.IFA_F_NODAD // hyperd gives no address twice; do not wait a second
	}
	m.b = append(m.b, family(p.Addr()), byte(p.Bits()), flags, unix.RT_SCOPE_UNIVERSE)
	m.b = binary.NativeEndian.AppendUint32(m.b, uint32(index))
	m.attr(unix.IFA_LOCAL, a)
	m.attr(unix.IFA_ADDRESS, a)
	if p.Addr().Is4() && p.Bits() < 31 {
		m.attr(unix.IFA_BROADCAST, broadcast(p))
	}
	return m.send()
}

func broadcast(p netip.Prefix) []byte {
	a := p.Addr().As4()
	v := binary.BigEndian.Uint32(a[:]) | uint32(1<<(32-p.Bits())-1)
	return binary.BigEndian.AppendUint32(nil, v)
}

func addRoute(index int, dst netip.Prefix, gateway netip.Addr) error {
	m := newMessage(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
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
	return m.send()
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// A message is one rtnetlink request, answered by an error code.
type message struct{ b []byte }

var sequence atomic.Uint32

func newMessage(kind uint16, flags uint16) *message {
	m := &message{make([]byte, 0, 128)}
	m.b = binary.NativeEndian.AppendUint32(m.b, 0) // length, by send
	m.b = binary.NativeEndian.AppendUint16(m.b, kind)
	m.b = binary.NativeEndian.AppendUint16(m.b, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	m.b = binary.NativeEndian.AppendUint32(m.b, sequence.Add(1))
	m.b = binary.NativeEndian.AppendUint32(m.b, 0)
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

func (m *message) send() error {
	binary.NativeEndian.PutUint32(m.b, uint32(len(m.b)))
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, m.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, os.Getpagesize())
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n < 20 || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
			return fmt.Errorf("rtnetlink answered %d bytes of type %d", n, binary.NativeEndian.Uint16(buf[4:]))
		}
		if e := -int32(binary.NativeEndian.Uint32(buf[16:])); e != 0 {
			return syscall.Errno(e)
		}
		return nil
	}
}
