// Command init is testguest as PID 1 of a VM.
package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/hyper-run/hyper/internal/vmm/vmmtest/testguest"
)

func main() {
	err := run()
	machine{}.Console("test guest: " + fmt.Sprint(err))
	machine{}.Stop("panic")
	select {}
}

func run() error {
	for _, m := range []struct{ kind, dir string }{{"devtmpfs", "/dev"}, {"sysfs", "/sys"}, {"proc", "/proc"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	ports, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return err
	}
	for _, p := range ports {
		if name, err := os.ReadFile(p); err == nil && strings.TrimSpace(string(name)) == "hyper.guest" {
			return serve("/dev/" + filepath.Base(filepath.Dir(p)))
		}
	}
	return fmt.Errorf("no port among %v", ports)
}

func serve(dev string) error {
	// Not through os.OpenFile: a port is best read by a thread that blocks.
	fd, err := syscall.Open(dev, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dev, err)
	}
	port := os.NewFile(uintptr(fd), dev)
	for !testguest.Serve(port, machine{}) {
		// A port reads as ended, and is always ready, while the host is away.
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

type machine struct{}

// memory is what the machine was told to remember.
var memory string

func (machine) Remember(text string) { memory = text }
func (machine) Recall() string       { return memory }

func (machine) OpenDisk(id string, flags int) (testguest.Disk, error) {
	disks, err := filepath.Glob("/sys/block/*")
	if err != nil {
		return nil, err
	}
	for _, d := range disks {
		serial, err := os.ReadFile(d + "/serial") // of virtio-blk
		if err != nil {
			// Of SCSI: its page 0x80 of vital product data, with a header.
			if serial, err = os.ReadFile(d + "/device/vpd_pg80"); err != nil || len(serial) < 4 {
				continue
			}
			serial = serial[4:]
		}
		if strings.Trim(string(serial), " \n\x00") == id {
			return os.OpenFile("/dev/"+filepath.Base(d), flags, 0)
		}
	}
	return nil, fmt.Errorf("no disk %q among %v", id, disks)
}

func (machine) Console(line string) error {
	return os.WriteFile("/dev/kmsg", []byte("<0>"+line+"\n"), 0)
}

func (machine) Fact(name string) string {
	switch name {
	case "cpus":
		return fmt.Sprint(runtime.NumCPU())
	case "clocksource":
		b, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(string(b))
	case "macs":
		ifs, err := net.Interfaces()
		if err != nil {
			return err.Error()
		}
		var macs []string
		for _, i := range ifs {
			if len(i.HardwareAddr) == 6 && i.Flags&net.FlagLoopback == 0 {
				macs = append(macs, fmt.Sprintf("%s/%d", i.HardwareAddr, i.MTU))
			}
		}
		return strings.Join(macs, " ")
	}
	return "unknown"
}

func (machine) Stop(how string) {
	switch how {
	case "poweroff":
		syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	case "reboot":
		syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	case "panic":
		os.WriteFile("/proc/sys/kernel/sysrq", []byte("1"), 0)
		os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
		os.Exit(1) // without sysrq: the end of PID 1 is a panic too
	}
}
