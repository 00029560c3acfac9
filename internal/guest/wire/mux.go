package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"github.com/hashicorp/yamux"
)

// muxConfig: nothing may time out, because a VM can be paused for days; a
// connection ends when the byte stream does.
func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = 1 << 62 * time.Nanosecond
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = time.Minute
	c.LogOutput = io.Discard
	return c
}

// MuxHost multiplexes a session as the host, which opens all streams. The
// guest can't open any, so that it can't fill the host's memory with them.
func MuxHost(conn net.Conn) (*yamux.Session, error) {
	s, err := yamux.Client(&muxConn{Conn: &muxFilter{Conn: conn}}, muxConfig())
	if err != nil {
		return nil, err
	}
	if err := s.GoAway(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// MuxGuest multiplexes a session as the guest, which accepts all streams.
func MuxGuest(conn net.Conn) (*yamux.Session, error) {
	return yamux.Server(&muxConn{Conn: conn}, muxConfig())
}

// A muxConn joins yamux's header of a data frame, which comes in a Write of
// its own, to the body that always follows: half the frames on the link.
// yamux writes from one goroutine.
type muxConn struct {
	net.Conn
	buf []byte
}

// Of yamux's framing: version(1) type(1) flags(2) stream(4) length(4); only
// data has a body, of that length.
const (
	muxHeaderLen = 12
	muxTypeData  = 0
	muxTypePing  = 2
	muxFlagSYN   = 1
)

func (c *muxConn) Write(p []byte) (int, error) {
	if len(c.buf) == 0 && len(p) == muxHeaderLen && p[1] == muxTypeData && binary.BigEndian.Uint32(p[8:]) > 0 {
		c.buf = append(c.buf, p...)
		return len(p), nil
	}
	if len(c.buf) == 0 {
		return c.Conn.Write(p)
	}
	// Only the first frame is joined; copying a large body would cost more.
	head := min(len(p), maxPayload-muxHeaderLen)
	joined := append(c.buf, p[:head]...)
	_, err := c.Conn.Write(joined)
	c.buf = joined[:0]
	if err != nil {
		return 0, err
	}
	if head == len(p) {
		return head, nil
	}
	n, err := c.Conn.Write(p[head:])
	return head + n, err
}

// A muxFilter ends the session when the guest pings, which nothing of ours
// does: yamux answers from a goroutine of its own, and would have as many of
// them as a guest that does not read likes.
type muxFilter struct {
	net.Conn
	frames muxFrames
}

func (c *muxFilter) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if ferr := c.frames.check(p[:n]); ferr != nil {
		c.Conn.Close()
		return 0, ferr
	}
	return n, err
}

// muxFrames follows the frames of what is read.
type muxFrames struct {
	header [muxHeaderLen]byte
	have   int    // bytes of the header seen
	left   uint32 // bytes of the body still to come
}

func (f *muxFrames) check(p []byte) error {
	for len(p) > 0 {
		if f.left > 0 {
			n := min(f.left, uint32(len(p)))
			f.left -= n
			p = p[n:]
			continue
		}
		n := copy(f.header[f.have:], p)
		f.have += n
		p = p[n:]
		if f.have < muxHeaderLen {
			return nil
		}
		f.have = 0
		switch f.header[1] {
		case muxTypeData:
			f.left = binary.BigEndian.Uint32(f.header[8:])
		case muxTypePing:
			return errors.New("mux: the guest sent a ping")
		}
	}
	return nil
}
