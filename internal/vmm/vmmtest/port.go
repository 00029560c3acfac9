package vmmtest

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// portBuffer is how much waits in either direction before a writer has to.
const portBuffer = 64 << 10

// A port is the byte stream between host and guest, as virtio-serial has it:
// the guest's end is there all its life, the host's comes and goes. What the
// host has not yet read when it goes is read by the next connection; what the
// guest writes with no host there is lost. While the guest is paused it
// neither reads nor writes.
//
//	host                      port                    guest
//	hostEnd.Write ──▶ toGuest (buffer) ──▶ port.Read
//	hostEnd.Read  ◀── toHost  (buffer) ◀── port.Write
//
// The port itself is the guest's net.Conn.
type port struct {
	mu      sync.Mutex
	changed *sync.Cond // anything below

	toGuest, toHost []byte
	host            *hostEnd // nil: away
	paused          bool
	closed          bool // the guest has ended
	deadlines
}

// deadlines are of the guest's end or of a host's.
type deadlines struct{ read, write time.Time }

func newPort() *port {
	p := &port{}
	p.changed = sync.NewCond(&p.mu)
	return p
}

// hostEnd is one connection of the host.
type hostEnd struct {
	port   *port
	closed bool // by the host itself
	deadlines
}

// over is the error of a connection that has ended.
func (h *hostEnd) over() error {
	switch {
	case h.closed:
		return net.ErrClosed
	case h.port.host != h:
		return io.EOF
	}
	return nil
}

func (p *port) connect() (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.host != nil {
		return nil, fmt.Errorf("the guest's stream is open already: %w", errdefs.ErrFailedPrecondition)
	}
	p.host = &hostEnd{port: p}
	p.changed.Broadcast()
	return p.host, nil
}

// disconnect ends the host's connection h, nil: whichever there is.
func (p *port) disconnect(h *hostEnd) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h == nil || p.host == h {
		p.host = nil
		p.changed.Broadcast()
	}
}

func (p *port) pause(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = on
	p.changed.Broadcast()
}

// shut ends the guest's end; what it wrote can still be read.
func (p *port) shut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.changed.Broadcast()
}

// wait blocks until ready, or over gives an error, or the deadline passes.
// The caller holds p.mu.
func (p *port) wait(deadline *time.Time, ready func() bool, over func() error) error {
	for {
		if err := over(); err != nil {
			return err
		}
		if ready() {
			return nil
		}
		if d := *deadline; !d.IsZero() {
			left := time.Until(d)
			if left <= 0 {
				return os.ErrDeadlineExceeded
			}
			timer := time.AfterFunc(left, p.wake)
			p.changed.Wait()
			timer.Stop()
			continue
		}
		p.changed.Wait()
	}
}

func (p *port) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changed.Broadcast()
}

// take moves from a buffer into b.
func take(buffer *[]byte, b []byte) int {
	n := copy(b, *buffer)
	*buffer = (*buffer)[n:]
	return n
}

// Read is the guest's.
func (p *port) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.wait(&p.read,
		func() bool { return !p.paused && len(p.toGuest) > 0 },
		func() error { return errorIf(p.closed, io.EOF) })
	if err != nil {
		return 0, err
	}
	defer p.changed.Broadcast()
	return take(&p.toGuest, b), nil
}

// Write is the guest's.
func (p *port) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for done := 0; done < len(b); {
		err := p.wait(&p.write,
			func() bool { return !p.paused && (p.host == nil || len(p.toHost) < portBuffer) },
			func() error { return errorIf(p.closed, net.ErrClosed) })
		if err != nil {
			return done, err
		}
		if p.host == nil {
			return len(b), nil
		}
		n := min(len(b)-done, portBuffer-len(p.toHost))
		p.toHost = append(p.toHost, b[done:done+n]...)
		done += n
		p.changed.Broadcast()
	}
	return len(b), nil
}

// Close is the guest's.
func (p *port) Close() error {
	p.shut()
	return nil
}

func (p *port) SetDeadline(t time.Time) error      { return p.setDeadlines(&p.deadlines, &t, &t) }
func (p *port) SetReadDeadline(t time.Time) error  { return p.setDeadlines(&p.deadlines, &t, nil) }
func (p *port) SetWriteDeadline(t time.Time) error { return p.setDeadlines(&p.deadlines, nil, &t) }
func (p *port) LocalAddr() net.Addr                { return portAddr("guest") }
func (p *port) RemoteAddr() net.Addr               { return portAddr("host") }

func (p *port) setDeadlines(d *deadlines, read, write *time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if read != nil {
		d.read = *read
	}
	if write != nil {
		d.write = *write
	}
	p.changed.Broadcast()
	return nil
}

func (h *hostEnd) Read(b []byte) (int, error) {
	p := h.port
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.wait(&h.read,
		func() bool { return len(p.toHost) > 0 }, h.over)
	if err != nil {
		return 0, err
	}
	defer p.changed.Broadcast()
	return take(&p.toHost, b), nil
}

func (h *hostEnd) Write(b []byte) (int, error) {
	p := h.port
	p.mu.Lock()
	defer p.mu.Unlock()
	for done := 0; done < len(b); {
		err := p.wait(&h.write,
			func() bool { return len(p.toGuest) < portBuffer }, h.over)
		if err != nil {
			return done, err
		}
		n := min(len(b)-done, portBuffer-len(p.toGuest))
		p.toGuest = append(p.toGuest, b[done:done+n]...)
		done += n
		p.changed.Broadcast()
	}
	return len(b), nil
}

func (h *hostEnd) Close() error {
	h.port.mu.Lock()
	h.closed = true
	h.port.mu.Unlock()
	h.port.disconnect(h)
	return nil
}

func (h *hostEnd) SetDeadline(t time.Time) error {
	return h.port.setDeadlines(&h.deadlines, &t, &t)
}

func (h *hostEnd) SetReadDeadline(t time.Time) error {
	return h.port.setDeadlines(&h.deadlines, &t, nil)
}

func (h *hostEnd) SetWriteDeadline(t time.Time) error {
	return h.port.setDeadlines(&h.deadlines, nil, &t)
}
func (h *hostEnd) LocalAddr() net.Addr  { return portAddr("host") }
func (h *hostEnd) RemoteAddr() net.Addr { return portAddr("guest") }

// portAddr names an end.
type portAddr string

func (portAddr) Network() string  { return "virtio" }
func (a portAddr) String() string { return string(a) }

func errorIf(is bool, err error) error {
	if is {
		return err
	}
	return nil
}
