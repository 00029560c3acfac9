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
package guest

import (
	"context"
	"io"
	"net"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// A Client is one connection to a guest. Its methods may be called
// concurrently. Errors carry containerd/errdefs kinds.
type Client struct {
	wire.GuestClient
}

// Dial synchronises with the guest at the other end of conn and returns once
// the guest has answered. It takes over conn, also on error. ctx bounds the
// handshake only.
func Dial(ctx context.Context, conn net.Conn) (*Client, error) { panic("not written") }

// Done is closed when the connection is lost; Err then says why.
func (c *Client) Done() <-chan struct{} { panic("not written") }

// Err is why the connection ended, nil while it lives.
func (c *Client) Err() error { panic("not written") }

// Close ends the connection; the guest goes on running.
func (c *Client) Close() error { panic("not written") }

// Output opens a process's standard output or error from offset on.
func (c *Client) Output(ctx context.Context, containerID, execID string, kind wire.StreamHeader_Kind, offset uint64) (*Output, error) {
	panic("not written")
}

// Stdin opens a process's standard input. Closing the writer leaves the
// process's input open; CloseStdin closes it.
func (c *Client) Stdin(ctx context.Context, containerID, execID string) (io.WriteCloser, error) {
	panic("not written")
}

// An Output is a process's output stream. Read returns io.EOF after the last
// byte, another error when the connection is lost.
type Output struct{}

func (o *Output) Read(p []byte) (int, error) { panic("not written") }

// Ack tells the guest that everything before offset is safe on the host.
// Without it the guest stops the process after a window of output.
func (o *Output) Ack(offset uint64) error { panic("not written") }

// Close releases the stream. Unacknowledged output stays with the guest.
func (o *Output) Close() error { panic("not written") }
