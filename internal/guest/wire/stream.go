package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

// A host that starts a process may open its streams and wait for its end
// without waiting for the start's answer: it awaits the process, and so does
// the guest, whatever it comes to see first. A stream says so in the top bit
// of its header's length, a call in its metadata. Since protocol 2.
const (
	maxStreamHeader = 512
	awaitBit        = 1 << 15
	awaitKey        = "await"
)

// Await makes calls with the context it returns await the process they concern.
func Await(ctx context.Context) context.Context {
	return ttrpc.WithMetadata(ctx, ttrpc.MD{awaitKey: {"1"}})
}

// Awaits says, in the guest, whether a call awaits its process.
func Awaits(ctx context.Context) bool {
	_, ok := ttrpc.GetMetadataValue(ctx, awaitKey)
	return ok
}

// WriteStreamHeader opens a stdio stream, of a process that may not have been
// started yet if await is set.
func WriteStreamHeader(w io.Writer, h *StreamHeader, await bool) error {
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 2, 64), h)
	if err != nil {
		return fmt.Errorf("encode stream header: %w", err)
	}
	if len(b)-2 > maxStreamHeader {
		return fmt.Errorf("encode stream header: %d bytes, at most %d", len(b)-2, maxStreamHeader)
	}
	n := uint16(len(b) - 2)
	if await {
		n |= awaitBit
	}
	binary.BigEndian.PutUint16(b, n)
	_, err = w.Write(b)
	return err
}

// ReadStreamHeader reads what WriteStreamHeader wrote.
func ReadStreamHeader(r io.Reader) (h *StreamHeader, await bool, err error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, false, fmt.Errorf("read stream header: %w", err)
	}
	n := binary.BigEndian.Uint16(size[:])
	await = n&awaitBit != 0
	n &^= awaitBit
	if n > maxStreamHeader {
		return nil, false, fmt.Errorf("read stream header: %d bytes, at most %d", n, maxStreamHeader)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, false, fmt.Errorf("read stream header: %w", err)
	}
	h = new(StreamHeader)
	if err := proto.Unmarshal(b, h); err != nil {
		return nil, false, fmt.Errorf("read stream header: %w", err)
	}
	return h, await, nil
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

// ReadAnswer reads what the guest answers to DIAL: that it is connected, else
// the first limit bytes of why it is not.
func ReadAnswer(r io.Reader, limit int) (connected bool, reason string, err error) {
	var b [ChunkHeaderLen]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return false, "", cut(err)
	}
	n := binary.BigEndian.Uint32(b[:])
	switch {
	case n == 0:
		return true, "", nil
	case n&refusal == 0:
		return false, "", fmt.Errorf("answer with %d bytes", n)
	}
	text := make([]byte, min(int(n&^refusal), limit))
	if _, err := io.ReadFull(r, text); err != nil {
		return false, "", cut(err)
	}
	return false, string(text), nil
}
