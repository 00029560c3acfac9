package guestinit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guestinit/cgroup"
	"github.com/hyper-run/hyper/internal/guestinit/netconf"
)

// A mount is one line of the table of what a system needs.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// The root of the VM is a tmpfs and not the initial one, of which there is
// no pivot_root(2). These are below it, in order.
var mounts = []mount{
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755"},
	{"proc", "/proc", "proc", safe, ""},
	{"sysfs", "/sys", "sysfs", safe, ""},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", safe, "memory_recursiveprot"},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	{"shm", podShm, "tmpfs", safe, "mode=1777,size=64m"},
}

// Paths of the VM.
const (
	podDir   = "/run/pod"     // what containers of the pod share
	podShm   = "/run/pod/shm" // their /dev/shm
	workDir  = "/run/work"    // where a container is put together, in its own mount namespace
	newRoot  = "/root"
	modsDir  = "/modules"
	cgroupFS = "/sys/fs/cgroup"
	podGroup = "pod" // the cgroup below it that all containers are in
)

// A machine is what boot leaves behind.
type machine struct {
	self    int // this program, to run again as a container's init
	null    *os.File
	cgroups *cgroup.Group // parent of all containers'
	memory  *memoryWatcher
	links   netconf.Links
}

// boot makes a system out of a kernel that has just started its init.
func boot() (*machine, error) {
	syscall.Umask(0) // modes are meant as they are written; processes of containers have their own
	if err := loadModules(); err != nil {
		return nil, err
	}
	self, err := unix.Open("/init", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /init: %w", err)
	}
	if err := switchRoot(); err != nil {
		return nil, err
	}
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(workDir, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", workDir, err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	groups, err := cgroup.Root(cgroupFS, podGroup)
	if err != nil {
		return nil, err
	}
	if err := boundPIDs(groups); err != nil {
		return nil, err
	}
	memory, err := newMemoryWatcher()
	if err != nil {
		return nil, err
	}
	if err := netconf.Loopback(); err != nil {
		return nil, err
	}
	return &machine{self: self, null: null, cgroups: groups, memory: memory}, nil
}

// What is left to hyperstart and the kernel, whatever containers do. (The OOM
// killer spares PID 1 by itself.)
const (
	reserved = 300
	lowPIDs  = 300 // which the kernel gives out once only (RESERVED_PIDS in kernel/pid.c)
)

// boundPIDs bounds how many processes all containers can have together, so
// that hyperstart can always start one.
func boundPIDs(groups *cgroup.Group) error {
	pids, err := sysctlNumber("pid_max")
	if err != nil {
		return err
	}
	threads, err := sysctlNumber("threads-max")
	if err != nil {
		return err
	}
	most := min(pids-lowPIDs, threads)
	most = max(most-reserved, most/2)
	if err := groups.Set(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &most}}); err != nil {
		return fmt.Errorf("limit processes: %w", err)
	}
	return nil
}

func sysctlNumber(name string) (int64, error) {
	b, err := os.ReadFile("/proc/sys/kernel/" + name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", name, err)
	}
	return n, nil
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
	if err == unix.EINVAL && m.data != "" && m.fstype == "cgroup2" {
		err = unix.Mount(m.source, m.target, m.fstype, m.flags, "") // an older kernel
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	return nil
}

// switchRoot replaces the initial root by a tmpfs.
func switchRoot() error {
	fail := func(err error) error { return fmt.Errorf("switch root: %w", err) }
	if err := os.Mkdir(newRoot, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fail(err)
	}
	if err := unix.Mount("tmpfs", newRoot, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fail(err)
	}
	if err := os.Chdir(newRoot); err != nil {
		return fail(err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fail(err)
	}
	if err := unix.Chroot("."); err != nil {
		return fail(err)
	}
	return os.Chdir("/")
}

// loadModules loads what a kernel with modules needs, in the order that the
// initrd names, and then frees their memory.
func loadModules() error {
	order, err := os.ReadFile(filepath.Join(modsDir, "order"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	for line := range bytes.Lines(order) {
		name := strings.TrimSpace(string(line))
		if name == "" {
			continue
		}
		if err := loadModule(filepath.Join(modsDir, name)); err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return os.RemoveAll(modsDir)
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	// Built in after all, or for hardware that is not there.
	if err == syscall.EEXIST || err == syscall.ENODEV {
		return nil
	}
	return err
}
