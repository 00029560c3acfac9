package dockerapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types"
	"github.com/moby/term"
	"golang.org/x/sys/unix"
)

// linger is how long a client may take to close its end after ours. Closing
// at once would make a client that still sends see an error, not the end.
const linger = 5 * time.Second

// defaultDetachKeys leave a terminal without ending what runs in it.
var defaultDetachKeys = []byte{16, 17} // ctrl-p, ctrl-q

// A session is a connection taken over from HTTP to carry the stdio of one
// process. It is opened by its first output or by open, so that until then
// the request can still fail as any other.
//
// Two goroutines serve it while it is open: one reads from the client, one
// watches for the client to leave. finish ends both.
type session struct {
	c      *call
	mux    bool // stdout and stderr share the connection in frames
	keys   []byte
	cancel context.CancelFunc // ends the request's work

	stdin     io.Reader // what the client sends; EOF when it closes its half
	stdinPipe *io.PipeWriter

	once    sync.Once
	openErr error
	conn    net.Conn // nil before open
	unwatch func()
	pumped  chan struct{} // closed when nothing more is read from the client

	writing sync.Mutex
}

// newSession prepares a session. keys are those that detach, nil for none.
func newSession(c *call, mux bool, keys []byte) (*session, context.Context) {
	ctx, cancel := context.WithCancel(c.ctx())
	r, w := io.Pipe()
	s := &session{c: c, mux: mux, keys: keys, cancel: cancel, stdin: r, stdinPipe: w, pumped: make(chan struct{})}
	context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
	return s, ctx
}

// detachKeys parses keys as "ctrl-p,ctrl-q"; only a terminal has them.
func detachKeys(spec string, tty bool) ([]byte, error) {
	if !tty {
		return nil, nil
	}
	if spec == "" {
		return defaultDetachKeys, nil
	}
	keys, err := term.ToBytes(spec)
	if err != nil {
		return nil, invalid("Invalid detach keys (%s) provided", spec)
	}
	return keys, nil
}

// open takes the connection over and answers the request.
func (s *session) open() error {
	s.once.Do(func() {
		s.openErr = s.hijack()
		if s.openErr != nil {
			s.cancel()
		}
	})
	return s.openErr
}

func (s *session) hijack() error {
	conn, buffered, err := http.NewResponseController(s.c.w).Hijack()
	if err != nil {
		return fmt.Errorf("take over connection: %w", err)
	}
	s.conn = conn
	s.c.begun = true
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	contentType := types.MediaTypeRawStream
	if s.mux && !s.c.before(42) {
		contentType = types.MediaTypeMultiplexedStream
	}
	head := "HTTP/1.1 200 OK\r\nContent-Type: " + types.MediaTypeRawStream + "\r\n\r\n"
	if s.c.r.Header.Get("Upgrade") != "" {
		head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType +
			"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nApi-Version: " + MaxVersion + "\r\n\r\n"
	}
	if _, err := io.WriteString(conn, head); err != nil {
		return err
	}
	// What net/http has read already comes first. Not through its reader, which
	// ends the request's context when the client closes its half.
	early, err := buffered.Reader.Peek(buffered.Reader.Buffered())
	if err != nil {
		return err
	}
	s.unwatch = watch(conn, s.cancel)
	go s.pump(io.MultiReader(bytes.NewReader(bytes.Clone(early)), conn))
	return nil
}

// pump reads what the client sends until it closes its half, also when nobody
// wants it: else the client could not be told the end.
func (s *session) pump(client io.Reader) {
	defer close(s.pumped)
	in := client
	if len(s.keys) > 0 {
		in = term.NewEscapeProxy(client, s.keys)
	}
	_, err := io.Copy(s.stdinPipe, in)
	if errors.As(err, new(term.EscapeError)) {
		s.stdinPipe.CloseWithError(err)
		s.cancel()
	} else {
		s.stdinPipe.Close()
	}
	_, _ = io.Copy(io.Discard, client)
}

// opened says whether the connection was taken over; if not, it never will be.
func (s *session) opened() bool {
	s.once.Do(func() { s.openErr = net.ErrClosed })
	return s.conn != nil
}

// finish closes the connection after all that was written.
func (s *session) finish() {
	s.cancel()
	if !s.opened() {
		return
	}
	if s.unwatch == nil { // taken over, but the client was gone
		s.conn.Close()
		return
	}
	if half, ok := s.conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		_ = s.conn.SetReadDeadline(time.Now().Add(linger))
		<-s.pumped
	}
	s.conn.Close()
	s.unwatch()
	<-s.pumped
}

// output is the writer for one of the process's outputs.
func (s *session) output(stream stdcopy.StdType) io.Writer { return sessionWriter{s, stream} }

type sessionWriter struct {
	s      *session
	stream stdcopy.StdType
}

func (w sessionWriter) Write(p []byte) (int, error) {
	if err := w.s.open(); err != nil {
		return 0, err
	}
	w.s.writing.Lock()
	defer w.s.writing.Unlock()
	if w.s.mux {
		return writeFrame(w.s.conn, w.stream, p)
	}
	return w.s.conn.Write(p)
}

// writeFrame writes p as one frame of Docker's multiplexed stream: the
// stream's number, three zero bytes, the length in big-endian, p.
func writeFrame(to io.Writer, stream stdcopy.StdType, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var head [8]byte
	head[0] = byte(stream)
	binary.BigEndian.PutUint32(head[4:], uint32(len(p)))
	frame := net.Buffers{head[:], p}
	n, err := frame.WriteTo(to)
	return max(int(n)-len(head), 0), err
}

// watch calls gone when the peer of conn has closed it in both directions,
// which reading alone does not tell from the end of its input. It returns
// what ends the watch. Over a connection that can't be watched, the next write
// tells.
func watch(conn net.Conn, gone func()) (stop func()) {
	filer, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return func() {}
	}
	// A duplicate has a place of its own in the poller: its waiting does not
	// take turns with the reads of conn.
	f, err := filer.File()
	if err != nil {
		return func() {}
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return func() {}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := raw.Read(hungUp); err == nil {
			gone()
		}
	}()
	return func() {
		f.Close()
		<-ended
	}
}

func hungUp(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}
