package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"
)

const maxStreamHeader = 512

// WriteStreamHeader opens a stdio stream.
func WriteStreamHeader(w io.Writer, h *StreamHeader) error {
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 2, 64), h)
	if err != nil {
		return fmt.Errorf("encode stream header: %w", err)
	}
	if len(b)-2 > maxStreamHeader {
		return fmt.Errorf("encode stream header: %d bytes, at most %d", len(b)-2, maxStreamHeader)
	}
	binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	_, err = w.Write(b)
	return err
}

// ReadStreamHeader reads what WriteStreamHeader wrote.
func ReadStreamHeader(r io.Reader) (*StreamHeader, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, fmt.Errorf("read stream header: %w", err)
	}
	n := binary.BigEndian.Uint16(size[:])
	if n > maxStreamHeader {
		return nil, fmt.Errorf("read stream header: %d bytes, at most %d", n, maxStreamHeader)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("read stream header: %w", err)
	}
	h := new(StreamHeader)
	if err := proto.Unmarshal(b, h); err != nil {
		return nil, fmt.Errorf("read stream header: %w", err)
	}
	return h, nil
}

// Output travels in chunks: a length of 4 bytes, big-endian, then as many
// bytes. Length 0 says that the output is complete. With the top bit set it
// is followed by the reason why the guest gives no (more) output.
const refusal = 1 << 31

// ChunkHeaderLen is the room that PutChunkHeader needs before a chunk.
const ChunkHeaderLen = 4

// PutChunkHeader makes b, ChunkHeaderLen bytes of room and then at most
// MaxChunk bytes of output, a chunk. Without output it is the end.
func PutChunkHeader(b []byte) {
	binary.BigEndian.PutUint32(b, uint32(len(b)-ChunkHeaderLen))
}

// RefusalChunk says why there is no more output.
func RefusalChunk(reason string) []byte {
	reason = reason[:min(len(reason), MaxChunk)]
	return append(binary.BigEndian.AppendUint32(nil, refusal|uint32(len(reason))), reason...)
}

// A ChunkReader reads output that comes in chunks. Its Read returns io.EOF
// only after the end that the guest declared.
type ChunkReader struct {
	R    io.Reader
	left int
	err  error
}

// errOutputCut is what Read returns when a stream ended and the output did not.
var errOutputCut = errors.New("the output stream ended early")

func (c *ChunkReader) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	if c.left == 0 {
		if c.err = c.header(); c.err != nil {
			return 0, c.err
		}
	}
	n, err := c.R.Read(p[:min(len(p), c.left)])
	c.left -= n
	if err != nil {
		c.err = cut(err)
	}
	if n > 0 {
		return n, nil
	}
	return 0, c.err
}

func (c *ChunkReader) header() error {
	var b [ChunkHeaderLen]byte
	if _, err := io.ReadFull(c.R, b[:]); err != nil {
		return cut(err)
	}
	n := binary.BigEndian.Uint32(b[:])
	size := int(n &^ refusal)
	switch {
	case n == 0:
		return io.EOF
	case size > MaxChunk:
		return fmt.Errorf("read output: chunk of %d bytes, at most %d", size, MaxChunk)
	case n&refusal == 0:
		c.left = size
		return nil
	}
	reason := make([]byte, size)
	if _, err := io.ReadFull(c.R, reason); err != nil {
		return cut(err)
	}
	return fmt.Errorf("read output: guest: %q", reason)
}

func cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errOutputCut
	}
	return err
}
