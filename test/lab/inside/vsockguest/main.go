// Command vsockguest is PID 1 of a VM that echoes what comes in on vsock port 1024 and on the virtio
// port named echo. Each new vsock connection is told first which CID the guest believes to have; on the
// virtio port a question mark asks for it.
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Port is where the guest listens.
const Port = 1024

func main() {
	err := run()
	fmt.Fprintln(os.Stderr, "vsockguest:", err)
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF) //nolint:errcheck // there is nobody to tell
	select {}
}

func run() error {
	for _, m := range []struct{ kind, dir string }{{"devtmpfs", "/dev"}, {"sysfs", "/sys"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	listener, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	if err := unix.Bind(listener, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: Port}); err != nil {
		return fmt.Errorf("bind vsock: %w", err)
	}
	if err := unix.Listen(listener, 16); err != nil {
		return fmt.Errorf("listen on vsock: %w", err)
	}
	if err := echoPort(); err != nil {
		return err
	}
	for {
		fd, _, err := unix.Accept(listener)
		if err != nil {
			return fmt.Errorf("accept on vsock: %w", err)
		}
		go echo(os.NewFile(uintptr(fd), "vsock"), fmt.Sprintln(localCID()))
	}
}

// localCID is the CID that the guest believes to have.
func localCID() int {
	const getLocalCID = 0x7b9 // IOCTL_VM_SOCKETS_GET_LOCAL_CID
	f, err := os.Open("/dev/vsock")
	if err != nil {
		return -1
	}
	defer f.Close()
	cid, err := unix.IoctlGetInt(int(f.Fd()), getLocalCID)
	if err != nil {
		return -1
	}
	return cid
}

func echo(f *os.File, greeting string) {
	defer f.Close()
	if _, err := f.WriteString(greeting); err == nil {
		io.Copy(f, f) //nolint:errcheck // the host may go at any time
	}
}

// echoPort echoes on the virtio port, if the VM has one.
func echoPort() error {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return err
	}
	for _, n := range names {
		if b, err := os.ReadFile(n); err != nil || strings.TrimSpace(string(b)) != "echo" {
			continue
		}
		fd, err := syscall.Open("/dev/"+filepath.Base(filepath.Dir(n)), syscall.O_RDWR, 0)
		if err != nil {
			return err
		}
		go func() {
			b := make([]byte, 4096)
			for {
				n, err := syscall.Read(fd, b)
				if n <= 0 || err != nil { // a port reads as ended while the host is away
					time.Sleep(10 * time.Millisecond)
					continue
				}
				if b[0] == '?' {
					n = copy(b, fmt.Sprintln(localCID()))
				}
				syscall.Write(fd, b[:n]) //nolint:errcheck // the host may go at any time
			}
		}()
	}
	return nil
}
