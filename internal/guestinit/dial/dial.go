// Package dial makes TCP connections in a pod, with as little of Go's net as
// will do: what hyperstart does not contain need not be loaded into every VM.
package dial

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long connecting may take.
const patience = 10 * time.Second

// A Conn is a connection. Read and Write are as an os.File's.
type Conn struct {
	*os.File
	raw syscall.RawConn
	to  unix.Sockaddr
	at  string // to, for people
}

// Open makes a socket for a connection to host:port, where the host is an IP
// address, in a network namespace; nil: this one. It does not connect yet.
func Open(address string, network *os.File) (*Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %q: %w", address, err)
	}
	c := &Conn{at: address}
	family := unix.AF_INET6
	ip := to.Addr().Unmap()
	if ip.Is4() {
		family = unix.AF_INET
		c.to = &unix.SockaddrInet4{Port: int(to.Port()), Addr: ip.As4()}
	} else {
		c.to = &unix.SockaddrInet6{Port: int(to.Port()), Addr: ip.As16()}
	}
	if ip.Zone() != "" {
		return nil, fmt.Errorf("dial %q: a zone", address)
	}
	fd, err := socket(family, network)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	c.File = os.NewFile(uintptr(fd), address)
	if c.raw, err = c.SyscallConn(); err != nil {
		c.Close()
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	return c, nil
}

// socket makes a socket in a namespace, on a thread that ends with it.
func socket(family int, network *os.File) (fd int, err error) {
	const kind = unix.SOCK_STREAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	if network == nil {
		return unix.Socket(family, kind, 0)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock
		if err = unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err == nil {
			fd, err = unix.Socket(family, kind, 0)
		}
	}()
	<-done
	return fd, err
}

// Connect connects. On error the Conn is closed.
func (c *Conn) Connect() error {
	err := c.connect()
	if err != nil {
		c.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("no answer for %v", patience)
		}
		return fmt.Errorf("dial %s: %w", c.at, err)
	}
	return nil
}

func (c *Conn) connect() error {
	var cerr error
	if err := c.raw.Control(func(fd uintptr) { cerr = unix.Connect(int(fd), c.to) }); err != nil {
		return err
	}
	if cerr == nil || cerr != unix.EINPROGRESS {
		return cerr
	}
	c.SetWriteDeadline(time.Now().Add(patience))
	defer c.SetWriteDeadline(time.Time{})
	err := c.raw.Write(func(fd uintptr) (done bool) {
		done, cerr = connected(int(fd))
		return done
	})
	if err != nil {
		return err
	}
	return cerr
}

// connected says whether connect(2) is over, and how it went.
func connected(fd int) (done bool, err error) {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && n != 0 {
		err = syscall.Errno(n)
	}
	if err != nil {
		return true, err
	}
	_, err = unix.Getpeername(fd)
	if err == unix.ENOTCONN {
		return false, nil
	}
	return true, err
}

// CloseWrite tells the other end that nothing more comes.
func (c *Conn) CloseWrite() error {
	var serr error
	if err := c.raw.Control(func(fd uintptr) { serr = unix.Shutdown(int(fd), unix.SHUT_WR) }); err != nil {
		return err
	}
	return serr
}
