package inside

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// vsockPort is that of inside/vsockguest.
const vsockPort = 1024

// dialVsock connects to a guest and returns what CID the guest says it has.
func dialVsock(cid int, patience time.Duration) (conn *os.File, says int, err error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.AF_VSOCK, unix.SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrVM{CID: uint32(cid), Port: vsockPort})
	}
	if err != nil {
		unix.Close(fd)
		return nil, 0, fmt.Errorf("connect to CID %d: %w", cid, err)
	}
	conn = os.NewFile(uintptr(fd), "vsock")
	var line []byte
	for b := make([]byte, 1); ; {
		if n, rerr := conn.Read(b); n != 1 || rerr != nil {
			conn.Close()
			return nil, 0, fmt.Errorf("read from CID %d: %w", cid, rerr)
		}
		if b[0] == '\n' {
			break
		}
		line = append(line, b[0])
	}
	says, err = strconv.Atoi(strings.TrimSpace(string(line)))
	return conn, says, err
}

func vsockDevice(cid int) []string {
	return []string{"-device", fmt.Sprintf("vhost-vsock-device,guest-cid=%d", cid)}
}

// TestVsock: the guest connection over vhost-vsock, in a template and its clones.
func TestVsock(t *testing.T) {
	template := saved{memory: filepath.Join("/dev/shm", "vsock-memory"), state: filepath.Join(t.TempDir(), "state")}
	t.Cleanup(func() { os.Remove(template.memory) })
	r := startRaw(t, template.memory, false, append(vsockDevice(100),
		"-kernel", kernel(t), "-initrd", initrd(t, "vsockguest"), "-append", "console=ttyS0 panic=-1 quiet pci=off")...)
	conn := connect(t, 100, 30*time.Second)
	roundTrips(t, "vsock", conn)
	port, err := net.Dial("unix", filepath.Join(r.dir, "echo"))
	if err != nil {
		t.Fatal(err)
	}
	roundTrips(t, "virtio-serial", port)
	port.Close()
	conn.Close()
	r.save(t, template)

	for i := range 6 {
		cid := 101 + i
		c := restore(t, template, vsockDevice(cid)...)
		loaded := time.Since(c.started)
		tries, first := 0, error(nil)
		for {
			tries++
			conn, says, err := dialVsock(cid, 500*time.Millisecond)
			if err == nil {
				t.Logf("NUMBER clone %d: loaded %v, answered %v, %d tries (first: %v), guest says CID %d", i, loaded, time.Since(c.started), tries, first, says)
				if says != cid {
					t.Errorf("guest of CID %d says it has %d", cid, says)
				}
				roundTrips(t, "vsock of a clone", conn)
				conn.Close()
				break
			}
			if first == nil {
				first = err
			}
			if time.Since(c.started) > 20*time.Second {
				t.Fatal(err)
			}
		}
	}
}

func connect(t *testing.T, cid int, patience time.Duration) *os.File {
	t.Helper()
	for start := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		conn, says, err := dialVsock(cid, time.Second)
		if err == nil {
			if says != cid {
				t.Errorf("guest of CID %d says it has %d", cid, says)
			}
			return conn
		}
		if time.Since(start) > patience {
			t.Fatal(err)
		}
	}
}

// roundTrips measures how long a byte takes to the guest and back.
func roundTrips(t *testing.T, what string, conn io.ReadWriter) {
	t.Helper()
	in := bufio.NewReader(conn)
	least := time.Hour
	var sum time.Duration
	const n = 100
	for range n {
		start := time.Now()
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if _, err := in.ReadByte(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		took := time.Since(start)
		least, sum = min(least, took), sum+took
	}
	t.Logf("NUMBER %s: round trip least %v, mean %v", what, least, sum/n)
}
