package wire

import (
	"encoding/binary"
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
	s, err := yamux.Client(&muxConn{Conn: conn}, muxConfig())
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

const (
	muxHeaderLen = 12
	muxTypeData  = 0
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
