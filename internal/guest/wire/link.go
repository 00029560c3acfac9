package wire

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// The link makes sessions out of a byte stream that loses bytes whenever the
// host's end of it changes hands and that tells neither end reliably.
//
//	frame:  magic(4) kind(1) 0(1) length(2) session(8) check(4) payload session(8)
//
// A new host end sends maxFrame zeros, which complete any frame that was cut,
// then SYN with a random session id, and goes on with frames of that session.
// The guest drops the session it had and answers SYNACK; the host discards
// everything up to that. Within a session no byte is lost: the stream is
// reliable as long as it lasts. The session id after the payload tells a whole
// frame from one that the zeros completed, so that a cut frame never reaches a
// process as zeros. To a guest that no host has written to, or whose last host
// left it between frames, the zeros are not sent.
const (
	maxFrame   = 32 << 10 // one write(2) of a virtio-serial port takes no more
	headerLen  = 20
	trailerLen = 8
	maxPayload = maxFrame - headerLen - trailerLen
)

var linkMagic = []byte{0x9d, 'H', 'L', 1}

const (
	kindSYN    = 1 // host: drop what was, begin this session
	kindSYNACK = 2 // guest: this session has begun
	kindData   = 3
	kindFIN    = 4 // guest: this session has ended
)

// errReplaced ends a session on the guest's side when the host began another.
var errReplaced = errors.New("link: the host began another session")

type frame struct {
	kind    byte
	session uint64
	payload []byte // valid until the decoder is used again
}

// check is FNV-1a: it tells a header from noise, not from an attack.
func check(b []byte) uint32 {
	h := uint32(2166136261)
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}

func appendFrame(b []byte, kind byte, session uint64, payload []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, headerLen)...)
	return finishFrame(append(b, payload...), start, kind, session)
}

// finishFrame makes b[start:], room for a header and then a payload, a frame.
func finishFrame(b []byte, start int, kind byte, session uint64) []byte {
	h := b[start : start+headerLen]
	copy(h, linkMagic)
	h[4], h[5] = kind, 0
	binary.BigEndian.PutUint16(h[6:], uint16(len(b)-start-headerLen))
	binary.BigEndian.PutUint64(h[8:], session)
	binary.BigEndian.PutUint32(h[16:], check(h[:16]))
	return binary.BigEndian.AppendUint64(b, session)
}

// parseHeader returns the frame without its payload, and the payload's length.
func parseHeader(h []byte) (f frame, n int, ok bool) {
	if !bytes.Equal(h[:4], linkMagic) || h[5] != 0 ||
		binary.BigEndian.Uint32(h[16:]) != check(h[:16]) {
		return frame{}, 0, false
	}
	n = int(binary.BigEndian.Uint16(h[6:]))
	f = frame{kind: h[4], session: binary.BigEndian.Uint64(h[8:])}
	return f, n, n <= maxPayload
}

// A decoder finds the frames in a byte stream.
type decoder struct{ r *bufio.Reader }

func newDecoder(r io.Reader) *decoder { return &decoder{bufio.NewReaderSize(r, maxFrame)} }

// skip discards at least one byte and all that can't begin a frame.
func (d *decoder) skip() {
	d.r.Discard(1)
	b, _ := d.r.Peek(d.r.Buffered())
	if i := bytes.IndexByte(b, linkMagic[0]); i >= 0 {
		d.r.Discard(i)
		return
	}
	d.r.Discard(len(b))
}

// next returns the next whole frame. clean is false when something that was
// no whole frame came before it.
func (d *decoder) next() (f frame, clean bool, err error) {
	clean = true
	for {
		h, err := d.r.Peek(headerLen)
		if err != nil {
			return frame{}, false, err
		}
		f, n, ok := parseHeader(h)
		if !ok {
			clean = false
			d.skip()
			continue
		}
		total := headerLen + n + trailerLen
		b, err := d.r.Peek(total)
		if err != nil {
			return frame{}, false, err
		}
		// The bytes stay in the buffer, untouched, until the next read.
		d.r.Discard(total)
		if binary.BigEndian.Uint64(b[total-trailerLen:]) != f.session {
			clean = false
			continue
		}
		f.payload = b[headerLen : headerLen+n]
		return f, clean, nil
	}
}

// await discards everything up to the SYNACK of session. It looks into what
// seems to be frames: one that lost its end would swallow the answer.
func (d *decoder) await(session uint64) error {
	want := appendFrame(nil, kindSYNACK, session, nil)
	for {
		b, err := d.r.Peek(len(want))
		if err != nil {
			return err
		}
		if bytes.Equal(b, want) {
			d.r.Discard(len(want))
			return nil
		}
		d.skip()
	}
}

// A linkConn is one session. It implements net.Conn without deadlines.
type linkConn struct {
	session uint64
	out     *sender // shared by all sessions on the byte stream

	mu      sync.Mutex
	cond    *sync.Cond
	pending []byte // received, not yet read; belongs to the decoder
	err     error  // why the session ended
}

func newLinkConn(session uint64, out *sender) *linkConn {
	c := &linkConn{session: session, out: out}
	c.cond = sync.NewCond(&c.mu)
	return c
}

// deliver hands payload to Read and returns when it was read or the session ended.
func (c *linkConn) deliver(payload []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.pending = payload
	c.cond.Broadcast()
	for len(c.pending) > 0 && c.err == nil {
		c.cond.Wait()
	}
	c.pending = nil
}

// end ends the session; the first reason stays. first says that this is it.
func (c *linkConn) end(err error) (first bool) {
	c.mu.Lock()
	if first = c.err == nil; first {
		c.err = err
		c.cond.Broadcast()
	}
	c.mu.Unlock()
	c.out.wake()
	return first
}

func (c *linkConn) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *linkConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.pending) == 0 && c.err == nil {
		c.cond.Wait()
	}
	if c.err != nil {
		return 0, c.err
	}
	n := copy(p, c.pending)
	c.pending = c.pending[n:]
	if len(c.pending) == 0 {
		c.cond.Broadcast()
	}
	return n, nil
}

func (c *linkConn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := min(len(p)-done, maxPayload)
		if err := c.out.put(c, kindData, p[done:done+n]); err != nil {
			c.end(err)
			return done, err
		}
		done += n
	}
	return done, nil
}

// Close ends the session and tells the host. The byte stream stays for the next.
func (c *linkConn) Close() error {
	if c.end(net.ErrClosed) {
		go c.out.put(c, kindFIN, nil) // waits as long as no host is there
	}
	return nil
}

type linkAddr struct{}

func (linkAddr) Network() string { return "hyper" }
func (linkAddr) String() string  { return "guest" }

func (c *linkConn) LocalAddr() net.Addr              { return linkAddr{} }
func (c *linkConn) RemoteAddr() net.Addr             { return linkAddr{} }
func (c *linkConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *linkConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *linkConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// A Link is the host's end of a link and one session on it. It implements
// net.Conn without deadlines.
type Link struct {
	linkConn
	rwc      io.ReadWriteCloser
	answered chan struct{}
}

// OpenLink begins a session with the guest at the other end of rwc, which it
// takes over, and does not wait for the guest's answer: what is written
// follows the beginning of the session. It is held: nothing leaves before
// Release. fresh says that no host has written to that guest's port before,
// or that the last one left it between frames: nothing is to be cut off then.
func OpenLink(rwc io.ReadWriteCloser, fresh bool) *Link {
	var nonce [8]byte
	rand.Read(nonce[:])
	session := binary.BigEndian.Uint64(nonce[:])
	l := &Link{rwc: rwc, answered: make(chan struct{})}
	l.linkConn = linkConn{session: session, out: newSender(rwc, l.writeFailed)}
	l.cond = sync.NewCond(&l.mu)
	var hello []byte
	if !fresh {
		hello = make([]byte, maxFrame)
	}
	l.out.hold()
	l.out.begin(session, appendFrame(hello, kindSYN, session, nil))
	go l.out.run()
	go l.receive()
	return l
}

// Answered is closed when the guest has answered.
func (l *Link) Answered() <-chan struct{} { return l.answered }

// Hold has what is written from now on wait for a Release, to leave in one
// piece. It may be called several times and needs as many Releases. A Write
// that finds no room does not wait for one.
func (l *Link) Hold() { l.out.hold() }

// Release undoes one Hold.
func (l *Link) Release() { l.out.release() }

// Close ends the session and the byte stream.
func (l *Link) Close() error {
	l.shut(net.ErrClosed)
	return nil
}

func (l *Link) shut(err error) {
	l.end(err)
	l.out.stop(err)
	l.rwc.Close()
}

// writeFailed is the sender's. Before the guest has answered, either of
// reading and writing may be the first to find that it is gone.
func (l *Link) writeFailed(err error) {
	select {
	case <-l.answered:
	default:
		err = fmt.Errorf("synchronise with guest: %w", err)
	}
	l.shut(err)
}

// receive is the host's reading goroutine.
func (l *Link) receive() {
	d := newDecoder(l.rwc)
	if err := d.await(l.session); err != nil {
		l.shut(fmt.Errorf("synchronise with guest: %w", err))
		return
	}
	close(l.answered)
	for {
		f, clean, err := d.next()
		switch {
		case err != nil:
		case clean && f.kind == kindFIN && f.session == l.session:
			err = errors.New("link: the guest has ended the session")
		case !clean || f.kind != kindData || f.session != l.session:
			err = errors.New("link: the guest sent what is no frame")
		}
		if err != nil {
			l.shut(err)
			return
		}
		l.deliver(f.payload)
	}
}

// A LinkListener is the guest's end of a link. It implements net.Listener.
type LinkListener struct {
	rwc io.ReadWriteCloser
	out *sender

	mu      sync.Mutex
	cond    *sync.Cond
	waiting *linkConn // begun, not yet accepted
	err     error     // why there will be no more
}

// ServeLink serves the guest's end of a link on rwc, which it takes over.
func ServeLink(rwc io.ReadWriteCloser) *LinkListener {
	l := &LinkListener{rwc: rwc, out: newSender(rwc, func(error) {})}
	l.cond = sync.NewCond(&l.mu)
	go l.out.run()
	go l.receive()
	return l
}

// Accept returns the next session. A session ends when the host begins
// another: its Read and Write then fail.
func (l *LinkListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.waiting == nil && l.err == nil {
		l.cond.Wait()
	}
	if l.err != nil {
		return nil, l.err
	}
	c := l.waiting
	l.waiting = nil
	return c, nil
}

// Close closes the byte stream and so ends the session there is.
func (l *LinkListener) Close() error { return l.rwc.Close() }

// Addr is there for net.Listener.
func (l *LinkListener) Addr() net.Addr { return linkAddr{} }

func (l *LinkListener) receive() {
	d := newDecoder(l.rwc)
	var cur *linkConn
	for {
		f, clean, err := d.next()
		if err != nil {
			if cur != nil {
				cur.end(err)
			}
			l.out.stop(err)
			l.mu.Lock()
			l.err = err
			l.cond.Broadcast()
			l.mu.Unlock()
			return
		}
		if cur != nil && (!clean || f.kind == kindSYN) {
			cur.end(errReplaced)
			cur = nil
		}
		switch {
		case f.kind == kindSYN:
			cur = l.begin(f.session)
		case f.kind == kindData && cur != nil && f.session == cur.session:
			cur.deliver(f.payload)
		}
	}
}

// begin answers a SYN and offers the session to Accept.
func (l *LinkListener) begin(session uint64) *linkConn {
	c := newLinkConn(session, l.out)
	l.out.begin(session, appendFrame(nil, kindSYNACK, session, nil))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = c
	l.cond.Broadcast()
	return c
}
