package guest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/guesttest"
	"github.com/hyper-run/hyper/internal/guest/wire"
)

// A recorder keeps the size of each write.
type recorder struct {
	net.Conn
	mu   sync.Mutex
	size []int
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.size = append(r.size, len(p))
	r.mu.Unlock()
	return r.Conn.Write(p)
}

func (r *recorder) take() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.size
	r.size = nil
	return slices.Clone(s)
}

// newFresh is a fixture on a connection that is known to be the first, with
// the writes of both ends.
func newFresh(t *testing.T) (f *fixture, host, inside *recorder) {
	t.Helper()
	f = &fixture{t: t, g: guesttest.New()}
	t.Cleanup(func() { f.g.Close() })
	h, i := net.Pipe()
	host, inside = &recorder{Conn: h}, &recorder{Conn: i}
	served := make(chan struct{})
	go func() { f.g.Serve(inside); close(served) }()
	var err error
	if f.c, err = guest.Open(host, guest.Options{Fresh: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.c.Close(); <-served })
	return f, host, inside
}

func sum(sizes []int) (n int) {
	for _, s := range sizes {
		n += s
	}
	return n
}

// The session, the streams in it and the first call leave in one write,
// whatever the size of the request.
func TestFirstCallIsOneWrite(t *testing.T) {
	f, host, inside := newFresh(t)
	if _, err := f.c.Configure(f.ctx(), &wire.ConfigureRequest{Hostname: strings.Repeat("x", 10000)}); err != nil {
		t.Fatal(err)
	}
	<-f.c.Answered()
	if s := host.take(); len(s) != 1 || s[0] > 10000+250 {
		t.Errorf("writes of %v bytes, want one, of at most 250 beside the request", s)
	}
	s := inside.take()
	t.Logf("the guest answered in %d writes, %d bytes", len(s), sum(s))
}

// A call on a connection to a guest that never answers ends with its context,
// and with the connection; either says so.
func TestCallBeforeTheAnswer(t *testing.T) {
	host, inside := net.Pipe()
	go io.Copy(io.Discard, inside) //nolint:errcheck // until the pipe closes
	c, err := guest.Open(host, guest.Options{Fresh: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err = c.Info(ctx, &wire.InfoRequest{})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "has not answered yet") {
		t.Errorf("call: %v", err)
	}
	time.AfterFunc(10*time.Millisecond, func() { inside.Close() })
	_, err = c.Info(context.Background(), &wire.InfoRequest{})
	if !errdefs.IsUnavailable(err) || !errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "synchronise with guest") {
		t.Errorf("call: %v", err)
	}
	_, err = c.Output(context.Background(), "c", "", wire.StreamHeader_STDOUT, 0)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "synchronise with guest") {
		t.Errorf("output: %v", err)
	}
}

func TestDialIsBoundedByContext(t *testing.T) {
	host, inside := net.Pipe()
	go io.Copy(io.Discard, inside) //nolint:errcheck // until the pipe closes
	ctx, cancel := context.WithTimeoutCause(context.Background(), 20*time.Millisecond, errors.New("the reason"))
	defer cancel()
	if _, err := guest.Dial(ctx, host); err == nil || err.Error() != "synchronise with guest: the reason" {
		t.Errorf("got %v", err)
	}
	host, inside = net.Pipe()
	inside.Close()
	if _, err := guest.Dial(context.Background(), host); err == nil || !strings.Contains(err.Error(), "synchronise with guest") {
		t.Errorf("hung up: %v", err)
	}
}

// A stream begins the connection as well as a call does.
func TestStreamFirst(t *testing.T) {
	f, _, _ := newFresh(t)
	o, err := f.c.Output(f.ctx(), "c", "", wire.StreamHeader_STDOUT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if _, err := io.ReadAll(o); err == nil || !strings.Contains(err.Error(), "no process") {
		t.Errorf("got %v", err)
	}
}

// An acknowledgement of little output waits for more, or for the end.
func TestAcksAreFew(t *testing.T) {
	f, host, _ := newFresh(t)
	f.start(true, process(false, "cat"))
	o, err := f.c.Output(f.ctx(), "c", "", wire.StreamHeader_STDOUT, 0)
	if err != nil {
		t.Fatal(err)
	}
	in, err := f.c.Stdin(f.ctx(), "c", "")
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint64(10) {
		if _, err := io.WriteString(in, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := o.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			host.take() // the streams have been opened
		}
		o.Ack(n + 1) //nolint:errcheck // the next Read fails too
	}
	if s := host.take(); len(s) != 9 {
		t.Errorf("writes of %v bytes for 9 inputs", s)
	}
	o.Close()
	in.Close()
}
