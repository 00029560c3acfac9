package stdio

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestDemux(t *testing.T) {
	frame := func(kind byte, text string) string {
		return string([]byte{kind, 0, 0, 0, 0, 0, byte(len(text) >> 8), byte(len(text))}) + text
	}
	tests := []struct{ name, in, out, err, fail string }{
		{name: "nothing"},
		{name: "both", in: frame(1, "a") + frame(2, "b") + frame(1, "c"), out: "ac", err: "b"},
		{name: "stdin's number is stdout", in: frame(0, "a"), out: "a"},
		{name: "empty frame", in: frame(1, "") + frame(1, "a"), out: "a"},
		{name: "half a header", in: frame(1, "a") + "\x01\x00", out: "a", fail: "read output: unexpected EOF"},
		{name: "half a frame", in: frame(1, "abc")[:9], out: "a", fail: "read output: unexpected EOF"},
		{name: "no frame", in: "hello, world\n", fail: "read output: stream 104 is not one of a process"},
		{name: "the daemon's error", in: frame(1, "a") + frame(3, "log is gone"), out: "a", fail: "error from daemon in stream: log is gone"},
		{name: "larger than the buffer", in: frame(1, strings.Repeat("x", 60000)), out: strings.Repeat("x", 60000)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out, errOut strings.Builder
			fail := ""
			if err := Demux(bufio.NewReaderSize(strings.NewReader(test.in), 16), &out, &errOut); err != nil {
				fail = err.Error()
			}
			if out.String() != test.out || errOut.String() != test.err || fail != test.fail {
				t.Errorf("got %q, %q, %q", &out, &errOut, fail)
			}
			// A stream that is not attached is read past.
			if err := Demux(bufio.NewReader(strings.NewReader(test.in)), nil, nil); (err == nil) != (test.fail == "") {
				t.Errorf("without streams: %v", err)
			}
		})
	}
}

func FuzzDemux(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x01a"))
	f.Add([]byte("\x03\x00\x00\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out, errOut bytes.Buffer
		_ = Demux(bufio.NewReader(bytes.NewReader(in)), &out, &errOut)
		if out.Len()+errOut.Len() > len(in) {
			t.Errorf("%d bytes of %d", out.Len()+errOut.Len(), len(in))
		}
	})
}

func BenchmarkDemux(b *testing.B) {
	for _, frame := range []int{100, 4 << 10, 32 << 10} {
		b.Run(fmt.Sprint(frame), func(b *testing.B) {
			data := make([]byte, frameHeader+frame)
			data[0] = 1
			binary.BigEndian.PutUint32(data[4:], uint32(frame))
			data = bytes.Repeat(data, (8<<20)/frame)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if err := Demux(bufio.NewReaderSize(bytes.NewReader(data), 256<<10), io.Discard, io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
