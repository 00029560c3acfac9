package guestinit

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// A port is an open virtio-serial port. Its end of file means only that no
// host is there at the moment: Read waits for the next one.
//
// The port is in Go's poller, which is edge-triggered: that the host's end is
// gone, which poll(2) would report over and over, wakes a reader once.
type port struct {
	*os.File
	raw syscall.RawConn
}

func openPort(path string) (*port, error) {
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &port{f, raw}, nil
}

func (p *port) Read(b []byte) (n int, err error) {
	rerr := p.raw.Read(func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), b)
		return err != syscall.EAGAIN && err != syscall.EINTR && (n > 0 || err != nil)
	})
	if rerr != nil {
		err = rerr
	}
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", p.Name(), err)
	}
	return n, nil
}

var _ io.ReadWriteCloser = (*port)(nil)
