package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// A port is the guest's end of a virtio-serial port: it outlives the
// connections of the host, and loses what was on its way when one goes.
type port struct {
	mu   sync.Mutex
	cond *sync.Cond
	in   []byte   // towards the guest, survives a lost host end
	conn net.Conn // the host's end; nil while there is none
	err  error
}

func newPort() *port {
	p := &port{}
	p.cond = sync.NewCond(&p.mu)
	return p
}

// plug connects a host end, dropping keep the way QEMU does not: only whole
// bytes of the stream are lost, at its end.
func (p *port) plug() net.Conn {
	host, ours := net.Pipe()
	p.mu.Lock()
	p.conn = ours
	p.cond.Broadcast()
	p.mu.Unlock()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := ours.Read(buf)
			p.mu.Lock()
			if p.conn == ours { // else what comes late would mix with another's
				p.in = append(p.in, buf[:n]...)
			}
			if err != nil && p.conn == ours {
				p.conn = nil
			}
			p.cond.Broadcast()
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return host
}

func (p *port) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.in) == 0 && p.err == nil {
		p.cond.Wait()
	}
	if p.err != nil {
		return 0, p.err
	}
	n := copy(b, p.in)
	p.in = p.in[n:]
	return n, nil
}

// Write blocks while no host is there; what a vanishing host did not take is lost.
func (p *port) Write(b []byte) (int, error) {
	p.mu.Lock()
	for p.conn == nil && p.err == nil {
		p.cond.Wait()
	}
	c, err := p.conn, p.err
	p.mu.Unlock()
	if err != nil {
		return 0, err
	}
	c.Write(b)
	return len(b), nil
}

func (p *port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = net.ErrClosed
	p.cond.Broadcast()
	return nil
}

// dialLink opens a link on a port that others may have used and waits for the guest.
func dialLink(ctx context.Context, rwc io.ReadWriteCloser) (*Link, error) {
	l := OpenLink(rwc, false)
	l.Release()
	select {
	case <-l.Answered():
		return l, nil
	case <-ctx.Done():
		l.Close()
		return nil, ctx.Err()
	}
}

func dial(t *testing.T, p *port) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := dialLink(ctx, p.plug())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestLinkCarriesBytesBothWays(t *testing.T) {
	p := newPort()
	defer p.Close()
	l := ServeLink(p)
	host := dial(t, p)
	guest, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(want)
	for _, dir := range [][2]net.Conn{{host, guest}, {guest, host}} {
		go func() {
			for b := want; len(b) > 0; {
				n := min(len(b), 1+rand.IntN(3*maxFrame))
				dir[0].Write(b[:n])
				b = b[n:]
			}
		}()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(dir[1], got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatal("bytes differ")
		}
	}
}

// A session that breaks anywhere, even within a frame, is followed by a new
// one, and no byte of the old one reaches the new one.
func TestLinkSurvivesHostsThatVanish(t *testing.T) {
	p := newPort()
	defer p.Close()
	l := ServeLink(p)
	for i := range 200 {
		raw := p.plug()
		host, err := dialLink(context.Background(), raw)
		if err != nil {
			t.Fatal(err)
		}
		guest, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		mark := []byte{byte(i), byte(i >> 8), 1}
		go host.Write(mark)
		got := make([]byte, 3)
		if _, err := io.ReadFull(guest, got); err != nil || !bytes.Equal(got, mark) {
			t.Fatalf("session %d: guest got %v, %v", i, got, err)
		}
		// The guest goes on sending while the host leaves in the middle of a frame.
		go func() {
			for {
				if _, err := guest.Write(bytes.Repeat([]byte{0xaa}, rand.IntN(2*maxFrame))); err != nil {
					return
				}
			}
		}()
		if i%2 == 0 {
			io.ReadFull(host, make([]byte, rand.IntN(maxFrame)))
		}
		f := appendFrame(nil, kindData, host.session, bytes.Repeat([]byte{0x55}, maxPayload))
		raw.SetDeadline(time.Now().Add(time.Second))
		raw.Write(f[:rand.IntN(len(f))])
		raw.Close()
		go io.Copy(panicOnZero{t}, guest)
	}
}

// panicOnZero checks that the zeros of a later session never show up as data.
type panicOnZero struct{ t *testing.T }

func (p panicOnZero) Write(b []byte) (int, error) {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		p.t.Errorf("%d bytes of the next session's padding were delivered", len(b)-i)
	}
	return len(b), nil
}

func TestLinkNewSessionEndsTheOld(t *testing.T) {
	p := newPort()
	defer p.Close()
	l := ServeLink(p)
	dial(t, p)
	old, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	dial(t, p)
	if _, err := old.Read(make([]byte, 1)); !errors.Is(err, errReplaced) {
		t.Fatalf("old session: %v", err)
	}
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
}

func TestGuestEndsTheSession(t *testing.T) {
	p := newPort()
	defer p.Close()
	l := ServeLink(p)
	host := dial(t, p)
	guest, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	guest.Close()
	if _, err := host.Read(make([]byte, 1)); err == nil || err.Error() != "link: the guest has ended the session" {
		t.Errorf("host: %v", err)
	}
	dial(t, p)
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
}

// What is written before the answer leaves together with the SYN, and nothing
// before it is released.
func TestWritesFollowTheSYN(t *testing.T) {
	host, guest := net.Pipe()
	w := &recorder{ReadWriteCloser: host}
	h := OpenLink(w, true)
	defer h.Close()
	for _, s := range []string{"one ", "two ", "three"} {
		if _, err := io.WriteString(h, s); err != nil {
			t.Fatal(err)
		}
	}
	h.Hold()
	h.Release()
	if n := len(w.sizes()); n != 0 {
		t.Fatalf("%d writes while held", n)
	}
	h.Release()
	l := ServeLink(guest)
	defer l.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 13)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "one two three" {
		t.Fatalf("%q, %v", got, err)
	}
	want := 2*(headerLen+trailerLen) + len(got)
	if s := w.sizes(); len(s) != 1 || s[0] != want {
		t.Errorf("writes of %v bytes, want one of %d", s, want)
	}
	<-h.Answered()
}

// A writer that finds no room does not wait for Release.
func TestHeldWriterGoesOn(t *testing.T) {
	host, guest := net.Pipe()
	h := OpenLink(host, true)
	defer h.Close()
	go io.Copy(io.Discard, guest) //nolint:errcheck // until the pipe closes
	if _, err := h.Write(make([]byte, 10*maxFrame)); err != nil {
		t.Error(err)
	}
}

// A recorder keeps the size of each write.
type recorder struct {
	io.ReadWriteCloser
	mu   sync.Mutex
	size []int
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.size = append(r.size, len(p))
	r.mu.Unlock()
	return r.ReadWriteCloser.Write(p)
}

func (r *recorder) sizes() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.size)
}

// A link that ends before the guest has answered says so to who waits for
// either, be it the reading or the writing that fails.
func TestLinkWithoutAnswer(t *testing.T) {
	for name, end := range map[string]func(guest net.Conn, h *Link){
		"the guest hangs up": func(guest net.Conn, _ *Link) { guest.Close() },
		"the host gives up":  func(_ net.Conn, h *Link) { h.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := net.Pipe()
			defer guest.Close()
			h := OpenLink(host, true)
			h.Release()
			end(guest, h)
			if _, err := h.Read(make([]byte, 1)); err == nil {
				t.Error("no error")
			}
			if _, err := h.Write(make([]byte, 1)); err == nil {
				t.Error("no error")
			}
			select {
			case <-h.Answered():
				t.Error("answered")
			default:
			}
		})
	}
}

func FuzzDecoder(f *testing.F) {
	f.Add(appendFrame(nil, kindSYN, 1, nil))
	f.Add(append([]byte{linkMagic[0], 0}, appendFrame(nil, kindData, 7, []byte("payload"))...))
	f.Add(appendFrame(nil, kindData, 7, make([]byte, 100))[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newDecoder(bytes.NewReader(b))
		for {
			fr, _, err := d.next()
			if err != nil {
				return
			}
			if len(fr.payload) > maxPayload {
				t.Fatalf("payload of %d bytes", len(fr.payload))
			}
			if !bytes.Contains(b, appendFrame(nil, fr.kind, fr.session, fr.payload)) {
				t.Fatal("a frame that was not sent")
			}
		}
	})
}

// Whatever junk comes before, a frame after enough zeros is found.
func FuzzResynchronise(f *testing.F) {
	f.Add([]byte("junk"))
	f.Add(appendFrame(nil, kindData, 7, make([]byte, 5000))[:3000])
	f.Fuzz(func(t *testing.T, junk []byte) {
		b := append(bytes.Clone(junk), make([]byte, maxFrame)...)
		b = appendFrame(b, kindSYN, 42, nil)
		d := newDecoder(bytes.NewReader(b))
		for {
			fr, _, err := d.next()
			if err != nil {
				t.Fatal(err)
			}
			if fr.kind == kindSYN && fr.session == 42 {
				break
			}
		}
		answer := appendFrame(bytes.Clone(junk), kindSYNACK, 42, nil)
		if err := newDecoder(bytes.NewReader(answer)).await(42); err != nil {
			t.Fatal(err)
		}
	})
}
