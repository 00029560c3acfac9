package guest_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/guesttest"
	"github.com/hyper-run/hyper/internal/guest/wire"
)

// listen serves connections one after the other until the test ends.
func listen(t *testing.T, serve func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c.(*net.TCPConn))
			c.Close()
		}
	}()
	return l.Addr().String()
}

func (f *fixture) dial(address string) net.Conn {
	f.t.Helper()
	c, err := f.c.DialTCP(f.ctx(), "", address)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	return c
}

type closeWriter interface{ CloseWrite() error }

// Either end may end first, and the other goes on.
func TestDialHalfClose(t *testing.T) {
	f := newFixture(t)
	const size = 5 << 20
	address := listen(t, func(c *net.TCPConn) {
		sum := sha256.New()
		io.Copy(sum, c)
		c.Write(sum.Sum(nil))
	})
	for range 3 {
		c := f.dial(address)
		want := sha256.New()
		io.CopyN(io.MultiWriter(c, want), repeat("some bytes \x00\xff\r\n"), size)
		if err := c.(closeWriter).CloseWrite(); err != nil {
			t.Error(err)
		}
		got, err := io.ReadAll(c)
		if err != nil || string(got) != string(want.Sum(nil)) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("wrote after CloseWrite")
		}
		c.Close()
	}
	last := make(chan string, 1)
	c := f.dial(listen(t, func(c *net.TCPConn) {
		io.WriteString(c, "all")
		c.CloseWrite()
		b, _ := io.ReadAll(c)
		last <- string(b)
	}))
	if b, err := io.ReadAll(c); err != nil || string(b) != "all" {
		t.Errorf("%q, %v", b, err)
	}
	io.WriteString(c, "after the end")
	c.Close()
	if got := <-last; got != "after the end" {
		t.Errorf("got %q", got)
	}
	if err := f.c.Err(); err != nil {
		t.Errorf("the connection to the guest: %v", err)
	}
}

// What is written before a Close arrives; who goes on sending is told to stop.
func TestDialClose(t *testing.T) {
	f := newFixture(t)
	got := make(chan string, 1)
	c := f.dial(listen(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		got <- string(b)
	}))
	io.WriteString(c, "last words")
	c.Close()
	if b := <-got; b != "last words" {
		t.Errorf("got %q", b)
	}
	ended := make(chan error, 1)
	c = f.dial(listen(t, func(c *net.TCPConn) {
		_, err := io.Copy(c, repeat("x"))
		ended <- err
	}))
	io.ReadFull(c, make([]byte, 1<<20))
	c.Close()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("it still sends")
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("read after Close")
	}
}

func TestDialErrors(t *testing.T) {
	f := newFixture(t)
	for _, address := range []string{"127.0.0.1:1", "localhost:80", "127.0.0.1", "", strings.Repeat("1", 600)} {
		if c, err := f.c.DialTCP(f.ctx(), "", address); err == nil {
			c.Close()
			t.Errorf("%q: no error", address)
		} else if len(address) < 100 && !errors.As(err, new(*guest.Error)) {
			t.Errorf("%q: %v", address, err)
		}
	}
	if _, err := f.c.DialTCP(f.ctx(), "none", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "no container none") {
		t.Errorf("no container: %v", err)
	}
	hold := make(chan struct{})
	address := listen(t, func(*net.TCPConn) { <-hold })
	c := f.dial(address)
	defer close(hold)
	c.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	if _, err := io.Copy(c, repeat("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
	c.SetDeadline(time.Time{})
	read := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	f.c.Close()
	if err := <-read; !errdefs.IsUnavailable(err) {
		t.Errorf("read from a lost guest: %v", err)
	}
	if _, err := f.c.DialTCP(f.ctx(), "", address); !errdefs.IsUnavailable(err) {
		t.Errorf("dial in a lost guest: %v", err)
	}
}

// A guest that does not read holds up neither Write nor Close.
func TestDialOfGuestThatDoesNotRead(t *testing.T) {
	host, inside := net.Pipe()
	g := &stuck{Conn: inside, closed: make(chan struct{})}
	served := make(chan struct{})
	go func() { guesttest.New().Serve(g); close(served) }()
	client, err := guest.Dial(context.Background(), host)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.DialTCP(context.Background(), "", listen(t, func(c *net.TCPConn) { io.Copy(c, c) }))
	if err != nil {
		t.Fatal(err)
	}
	g.full.Store(true)
	c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := io.Copy(c, repeat("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.DialTCP(ctx, "", "127.0.0.1:1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial: %v", err)
	}
	c.Close()
	client.Close()
	g.Close()
	<-served
}

// What a guest answers to DIAL is bounded and made harmless.
func TestDialOfHostileGuest(t *testing.T) {
	for name, tt := range map[string]struct {
		answer []byte
		want   string
	}{
		"long text":   {wire.RefusalChunk(strings.Repeat("a\x1b", 10000)), "a?a?"},
		"no refusal":  {[]byte{0, 0, 0, 9, 'x'}, "answer with 9 bytes"},
		"huge":        {[]byte{0xff, 0xff, 0xff, 0xff}, "ended early"},
		"cut":         {[]byte{0x80}, "ended early"},
		"empty":       {nil, "ended early"},
		"empty words": {wire.RefusalChunk(""), ""},
	} {
		t.Run(name, func(t *testing.T) {
			host, inside := net.Pipe()
			served := make(chan struct{})
			go func() { answerDials(inside, tt.answer); close(served) }()
			c, err := guest.Open(host, guest.Options{})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			_, err = c.DialTCP(ctx, "", "127.0.0.1:1")
			if err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 5000 {
				t.Errorf("got %v", err)
			}
			c.Close()
			<-served
		})
	}
}

// answerDials is a guest that answers every stream with some bytes.
func answerDials(conn net.Conn, answer []byte) {
	l := wire.ServeLink(conn)
	defer l.Close()
	session, err := l.Accept()
	if err != nil {
		return
	}
	mux, err := wire.MuxGuest(session)
	if err != nil {
		return
	}
	defer mux.Close()
	for {
		s, err := mux.AcceptStream()
		if err != nil {
			return
		}
		go func() {
			if _, _, err := wire.ReadStreamHeader(s); err == nil {
				s.Write(answer)
			}
			s.Close()
		}()
	}
}

// The fake does what processes of this machine allow, and refuses the rest.
func TestFakePods(t *testing.T) {
	f := newFixture(t)
	f.start(false, process(false, "sleep", "100"))
	if _, err := f.c.Configure(f.ctx(), &wire.ConfigureRequest{Volumes: []*wire.Volume{{Name: "v"}}}); !errdefs.IsNotImplemented(err) {
		t.Errorf("volume: %v", err)
	}
	spec := []byte(`{"process":{"args":["sleep","200"],"env":["PATH=/usr/bin:/bin"],"cwd":"/"}}`)
	for pids, ok := range map[string]bool{"": true, "pod": true, "vm": true, "c": true, "d": false} {
		_, err := f.c.CreateContainer(f.ctx(), &wire.CreateContainerRequest{Id: "in-" + pids, Spec: spec, PidNamespace: pids})
		if ok && err != nil || !ok && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("PID namespace %q: %v", pids, err)
		}
	}
	if _, err := f.c.StartProcess(f.ctx(), &wire.StartProcessRequest{ContainerId: "in-"}); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]uint64{"c": 1, "in-": 1, "in-vm": 0, "": 2} {
		if s, err := f.c.Stats(f.ctx(), &wire.StatsRequest{ContainerId: id}); err != nil || s.Pids != want {
			t.Errorf("stats of %q: %v, %v", id, s, err)
		}
	}
	if _, err := f.c.Stats(f.ctx(), &wire.StatsRequest{ContainerId: "none"}); !errdefs.IsNotFound(err) {
		t.Errorf("stats of nothing: %v", err)
	}
}
