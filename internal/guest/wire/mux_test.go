package wire

import (
	"encoding/binary"
	"net"
	"runtime"
	"testing"
	"time"
)

// yamux answers each ping from a goroutine of its own: a guest that sends
// pings and reads no answer would fill the host's memory with them.
func TestPingsEndTheSession(t *testing.T) {
	host, peer := net.Pipe()
	defer peer.Close()
	go peer.Read(make([]byte, muxHeaderLen)) //nolint:errcheck // the host's first frame, and no more
	s, err := MuxHost(host)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := runtime.NumGoroutine()
	ping := make([]byte, muxHeaderLen)
	ping[1] = muxTypePing
	binary.BigEndian.PutUint16(ping[2:], muxFlagSYN)
	peer.SetDeadline(time.Now().Add(5 * time.Second)) //nolint:errcheck // of a pipe
	for range 10000 {
		if _, err := peer.Write(ping); err != nil {
			break
		}
	}
	if n := runtime.NumGoroutine() - before; n > 10 {
		t.Errorf("%d goroutines for pings", n)
	}
	select {
	case <-s.CloseChan():
	case <-time.After(5 * time.Second):
		t.Error("the session goes on")
	}
}

// Bodies of data frames are not taken for frames, however they arrive.
func TestPingInData(t *testing.T) {
	ping := make([]byte, muxHeaderLen)
	ping[1] = muxTypePing
	data := make([]byte, muxHeaderLen)
	binary.BigEndian.PutUint32(data[8:], uint32(len(ping)))
	in := append(append(data, ping...), data...)
	for size := 1; size <= len(in); size++ {
		var f muxFrames
		for at := 0; at < len(in); at += size {
			if err := f.check(in[at:min(at+size, len(in))]); err != nil {
				t.Fatalf("in pieces of %d: %v", size, err)
			}
		}
	}
	var f muxFrames
	if err := f.check(ping); err == nil {
		t.Error("a ping passed")
	}
}
