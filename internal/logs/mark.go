package logs

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A position is what the mark file records: the length of the current log
// file and how many bytes of each stream are in the log.
type position struct {
	size int64
	off  [2]uint64
}

// A mark is a position in a mapped file. Storing to it costs no system call
// and survives kill -9. There are two slots, written in turn, each with a
// sequence number and a checksum, so that a torn store leaves the other.
//
//	slot: sequence | size | stdout | stderr | checksum     (8 bytes each)
//
// A host crash may lose the last marks together with the log's last bytes;
// the guest they came from is lost with them.
type mark struct {
	mem []byte
	seq uint64
	pos position // of the newest valid slot
}

const (
	slotWords = 5
	markSize  = 2 * slotWords * 8
)

func openMark(path string) (*mark, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(markSize); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, markSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	m := &mark{mem: mem}
	for slot := range 2 {
		w := m.words(slot)
		if sum(w) == w[4] && w[0] > m.seq {
			m.seq = w[0]
			m.pos = position{size: int64(w[1]), off: [2]uint64{w[2], w[3]}}
		}
	}
	return m, nil
}

func (m *mark) words(slot int) (w [slotWords]uint64) {
	for i := range w {
		w[i] = binary.NativeEndian.Uint64(m.mem[(slot*slotWords+i)*8:])
	}
	return w
}

func sum(w [slotWords]uint64) uint64 {
	const prime = 0x9e3779b97f4a7c15
	h := uint64(prime)
	for _, v := range w[:4] {
		h = (h ^ v) * prime
		h ^= h >> 29
	}
	return h
}

func (m *mark) get() position { return m.pos }

func (m *mark) set(p position) {
	if m.mem == nil {
		return
	}
	m.pos = p
	m.seq++
	w := [slotWords]uint64{m.seq, uint64(p.size), p.off[0], p.off[1]}
	w[4] = sum(w)
	base := int(m.seq%2) * slotWords * 8
	for i, v := range w {
		// Atomic only so that the compiler neither merges nor drops the stores.
		atomic.StoreUint64((*uint64)(unsafe.Pointer(&m.mem[base+i*8])), v)
	}
}

func (m *mark) close() {
	if m.mem != nil {
		unix.Munmap(m.mem)
		m.mem = nil
	}
}
