package erofs

import (
	"bytes"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	outputSize = 1 << 20
	holeSize   = 64 << 10 // a stretch of zeros this long is not written
	writeback  = 16 << 20
)

var zeros [holeSize]byte

// An output gathers writes that mostly follow each other.
type output struct {
	f     *os.File
	base  int64  // offset of buf in the file
	buf   []byte // not written yet
	dirty int64  // written since the kernel was last asked to write back
}

// room gives space to be filled for offset off, at least a block and at most max bytes; commit takes it.
func (o *output) room(off int64, max int) ([]byte, error) {
	end := o.base + int64(len(o.buf))
	if gap := off - end; len(o.buf) > 0 && gap >= 0 && gap < blockSize && len(o.buf)+int(gap)+blockSize <= cap(o.buf) {
		o.buf = append(o.buf, zeros[:gap]...)
	} else {
		if err := o.flush(); err != nil {
			return nil, err
		}
		o.base = off
	}
	n := min(max, cap(o.buf)-len(o.buf))
	return o.buf[len(o.buf) : len(o.buf)+n], nil
}

func (o *output) commit(n int) { o.buf = o.buf[:len(o.buf)+n] }

func (o *output) write(off int64, p []byte) error {
	for len(p) > 0 {
		room, err := o.room(off, len(p))
		if err != nil {
			return err
		}
		n := copy(room, p)
		o.commit(n)
		off, p = off+int64(n), p[n:]
	}
	return nil
}

// copy writes size bytes of r, leaving out long stretches of zeros.
func (o *output) copy(off, size int64, r io.Reader) error {
	for size > 0 {
		room, err := o.room(off, int(min(size, holeSize)))
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(r, room); err != nil {
			return noEOF(err)
		}
		if len(room) < holeSize || !bytes.Equal(room, zeros[:]) {
			o.commit(len(room))
		}
		off, size = off+int64(len(room)), size-int64(len(room))
	}
	return nil
}

func (o *output) flush() error {
	if len(o.buf) == 0 {
		return nil
	}
	if _, err := o.f.WriteAt(o.buf, o.base); err != nil {
		return err
	}
	// Start writing back early, so that the sync at the end has little left to wait for.
	if o.dirty += int64(len(o.buf)); o.dirty >= writeback {
		_ = unix.SyncFileRange(int(o.f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
		o.dirty = 0
	}
	o.buf = o.buf[:0]
	return nil
}

// noEOF makes an early end an error that is not taken for a regular one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
