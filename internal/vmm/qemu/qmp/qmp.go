// Package qmp is a client of the QEMU Machine Protocol
// (docs/interop/qmp-spec.rst of QEMU): JSON commands and replies over a unix
// socket, with events in between.
//
// It knows the protocol and the commands that Hyper uses, not what a VM is.
// QEMU is trusted only so far: what it sends is bounded and checked, and a
// message that breaks the protocol ends the connection.
//
// A Client owns one goroutine, which reads until the connection ends. Lock
// order: Client.writing before Client.mu.
package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxMessage bounds one message from QEMU. The longest that a command of this
// package can cause is a console of 64 KiB in base64; query-qmp-schema, which
// the tests use, takes some 300 KiB.
const maxMessage = 1 << 20

// writeTimeout bounds the sending of one command. Commands are far smaller
// than a socket buffer, so a write that blocks means that QEMU reads no more.
const writeTimeout = 10 * time.Second

// ErrClosed is the cause of errors on a connection that has ended.
var ErrClosed = errors.New("connection to QEMU has ended")

// An Error is QEMU's refusal of a command.
type Error struct {
	Class string `json:"class"` // "GenericError", "CommandNotFound" …
	Desc  string `json:"desc"`
}

func (e *Error) Error() string { return e.Desc }

// An Event is something that happened in QEMU, such as SHUTDOWN.
type Event struct {
	Name string
	Data json.RawMessage // null or an object
}

// Version is QEMU's, from its greeting.
type Version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Micro int `json:"micro"`
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// A Client is one connection to a QEMU. Its methods may be called
// concurrently.
type Client struct {
	// Version is what QEMU said in its greeting; it is known after Ready.
	Version Version

	conn    *net.UnixConn
	ready   *Call // the end of the handshake
	handle  func(Event)
	ended   chan struct{}
	writing sync.Mutex // held while a command is sent

	mu      sync.Mutex
	nextID  uint64
	pending map[uint64]chan message // each with room for one reply
	err     error                   // set once, before ended is closed
}

// Dial connects to the QEMU that listens on the unix socket at path; see New.
func Dial(ctx context.Context, path string, handle func(Event)) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("dial qmp: %w", err)
	}
	return New(conn.(*net.UnixConn), handle), nil
}

// New takes over conn and opens the command mode, without waiting for QEMU:
// commands can be sent at once, and are executed when QEMU has come up. handle
// is called for each event, one at a time and in order; it must not block and
// must not call the client.
func New(conn *net.UnixConn, handle func(Event)) *Client {
	c := &Client{
		conn: conn, handle: handle,
		ended: make(chan struct{}), pending: make(map[uint64]chan message),
	}
	in := bufio.NewScanner(conn)
	in.Buffer(make([]byte, 0, 4096), maxMessage)
	c.ready = c.Send(context.Background(), "qmp_capabilities", nil, nil)
	go c.read(in)
	return c
}

// Ready waits until QEMU takes commands, which is when its main loop runs; it
// is called once.
func (c *Client) Ready(ctx context.Context) error { return c.ready.Wait(ctx, nil) }

// Close ends the connection; QEMU goes on.
func (c *Client) Close() {
	c.fail(ErrClosed)
	<-c.ended
}

// Done is closed when the connection has ended; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.ended }

// Err is why the connection ended, nil while it lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Execute runs one command and waits for its reply. args is marshalled to the
// command's arguments (nil: none); the reply is unmarshalled into result
// unless that is nil. The error wraps *Error when QEMU refused. A cancelled
// ctx ends the waiting, not the command.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	return c.Send(ctx, command, args, nil).Wait(ctx, result)
}

// A Call is a command that was sent. QEMU executes commands in their order,
// also those after one that it refused.
type Call struct {
	client  *Client
	command string
	id      uint64
	reply   <-chan message
	err     error // it could not be sent
}

// Send sends a command, and a duplicate of file with it unless that is nil.
// It doesn't wait for the reply: commands sent one after the other cost one
// round trip. QEMU reads them byte by byte, 3 µs each.
func (c *Client) Send(ctx context.Context, command string, args any, file *os.File) *Call {
	call := &Call{client: c, command: command}
	call.id, call.reply = c.register()
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, call.id})
	line = append(line, '\n')
	switch {
	case err != nil:
	case file == nil:
		err = c.send(ctx, line, -1)
	default:
		err = c.sendFile(ctx, line, file)
	}
	if err != nil {
		c.forget(call.id)
		call.err = err
	}
	return call
}

// Wait waits for the reply, as Execute does; it is called at most once.
func (call *Call) Wait(ctx context.Context, result any) error {
	reply, err := call.wait(ctx)
	if err == nil && result != nil {
		err = json.Unmarshal(reply, result)
	}
	if err != nil {
		return fmt.Errorf("qmp %s: %w", call.command, err)
	}
	return nil
}

func (call *Call) wait(ctx context.Context) (json.RawMessage, error) {
	if call.err != nil {
		return nil, call.err
	}
	defer call.client.forget(call.id)
	var m message
	select {
	case m = <-call.reply:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-call.client.ended:
		select {
		case m = <-call.reply: // the last that came
		default:
			return nil, call.client.Err()
		}
	}
	if m.err != nil {
		return nil, m.err
	}
	return m.result, nil
}

// WaitAll waits for all calls, whose results don't matter. The error is the
// first call's that failed.
func WaitAll(ctx context.Context, calls ...*Call) error {
	var first error
	for _, call := range calls {
		if err := call.Wait(ctx, nil); first == nil {
			first = err
		}
	}
	return first
}

func (c *Client) register() (uint64, <-chan message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextID++
	wait := make(chan message, 1)
	c.pending[c.nextID] = wait
	return c.nextID, wait
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// sendFile is send with a descriptor, which cannot be closed meanwhile.
func (c *Client) sendFile(ctx context.Context, line []byte, file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = c.send(ctx, line, int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// send writes one line. A line that was cut short leaves QEMU's parser in the
// middle of it, so any error here ends the connection.
func (c *Client) send(ctx context.Context, line []byte, fd int) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.Err(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// Not ctx's deadline, which would end the connection, and with it the VM.
	err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil && fd >= 0 {
		// The descriptor rides on the first byte.
		_, _, err = c.conn.WriteMsgUnix(line[:1], unix.UnixRights(fd), nil)
		line = line[1:]
	}
	if err == nil {
		_, err = c.conn.Write(line)
	}
	if err != nil {
		c.fail(fmt.Errorf("send: %w", err))
		return c.Err()
	}
	return nil
}

// read is the client's goroutine.
func (c *Client) read(in *bufio.Scanner) {
	defer close(c.ended)
	if err := c.greet(in); err != nil {
		c.fail(fmt.Errorf("greeting of qmp: %w", err))
		return
	}
	for {
		m, err := next(in)
		if err != nil {
			c.fail(err)
			return
		}
		switch m.kind {
		case kindEvent:
			if c.handle != nil {
				c.handle(m.event)
			}
		case kindReply:
			c.mu.Lock()
			wait := c.pending[m.id]
			delete(c.pending, m.id) // a second reply with this id is dropped
			c.mu.Unlock()
			if wait != nil {
				wait <- m
			}
		default:
			c.fail(errors.New("second greeting"))
			return
		}
	}
}

func (c *Client) greet(in *bufio.Scanner) error {
	m, err := next(in)
	if err != nil {
		return err
	}
	if m.kind != kindGreeting {
		return errors.New("first message is no greeting")
	}
	c.Version = m.version
	return nil
}

// fail makes the reader end; the first cause stays.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.conn.Close()
}

// next reads one message.
func next(in *bufio.Scanner) (message, error) {
	for in.Scan() {
		if line := bytes.TrimSpace(in.Bytes()); len(line) > 0 {
			return decode(line)
		}
	}
	if err := in.Err(); err != nil {
		return message{}, fmt.Errorf("receive: %w", err)
	}
	return message{}, fmt.Errorf("%w: %w", ErrClosed, io.EOF)
}
