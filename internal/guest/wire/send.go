package wire

import (
	"io"
	"runtime"
	"sync"
)

// A sender writes the frames of one session at a time to a byte stream. What
// is put while it is held, or while an earlier write goes on, leaves in one
// write, and data in one frame: each wakes the other end, which may be an
// emulated machine. It owns one goroutine, run.
type sender struct {
	w      io.Writer
	failed func(error) // called once when a write fails

	mu      sync.Mutex
	changed *sync.Cond // broadcast on every change below
	session uint64     // whose frames are taken
	buf     []byte     // frames to be written, at most maxFrame after …
	first   int        // … what begin put there
	open    int        // where in buf an unfinished data frame begins; -1: none
	holds   int        // nothing is written unless it is 0 …
	full    bool       // … or this says that a put found no room
	err     error      // why nothing is written any more
}

// sendBuffers are those of senders that have nothing to write: an idle guest
// is to hold no memory for that.
var sendBuffers = sync.Pool{New: func() any { return new([]byte) }}

func newSender(w io.Writer, failed func(error)) *sender {
	s := &sender{w: w, failed: failed, open: -1}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// begin makes session the one whose frames are taken, and forgets the frames
// of earlier ones. first is put before all others.
func (s *sender) begin(session uint64, first []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session, s.buf, s.first, s.open = session, append(s.buffer()[:0], first...), len(first), -1
	s.changed.Broadcast()
}

// put takes a frame of c. It blocks while there is no room for it.
func (s *sender) put(c *linkConn, kind byte, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if err := s.refusal(c, kind); err != nil {
			return err
		}
		if len(s.buf)-s.first+headerLen+len(payload)+trailerLen <= maxFrame {
			break
		}
		s.full = true
		s.changed.Broadcast()
		s.changed.Wait()
	}
	s.buf = s.buffer()
	if kind != kindData {
		s.seal()
		s.buf = appendFrame(s.buf, kind, c.session, payload)
	} else {
		if s.open < 0 {
			s.open = len(s.buf)
			s.buf = append(s.buf, make([]byte, headerLen)...)
		}
		s.buf = append(s.buf, payload...)
	}
	s.changed.Broadcast()
	return nil
}

// buffer is buf, or an empty one when there is none.
func (s *sender) buffer() []byte {
	if s.buf == nil {
		s.buf = *sendBuffers.Get().(*[]byte)
	}
	return s.buf
}

// refusal says why a frame of c is not taken.
func (s *sender) refusal(c *linkConn, kind byte) error {
	switch {
	case s.err != nil:
		return s.err
	case s.session != c.session:
		return errReplaced
	case kind == kindFIN: // it is sent because the session has ended
		return nil
	}
	return c.ended()
}

// seal finishes the open frame.
func (s *sender) seal() {
	if s.open >= 0 {
		s.buf = finishFrame(s.buf, s.open, kindData, s.session)
		s.open = -1
	}
}

// run writes what was put, until a write fails or stop.
func (s *sender) run() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for s.err == nil && !s.dueLocked() {
			s.changed.Wait()
		}
		// Whoever is about to put something, puts it now.
		s.mu.Unlock()
		runtime.Gosched()
		s.mu.Lock()
		if s.err != nil {
			return
		}
		if !s.dueLocked() {
			continue
		}
		s.seal()
		out := s.buf
		s.buf, s.first, s.full = nil, 0, false
		s.changed.Broadcast()
		s.mu.Unlock()
		_, err := s.w.Write(out)
		if err != nil {
			s.stop(err)
			s.failed(err)
		}
		out = out[:0]
		sendBuffers.Put(&out)
		s.mu.Lock()
	}
}

func (s *sender) dueLocked() bool { return len(s.buf) > 0 && (s.holds == 0 || s.full) }

// hold has what is put from now on wait for as many calls of release.
func (s *sender) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds++
}

func (s *sender) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds--
	s.changed.Broadcast()
}

// stop ends run, once its write has returned; the first reason stays.
func (s *sender) stop(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.changed.Broadcast()
}

// wake has those who wait in put look at their session.
func (s *sender) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed.Broadcast()
}
