// Package guest is the host's side of hyperstart: it makes one connection to
// a guest, calls it, and carries the stdio of its processes.
//
// Everything a guest sends is hostile until checked: sizes are bounded, and
// what it claims is never used as a path, an argument or an index on the host.
//
// A Client lives as long as its connection. When hyperd restarts, a new
// Client on a new connection goes on where the old one stopped: exit codes
// and unacknowledged output are held by the guest until it is told to forget
// them.
//
// Goroutines: those of yamux and ttrpc, which end with the connection; one
// per Output, which ends with it; and one per call, which may outlive a
// cancelled call until the guest reads again or the connection ends.
package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/hashicorp/yamux"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// A Client is one connection to a guest. Its methods may be called
// concurrently. Errors carry containerd/errdefs kinds; a lost connection is
// Unavailable.
type Client struct {
	wire.GuestClient

	session *yamux.Session
	rpc     *ttrpc.Client

	mu   sync.Mutex
	err  error                  // why the connection ended
	sent map[processKey]*uint64 // bytes sent to standard inputs; see CloseStdin
}

type processKey struct{ container, exec string }

// Dial synchronises with the guest at the other end of conn and returns once
// the guest has answered. It takes over conn, also on error. ctx bounds the
// handshake only.
func Dial(ctx context.Context, conn net.Conn) (*Client, error) {
	link, err := wire.DialLink(ctx, conn)
	if err != nil {
		return nil, err
	}
	c := &Client{sent: map[processKey]*uint64{}}
	stop := context.AfterFunc(ctx, func() { link.Close() })
	c.session, err = wire.MuxHost(&watchedConn{Conn: link, lost: c.lost})
	if err != nil {
		link.Close()
		return nil, fmt.Errorf("multiplex connection to guest: %w", err)
	}
	if !stop() {
		c.session.Close()
		return nil, fmt.Errorf("multiplex connection to guest: %w", context.Cause(ctx))
	}
	calls, err := c.openStream(ctx)
	if err != nil {
		c.session.Close()
		return nil, err
	}
	c.rpc = ttrpc.NewClient(&boundedConn{Conn: calls},
		ttrpc.WithUnaryClientInterceptor(c.intercept),
		ttrpc.WithOnClose(func() { c.session.Close() }))
	c.GuestClient = wire.NewGuestClient(c.rpc)
	return c, nil
}

// Done is closed when the connection is lost; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.session.CloseChan() }

// Err is why the connection ended, nil while it lives.
func (c *Client) Err() error {
	select {
	case <-c.Done():
	default:
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		return fmt.Errorf("guest connection: %w", net.ErrClosed)
	}
	return fmt.Errorf("guest connection: %w", c.err)
}

// Close ends the connection; the guest goes on running.
func (c *Client) Close() error {
	c.lost(net.ErrClosed)
	err := c.session.Close()
	c.rpc.Close()
	return err
}

func (c *Client) lost(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

// openStream opens a yamux stream. yamux may block as long as the guest does
// not read.
func (c *Client) openStream(ctx context.Context) (*yamux.Stream, error) {
	type result struct {
		s   *yamux.Stream
		err error
	}
	opened := make(chan result, 1)
	go func() {
		s, err := c.session.OpenStream()
		opened <- result{s, err}
	}()
	select {
	case r := <-opened:
		if r.err != nil {
			return nil, fmt.Errorf("open stream to guest: %w: %w", r.err, errdefs.ErrUnavailable)
		}
		return r.s, nil
	case <-ctx.Done():
		go func() {
			if r := <-opened; r.err == nil {
				r.s.Close()
			}
		}()
		return nil, fmt.Errorf("open stream to guest: %w", context.Cause(ctx))
	}
}

// intercept runs every call: it returns when ctx is done even while the guest
// does not read, and gives errors their kind.
func (c *Client) intercept(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, call ttrpc.Invoker) error {
	answered := make(chan error, 1)
	got := new(ttrpc.Response) // not resp: the call may outlive this function
	go func() { answered <- call(ctx, req, got) }()
	select {
	case err := <-answered:
		resp.Payload = got.Payload
		if err == nil && got.Status != nil {
			err = statusError(got.Status)
		}
		return c.callError(req.Method, err)
	case <-ctx.Done():
		return c.callError(req.Method, ctx.Err())
	}
}

func (c *Client) callError(method string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ttrpc.ErrClosed):
		if why := c.Err(); why != nil {
			err = why
		}
		return fmt.Errorf("guest %s: %w: %w", method, err, errdefs.ErrUnavailable)
	case errors.As(err, new(*Error)):
		return err
	}
	return fmt.Errorf("guest %s: %w", method, err)
}

// CloseStdin closes a process's standard input once everything that was
// written to a writer of Stdin, closed or not, has reached the process.
func (c *Client) CloseStdin(ctx context.Context, req *wire.CloseStdinRequest) (*wire.CloseStdinResponse, error) {
	key := processKey{req.ContainerId, req.ExecId}
	c.mu.Lock()
	n := uint64(0)
	if sent := c.sent[key]; sent != nil {
		n = *sent
		delete(c.sent, key)
	}
	c.mu.Unlock()
	return c.GuestClient.CloseStdin(ctx, &wire.CloseStdinRequest{ContainerId: req.ContainerId, ExecId: req.ExecId, Sent: n})
}

// DeleteProcess forgets an exited exec, here too.
func (c *Client) DeleteProcess(ctx context.Context, req *wire.DeleteProcessRequest) (*wire.DeleteProcessResponse, error) {
	c.mu.Lock()
	delete(c.sent, processKey{req.ContainerId, req.ExecId})
	c.mu.Unlock()
	return c.GuestClient.DeleteProcess(ctx, req)
}

// Events streams what happens in the guest until the connection ends. Call it
// once for a connection and receive until it fails: ttrpc can't end a stream
// early, and one that is not received from holds up the calls for a second.
func (c *Client) Events(ctx context.Context, req *wire.EventsRequest) (wire.Guest_EventsClient, error) {
	s, err := c.GuestClient.Events(ctx, req)
	if err != nil {
		return nil, c.callError("Events", native(err))
	}
	return &events{s, c}, nil
}

type events struct {
	wire.Guest_EventsClient
	c *Client
}

func (e *events) Recv() (*wire.Event, error) {
	ev, err := e.Guest_EventsClient.Recv()
	if err != nil {
		return nil, e.c.callError("Events", native(err))
	}
	return ev, nil
}

// A watchedConn remembers why the connection was lost; yamux does not tell.
type watchedConn struct {
	net.Conn
	lost func(error)
}

func (w *watchedConn) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		w.lost(err)
	}
	return n, err
}

func (w *watchedConn) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	if err != nil {
		w.lost(err)
	}
	return n, err
}
