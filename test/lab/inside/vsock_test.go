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

// TestVsock: what a guest connection over vhost-vsock would be, in a template and in its clones, each
// with a CID of its own. README.md says what came of it.
func TestVsock(t *testing.T) {
	const templateCID, clones = 100, 3
	template := saved{memory: "/dev/shm/vsock-memory", state: filepath.Join(t.TempDir(), "state")}
	t.Cleanup(func() { os.Remove(template.memory) })
	r := startRaw(t, template.memory, false, append(vsockDevice(templateCID),
		"-kernel", kernel(t), "-initrd", initrd(t, "vsockguest"), "-append", "console=ttyS0 panic=-1 quiet pci=off")...)
	conn := connect(t, templateCID)
	roundTrips(t, "vsock", conn)
	port := r.echo(t)
	roundTrips(t, "virtio-serial", port)
	port.Close()
	r.save(t, template) // with a connection open

	for cid := templateCID + 1; cid <= templateCID+clones; cid++ {
		c := restore(t, template, vsockDevice(cid)...)
		loaded := time.Since(c.started)
		port := c.echo(t)
		believes := askCID(t, port)
		serial := time.Since(c.started)
		clone := connect(t, cid)
		t.Logf("NUMBER clone with CID %d: loaded %v, answers on virtio-serial %v (and says it has CID %d), on vsock %v",
			cid, loaded, serial, believes, time.Since(c.started))
		roundTrips(t, "vsock of a clone", clone)
		clone.Close()
		port.Close()
	}
	conn.Close()
}

// askCID asks on the virtio port which CID the guest believes to have.
func askCID(t *testing.T, port net.Conn) (cid int) {
	t.Helper()
	if err := port.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprint(port, "?"); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanln(port, &cid); err != nil {
		t.Fatal(err)
	}
	return cid
}

// connect returns the first connection that comes about; its guest has to know its CID by then.
func connect(t *testing.T, cid int) *os.File {
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
		t.Logf("%v after %v", err, time.Since(start))
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
