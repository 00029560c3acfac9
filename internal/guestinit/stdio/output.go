// Package stdio carries a process's standard streams between its pipes or
// terminal and the streams of a session.
//
// Output that the host has not acknowledged is held, at most a window of it
// per stream; then the process is no longer read and blocks when it writes.
// Streams come and go, the output stays.
//
// Goroutines: one per Output that reads the pipe, until all its writers have
// closed it; those that call the Serve methods.
package stdio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// A Stream is one stdio stream of a session, after its header.
type Stream interface {
	io.ReadWriteCloser
}

// An Output is what a process wrote to its standard output or error.
type Output struct {
	mu       sync.Mutex
	changed  *sync.Cond // broadcast on every change below
	held     ring       // the bytes from base on
	base     uint64     // offset of the first byte held
	complete bool       // nothing will be added
	drained  bool       // at the last look there was nothing to read
	expired  bool       // see Expire
	stream   Stream     // the one that is served
}

// NewOutput returns an Output of what is read from r until its end. It takes
// over r, which must be in non-blocking mode, and calls done after it closed it.
func NewOutput(r *os.File, done func()) *Output {
	o := &Output{}
	o.changed = sync.NewCond(&o.mu)
	go func() {
		o.pump(r)
		r.Close()
		o.Finish()
		if done != nil {
			done()
		}
	}()
	return o
}

func (o *Output) end() uint64 { return o.base + uint64(o.held.len()) }

// pump reads r until its end, and no further than the window allows.
func (o *Output) pump(r *os.File) {
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	for {
		o.mu.Lock()
		for o.held.len() == wire.OutputWindow && !o.complete {
			o.changed.Wait()
		}
		o.mu.Unlock()
		eof := false
		err := raw.Read(func(fd uintptr) bool {
			var ready bool
			ready, eof = o.fill(int(fd))
			return ready
		})
		if err != nil || eof {
			return
		}
	}
}

// fill reads once. ready is false when there is nothing to read yet.
func (o *Output) fill(fd int) (ready, eof bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.complete { // finished before the last writer closed
		n, err := syscall.Read(fd, make([]byte, 4096))
		return err != syscall.EAGAIN, err != syscall.EAGAIN && err != syscall.EINTR && n <= 0
	}
	n, err := syscall.Read(fd, o.held.room())
	switch {
	case err == syscall.EAGAIN:
		o.held.shrink()
		o.drained = true
		o.expireLocked()
		return false, false
	case err == syscall.EINTR:
		return true, false
	case err != nil || n == 0: // a terminal gives EIO when its other end is closed
		return true, true
	}
	o.drained = false
	o.held.added(n)
	o.changed.Broadcast()
	return true, false
}

// Finish declares the output complete; what is still written is discarded.
func (o *Output) Finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.complete = true
	o.changed.Broadcast()
}

// Expire declares the output complete as soon as all that was written so far
// has been read.
func (o *Output) Expire() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.expired = true
	o.expireLocked()
}

func (o *Output) expireLocked() {
	if o.expired && o.drained {
		o.complete = true
		o.changed.Broadcast()
	}
}

// Serve sends the output from offset on and takes acknowledgements, until the
// output is complete and the host has ended the stream, or the stream breaks
// or is replaced. It closes s.
func (o *Output) Serve(s Stream, offset uint64) {
	defer s.Close()
	if err := o.attach(s, offset); err != nil {
		s.Write(wire.RefusalChunk(err.Error()))
		return
	}
	acks := make(chan struct{})
	go func() {
		defer close(acks)
		o.takeAcks(s)
		o.detach(s)
	}()
	if o.send(s, offset) == nil {
		<-acks
	}
	o.detach(s)
}

func (o *Output) attach(s Stream, offset uint64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if offset < o.base || offset > o.end() {
		return fmt.Errorf("offset %d is not held, only %d to %d", offset, o.base, o.end())
	}
	if o.stream != nil {
		o.stream.Close()
	}
	o.stream = s
	o.ackLocked(offset) // what said so may be lost with an earlier connection
	o.changed.Broadcast()
	return nil
}

func (o *Output) detach(s Stream) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stream == s {
		o.stream = nil
		o.changed.Broadcast()
	}
}

var (
	errDetached = errors.New("stream was replaced or closed")
	chunks      = sync.Pool{New: func() any { return new([wire.ChunkHeaderLen + wire.MaxChunk]byte) }}
)

func (o *Output) send(s Stream, pos uint64) error {
	for {
		chunk := chunks.Get().(*[wire.ChunkHeaderLen + wire.MaxChunk]byte)
		n, err := o.next(s, pos, chunk[wire.ChunkHeaderLen:])
		if err == nil || err == io.EOF {
			b := chunk[:wire.ChunkHeaderLen+n]
			wire.PutChunkHeader(b)
			if _, werr := s.Write(b); werr != nil {
				err = werr
			}
		}
		chunks.Put(chunk)
		pos += uint64(n)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// next copies what follows pos. It returns io.EOF after the last byte.
func (o *Output) next(s Stream, pos uint64, p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.stream == s && !o.complete && pos == o.end() {
		o.changed.Wait()
	}
	// An acknowledgement may lie beyond pos when it was for an earlier stream.
	if o.stream != s || pos < o.base {
		return 0, errDetached
	}
	if pos == o.end() {
		return 0, io.EOF
	}
	return o.held.copyAt(p, int(pos-o.base)), nil
}

func (o *Output) takeAcks(s Stream) {
	var b [8]byte
	for {
		if _, err := io.ReadFull(s, b[:]); err != nil {
			return
		}
		if !o.ack(binary.BigEndian.Uint64(b[:])) {
			return
		}
	}
}

func (o *Output) ack(offset uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if offset > o.end() {
		return false
	}
	o.ackLocked(offset)
	return true
}

func (o *Output) ackLocked(offset uint64) {
	if offset > o.base {
		o.held.drop(int(offset - o.base))
		o.base = offset
		o.changed.Broadcast()
	}
}
