// Package device finds the VM's devices by what the host called them, and
// waits for those that are still to come.
package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Port returns the path of the virtio-serial port with a name.
func Port(ctx context.Context, name string) (string, error) {
	return wait(ctx, "virtio-serial port "+name, func() string {
		return find("/sys/class/virtio-ports", "name", name, 0)
	})
}

// Disk returns the path of the disk with a serial.
func Disk(ctx context.Context, serial string) (string, error) {
	return wait(ctx, "disk "+serial, func() string {
		if dev := find("/sys/block", "serial", serial, 0); dev != "" { // virtio-blk
			return dev
		}
		return find("/sys/block", "device/vpd_pg80", serial, 4) // SCSI: a header, then the serial
	})
}

// find returns the device in a class whose attribute is value after skip bytes.
func find(class, attribute, value string, skip int) string {
	devices, _ := os.ReadDir(class)
	for _, d := range devices {
		b, err := os.ReadFile(class + "/" + d.Name() + "/" + attribute)
		if err == nil && len(b) >= skip && strings.Trim(string(b[skip:]), " \n\x00") == value {
			return "/dev/" + strings.ReplaceAll(d.Name(), "!", "/")
		}
	}
	return ""
}

// wait calls look until it finds something: now, and after every event that
// the kernel reports about devices, until ctx is done.
func wait(ctx context.Context, what string, look func() string) (string, error) {
	if dev := look(); dev != "" {
		return dev, nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return "", fmt.Errorf("wait for %s: %w", what, err)
	}
	events := os.NewFile(uintptr(fd), "uevents")
	defer events.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return "", fmt.Errorf("wait for %s: %w", what, err)
	}
	stop := context.AfterFunc(ctx, func() { events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 8<<10)
	for {
		// Again each time: the device may have come before the socket was bound.
		if dev := look(); dev != "" {
			return dev, nil
		}
		if _, err := events.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
			if ctx.Err() != nil {
				err = errors.New("the VM has none")
			}
			return "", fmt.Errorf("wait for %s: %w", what, err)
		}
	}
}
