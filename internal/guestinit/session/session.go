// Package session serves the guest's end of the wire: one session of the
// link at a time, on it the calls and the stdio streams.
package session

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/hashicorp/yamux"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/stdio"
)

// A Handler answers what a session brings.
type Handler interface {
	wire.GuestService
	// Stdio finds the stdio of a process.
	Stdio(container, exec string) (*stdio.IO, error)
	// Dial connects to a TCP port in the pod, or in a container with a network
	// of its own. The address is host:port, the host an IP address.
	Dial(container, address string) (Conn, error)
}

// A Conn is a connection that Dial made.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

type contextKey struct{}

// From returns a value that is the same for all calls of one session and
// differs between sessions.
func From(ctx context.Context) any { return ctx.Value(contextKey{}) }

// End ends the session that a call came by, once its answer has left.
func End(ctx context.Context) {
	if s, ok := From(ctx).(*session); ok {
		time.AfterFunc(answerTime, func() { s.mux.Close() })
	}
}

// answerTime is more than an answer takes from its call to the byte stream.
const answerTime = 100 * time.Millisecond

// Serve serves sessions until l ends, and returns why. It calls answered
// after every call.
func Serve(l net.Listener, h Handler, answered func()) error {
	for {
		s, err := newSession(h, answered)
		if err != nil {
			return err
		}
		conn, err := l.Accept()
		if err != nil {
			s.close()
			return err
		}
		if s.mux, err = wire.MuxGuest(conn); err != nil {
			s.close()
			conn.Close()
			return err
		}
		s.serve()
	}
}

// A session is all that serves one host, made before it comes: a clone has it
// from its template.
type session struct {
	h      Handler
	server *ttrpc.Server
	calls  *oneConn
	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	mux    *wire.Mux // once there is a host

	waiting *awaiter
}

func newSession(h Handler, answered func()) (*session, error) {
	w := newAwaiter()
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(
		func(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, call ttrpc.Method) (resp any, err error) {
			defer answered()
			if !wire.Awaits(ctx) {
				defer w.callEnded()
				return call(ctx, u)
			}
			err = w.await(ctx, func() (err error) {
				resp, err = call(ctx, u)
				return err
			})
			return resp, err
		}))
	if err != nil {
		return nil, err
	}
	wire.RegisterGuestService(server, h)
	s := &session{h: h, server: server, waiting: w, calls: &oneConn{conn: make(chan net.Conn, 1), closed: make(chan struct{})}}
	s.ctx, s.cancel = context.WithCancel(context.WithValue(quiet(), contextKey{}, s))
	go server.Serve(s.ctx, s.calls)
	return s, nil
}

func (s *session) close() {
	s.server.Close()
	s.cancel()
}

// serve returns when the session has ended; calls that still run see their
// context cancelled.
func (s *session) serve() {
	defer s.mux.Close()
	defer s.close()
	calls, err := s.mux.AcceptStream()
	if err != nil {
		return
	}
	s.calls.conn <- calls
	for {
		stream, err := s.mux.AcceptStream()
		if err != nil {
			return
		}
		go s.serveStream(stream)
	}
}

// quiet returns a context without a log: ttrpc reports every lost connection
// as an error, and here hosts come and go.
func quiet() context.Context {
	e := log.L.Dup()
	e.Logger = zero(e.Logger) // its level is the highest, panic
	return log.WithLogger(context.Background(), e)
}

func zero[T any](*T) *T { return new(T) }

func (s *session) serveStream(stream *yamux.Stream) {
	header, await, err := wire.ReadStreamHeader(stream)
	if err != nil {
		stream.Close()
		return
	}
	if header.Kind == wire.StreamHeader_DIAL {
		s.dial(stream, header)
		return
	}
	var p *stdio.IO
	find := func() (err error) {
		p, err = s.h.Stdio(header.ContainerId, header.ExecId)
		return err
	}
	if await {
		err = s.waiting.await(s.ctx, find)
	} else {
		err = find()
	}
	if err != nil {
		if header.Kind == wire.StreamHeader_STDIN {
			io.Copy(io.Discard, stream)
		} else {
			stream.Write(wire.RefusalChunk(err.Error()))
		}
		stream.Close()
		return
	}
	p.Serve(stream, header, s)
}

// dial carries a connection, until both directions have ended.
func (s *session) dial(stream *yamux.Stream, h *wire.StreamHeader) {
	conn, err := s.h.Dial(h.ContainerId, h.Address)
	if err != nil {
		stream.Write(wire.RefusalChunk(err.Error()))
		stream.Close()
		return
	}
	defer context.AfterFunc(s.ctx, func() { conn.Close() })()
	defer conn.Close()
	answer := make([]byte, wire.ChunkHeaderLen)
	wire.PutChunkHeader(answer)
	if _, err := stream.Write(answer); err != nil {
		stream.Close()
		return
	}
	up := make(chan struct{})
	go func() {
		defer close(up)
		if s.upward(conn, stream) != nil {
			conn.Close() // the host does not listen any more
		}
	}()
	_, err = io.Copy(stream, conn)
	if err == nil {
		err = s.mux.CloseWrite(stream)
	}
	if err != nil {
		s.mux.Abort(stream)
	}
	<-up
	s.mux.End(stream)
}

// upward carries what the host sends, until its end or that of the stream,
// which is an error. What the other end does not take is discarded.
func (s *session) upward(conn Conn, stream *yamux.Stream) error {
	if _, err := io.Copy(conn, stream); err == nil {
		conn.CloseWrite() // fails when the other end is gone
		return nil
	}
	_, err := io.Copy(io.Discard, stream)
	return err
}

// A oneConn is a listener that accepts one connection.
type oneConn struct {
	conn   chan net.Conn
	closed chan struct{}
}

var errClosed = errors.New("listener closed")

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, errClosed
	}
}

func (l *oneConn) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *oneConn) Addr() net.Addr { return nil }
