package image

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// gzip can't do better than 1032:1; more than this, past an amount that
	// does no harm, is made to fill disks.
	maxRatio     = 1100
	ratioAllowed = 4 << 30
	maxWindow    = 128 << 20 // of zstd, held in memory
)

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// decompress reads gzip, zstd or plain data, whichever r begins with. Closing it does not close r.
func decompress(r io.Reader) (io.ReadCloser, error) {
	in := &counter{r: r}
	buf := bufio.NewReaderSize(in, 64<<10)
	magic, err := buf.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	var out io.ReadCloser
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		out, err = gzip.NewReader(buf)
	case bytes.Equal(magic, zstdMagic):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(buf, zstd.WithDecoderMaxWindow(maxWindow)); err == nil {
			out = d.IOReadCloser()
		}
	default:
		return io.NopCloser(buf), nil
	}
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	return &ratioReader{ReadCloser: out, in: in}, nil
}

// A counter counts what is read; zstd reads ahead in a goroutine.
type counter struct {
	r io.Reader
	n atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// A ratioReader refuses data that was compressed too well to be honest.
type ratioReader struct {
	io.ReadCloser
	in  *counter
	out int64
}

func (r *ratioReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.out += int64(n); r.out > ratioAllowed && r.out/maxRatio > r.in.n.Load() {
		return n, errdefs.ErrInvalidArgument.WithMessage("compressed data expands without end")
	}
	return n, err
}
