package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

// yamux answers each ping from a goroutine of its own: a guest that sends
// pings and reads no answer would fill the host's memory with them.
func TestPingsEndTheSession(t *testing.T) {
	host, peer := net.Pipe()
	defer peer.Close()
	go peer.Read(make([]byte, muxHeaderLen)) //nolint:errcheck // the host's first frame, and no more
	s, err := MuxHost(host)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := runtime.NumGoroutine()
	ping := make([]byte, muxHeaderLen)
	ping[1] = muxTypePing
	binary.BigEndian.PutUint16(ping[2:], muxFlagSYN)
	peer.SetDeadline(time.Now().Add(5 * time.Second)) //nolint:errcheck // of a pipe
	for range 10000 {
		if _, err := peer.Write(ping); err != nil {
			break
		}
	}
	if n := runtime.NumGoroutine() - before; n > 10 {
		t.Errorf("%d goroutines for pings", n)
	}
	select {
	case <-s.CloseChan():
	case <-time.After(5 * time.Second):
		t.Error("the session goes on")
	}
}

// Bodies of data frames are not taken for frames, however they arrive.
func TestPingInData(t *testing.T) {
	ping := make([]byte, muxHeaderLen)
	ping[1] = muxTypePing
	data := make([]byte, muxHeaderLen)
	binary.BigEndian.PutUint32(data[8:], uint32(len(ping)))
	in := append(append(data, ping...), data...)
	for size := 1; size <= len(in); size++ {
		var f muxFrames
		for at := 0; at < len(in); at += size {
			if err := f.check(in[at:min(at+size, len(in))]); err != nil {
				t.Fatalf("in pieces of %d: %v", size, err)
			}
		}
	}
	var f muxFrames
	if err := f.check(ping); err == nil {
		t.Error("a ping passed")
	}
}

// Either end of a stream may end its half, for as long as it likes, or break
// all of it; the session lives on.
func TestMuxEnds(t *testing.T) {
	host, guest := muxPair(t)
	for round := range 40 {
		h, err := host.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		h.Write([]byte("x"))
		g, err := guest.AcceptStream()
		if err != nil {
			t.Fatal(err)
		}
		g.Write([]byte("y"))
		read := func(s *yamux.Stream) (string, error) { b, err := io.ReadAll(s); return string(b), err }
		switch round % 4 {
		case 0: // both halves, one after the other
			host.CloseWrite(h)
			if b, err := read(g); b != "x" || err != nil {
				t.Errorf("guest read %q, %v", b, err)
			}
			g.Write([]byte("z"))
			guest.CloseWrite(g)
			if b, err := read(h); b != "yz" || err != nil {
				t.Errorf("host read %q, %v", b, err)
			}
		case 1: // at the same time
			var wg sync.WaitGroup
			wg.Go(func() { host.CloseWrite(h) })
			wg.Go(func() { guest.CloseWrite(g) })
			wg.Wait()
		case 2:
			host.Abort(h)
			if _, err := read(g); !errors.Is(err, yamux.ErrConnectionReset) {
				t.Errorf("guest read %v", err)
			}
		case 3:
			host.CloseWrite(h)
			guest.Abort(g)
			if _, err := read(h); !errors.Is(err, yamux.ErrConnectionReset) {
				t.Errorf("host read %v", err)
			}
		}
		var wg sync.WaitGroup
		wg.Go(func() { host.End(h) })
		wg.Go(func() { guest.End(g) })
		wg.Wait()
	}
	for _, m := range []*Mux{host, guest} {
		if m.IsClosed() || len(m.conn.ended) > 0 {
			t.Errorf("closed %v, remembers %v", m.IsClosed(), m.conn.ended)
		}
	}
}

// A flag goes between frames, never into one.
func TestMuxFlagsBetweenFrames(t *testing.T) {
	host, guest := muxPair(t)
	busy, err := host.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := io.Copy(busy, io.LimitReader(zeros{}, 20<<20))
		busy.Close()
		done <- err
	}()
	s, err := guest.AcceptStream()
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan int64)
	go func() { n, _ := io.Copy(io.Discard, s); got <- n }()
	for range 200 {
		h, err := host.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		h.Write([]byte("x"))
		host.CloseWrite(h)
		g, err := guest.AcceptStream()
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(g); string(b) != "x" || err != nil {
			t.Fatalf("%q, %v", b, err)
		}
		g.Close()
		host.End(h)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := <-got; n != 20<<20 {
		t.Errorf("%d bytes", n)
	}
	s.Close()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func muxPair(t *testing.T) (host, guest *Mux) {
	t.Helper()
	a, b := net.Pipe()
	made := make(chan error)
	go func() {
		var err error
		guest, err = MuxGuest(b)
		made <- err
	}()
	host, err := MuxHost(a)
	if err := errors.Join(err, <-made); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); guest.Close() })
	return host, guest
}
