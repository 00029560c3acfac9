package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/vmm"
)

// host is a file tree and functions of a host where all is well.
type host struct {
	t    *testing.T
	opts Options
	caps vmm.Capabilities
	err  error // of VMM
	free uint64
	bin  map[string]string
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{
		t:    t,
		caps: vmm.Capabilities{Version: "7.2.22", Accel: vmm.AccelKVM},
		free: 50 << 30,
		bin:  map[string]string{"mke2fs": "/usr/sbin/mke2fs", "virtiofsd": "/usr/bin/virtiofsd"},
	}
	root := t.TempDir()
	h.opts = Options{
		Root:       root,
		VMM:        func(context.Context) (vmm.Capabilities, error) { return h.caps, h.err },
		Kernel:     func() (string, error) { return "hyperkernel 6.12.117", nil },
		Hyperstart: func() (string, error) { return filepath.Join(root, "hyperstart"), nil },
		Network:    func() error { return nil },
		Blockers:   func() ([]network.Blocker, error) { return nil, nil },
		LookPath: func(name string) (string, error) {
			if p, ok := h.bin[name]; ok {
				return p, nil
			}
			return "", os.ErrNotExist
		},
		DiskFree: func(string) (uint64, error) { return h.free, nil },
	}
	h.write("/hyperstart", "\x7fELF")
	h.write("/proc/meminfo", "MemTotal:       8000000 kB\nMemAvailable:    4194304 kB\n")
	h.write("/proc/mounts", "none /sys/fs/cgroup cgroup2 rw 0 0\n")
	h.write("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
	h.write("/proc/sys/kernel/osrelease", "6.1.0-40-amd64\n")
	h.write("/proc/sys/net/ipv4/ip_forward", "1\n")
	h.write("/lib/modules/6.1.0-40-amd64/modules.builtin", "kernel/net/bridge/bridge.ko\n")
	dep := ""
	for _, m := range needed[:len(needed)-1] {
		dep += "kernel/x/" + m + ".ko: kernel/y/other.ko\n"
	}
	h.write("/lib/modules/6.1.0-40-amd64/modules.dep", dep)
	h.write("/sys/module/"+needed[len(needed)-1]+"/refcnt", "0")
	h.write("/dev/net/tun", "")
	return h
}

func (h *host) write(name, content string) {
	h.t.Helper()
	path := filepath.Join(h.opts.Root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) remove(name string) {
	h.t.Helper()
	if err := os.RemoveAll(filepath.Join(h.opts.Root, name)); err != nil {
		h.t.Fatal(err)
	}
}

func TestHealthy(t *testing.T) {
	h := newHost(t)
	results := Check(t.Context(), h.opts)
	for _, r := range results {
		if r.Status != OK || r.Fix != "" || r.Detail == "" {
			t.Errorf("%+v", r)
		}
	}
	if len(results) != 14 || !Healthy(results) {
		t.Errorf("%d results, healthy: %v", len(results), Healthy(results))
	}
}

func TestFindings(t *testing.T) {
	boom := errors.New("boom")
	tests := []struct {
		title        string
		harm         func(h *host)
		name         string
		status       Status
		detail, hint string // must be contained
	}{
		{"no QEMU", func(h *host) { h.err = boom }, "qemu", Fail, "boom", "apt-get install qemu-system-x86"},
		{"no KVM, CPU can, module missing", func(h *host) {
			h.caps.Accel, h.caps.AccelWhy = vmm.AccelTCG, "/dev/kvm does not exist"
			h.write("/proc/cpuinfo", "flags : fpu vmx sse\n")
		}, "accelerator", Warn, "tcg: /dev/kvm does not exist", "modprobe kvm_intel"},
		{"no KVM on AMD", func(h *host) {
			h.caps.Accel = vmm.AccelTCG
			h.write("/proc/cpuinfo", "flags : fpu svm\n")
		}, "accelerator", Warn, "tcg", "modprobe kvm_amd"},
		{"no KVM, CPU can't", func(h *host) {
			h.caps.Accel = vmm.AccelTCG
			h.write("/proc/cpuinfo", "flags : fpu\n")
		}, "accelerator", Warn, "tcg", "firmware"},
		{"no guest kernel", func(h *host) { h.opts.Kernel = func() (string, error) { return "", boom } }, "guest kernel", Fail, "boom", "make kernel"},
		{"no hyperstart", func(h *host) { h.remove("/hyperstart") }, "hyperstart", Fail, "no such file", "make build"},
		{"empty hyperstart", func(h *host) { h.write("/hyperstart", "") }, "hyperstart", Fail, "no program", "make build"},
		{"no mke2fs", func(h *host) { delete(h.bin, "mke2fs") }, "mke2fs", Fail, "PATH", "apt-get install e2fsprogs"},
		{"mke2fs not in PATH", func(h *host) {
			delete(h.bin, "mke2fs")
			h.write("/usr/sbin/mke2fs", "x")
		}, "mke2fs", Fail, "PATH", "export PATH"},
		{"no virtiofsd", func(h *host) { delete(h.bin, "virtiofsd") }, "virtiofsd", Warn, "host directories", "apt-get install virtiofsd"},
		{"no virtiofsd on Debian 12", func(h *host) {
			delete(h.bin, "virtiofsd")
			h.write("/etc/os-release", "ID=debian\nVERSION_ID=\"12\"\n")
		}, "virtiofsd", Warn, "", "qemu-system-common"},
		{"virtiofsd outside of PATH", func(h *host) {
			delete(h.bin, "virtiofsd")
			h.write("/usr/lib/qemu/virtiofsd", "x")
		}, "virtiofsd", OK, "/usr/lib/qemu/virtiofsd", ""},
		{"no memory", func(h *host) { h.write("/proc/meminfo", "MemAvailable: 100000 kB\n") }, "memory", Fail, "97 MiB available", "hyper run -m"},
		{"little memory", func(h *host) { h.write("/proc/meminfo", "MemAvailable: 500000 kB\n") }, "memory", Warn, "488 MiB available", "hyper run -m"},
		{"odd meminfo", func(h *host) { h.write("/proc/meminfo", "MemAvailable: x kB\n") }, "memory", Warn, "x", "/proc"},
		{"old meminfo", func(h *host) { h.write("/proc/meminfo", "") }, "memory", Warn, "MemAvailable", "/proc"},
		{"disk full", func(h *host) { h.free = 100 << 20 }, "disk", Fail, "100 MiB free in /var/lib/hyper", "hyper system prune"},
		{"disk nearly full", func(h *host) { h.free = 3 << 30 }, "disk", Warn, "3.0 GiB free", "hyper system prune"},
		{"disk unknown", func(h *host) { h.opts.DiskFree = func(string) (uint64, error) { return 0, boom } }, "disk", Fail, "boom", ""},
		{"no cgroups", func(h *host) { h.write("/proc/mounts", "proc /proc proc rw 0 0\n") }, "cgroups", Warn, "not mounted", "mount -t cgroup2"},
		{"cgroups v1", func(h *host) {
			h.write("/proc/mounts", "c /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0\nc /sys/fs/cgroup/memory cgroup rw,memory 0 0\n")
		}, "cgroups", OK, "version 1", ""},
		{"hybrid cgroups", func(h *host) {
			h.write("/sys/fs/cgroup/unified/cgroup.controllers", "hugetlb\n")
			h.write("/proc/mounts", "c /sys/fs/cgroup/unified cgroup2 rw 0 0\nc /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\nc /sys/fs/cgroup/memory cgroup rw,memory 0 0\n")
		}, "cgroups", OK, "hybrid", ""},
		{"no memory controller", func(h *host) { h.write("/sys/fs/cgroup/cgroup.controllers", "cpu io\n") }, "cgroups", Warn, "without memory", "cgroup_enable=memory"},
		{"modules gone", func(h *host) { h.write("/proc/sys/kernel/osrelease", "6.1.0-39-amd64\n") }, "kernel modules", Warn, "6.1.0-39-amd64 are gone", "reboot"},
		{"no modules at all", func(h *host) { h.remove("/lib/modules") }, "kernel modules", OK, "built in", ""},
		{"module missing", func(h *host) { h.write("/lib/modules/6.1.0-40-amd64/modules.dep", "kernel/nf_tables.ko:\n") }, "kernel modules", Warn, "tun, nft_ct", "linux-image-6.1.0-40-amd64"},
		{"no tun", func(h *host) { h.remove("/dev/net") }, "tun", Fail, "no such file", "modprobe tun"},
		{"no tun node", func(h *host) {
			h.remove("/dev/net")
			h.write("/sys/class/misc/tun/dev", "10:200")
		}, "tun", Fail, "no such file", "mknod"},
		{"no nftables", func(h *host) {
			h.opts.Network = func() error {
				return fmt.Errorf("x: %w", &network.UnavailableError{Err: boom, Fix: "modprobe nft_masq"})
			}
		}, "nftables", Fail, "boom", "modprobe nft_masq"},
		{"nftables, any other error", func(h *host) { h.opts.Network = func() error { return boom } }, "nftables", Fail, "boom", "modprobe nf_tables"},
		{"forwarding off", func(h *host) { h.write("/proc/sys/net/ipv4/ip_forward", "0\n") }, "forwarding", OK, "when it starts", ""},
		{"forwarding turned off", func(h *host) {
			h.write("/proc/sys/net/ipv4/ip_forward", "0\n")
			h.write("/sys/class/net/hyper0/mtu", "1500")
		}, "forwarding", Fail, "turned off", "sysctl -w net.ipv4.ip_forward=1"},
		{"Docker drops", func(h *host) {
			h.opts.Blockers = func() ([]network.Blocker, error) {
				return []network.Blocker{{Where: "ip filter FORWARD (Docker)", Fix: "iptables -I DOCKER-USER"}}, nil
			}
		}, "firewall", Fail, "ip filter FORWARD (Docker)", "iptables -I DOCKER-USER"},
		{"firewalls can't be listed", func(h *host) {
			h.opts.Blockers = func() ([]network.Blocker, error) { return nil, boom }
		}, "firewall", Warn, "boom", "root"},
	}
	for _, tt := range tests {
		t.Run(tt.title, func(t *testing.T) {
			h := newHost(t)
			tt.harm(h)
			results := Check(t.Context(), h.opts)
			found := false
			for _, r := range results {
				if r.Name != tt.name {
					if r.Status != OK {
						t.Errorf("also %+v", r)
					}
					continue
				}
				found = true
				if r.Status != tt.status || !strings.Contains(r.Detail, tt.detail) || !strings.Contains(r.Fix, tt.hint) {
					t.Errorf("%+v, want %s, %q, fix %q", r, tt.status, tt.detail, tt.hint)
				}
				if r.Status == OK && r.Fix != "" {
					t.Errorf("a fix for what is well: %+v", r)
				}
			}
			if !found {
				t.Errorf("no result %q", tt.name)
			}
			if Healthy(results) != (tt.status != Fail) {
				t.Errorf("healthy: %v", Healthy(results))
			}
		})
	}
}

// TestEmptyHost: whatever is missing, each finding says so.
func TestEmptyHost(t *testing.T) {
	results := Check(t.Context(), Options{
		Root: t.TempDir(), LookPath: func(string) (string, error) { return "", os.ErrNotExist },
	})
	if Healthy(results) || len(results) < 8 {
		t.Errorf("%+v", results)
	}
	for _, r := range results {
		if r.Detail == "" || (r.Status != OK && r.Fix == "") {
			t.Errorf("%+v", r)
		}
	}
}

func TestThisHost(t *testing.T) {
	for _, r := range Check(t.Context(), Options{}) {
		if r.Detail == "" {
			t.Errorf("%+v", r)
		}
	}
}

func TestWrite(t *testing.T) {
	var b strings.Builder
	err := Write(&b, []Result{
		{"qemu", OK, "version 7.2.22", ""},
		{"guest kernel", Fail, "not found", "make kernel"},
		{"tun", Warn, "odd", ""},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `ok    qemu          version 7.2.22
fail  guest kernel  not found
                    fix: make kernel
warn  tun           odd
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine("start: refused\n  console:\n\n  panic\n"); got != "start: refused; console:; panic" {
		t.Errorf("%q", got)
	}
}
