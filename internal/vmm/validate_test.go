package vmm

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestValidate(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	file := os.Stdin
	good := func() Config {
		return Config{
			ID: "pod-1", Dir: "/run/hyper/pods/1", Kernel: "/boot/vmlinux", CPUs: 1, MemMiB: 64,
			Disks: []Disk{{ID: "a"}, {ID: "b"}},
			NICs:  []NIC{{Tap: os.Stdin, MAC: mac}},
		}
	}
	clone := func(c *Config) { c.Kernel, c.Restore = "", &Saved{Memory: file, State: file} }
	for name, fit := range map[string]func(*Config){
		"to be saved": func(c *Config) { c.Memory = file },
		"clone":       clone,
		"clone, with a kernel": func(c *Config) {
			clone(c)
			c.Kernel = "/boot/vmlinux"
		},
		"some slots filled": func(c *Config) { c.Disks[1].Path = "/disk" },
		"cgroups":           func(c *Config) { c.Procs = []*os.File{file, file} },
	} {
		t.Run(name, func(t *testing.T) {
			c := good()
			fit(&c)
			if err := c.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
	for name, spoil := range map[string]func(*Config){
		"":                    func(*Config) {},
		"id with a comma":     func(c *Config) { c.ID = "a,b" },
		"id upper case":       func(c *Config) { c.ID = "A" },
		"no id":               func(c *Config) { c.ID = "" },
		"relative directory":  func(c *Config) { c.Dir = "x" },
		"long directory":      func(c *Config) { c.Dir = "/" + strings.Repeat("x", 80) },
		"no kernel":           func(c *Config) { c.Kernel = "" },
		"no CPU":              func(c *Config) { c.CPUs = 0 },
		"65 CPUs":             func(c *Config) { c.CPUs = 65 },
		"little memory":       func(c *Config) { c.MemMiB = 63 },
		"much memory":         func(c *Config) { c.MemMiB = 1<<20 + 1 },
		"many disks":          func(c *Config) { c.Disks = make([]Disk, 21) },
		"many NICs":           func(c *Config) { c.NICs = make([]NIC, 5) },
		"newline in cmdline":  func(c *Config) { c.Cmdline = "a\nb" },
		"long cmdline":        func(c *Config) { c.Cmdline = strings.Repeat("x", 2000) },
		"unknown accelerator": func(c *Config) { c.Accel = "hax" },
		"unknown machine":     func(c *Config) { c.Machine = "isapc" },
		"disk id with comma":  func(c *Config) { c.Disks[0].ID = "a,readonly=off" },
		"disk id twice":       func(c *Config) { c.Disks[1].ID = "a" },
		"no tap":              func(c *Config) { c.NICs[0].Tap = nil },
		"multicast MAC":       func(c *Config) { c.NICs[0].MAC = net.HardwareAddr{1, 0, 0, 0, 0, 1} },
		"short MAC":           func(c *Config) { c.NICs[0].MAC = mac[:5] },
		"MTU":                 func(c *Config) { c.NICs[0].MTU = 67 },
		"no cgroup.procs":     func(c *Config) { c.Procs = []*os.File{nil} },
		"clone of no memory":  func(c *Config) { c.Restore = &Saved{State: file} },
		"clone of no state":   func(c *Config) { c.Restore = &Saved{Memory: file} },
		"clone to be saved": func(c *Config) {
			clone(c)
			c.Memory = file
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := good()
			spoil(&c)
			switch err := c.Validate(); {
			case name == "" && err != nil:
				t.Error(err)
			case name != "" && !errdefs.IsInvalidArgument(err):
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestLastLines(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{
		{"", 2, ""},
		{"a\r\nb\r\nc\r\n", 2, "b\nc"},
		{"one", 2, "one"},
		{"\x1b[31mred\x1b[0m\x07 \xff\tå\n", 1, "[31mred[0m \tå"},
	} {
		if got := LastLines([]byte(c.in), c.n); got != c.want {
			t.Errorf("LastLines(%q, %d) = %q, want %q", c.in, c.n, got, c.want)
		}
	}
}

func TestValidateDisk(t *testing.T) {
	for d, good := range map[Disk]bool{
		{ID: "v1-data", Path: "/disk"}:               true,
		{ID: "v1-data"}:                              false,
		{Path: "/disk"}:                              false,
		{ID: "a,b", Path: "/disk"}:                   false,
		{ID: strings.Repeat("x", 21), Path: "/disk"}: false,
	} {
		if err := d.Validate(); good != (err == nil) || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: got %v", d, err)
		}
	}
}
