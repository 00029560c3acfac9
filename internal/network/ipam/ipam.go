// Package ipam hands out the addresses of one subnet: never one to two
// owners, and one that was given back as late as possible (stale ARP
// entries and connections of its last owner have died by then). It knows
// nothing of devices and keeps nothing on disk.
package ipam

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"

	"github.com/containerd/errdefs"
)

// A Pool is the addresses of one IPv4 subnet. Its first address is the
// gateway's and never handed out, nor are the network's and the broadcast
// address. Methods may be called concurrently.
type Pool struct {
	prefix netip.Prefix
	hosts  uint32 // addresses besides network and broadcast; offsets 1 … hosts

	mu     sync.Mutex
	next   uint32 // offset tried first
	owners map[uint32]string
}

const (
	gatewayOffset = 1
	firstOffset   = 2
)

// New makes the pool of an IPv4 subnet with room for a gateway and one more:
// /8 to /30. Errors are errdefs InvalidArgument.
func New(subnet netip.Prefix) (*Pool, error) {
	if !subnet.IsValid() || !subnet.Addr().Is4() || subnet.Bits() < 8 || subnet.Bits() > 30 {
		return nil, fmt.Errorf("subnet %v: want IPv4, /8 to /30: %w", subnet, errdefs.ErrInvalidArgument)
	}
	if subnet != subnet.Masked() {
		return nil, fmt.Errorf("subnet %v: has host bits set, want %v: %w", subnet, subnet.Masked(), errdefs.ErrInvalidArgument)
	}
	return &Pool{
		prefix: subnet,
		hosts:  1<<(32-subnet.Bits()) - 2,
		next:   firstOffset,
		owners: map[uint32]string{},
	}, nil
}

// Prefix is the subnet.
func (p *Pool) Prefix() netip.Prefix { return p.prefix }

// Gateway is the address that the host has in the subnet.
func (p *Pool) Gateway() netip.Addr { return At(p.prefix, gatewayOffset) }

// Reserve gives owner an address. The error is errdefs ResourceExhausted
// when all are taken.
func (p *Pool) Reserve(owner string) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	free := p.hosts - gatewayOffset - uint32(len(p.owners))
	if free == 0 {
		return netip.Addr{}, fmt.Errorf("subnet %v: all %d addresses are in use: %w",
			p.prefix, len(p.owners), errdefs.ErrResourceExhausted)
	}
	n := p.next
	for p.owners[n] != "" {
		n = p.after(n)
	}
	p.owners[n] = owner
	p.next = p.after(n)
	return At(p.prefix, n), nil
}

func (p *Pool) after(n uint32) uint32 {
	if n >= p.hosts {
		return firstOffset
	}
	return n + 1
}

// Take marks an address as owner's, as it was before a restart. It is no
// error when owner has it already; errdefs Conflict when another has it,
// OutOfRange when it is not one of the pool's.
func (p *Pool) Take(a netip.Addr, owner string) error {
	n, ok := p.offset(a)
	if !ok {
		return fmt.Errorf("address %v of %s: not in subnet %v: %w", a, owner, p.prefix, errdefs.ErrOutOfRange)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.owners[n]; o != "" && o != owner {
		return fmt.Errorf("address %v of %s: belongs to %s: %w", a, owner, o, errdefs.ErrConflict)
	}
	p.owners[n] = owner
	if n >= p.next {
		p.next = p.after(n)
	}
	return nil
}

// Release gives back what Reserve or Take gave owner. It does nothing when
// the address is not owner's.
func (p *Pool) Release(a netip.Addr, owner string) {
	n, ok := p.offset(a)
	p.mu.Lock()
	defer p.mu.Unlock()
	if ok && p.owners[n] == owner {
		delete(p.owners, n)
	}
}

// Len is the number of addresses in use.
func (p *Pool) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.owners)
}

// offset is the place of a in the subnet, if it is one that can be handed out.
func (p *Pool) offset(a netip.Addr) (uint32, bool) {
	if !p.prefix.Contains(a) {
		return 0, false
	}
	n := Offset(p.prefix, a)
	return n, n >= firstOffset && n <= p.hosts
}

// At is the nth address of a subnet, counted from the network's own.
func At(subnet netip.Prefix, n uint32) netip.Addr {
	b := subnet.Masked().Addr().AsSlice()
	low := b[len(b)-4:]
	binary.BigEndian.PutUint32(low, binary.BigEndian.Uint32(low)|n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Offset is the inverse of At; it takes the low 32 bits only.
func Offset(subnet netip.Prefix, a netip.Addr) uint32 {
	b, base := a.AsSlice(), subnet.Masked().Addr().AsSlice()
	return binary.BigEndian.Uint32(b[len(b)-4:]) - binary.BigEndian.Uint32(base[len(base)-4:])
}
