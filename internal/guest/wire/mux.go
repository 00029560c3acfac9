package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
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

// A Mux is a session of yamux whose streams can be ended in two more ways: of
// yamux's own, Close leaves the other end a minute before it breaks the
// stream, which is not long for one that goes on in the other direction.
type Mux struct {
	*yamux.Session
	conn *muxConn
}

// MuxHost multiplexes a session as the host, which opens all streams. The
// guest can't open any, so that it can't fill the host's memory with them.
func MuxHost(conn net.Conn) (*Mux, error) {
	c := &muxConn{Conn: &muxFilter{Conn: conn}}
	s, err := yamux.Client(c, muxConfig())
	if err != nil {
		return nil, err
	}
	if err := s.GoAway(); err != nil {
		s.Close()
		return nil, err
	}
	return &Mux{s, c}, nil
}

// MuxGuest multiplexes a session as the guest, which accepts all streams.
func MuxGuest(conn net.Conn) (*Mux, error) {
	c := &muxConn{Conn: conn}
	s, err := yamux.Server(c, muxConfig())
	if err != nil {
		return nil, err
	}
	return &Mux{s, c}, nil
}

// CloseWrite tells the other end that nothing more comes on a stream, which
// has written something. It can still be read, however long, until End. It is
// called once, after the last Write.
func (m *Mux) CloseWrite(s *yamux.Stream) error { return m.conn.flag(s.StreamID(), muxFlagFIN) }

// Abort breaks a stream, which has written something, for the other end, which
// reads and writes no more. End has to follow.
func (m *Mux) Abort(s *yamux.Stream) error { return m.conn.flag(s.StreamID(), muxFlagRST) }

// End closes a stream after CloseWrite or Abort.
func (m *Mux) End(s *yamux.Stream) error {
	err := s.Close()
	m.conn.mu.Lock()
	defer m.conn.mu.Unlock()
	delete(m.conn.ended, s.StreamID())
	return err
}

// A muxConn joins yamux's header of a data frame, which comes in a Write of
// its own, to the body that always follows: half the frames on the link.
// yamux writes from one goroutine.
type muxConn struct {
	net.Conn

	mu    sync.Mutex
	buf   []byte          // a header whose body is still to come
	later []byte          // what goes after that
	ended map[uint32]bool // streams whose end was sent: the other end takes one only
}

// Of yamux's framing: version(1) type(1) flags(2) stream(4) length(4); only
// data has a body, of that length.
const (
	muxHeaderLen  = 12
	muxTypeData   = 0
	muxTypeWindow = 1
	muxTypePing   = 2
	muxFlagSYN    = 1
	muxFlagFIN    = 4
	muxFlagRST    = 8
)

// flag sends a frame that only has a flag.
func (c *muxConn) flag(stream uint32, flag uint16) error {
	b := []byte{0, muxTypeWindow}
	b = binary.BigEndian.AppendUint16(b, flag)
	b = binary.BigEndian.AppendUint32(b, stream)
	b = binary.BigEndian.AppendUint32(b, 0)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended == nil {
		c.ended = map[uint32]bool{}
	}
	c.ended[stream] = true
	if len(c.buf) > 0 {
		c.later = append(c.later, b...)
		return nil
	}
	_, err := c.Conn.Write(b)
	return err
}

// drops says whether a frame of yamux's ends a stream that was ended already.
func (c *muxConn) drops(p []byte) bool {
	if len(c.ended) == 0 || len(p) != muxHeaderLen || p[1] != muxTypeWindow || binary.BigEndian.Uint16(p[2:])&(muxFlagFIN|muxFlagRST) == 0 {
		return false
	}
	return c.ended[binary.BigEndian.Uint32(p[4:])]
}

func (c *muxConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.write(p)
	if err == nil && len(c.buf) == 0 && len(c.later) > 0 {
		_, err = c.Conn.Write(c.later)
		c.later = nil
	}
	return n, err
}

func (c *muxConn) write(p []byte) (int, error) {
	if len(c.buf) == 0 && c.drops(p) {
		return len(p), nil
	}
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
