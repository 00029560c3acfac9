package stdio

import (
	"os"
	"sync"
)

// An Input is a process's standard input. The zero Input discards.
type Input struct {
	writing sync.Mutex // one write at a time

	mu       sync.Mutex
	w        *os.File // nil: closed, or none
	keepOpen bool     // a terminal, whose other half is the output
	session  any      // whose bytes are counted
	taken    uint64   // bytes written or discarded
	closing  bool
	closeAt  uint64
}

// NewInput returns an Input that writes to w, which must be in non-blocking
// mode. It takes over w unless keepOpen.
func NewInput(w *os.File, keepOpen bool) *Input { return &Input{w: w, keepOpen: keepOpen} }

// Serve writes what comes on s to the process, until s ends. It closes s.
func (in *Input) Serve(s Stream, session any) {
	defer s.Close()
	buf := make([]byte, 16<<10)
	for {
		n, err := s.Read(buf)
		if n > 0 {
			in.write(buf[:n])
			in.took(session, uint64(n))
		}
		if err != nil {
			return
		}
	}
}

func (in *Input) write(p []byte) {
	in.writing.Lock()
	defer in.writing.Unlock()
	in.mu.Lock()
	w := in.w
	in.mu.Unlock()
	if w == nil {
		return
	}
	if _, err := w.Write(p); err != nil {
		in.Close() // nobody reads it any more
	}
}

func (in *Input) took(session any, n uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.count(session)
	in.taken += n
	in.closeIfDue()
}

// CloseAfter closes the input when sent bytes of session have been written.
func (in *Input) CloseAfter(session any, sent uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.count(session)
	in.closing, in.closeAt = true, sent
	in.closeIfDue()
}

func (in *Input) count(session any) {
	if in.session != session {
		in.session, in.taken, in.closing = session, 0, false
	}
}

func (in *Input) closeIfDue() {
	if in.closing && in.taken >= in.closeAt && !in.keepOpen {
		in.closeLocked()
	}
}

func (in *Input) closeLocked() {
	if in.w != nil && !in.keepOpen {
		in.w.Close()
	}
	in.w = nil
}

// Close closes the input; what still comes is discarded.
func (in *Input) Close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closeLocked()
}
