package hyperd

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/pod"
	"github.com/hyper-run/hyper/internal/store"
	"github.com/hyper-run/hyper/internal/vmm"
)

// A Config is what hyperd was told at start. To add an option: a field here
// with its meaning and unit, a flag in ParseArgs, a line in docs/hyperd.md.
type Config struct {
	Version     string
	ShowVersion bool // print it and exit

	Layout        store.Layout
	Accel         vmm.Accel
	Kernel        string       // path, or "hyperkernel", "stock"; "": the first there is
	Hyperstart    string       // path; "": beside hyperd, or in /usr/local/lib/hyper, /usr/lib/hyper
	QEMU          string       // path; "": found in PATH
	MemMiB        int          // of a pod whose containers have no limit
	CPUs          int          // that containers see
	VMMemMiB      int          // of the usual VM
	VMCPUs        int          // of the usual VM
	NoTemplates   bool         // every VM boots
	Warm          int          // clones of each shape that are kept ready
	Subnet        netip.Prefix // of the default network; zero: a free one
	NetPrefix     string       // of the names of our devices and rules, at most 3 characters; "": hyp
	RemoveNetwork bool         // take the default network off the host and exit
	HostsDir      string       // containerd-style registry settings
	Mirrors       map[string][]string
	Doctor        bool // check the host, print what was found, and exit
	BootTimeout   time.Duration
	Debug         bool
}

// usualCPUs is what the usual VM has, whatever the host has: idle ones cost nothing.
const usualCPUs = 4

// maxWarm bounds the pool: each warm VM takes some 20 MB.
const maxWarm = 100

// hostMiB is the host's memory.
func hostMiB() int {
	var mem unix.Sysinfo_t
	if unix.Sysinfo(&mem) != nil {
		return 4096
	}
	return int(mem.Totalram * uint64(mem.Unit) >> 20)
}

// ParseArgs reads the command line. It writes errors and help to out.
func ParseArgs(args []string, out io.Writer) (Config, error) {
	c := Config{Mirrors: map[string][]string{}}
	fs := flag.NewFlagSet("hyperd", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.StringVar(&c.Layout.Root, "root", store.DefaultLayout.Root, "`directory` of what survives a reboot: images, disks, records")
	fs.StringVar(&c.Layout.Run, "run", store.DefaultLayout.Run, "`directory` of what does not, with the API's socket hyper.sock")
	accel := fs.String("accel", "auto", "how guests run: auto, kvm or tcg")
	fs.StringVar(&c.Kernel, "kernel", "", "guest kernel: a `path`, hyperkernel or stock (default: the first that is there)")
	fs.StringVar(&c.Hyperstart, "hyperstart", "", "`path` of hyperstart (default: beside hyperd)")
	fs.StringVar(&c.QEMU, "qemu", "", "`path` of qemu-system-x86_64 (default: in PATH)")
	fs.IntVar(&c.MemMiB, "default-memory", min(2048, hostMiB()/2), "memory that a container without a limit can use, page cache included, in `MiB`")
	fs.IntVar(&c.CPUs, "default-cpus", min(runtime.NumCPU(), usualCPUs), "CPUs that a container sees, unless --cpus promises it more")
	fs.IntVar(&c.VMMemMiB, "vm-memory", min(4096, hostMiB()), "memory of the usual VM, in `MiB`; nothing of it is taken before it is used")
	fs.IntVar(&c.VMCPUs, "vm-cpus", usualCPUs, "virtual CPUs of the usual VM")
	templates := fs.Bool("templates", true, "start VMs as clones of a template")
	fs.IntVar(&c.Warm, "warm-pool", 1, "how many clones to keep ready, of each shape in use")
	fs.TextVar(&c.Subnet, "subnet", netip.Prefix{}, "IPv4 subnet of the default network in `CIDR` notation (default: a free one)")
	fs.StringVar(&c.NetPrefix, "net-prefix", "", "`prefix` of the names of devices and rules, for several hyperds on one host")
	fs.BoolVar(&c.RemoveNetwork, "remove-network", false, "take the default network (bridge, taps, rules) off the host and exit")
	fs.StringVar(&c.HostsDir, "registry-config", "/etc/hyper/certs.d", "`directory` with HOST/hosts.toml files")
	fs.Func("mirror", "registry mirror as `HOST=URL`; may be repeated", func(v string) error {
		host, url, ok := strings.Cut(v, "=")
		if !ok || host == "" || url == "" {
			return fmt.Errorf("want HOST=URL")
		}
		c.Mirrors[host] = append(c.Mirrors[host], url)
		return nil
	})
	fs.BoolVar(&c.Doctor, "doctor", false, "check this host, say how to mend what is missing, and exit")
	fs.DurationVar(&c.BootTimeout, "boot-timeout", time.Minute, "how long a guest may take to answer")
	fs.BoolVar(&c.ShowVersion, "version", false, "print the version and exit")
	fs.BoolVar(&c.Debug, "debug", false, "log more")
	if err := fs.Parse(args); err != nil {
		return c, err
	}
	c.Accel, c.NoTemplates = vmm.Accel(*accel), !*templates
	if err := c.check(fs.Args()); err != nil {
		fmt.Fprintln(out, "hyperd: cannot start:", err)
		return c, err
	}
	return c, nil
}

func (c *Config) check(rest []string) (err error) {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("unexpected argument %q", rest[0])
	case c.Accel != vmm.AccelAuto && c.Accel != vmm.AccelKVM && c.Accel != vmm.AccelTCG:
		return fmt.Errorf("--accel %s: want auto, kvm or tcg", c.Accel)
	case c.MemMiB < vmm.MinMemMiB:
		return fmt.Errorf("--default-memory %d: a guest needs at least %d MiB", c.MemMiB, vmm.MinMemMiB)
	case len(c.NetPrefix) > 3:
		return fmt.Errorf("--net-prefix %s: longer than 3 characters", c.NetPrefix)
	case c.CPUs < 1 || c.CPUs > runtime.NumCPU():
		return fmt.Errorf("--default-cpus %d: this host has %d", c.CPUs, runtime.NumCPU())
	case c.VMCPUs < c.CPUs || c.VMCPUs > vmm.MaxCPUs:
		return fmt.Errorf("--vm-cpus %d: want %d (--default-cpus) to %d", c.VMCPUs, c.CPUs, vmm.MaxCPUs)
	case c.VMMemMiB < 512 || c.VMMemMiB > vmm.MaxMemMiB:
		return fmt.Errorf("--vm-memory %d: want 512 to %d MiB", c.VMMemMiB, vmm.MaxMemMiB)
	case c.MemMiB > pod.VMRoom(c.VMMemMiB):
		return fmt.Errorf("--default-memory %d: the usual VM has room for %d MiB (--vm-memory)", c.MemMiB, pod.VMRoom(c.VMMemMiB))
	case c.Warm < 0 || c.Warm > maxWarm:
		return fmt.Errorf("--warm-pool %d: want 0 to %d", c.Warm, maxWarm)
	}
	if c.Layout.Root, err = filepath.Abs(c.Layout.Root); err != nil {
		return err
	}
	if c.Layout.Run, err = filepath.Abs(c.Layout.Run); err != nil {
		return err
	}
	const longest = 60 // leaves room for pods/ID/NAME.sock in a unix address
	if len(c.Layout.Run) > longest {
		return fmt.Errorf("--run %s: longer than %d bytes, which is too long for sockets in it", c.Layout.Run, longest)
	}
	return nil
}

// findHyperstart returns the path of hyperstart.
func (c *Config) findHyperstart() (string, error) {
	if c.Hyperstart != "" {
		// Not in the system's words: those would make a start end with 127,
		// as if the container's program were missing.
		if _, err := os.Stat(c.Hyperstart); errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("hyperstart not found as %s (--hyperstart)", c.Hyperstart)
		}
		return c.Hyperstart, nil
	}
	var tried []string
	if self, err := os.Executable(); err == nil {
		tried = append(tried, filepath.Join(filepath.Dir(self), "hyperstart"))
	}
	tried = append(tried, "/usr/local/lib/hyper/hyperstart", "/usr/lib/hyper/hyperstart")
	for _, p := range tried {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("hyperstart not found, neither as %s (build it with make build, or give --hyperstart)", strings.Join(tried, " nor "))
}
