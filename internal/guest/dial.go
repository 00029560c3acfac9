package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/yamux"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// DialTCP connects to a TCP port in the pod: address is host:port, the host an
// IP address. containerID is empty, or that of a container with a network of
// its own. ctx bounds the dialling, the guest does at 10 s. An *Error says that
// the guest could not connect.
//
// The connection has CloseWrite, as a net.TCPConn has. What was written when it
// is closed is still sent. The guest has to speak protocol 3.
func (c *Client) DialTCP(ctx context.Context, containerID, address string) (net.Conn, error) {
	s, err := c.openStdio(ctx, &wire.StreamHeader{ContainerId: containerID, Kind: wire.StreamHeader_DIAL, Address: address}, false)
	if err != nil {
		return nil, fmt.Errorf("dial %s in guest: %w", address, err)
	}
	stop := context.AfterFunc(ctx, func() { s.SetReadDeadline(time.Unix(1, 0)) })
	connected, reason, err := wire.ReadAnswer(s, maxErrorText)
	if !stop() {
		err = context.Cause(ctx)
	} else if why := c.Err(); err != nil && why != nil {
		err = fmt.Errorf("%w: %w", why, errdefs.ErrUnavailable)
	}
	if err == nil && connected {
		return newConn(c, s, address), nil
	}
	go func() {
		c.session.Abort(s)
		c.session.End(s)
	}()
	if err != nil {
		return nil, fmt.Errorf("dial %s in guest: %w", address, err)
	}
	return nil, &Error{Message: printable(reason), Kind: errdefs.ErrFailedPrecondition}
}

// A conn is what DialTCP returns. Pipes are between it and the stream, whose
// own methods can't be bounded while the guest does not read.
//
//	Write ─▶ w ═ toGuest ─▶ stream ─▶ fromGuest ═ r ─▶ Read
type conn struct {
	c              *Client
	s              *yamux.Stream
	address        address
	r, w           net.Conn
	closing        sync.Once
	closed         chan struct{}
	sent, received chan struct{} // closed when nothing more is
	err            error         // why what was received ended; valid once received is closed
}

type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

func newConn(c *Client, s *yamux.Stream, to string) *conn {
	k := &conn{c: c, s: s, address: address(to), closed: make(chan struct{}), sent: make(chan struct{}), received: make(chan struct{})}
	var toGuest, fromGuest net.Conn
	k.w, toGuest = net.Pipe()
	k.r, fromGuest = net.Pipe()
	go k.send(toGuest)
	go k.receive(fromGuest)
	return k
}

// linger is how long a closed conn may take to send what was written, and the
// other end to close too. It is broken when that sends more instead.
const linger = 5 * time.Second

func (k *conn) send(from net.Conn) {
	defer close(k.sent)
	_, err := io.Copy(k.s, from)
	from.Close() // Write fails from here on
	if err == nil {
		k.c.session.CloseWrite(k.s)
	}
}

// receive also ends the stream.
func (k *conn) receive(to net.Conn) {
	_, err := io.Copy(to, k.s)
	if why := k.c.Err(); why != nil {
		err = fmt.Errorf("%w: %w", why, errdefs.ErrUnavailable)
	}
	k.err = err
	close(k.received)
	to.Close()
	if err != nil {
		k.c.session.Abort(k.s)
		k.s.SetWriteDeadline(time.Unix(1, 0))
	}
	<-k.closed
	<-k.sent
	k.c.session.End(k.s)
}

func (k *conn) Read(p []byte) (int, error) {
	n, err := k.r.Read(p)
	if err == io.EOF {
		<-k.received
		if k.err != nil {
			err = fmt.Errorf("read from %s in guest: %w", k.address, k.err)
		}
	}
	return n, err
}

func (k *conn) Write(p []byte) (int, error) {
	n, err := k.w.Write(p)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("write to %s in guest: %w", k.address, err)
	}
	return n, err
}

// CloseWrite tells the other end that nothing more comes.
func (k *conn) CloseWrite() error { return k.w.Close() }

func (k *conn) Close() error {
	k.closing.Do(func() {
		k.w.Close()
		k.r.Close()
		end := time.Now().Add(linger)
		k.s.SetReadDeadline(end)
		k.s.SetWriteDeadline(end)
		close(k.closed)
	})
	return nil
}

func (k *conn) LocalAddr() net.Addr  { return address("hyperd") }
func (k *conn) RemoteAddr() net.Addr { return k.address }

func (k *conn) SetDeadline(t time.Time) error {
	return errors.Join(k.r.SetDeadline(t), k.w.SetDeadline(t))
}
func (k *conn) SetReadDeadline(t time.Time) error  { return k.r.SetReadDeadline(t) }
func (k *conn) SetWriteDeadline(t time.Time) error { return k.w.SetWriteDeadline(t) }
