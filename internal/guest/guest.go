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
// per Output, which ends with it; two per connection of DialTCP, which end a
// moment after it; and one per call, which may outlive a cancelled call until
// the guest reads again or the connection ends.
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

	link    *wire.Link
	session *wire.Mux
	rpc     *ttrpc.Client
	begun   sync.Once

	mu      sync.Mutex
	err     error                  // why the connection ended
	sent    map[processKey]*uint64 // bytes sent to standard inputs; see CloseStdin
	batches []*batch               // held until their calls have been written
}

type processKey struct{ container, exec string }

// Options say what kind of connection Open makes.
type Options struct {
	// Fresh says that this is the first connection to a VM that was just
	// started, or cloned from a template whose connection was closed while
	// no call was under way. The guest then need not be told to forget what
	// an earlier host left behind, which is 32 KiB that it has to read.
	Fresh bool
}

// Open makes a connection to the guest at the other end of conn, which it
// takes over, also on error. It does not wait for the guest: calls and streams
// queue until it answers. Nothing is sent before the first of them, so that
// the connection begins and the call is made in one write.
func Open(conn net.Conn, o Options) (*Client, error) {
	link := wire.OpenLink(conn, o.Fresh)
	c := &Client{link: link, sent: map[processKey]*uint64{}}
	var err error
	c.session, err = wire.MuxHost(&watchedConn{Conn: link, lost: c.lost})
	if err != nil {
		link.Close()
		return nil, fmt.Errorf("multiplex connection to guest: %w", c.why(err))
	}
	calls, err := c.openStream(context.Background()) // the link has room for that
	if err != nil {
		c.session.Close()
		return nil, err
	}
	c.rpc = ttrpc.NewClient(&callsConn{Conn: calls, wrote: c.wroteCall},
		ttrpc.WithUnaryClientInterceptor(c.intercept),
		ttrpc.WithOnClose(func() { c.session.Close() }))
	c.GuestClient = wire.NewGuestClient(c.rpc)
	return c, nil
}

// Dial is Open for any conn; it returns once the guest has answered, however
// long that takes. ctx bounds the wait only.
func Dial(ctx context.Context, conn net.Conn) (*Client, error) {
	c, err := Open(conn, Options{})
	if err != nil {
		return nil, err
	}
	c.begin()
	select {
	case <-c.Answered():
		return c, nil
	case <-c.Done():
		err = c.Err()
	case <-ctx.Done():
		err = fmt.Errorf("synchronise with guest: %w", context.Cause(ctx))
	}
	c.Close()
	return nil, err
}

// begin sends what Open holds back.
func (c *Client) begin() { c.begun.Do(c.link.Release) }

// Answered is closed when the guest has answered for the first time. It takes
// a call, or a stream, for that to happen.
func (c *Client) Answered() <-chan struct{} { return c.link.Answered() }

// Done is closed when the connection is lost; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.session.CloseChan() }

// Err is why the connection ended, nil while it lives.
func (c *Client) Err() error {
	select {
	case <-c.Done():
	default:
		return nil
	}
	return fmt.Errorf("guest connection: %w", c.why(net.ErrClosed))
}

// why is the first reason for the end of the connection, err when there is none yet.
func (c *Client) why(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return err
}

// Close ends the connection; the guest goes on running.
func (c *Client) Close() error {
	c.lost(net.ErrClosed)
	err := c.session.Close()
	c.rpc.Close()
	c.link.Close() // if the session is being closed elsewhere, it has not done that yet
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
		if r.err == nil {
			return r.s, nil
		}
		if why := c.Err(); why != nil {
			r.err = why
		}
		return nil, fmt.Errorf("open stream to guest: %w: %w", r.err, errdefs.ErrUnavailable)
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
	select {
	case <-c.Answered():
		return fmt.Errorf("guest %s: %w", method, err)
	default:
		return fmt.Errorf("guest %s: it has not answered yet: %w", method, err)
	}
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
	c.forgetStdin(processKey{req.ContainerId, req.ExecId})
	return c.GuestClient.DeleteProcess(ctx, req)
}

func (c *Client) forgetStdin(key processKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sent, key)
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
