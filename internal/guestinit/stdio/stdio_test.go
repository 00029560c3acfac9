package stdio

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

func TestRing(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var ring ring
	var model []byte
	for range 20000 {
		switch r.IntN(3) {
		case 0:
			if ring.len() == wire.OutputWindow {
				continue
			}
			p := ring.room()
			if len(p) == 0 {
				t.Fatal("no room in a ring that is not full")
			}
			p = p[:1+r.IntN(len(p))]
			for i := range p {
				p[i] = byte(r.Uint32())
			}
			ring.added(len(p))
			model = append(model, p...)
		case 1:
			n := r.IntN(ring.len() + 1)
			ring.drop(n)
			model = model[n:]
			ring.shrink()
		case 2:
			i := r.IntN(ring.len() + 1)
			b := make([]byte, r.IntN(10000))
			b = b[:ring.copyAt(b, i)]
			if !bytes.Equal(b, model[i:min(len(model), i+len(b))]) {
				t.Fatal("content differs")
			}
		}
		if ring.len() != len(model) || len(ring.buf) > wire.OutputWindow {
			t.Fatalf("%d bytes in %d, want %d", ring.len(), len(ring.buf), len(model))
		}
	}
}

// Streams break anywhere and begin again from what was acknowledged; the
// process goes on writing meanwhile.
func TestOutputOverBrokenStreams(t *testing.T) {
	p, files, err := Pipes(false, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{}).Read(want)
	go func() {
		for b := want; len(b) > 0; {
			n := min(len(b), 1+rand.IntN(100000))
			files[1].Write(b[:n])
			b = b[n:]
		}
		files[1].Close()
		files[2].Close()
	}()
	var got []byte
	for {
		ours, theirs := net.Pipe()
		go p.Serve(theirs, &wire.StreamHeader{Kind: wire.StreamHeader_STDOUT, Offset: uint64(len(got))}, nil)
		c := &wire.ChunkReader{R: ours}
		var rerr error
		for limit := len(got) + rand.IntN(600000); len(got) < limit && rerr == nil; {
			b := make([]byte, 1+rand.IntN(50000))
			var n int
			n, rerr = c.Read(b)
			got = append(got, b[:n]...)
			ours.Write(binary.BigEndian.AppendUint64(nil, uint64(len(got))))
		}
		ours.Close()
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			t.Fatal(rerr)
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes, they differ", len(got))
	}
}

func TestInputClosesWhenAllWasWritten(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	in := NewInput(w, false)
	session, other := new(int), new(int)
	in.CloseAfter(other, 100) // of a session that is gone
	in.CloseAfter(session, 6)
	ours, theirs := net.Pipe()
	go in.Serve(theirs, session)
	go func() {
		ours.Write([]byte("abc"))
		ours.Write([]byte("def"))
		ours.Write([]byte("too late"))
		ours.Close()
	}()
	if b, err := io.ReadAll(r); string(b) != "abcdef" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}
