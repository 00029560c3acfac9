// Command guest is PID 1 of the driver's own tests: a testguest with facts
// about memory and disks that take some doing.
package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/hyper-run/hyper/internal/vmm/vmmtest/testguest"
)

func main() {
	err := run()
	_ = os.WriteFile("/dev/kmsg", []byte("<0>guest: "+fmt.Sprint(err)+"\n"), 0)
	os.Exit(1)
}

func run() error {
	for dir, kind := range map[string]string{"/dev": "devtmpfs", "/sys": "sysfs", "/proc": "proc"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(kind, dir, kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	fd, err := syscall.Open("/dev/vport0p1", syscall.O_RDWR, 0)
	if err != nil {
		if fd, err = syscall.Open("/dev/vport1p1", syscall.O_RDWR, 0); err != nil {
			return err
		}
	}
	port := os.NewFile(uintptr(fd), "port")
	for {
		testguest.Serve(port, machine{})
		time.Sleep(10 * time.Millisecond)
	}
}

type machine struct{}

func (machine) Console(string) error { return nil }
func (machine) Remember(string)      {}
func (machine) Recall() string       { return "" }
func (machine) Stop(string)          {}

func (machine) OpenDisk(id string, flags int) (testguest.Disk, error) { return open(id, flags) }

func open(id string, flags int) (*os.File, error) {
	for _, attribute := range []string{"device/vpd_pg80", "serial"} { // of SCSI, of virtio-blk
		files, _ := filepath.Glob("/sys/block/*/" + attribute)
		for _, f := range files {
			b, err := os.ReadFile(f)
			if attribute != "serial" && len(b) > 4 {
				b = b[4:] // a header
			}
			if err == nil && strings.Trim(string(b), " \n\x00") == id {
				return os.OpenFile("/dev/"+strings.Split(f, "/")[3], flags, 0)
			}
		}
	}
	return nil, fmt.Errorf("no disk %q", id)
}

func (machine) Fact(name string) string {
	args := strings.Fields(name)
	number := func(i int) int {
		if i >= len(args) {
			return 0
		}
		n, _ := strconv.Atoi(args[i])
		return n
	}
	switch args[0] {
	case "macs":
		ifs, _ := net.Interfaces()
		return fmt.Sprint(ifs)
	case "use":
		return use(number(1) << 20)
	case "discard":
		return discard(args[1], number(2), number(3))
	case "await":
		return await(args[1])
	case "throughput":
		return throughput(args[1], number(2), number(3), number(4))
	}
	return "unknown"
}

// use takes memory, writes to all of it, and frees it.
func use(size int) string {
	m, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
	if err != nil {
		return err.Error()
	}
	for i := 0; i < size; i += 4096 {
		m[i] = 1
	}
	if err := syscall.Munmap(m); err != nil {
		return err.Error()
	}
	return "ok"
}

// await waits for a disk as hyperstart does, by the kernel's events.
func await(id string) string {
	const kobjectUevent = 15 // NETLINK_KOBJECT_UEVENT
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_DGRAM, kobjectUevent)
	if err == nil {
		defer syscall.Close(fd)
		err = syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: 1})
	}
	for event := make([]byte, 8<<10); err == nil; {
		if f, err := open(id, os.O_RDONLY); err == nil {
			f.Close()
			return "ok"
		}
		_, err = syscall.Read(fd, event)
	}
	return err.Error()
}

// discard is BLKDISCARD.
func discard(id string, offset, size int) string {
	f, err := open(id, os.O_RDWR)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	span := [2]uint64{uint64(offset), uint64(size)}
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), 0x1277, uintptr(unsafe.Pointer(&span))); errno != 0 {
		return errno.Error()
	}
	return "ok"
}

// throughput reads size MiB in blocks of block KiB, past the page cache, with
// some threads, and answers MiB/s.
func throughput(id string, size, block, threads int) string {
	start := time.Now()
	var wg sync.WaitGroup
	var failed error
	for t := range threads {
		wg.Go(func() {
			f, err := open(id, os.O_RDONLY|syscall.O_DIRECT)
			if err != nil {
				failed = err
				return
			}
			defer f.Close()
			b, _ := syscall.Mmap(-1, 0, block<<10, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
			defer syscall.Munmap(b)
			for at := t * block << 10; at < size<<20; at += threads * block << 10 {
				if _, err := f.ReadAt(b, int64(at)); err != nil {
					failed = err
					return
				}
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return failed.Error()
	}
	return fmt.Sprintf("%.1f", float64(size)/time.Since(start).Seconds())
}
