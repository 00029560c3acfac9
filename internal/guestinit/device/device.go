// Package device finds the VM's devices by what the host called them, and
// waits for those that are still to come.
package device

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

const blockDir = "/sys/block"

// serials are where a disk's serial is, and how many bytes come before it.
var serials = map[string]int{"serial": 0 /* virtio-blk */, "device/vpd_pg80": 4 /* SCSI: a header */}

// Disk returns the path of the disk with a serial, which is none of known.
func Disk(ctx context.Context, serial string, known map[string]string) (string, error) {
	return wait(ctx, "disk "+serial, func() string { return Disks(known)[serial] })
}

// Disks returns the paths of all disks by their serials, without those of
// known: the VM asks each disk.
func Disks(known map[string]string) map[string]string { return disks(blockDir, known) }

func disks(dir string, known map[string]string) map[string]string {
	skip := map[string]bool{}
	for dev := range maps.Values(known) {
		skip[dev] = true
	}
	m := map[string]string{}
	devices, _ := os.ReadDir(dir)
	for _, d := range devices {
		dev := path(d.Name())
		if skip[dev] {
			continue
		}
		for attribute, header := range serials {
			b, err := os.ReadFile(dir + "/" + d.Name() + "/" + attribute)
			if err != nil || len(b) < header {
				continue
			}
			if serial := strings.Trim(string(b[header:]), " \n\x00"); serial != "" {
				m[serial] = dev
			}
		}
	}
	return m
}

// Stays says whether a disk is there as long as the VM: all but SCSI disks,
// which come and go, and whose names others then have.
func Stays(dev string) bool { return !strings.HasPrefix(dev, "/dev/sd") }

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
