// Package session serves the guest's end of the wire: one session of the
// link at a time, on it the calls and the stdio streams.
package session

import (
	"context"
	"errors"
	"io"
	"net"

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
}

type contextKey struct{}

// From returns a value that is the same for all calls of one session and
// differs between sessions.
func From(ctx context.Context) any { return ctx.Value(contextKey{}) }

// Serve serves sessions until l ends, and returns why. It calls answered
// after every call.
func Serve(l net.Listener, h Handler, answered func()) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		mux, err := wire.MuxGuest(conn)
		if err != nil {
			conn.Close()
			return err
		}
		serveSession(mux, h, answered)
	}
}

// serveSession returns when the session has ended; calls that still run see
// their context cancelled.
func serveSession(mux *yamux.Session, h Handler, answered func()) {
	defer mux.Close()
	calls, err := mux.AcceptStream()
	if err != nil {
		return
	}
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(
		func(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, call ttrpc.Method) (any, error) {
			defer answered()
			return call(ctx, u)
		}))
	if err != nil {
		return
	}
	wire.RegisterGuestService(server, h)
	ctx, cancel := context.WithCancel(context.WithValue(quiet(), contextKey{}, mux))
	defer cancel()
	l := &oneConn{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
	l.conn <- calls
	go server.Serve(ctx, l)
	defer server.Close()
	for {
		s, err := mux.AcceptStream()
		if err != nil {
			return
		}
		go serveStream(s, h, mux)
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

func serveStream(s *yamux.Stream, h Handler, mux *yamux.Session) {
	header, err := wire.ReadStreamHeader(s)
	if err != nil {
		s.Close()
		return
	}
	p, err := h.Stdio(header.ContainerId, header.ExecId)
	if err != nil {
		if header.Kind == wire.StreamHeader_STDIN {
			io.Copy(io.Discard, s)
		} else {
			s.Write(wire.RefusalChunk(err.Error()))
		}
		s.Close()
		return
	}
	p.Serve(s, header, mux)
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
