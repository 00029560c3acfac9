package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

func TestStreamHeader(t *testing.T) {
	h := &StreamHeader{ContainerId: strings.Repeat("a", 64), ExecId: "e", Kind: StreamHeader_STDERR, Offset: 1 << 40}
	var b bytes.Buffer
	for _, await := range []bool{false, true} {
		if err := WriteStreamHeader(&b, h, await); err != nil {
			t.Fatal(err)
		}
		got, awaits, err := ReadStreamHeader(&b)
		if err != nil || awaits != await || !proto.Equal(got, h) {
			t.Fatalf("got %v, %v, %v", got, awaits, err)
		}
	}
	if err := WriteStreamHeader(&b, &StreamHeader{ExecId: strings.Repeat("x", maxStreamHeader)}, false); err == nil {
		t.Error("a header beyond the limit was written")
	}
}

func chunk(s string) []byte {
	b := append(make([]byte, ChunkHeaderLen), s...)
	PutChunkHeader(b)
	return b
}

func TestChunkReader(t *testing.T) {
	tests := []struct {
		name, in, want string
		err            string // "": io.EOF
	}{
		{"complete", string(chunk("ab")) + string(chunk("c")) + string(chunk("")), "abc", ""},
		{"empty", string(chunk("")), "", ""},
		{"cut after a chunk", string(chunk("ab")), "ab", errOutputCut.Error()},
		{"cut in a chunk", string(chunk("ab"))[:5], "a", errOutputCut.Error()},
		{"cut in a header", "\x00\x00", "", errOutputCut.Error()},
		{"refused", string(chunk("ab")) + string(RefusalChunk("no \x1b")), "ab", `read output: guest: "no \x1b"`},
		{"too large", "\x00\x10\x00\x00", "", "read output: chunk of 1048576 bytes, at most 32768"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := io.ReadAll(&ChunkReader{R: strings.NewReader(tt.in)})
			if string(got) != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
}

func FuzzStreamHeader(f *testing.F) {
	f.Add([]byte{0, 2, 8, 1})
	f.Add([]byte{2, 1})
	f.Add([]byte{0x80, 2, 8, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, _, err := ReadStreamHeader(bytes.NewReader(b))
		if err == nil && proto.Size(h) > maxStreamHeader {
			t.Fatal("too large")
		}
	})
}

func FuzzChunkReader(f *testing.F) {
	f.Add(append(chunk("abc"), chunk("")...))
	f.Add(RefusalChunk("why"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := io.ReadAll(&ChunkReader{R: bytes.NewReader(b)})
		if len(got) > len(b) || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(b), err)
		}
	})
}
