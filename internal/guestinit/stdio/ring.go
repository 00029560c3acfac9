package stdio

import "github.com/hyper-run/hyper/internal/guest/wire"

// A ring holds up to wire.OutputWindow bytes and takes memory as it needs it.
type ring struct {
	buf   []byte // its length is a power of two or nil
	start int
	n     int
}

const minRing = 4 << 10

func (r *ring) len() int { return r.n }

// room returns where the next bytes can be put, never empty while the ring is
// not full; added tells how many were.
func (r *ring) room() []byte {
	if r.n == len(r.buf) {
		r.grow()
	}
	i := (r.start + r.n) & (len(r.buf) - 1)
	if i < r.start {
		return r.buf[i:r.start]
	}
	return r.buf[i:]
}

func (r *ring) added(n int) { r.n += n }

func (r *ring) grow() {
	size := max(minRing, min(4*len(r.buf), wire.OutputWindow))
	if size == len(r.buf) {
		return
	}
	buf := make([]byte, size)
	r.copyAt(buf, 0)
	r.buf, r.start = buf, 0
}

// shrink gives the memory back when nothing is held.
func (r *ring) shrink() {
	if r.n == 0 {
		*r = ring{}
	}
}

// copyAt copies what is held from index i on.
func (r *ring) copyAt(p []byte, i int) int {
	p = p[:min(len(p), r.n-i)]
	if len(p) == 0 {
		return 0
	}
	at := (r.start + i) & (len(r.buf) - 1)
	n := copy(p, r.buf[at:])
	copy(p[n:], r.buf)
	return len(p)
}

// drop forgets the first n bytes.
func (r *ring) drop(n int) {
	if n == 0 {
		return
	}
	r.start = (r.start + n) & (len(r.buf) - 1)
	r.n -= n
}
