package rootfs

import (
	"context"
	"fmt"
	"hash"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// A hashReader reads a layer ahead and hashes it in a goroutine of its own, so
// that decompressing and hashing go on while the layer is written.
type hashReader struct {
	ctx    context.Context
	cancel context.CancelFunc
	full   chan []byte
	free   chan []byte
	cur    []byte // unread part of buf
	buf    []byte
	err    error // after full is closed: why
	want   digest.Digest
	hash   hash.Hash
}

const (
	readAheadBlock = 256 << 10
	readAhead      = 4 // blocks
)

// newHashReader reads at most limit bytes of r. Close must be called.
func newHashReader(ctx context.Context, r io.Reader, want digest.Digest, limit int64) *hashReader {
	h := &hashReader{full: make(chan []byte, readAhead), free: make(chan []byte, readAhead), want: want, hash: want.Algorithm().Hash()}
	h.ctx, h.cancel = context.WithCancel(ctx)
	for range readAhead {
		h.free <- make([]byte, readAheadBlock)
	}
	go h.run(r, limit)
	return h
}

func (h *hashReader) run(r io.Reader, limit int64) {
	defer close(h.full)
	for total := int64(0); ; {
		var buf []byte
		select {
		case buf = <-h.free:
		case <-h.ctx.Done():
		}
		if h.err = context.Cause(h.ctx); h.err != nil {
			return
		}
		n, err := fill(r, buf)
		if total += int64(n); total > limit {
			h.err = fmt.Errorf("layer has more than %d bytes: %w", limit, errdefs.ErrInvalidArgument)
			return
		}
		h.hash.Write(buf[:n])
		h.full <- buf[:n] // has room for every buffer there is
		if err != nil {
			h.err = err
			return
		}
	}
}

// fill is io.ReadFull that leaves the reader's error as it is.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

func (h *hashReader) Read(p []byte) (int, error) {
	for len(h.cur) == 0 {
		if h.buf != nil {
			h.free <- h.buf[:cap(h.buf)]
			h.buf = nil
		}
		buf, ok := <-h.full
		if !ok {
			return 0, h.err
		}
		h.buf, h.cur = buf, buf
	}
	n := copy(p, h.cur)
	h.cur = h.cur[n:]
	return n, nil
}

// Verify compares the digest of what was read, once Read has given io.EOF.
func (h *hashReader) Verify() error {
	if got := digest.NewDigest(h.want.Algorithm(), h.hash); got != h.want {
		return fmt.Errorf("digest mismatch: content is %s: %w", got, errdefs.ErrDataLoss)
	}
	return nil
}

// Close waits until the reader below is not read any more.
func (h *hashReader) Close() {
	h.cancel()
	for range h.full {
	}
}
