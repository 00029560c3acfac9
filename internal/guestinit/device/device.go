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
		return find("/sys/class/virtio-ports", "name", name)
	})
}

// serials are where a disk's serial is, and how many bytes come before it.
var serials = map[string]int{"serial": 0 /* virtio-blk */, "device/vpd_pg80": 4 /* SCSI: a header */}

// Disk returns the path of the disk with a serial.
func Disk(ctx context.Context, serial string) (string, error) {
	return wait(ctx, "disk "+serial, func() string { return Disks()[serial] })
}

// Disks returns the paths of all disks by their serials, of which the VM asks
// each disk.
func Disks() map[string]string {
	m := map[string]string{}
	devices, _ := os.ReadDir("/sys/block")
	for _, d := range devices {
		for attribute, skip := range serials {
			b, err := os.ReadFile("/sys/block/" + d.Name() + "/" + attribute)
			if err != nil || len(b) < skip {
				continue
			}
			if serial := strings.Trim(string(b[skip:]), " \n\x00"); serial != "" {
				m[serial] = path(d.Name())
			}
		}
	}
	return m
}

// find returns the device in a class whose attribute is value.
func find(class, attribute, value string) string {
	devices, _ := os.ReadDir(class)
	for _, d := range devices {
		b, err := os.ReadFile(class + "/" + d.Name() + "/" + attribute)
		if err == nil && strings.TrimSpace(string(b)) == value {
			return path(d.Name())
		}
	}
	return ""
}

// path of a device: its name in sysfs has ! for /.
func path(name string) string { return "/dev/" + strings.ReplaceAll(name, "!", "/") }

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
