// Package wire is what hyperd and hyperstart say to each other, both sides
// of it. From the bottom up:
//
//	byte stream   one virtio-serial port; bytes are lost when the host's end goes
//	link          link.go: sessions on the byte stream, either whole or broken
//	yamux         mux.go: streams with back-pressure on a session
//	stream 1      ttrpc, the service Guest of guest.proto
//	streams 3…    one stdio stream each, stream.go
//
// The package never interprets what it carries. It owns two goroutines per
// link end, one that reads and one that writes, which end with the byte stream.
//
//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative guest.proto
package wire

// Protocol is the highest revision of guest.proto that this package speaks.
const Protocol = 3

// Bounds that both sides keep.
const (
	// OutputWindow is how much unacknowledged output of one stream a guest
	// holds before it stops reading from the process.
	OutputWindow = 256 << 10
	// MaxChunk bounds one chunk of output.
	MaxChunk = 32 << 10
	// MaxMessage bounds one ttrpc message from a guest.
	MaxMessage = 1 << 20
	// MaxID bounds the ids of containers and execs.
	MaxID = 128
)
