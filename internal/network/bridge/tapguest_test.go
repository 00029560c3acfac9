package bridge_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// A tapGuest is the little of a network stack that shows that a tap works.
type tapGuest struct {
	t   *testing.T
	f   *os.File
	mac net.HardwareAddr
	ip  netip.Addr
}

const (
	vnetHeader = 10 // struct virtio_net_hdr; zeros: complete packet, no offload
	etherSize  = 14
)

// send puts a packet on the wire.
func (g tapGuest) send(to net.HardwareAddr, etherType uint16, packet []byte) error {
	frame := make([]byte, vnetHeader, 200)
	frame = append(frame, to...)
	frame = append(frame, g.mac...)
	frame = binary.BigEndian.AppendUint16(frame, etherType)
	_, err := g.f.Write(append(frame, packet...))
	return err
}

// receive returns the first packet of the type that is accepted.
func (g tapGuest) receive(etherType uint16, accept func(packet []byte) bool) ([]byte, error) {
	if err := g.f.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		return nil, err
	}
	b := make([]byte, 2000)
	for {
		n, err := g.f.Read(b)
		if err != nil {
			return nil, err
		}
		frame := b[vnetHeader:n]
		if len(frame) > etherSize && binary.BigEndian.Uint16(frame[12:]) == etherType && accept(frame[etherSize:]) {
			return bytes.Clone(frame[etherSize:]), nil
		}
	}
}

// resolve asks who has an address (RFC 826).
func (g tapGuest) resolve(addr netip.Addr) (net.HardwareAddr, error) {
	request := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	request = append(request, g.mac...)
	request = append(request, g.ip.AsSlice()...)
	request = append(request, 0, 0, 0, 0, 0, 0)
	request = append(request, addr.AsSlice()...)
	// The bridge forwards a few milliseconds after the tap was opened: what
	// comes earlier is lost, as on a switch.
	var err error
	for range 5 {
		if err := g.send(net.HardwareAddr{255, 255, 255, 255, 255, 255}, 0x0806, request); err != nil {
			return nil, err
		}
		var reply []byte
		reply, err = g.receive(0x0806, func(p []byte) bool {
			return len(p) >= 28 && p[7] == 2 && bytes.Equal(p[14:18], addr.AsSlice())
		})
		if err == nil {
			return reply[8:14], nil
		}
	}
	return nil, fmt.Errorf("ARP for %v: %w", addr, err)
}

// ping sends one echo request and waits for the reply.
func (g tapGuest) ping(addr netip.Addr, mac net.HardwareAddr) error {
	echo, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 5, Seq: 1}}).Marshal(nil)
	if err != nil {
		return err
	}
	header := make([]byte, 20)
	header[0], header[8], header[9] = 0x45, 64, 1
	binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(echo)))
	copy(header[12:], g.ip.AsSlice())
	copy(header[16:], addr.AsSlice())
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	binary.BigEndian.PutUint16(header[10:], ^uint16(sum+sum>>16))
	if err := g.send(mac, 0x0800, append(header, echo...)); err != nil {
		return err
	}
	_, err = g.receive(0x0800, func(p []byte) bool { return len(p) > 20 && p[9] == 1 && p[20] == 0 })
	if err != nil {
		return fmt.Errorf("ping %v: %w", addr, err)
	}
	return nil
}
