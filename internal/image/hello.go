package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	imagespec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// helloName is the image that every hyperd has, whatever a registry may call so.
const helloName = "docker.io/library/hello:latest"

const helloText = `
Hello from Hyper!
This message shows that your installation works: it was written by a program
that had a virtual machine of its own.

To show it, Hyper took these steps:
 1. The hyper client asked the hyperd daemon for a container of the image "hello".
 2. hyperd has that image built in. It turned the layer into an EROFS file, a
    read-only disk that all virtual machines of this host can share.
 3. It started a virtual machine with a kernel of its own, that disk and a
    writable one. Nothing of your host's kernel is shared with it.
 4. hyperstart, the only other process in there, laid the disks over each other
    and started the program, which wrote this text and has ended by now.
 5. hyperd carried the text to the client, which sent it to your terminal.

To try something larger:
 $ hyper run -it debian bash

`

// EnsureHello makes the embedded image hello:latest if it is not there. It needs no network.
func (s *Store) EnsureHello(ctx context.Context) (_ Image, err error) {
	if img, err := s.Resolve(ctx, helloName); err == nil {
		return img, nil
	}
	ctx, done, err := s.session(ctx)
	if err != nil {
		return Image{}, err
	}
	defer func() { done(err) }()
	layer, err := helloLayer()
	if err != nil {
		return Image{}, fmt.Errorf("make image hello: %w", err)
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(layer), Size: int64(len(layer))}
	if err := s.writeBlob(ctx, desc, layer); err != nil {
		return Image{}, fmt.Errorf("make image hello: %w", err)
	}
	// The same in every build, so that its digest is.
	created := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	config := &imagespec.DockerOCIImage{
		Image: ocispec.Image{
			Created: &created, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
			History: []ocispec.History{{Created: &created, CreatedBy: "hyperd", Comment: "embedded in hyperd"}},
		},
	}
	config.Config.Cmd = []string{"/hello"}
	return s.create(ctx, helloName, config, []ocispec.Descriptor{desc}, []digest.Digest{desc.Digest})
}

func helloLayer() ([]byte, error) {
	program := helloProgram()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "hello", Mode: 0o755, Size: int64(len(program)), Format: tar.FormatUSTAR})
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	return buf.Bytes(), w.Close()
}

// helloProgram is a static x86-64 ELF executable: one segment that holds the
// headers, the code and the text.
func helloProgram() []byte {
	const base, headers = 0x400000, 64 + 56
	code := []byte{
		0x48, 0x8d, 0x35, 0, 0, 0, 0, //   lea  text(%rip), %rsi
		0xba, 0, 0, 0, 0, //               mov  $len, %edx
		0xb8, 1, 0, 0, 0, //        again: mov  $1, %eax (write)
		0xbf, 1, 0, 0, 0, //               mov  $1, %edi
		0x0f, 0x05, //                     syscall
		0x48, 0x85, 0xc0, //               test %rax, %rax
		0x78, 0x11, //                     js   fail
		0x48, 0x01, 0xc6, //               add  %rax, %rsi
		0x48, 0x29, 0xc2, //               sub  %rax, %rdx
		0x75, 0xe7, //                     jnz  again
		0x31, 0xff, //                     xor  %edi, %edi
		0xb8, 60, 0, 0, 0, //         end: mov  $60, %eax (exit)
		0x0f, 0x05, //                     syscall
		0xbf, 1, 0, 0, 0, //         fail: mov  $1, %edi
		0xeb, 0xf2, //                     jmp  end
	}
	le := binary.LittleEndian
	le.PutUint32(code[3:], uint32(len(code)-7))
	le.PutUint32(code[8:], uint32(len(helloText)))
	size := uint64(headers + len(code) + len(helloText))

	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	for _, v := range []uint16{2, 62} { // executable, x86-64
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1)
	for _, v := range []uint64{base + headers, 64, 0} { // entry, program headers, no section headers
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // load
	b = le.AppendUint32(b, 5) // readable, executable
	for _, v := range []uint64{0, base, base, size, size, 4096} {
		b = le.AppendUint64(b, v)
	}
	return append(append(b, code...), helloText...)
}
