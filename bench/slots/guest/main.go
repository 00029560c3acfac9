// Command guest is the init of the VMs that bench/slots measures. It does
// what the host asks over a virtio-serial port, a line for a request and a line for an
// answer ("ok NUMBER" or "error TEXT"), and powers off when the host goes.
//
//	slots blk|pmem N   waits for N empty slots and remembers their names
//	mount I            mounts the EROFS image in slot I and reads its file "small"
//	check              says whether the mount uses DAX, 1 or 0
//	read N             reads all files N times; the answer counts bytes
//	free               is how many bytes of memory are free
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds the wait for devices, some of which appear after init has
// been started. Only templates wait; their clones find everything in place.
const patience = 20 * time.Second

const mountPoint = "/mnt"

func main() {
	if err := run(); err != nil {
		fmt.Println("guest:", err)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range []struct{ dir, fs string }{{"/dev", "devtmpfs"}, {"/proc", "proc"}, {"/sys", "sysfs"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := os.MkdirAll(mountPoint, 0o755); err != nil {
		return err
	}
	names, err := wait("/dev/vport*", 1)
	if err != nil {
		return err
	}
	// Blocking, since a poller only adds to what an emulated guest has to do.
	fd, err := unix.Open(names[0], unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", names[0], err)
	}
	return serve(os.NewFile(uintptr(fd), names[0]))
}

func serve(port io.ReadWriter) error {
	g := guest{buf: make([]byte, 128<<10)}
	requests := bufio.NewScanner(port)
	for requests.Scan() {
		answer := "ok "
		if n, err := g.do(requests.Text()); err != nil {
			answer = fmt.Sprintf("error %v\n", err)
		} else {
			answer += fmt.Sprintln(n)
		}
		if _, err := io.WriteString(port, answer); err != nil {
			return err
		}
	}
	return requests.Err()
}

type guest struct {
	kind  string
	slots []string // paths of their devices
	buf   []byte
}

func (g *guest) do(request string) (int64, error) {
	verb, rest, _ := strings.Cut(request, " ")
	switch verb {
	case "slots":
		var n int
		if _, err := fmt.Sscan(rest, &g.kind, &n); err != nil {
			return 0, err
		}
		return int64(n), g.find(n)
	case "mount":
		var i int
		if _, err := fmt.Sscan(rest, &i); err != nil {
			return 0, err
		}
		return g.mount(i)
	case "check":
		return usesDAX()
	case "read":
		var times int
		if _, err := fmt.Sscan(rest, &times); err != nil {
			return 0, err
		}
		return g.readAll(times)
	case "free":
		var info unix.Sysinfo_t
		err := unix.Sysinfo(&info)
		return int64(info.Freeram) * int64(info.Unit), err
	}
	return 0, fmt.Errorf("unknown request %q", request)
}

// wait returns the n paths that match a pattern.
func wait(pattern string, n int) ([]string, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		names, err := filepath.Glob(pattern)
		if err != nil || len(names) == n {
			return names, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%d of %s after %v, want %d", len(names), pattern, patience, n)
		}
	}
}

// find puts the devices of all slots in order: by serial, or, as pmem has none
// and numbers them as they come, by PCI address.
func (g *guest) find(n int) error {
	pattern := map[string]string{"blk": "/sys/block/vd*", "pmem": "/sys/block/pmem*"}[g.kind]
	names, err := wait(pattern, n)
	if err != nil {
		return err
	}
	key := map[string]string{}
	for _, name := range names {
		if g.kind == "blk" {
			serial, err := os.ReadFile(name + "/serial")
			if err != nil {
				return err
			}
			key[name] = string(serial)
		} else if key[name], err = filepath.EvalSymlinks(name); err != nil {
			return err
		}
	}
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(key[a], key[b]) })
	g.slots = nil
	for _, name := range names {
		g.slots = append(g.slots, "/dev/"+filepath.Base(name))
	}
	return nil
}

func (g *guest) mount(i int) (int64, error) {
	if i >= len(g.slots) {
		return 0, fmt.Errorf("there are %d slots", len(g.slots))
	}
	options := ""
	if g.kind == "pmem" {
		options = "dax=always"
	}
	if err := unix.Mount(g.slots[i], mountPoint, "erofs", unix.MS_RDONLY, options); err != nil {
		return 0, fmt.Errorf("mount %s: %w", g.slots[i], err)
	}
	return g.readFile(mountPoint + "/small")
}

// usesDAX looks at what the kernel made of the option: it mounts without if it
// has to.
func usesDAX() (int64, error) {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(mounts)) {
		words := strings.Fields(line)
		if len(words) > 3 && words[1] == mountPoint {
			if slices.Contains(strings.Split(words[3], ","), "dax=always") {
				return 1, nil
			}
			return 0, nil
		}
	}
	return 0, errors.New("no image is mounted")
}

func (g *guest) readAll(times int) (sum int64, err error) {
	for range times {
		err = filepath.WalkDir(mountPoint, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			n, err := g.readFile(path)
			sum += n
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return sum, nil
}

func (g *guest) readFile(path string) (sum int64, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, g.buf)
		if err != nil {
			return sum, fmt.Errorf("read %s: %w", path, err)
		}
		if n == 0 {
			return sum, nil
		}
		sum += int64(n)
	}
}
