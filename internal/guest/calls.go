package guest

import (
	"encoding/binary"
	"fmt"
	"net"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// A callsConn is the stream that carries ttrpc. It ends the connection when
// the guest sends a message larger than anything of ours is: ttrpc itself
// takes 4 MiB for every call and would buffer 64 of them for Events. What
// ttrpc writes of one message it writes at once.
type callsConn struct {
	net.Conn
	wrote func() // called after every message written

	header [ttrpcHeaderLen]byte
	have   int    // bytes of the header seen
	left   uint32 // bytes of the message still to come
	out    []byte // of a message that is not complete; ttrpc writes one at a time
}

// Of ttrpc's framing: length(4) stream(4) type(1) flags(1), then the message.
const (
	ttrpcHeaderLen = 10
	ttrpcTypeData  = 3
	maxEvent       = 16 << 10
	keptMessage    = 64 << 10 // room kept for the next message
)

func (b *callsConn) Write(p []byte) (int, error) {
	b.out = append(b.out, p...)
	if len(b.out) < ttrpcHeaderLen || len(b.out)-ttrpcHeaderLen < int(binary.BigEndian.Uint32(b.out)) {
		return len(p), nil
	}
	if _, err := b.Conn.Write(b.out); err != nil {
		return 0, err
	}
	b.out = b.out[:0]
	if cap(b.out) > keptMessage {
		b.out = nil
	}
	b.wrote()
	return len(p), nil
}

func (b *callsConn) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if berr := b.check(p[:n]); berr != nil {
		b.Conn.Close()
		return 0, berr
	}
	return n, err
}

func (b *callsConn) check(p []byte) error {
	for len(p) > 0 {
		if b.left > 0 {
			n := min(b.left, uint32(len(p)))
			b.left -= n
			p = p[n:]
			continue
		}
		n := copy(b.header[b.have:], p)
		b.have += n
		p = p[n:]
		if b.have < ttrpcHeaderLen {
			return nil
		}
		b.have = 0
		b.left = binary.BigEndian.Uint32(b.header[:])
		limit := uint32(wire.MaxMessage)
		if b.header[8] == ttrpcTypeData {
			limit = maxEvent
		}
		if b.left > limit {
			return fmt.Errorf("guest sent a message of %d bytes, at most %d", b.left, limit)
		}
	}
	return nil
}
