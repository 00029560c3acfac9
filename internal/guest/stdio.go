package guest

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/yamux"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// Output opens a process's standard output or error from offset on. That the
// guest knows no such process or no longer holds offset is the first Read's
// error. A later Output for the same stream ends an earlier one.
func (c *Client) Output(ctx context.Context, containerID, execID string, kind wire.StreamHeader_Kind, offset uint64) (*Output, error) {
	return c.output(ctx, &wire.StreamHeader{ContainerId: containerID, ExecId: execID, Kind: kind, Offset: offset}, false)
}

func (c *Client) output(ctx context.Context, h *wire.StreamHeader, await bool) (*Output, error) {
	s, err := c.openStdio(ctx, h, await)
	if err != nil {
		return nil, err
	}
	o := &Output{c: c, s: s, r: wire.ChunkReader{R: s}, acked: h.Offset, wake: make(chan struct{}, 1), closed: make(chan struct{})}
	go o.sendAcks()
	return o, nil
}

// Stdin opens a process's standard input. Closing the writer leaves the
// process's input open; CloseStdin closes it. Write blocks while the process
// does not read; a concurrent Close ends it.
func (c *Client) Stdin(ctx context.Context, containerID, execID string) (io.WriteCloser, error) {
	return c.stdin(ctx, processKey{containerID, execID}, false)
}

func (c *Client) stdin(ctx context.Context, key processKey, await bool) (io.WriteCloser, error) {
	s, err := c.openStdio(ctx, &wire.StreamHeader{ContainerId: key.container, ExecId: key.exec, Kind: wire.StreamHeader_STDIN}, await)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sent[key] == nil {
		c.sent[key] = new(uint64)
	}
	return &input{c: c, s: s, sent: c.sent[key]}, nil
}

func (c *Client) openStdio(ctx context.Context, h *wire.StreamHeader, await bool) (*yamux.Stream, error) {
	s, err := c.openStream(ctx)
	if err != nil {
		return nil, err
	}
	wrote := make(chan error, 1)
	go func() { wrote <- wire.WriteStreamHeader(s, h, await) }()
	select {
	case err = <-wrote:
		if err != nil {
			err = fmt.Errorf("open stdio of process: %w: %w", err, errdefs.ErrUnavailable)
		}
	case <-ctx.Done():
		err = fmt.Errorf("open stdio of process: %w", context.Cause(ctx))
	}
	if err != nil {
		go s.Close()
		return nil, err
	}
	c.begin()
	return s, nil
}

// An input is the writer that Stdin returns.
type input struct {
	c    *Client
	s    *yamux.Stream
	sent *uint64 // guarded by c.mu
	once sync.Once
}

func (i *input) Write(p []byte) (int, error) {
	n, err := i.s.Write(p)
	i.c.mu.Lock()
	*i.sent += uint64(n)
	i.c.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("write to standard input: %w: %w", err, errdefs.ErrUnavailable)
	}
	return n, err
}

// Close does not wait for a guest that does not read.
func (i *input) Close() error {
	i.once.Do(func() { go i.s.Close() })
	return nil
}

// An Output is a process's output stream. Read returns io.EOF after the last
// byte, another error when the connection is lost. Read is called by one
// goroutine at a time, Ack and Close by any.
type Output struct {
	c *Client
	s *yamux.Stream
	r wire.ChunkReader

	mu     sync.Mutex
	acked  uint64 // latest Ack
	wake   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (o *Output) Read(p []byte) (int, error) {
	n, err := o.r.Read(p)
	if err != nil && err != io.EOF {
		select {
		case <-o.closed:
			return n, fmt.Errorf("read output: %w", net.ErrClosed)
		default:
		}
		if why := o.c.Err(); why != nil {
			err = fmt.Errorf("read output: %w: %w", why, errdefs.ErrUnavailable)
		}
	}
	return n, err
}

// Ack tells the guest that everything before offset is safe on the host.
// Without it the guest stops the process after a window of output. It is sent
// once it frees a good part of the window, or the Output is closed: each wakes
// the guest. It does not block.
func (o *Output) Ack(offset uint64) error {
	if why := o.c.Err(); why != nil {
		return fmt.Errorf("acknowledge output: %w: %w", why, errdefs.ErrUnavailable)
	}
	o.mu.Lock()
	o.acked = max(o.acked, offset)
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return nil
}

const ackStep = wire.OutputWindow / 4

// sendAcks is the goroutine that a guest which does not read can hold up. It
// sends the latest Ack before it ends the stream.
func (o *Output) sendAcks() {
	o.mu.Lock()
	last := o.acked
	o.mu.Unlock()
	for closed := false; !closed; {
		select {
		case <-o.wake:
		case <-o.closed:
			closed = true
		case <-o.c.Done():
			return
		}
		o.mu.Lock()
		acked := o.acked
		o.mu.Unlock()
		if acked == last || !closed && acked-last < ackStep {
			continue
		}
		last = acked
		if _, err := o.s.Write(binary.BigEndian.AppendUint64(nil, acked)); err != nil {
			break
		}
	}
	o.s.Close()
}

// Close releases the stream and ends a Read. Unacknowledged output stays with
// the guest. It does not block; an Ack before it is still sent.
func (o *Output) Close() error {
	o.once.Do(func() {
		close(o.closed)
		o.s.SetReadDeadline(time.Unix(1, 0))
	})
	return nil
}
