package qemu

import (
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/hyper-run/hyper/internal/vmm"
)

var update = flag.Bool("update", false, "write the golden files")

func TestArgv(t *testing.T) {
	small := spec{
		ID: "pod-1", Accel: vmm.AccelTCG, Machine: vmm.MachineMicroVM, TSCKHz: 2300000,
		CPUs: 1, MemMiB: 128, Sandbox: true, KernelFD: 3, QMPFD: 4, GuestFD: 5,
	}
	full := small
	full.CPUs, full.MemMiB, full.InitrdFD, full.Cmdline = 4, 4096, 6, "hyper.log=debug quoted=\"a b\""
	full.Disks = []diskSpec{{ID: "layer", FD: 7, ReadOnly: true}, {ID: "upper", FD: 8, Device: true}}
	full.NICs = []nicSpec{{TapFD: 9, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1400}}
	q35 := full
	q35.Machine, q35.TSCKHz, q35.Plug = vmm.MachineQ35, 0, true
	kvm := full
	kvm.Accel, kvm.Sandbox = vmm.AccelKVM, false
	kvm.NICs = []nicSpec{{TapFD: 9, VhostFD: 10, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}
	template := full
	template.MemoryFD, template.Plug = 10, true
	template.Disks = []diskSpec{{ID: "l0", ReadOnly: true}, {ID: "w0"}}
	clone := template
	clone.Clone, clone.KernelFD, clone.InitrdFD = true, 0, 0
	clone.Disks = []diskSpec{{ID: "l0", FD: 7, ReadOnly: true}, {ID: "w0"}}
	for name, s := range map[string]spec{
		"small": small, "full": full, "q35": q35, "kvm": kvm, "template": template, "clone": clone,
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(s.argv(), "\n") + "\n"
			path := filepath.Join("testdata", name+".argv")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("arguments (-want +got; go test -update writes them):\n%s", d)
			}
		})
	}
}

func TestMachineFor(t *testing.T) {
	for _, c := range []struct {
		machine     vmm.Machine
		disks, nics int
		plug        bool
		accel       vmm.Accel
		constantTSC bool
		want        vmm.Machine // "": an error
	}{
		{"", 16, 1, false, vmm.AccelTCG, true, vmm.MachineMicroVM},
		{vmm.MachineAuto, 16, 1, false, vmm.AccelKVM, false, vmm.MachineMicroVM},
		{vmm.MachineAuto, 15, 1, true, vmm.AccelKVM, false, vmm.MachineMicroVM},
		{vmm.MachineAuto, 16, 1, true, vmm.AccelKVM, false, vmm.MachineQ35},
		{vmm.MachineAuto, 16, 2, false, vmm.AccelTCG, true, vmm.MachineQ35},
		{vmm.MachineAuto, 1, 1, false, vmm.AccelTCG, false, vmm.MachineQ35},
		{vmm.MachineAuto, vmm.MaxDisks, vmm.MaxNICs, true, vmm.AccelTCG, true, vmm.MachineQ35},
		{vmm.MachineQ35, 0, 0, false, vmm.AccelTCG, true, vmm.MachineQ35},
		{vmm.MachineMicroVM, 1, 0, false, vmm.AccelTCG, false, vmm.MachineMicroVM},
		{vmm.MachineMicroVM, 16, 2, false, vmm.AccelTCG, true, ""},
	} {
		cfg := vmm.Config{Machine: c.machine, Plug: c.plug, Disks: make([]vmm.Disk, c.disks), NICs: make([]vmm.NIC, c.nics)}
		got, err := machineFor(cfg, c.accel, c.constantTSC)
		if got != c.want || (err != nil) != (c.want == "") || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: got %q, %v", c, got, err)
		}
	}
}

func TestProgramFor(t *testing.T) {
	full, light := program{path: "full", sandbox: true}, program{path: "light"}
	for _, c := range []struct {
		h       host
		accel   vmm.Accel
		machine vmm.Machine
		want    program
	}{
		{host{full: full, light: &light}, vmm.AccelKVM, vmm.MachineMicroVM, light},
		{host{full: full, light: &light}, vmm.AccelKVM, vmm.MachineQ35, full}, // light has no virtio on PCI
		{host{full: full, light: &light}, vmm.AccelTCG, vmm.MachineMicroVM, full},
		{host{full: full}, vmm.AccelKVM, vmm.MachineMicroVM, full},
	} {
		if got := c.h.programFor(c.accel, c.machine); got != c.want {
			t.Errorf("%s, %s: got %+v", c.accel, c.machine, got)
		}
	}
}

func TestIdentity(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qemu")
	identity := func(content string, accel vmm.Accel) string {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
		// Of the same age, as another build in a package may be.
		if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		h := host{full: program{path: path, version: "7.2.22"}, caps: vmm.Capabilities{Accel: accel}}
		id, err := h.identity()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	first := identity("one", vmm.AccelTCG)
	if again := identity("one", vmm.AccelTCG); again != first {
		t.Errorf("first %q, then %q", first, again)
	}
	if identity("other", vmm.AccelTCG) == first || identity("one", vmm.AccelKVM) == first {
		t.Error("another build or accelerator has the same identity")
	}
	if got := string(cpuModel([]byte("x: y\nmodel name\t: A CPU @ 2 GHz\nflags\t: a b\n"))); got != "A CPU @ 2 GHz" {
		t.Errorf("model %q", got)
	}
}

func TestParseVersion(t *testing.T) {
	for in, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c)": "7.2.22",
		"QEMU emulator version 10.0.2\n":                                             "10.0.2",
		"QEMU emulator version 9.2\n":                                                "9.2",
		"QEMU emulator version 7.1.0\n":                                              "",
		"QEMU emulator version x.y\n":                                                "",
		"QEMU emulator version 8\n":                                                  "",
		"":                                                                           "",
	} {
		got, err := parseVersion([]byte(in))
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
}

func TestExitOf(t *testing.T) {
	const oops = "[    1.0] Kernel panic - not syncing: Attempted to kill init!\x1b[2J exitcode=0x0\r\n[    1.1] ---[ end"
	for _, c := range []struct {
		cause, console string
		want           vmm.ExitReason
		detail         string
	}{
		{"guest-shutdown", "[ 1.0] reboot: Power down\r\n", vmm.ExitPowerOff, ""},
		{"guest-shutdown", oops, vmm.ExitPowerOff, ""},
		{"guest-reset", "[ 1.0] reboot: Restarting system\r\n", vmm.ExitReset, ""},
		{"guest-reset", oops, vmm.ExitPanic, "Attempted to kill init![2J exitcode=0x0"},
		{"guest-panic", "", vmm.ExitPanic, ""},
		{"", "[ 1.0] reboot: Power down\r\n", vmm.ExitPowerOff, ""},
		{"", "[ 1.0] reboot: Restarting system\r\n", vmm.ExitReset, ""},
		{"", oops, vmm.ExitPanic, "Attempted to kill init![2J exitcode=0x0"},
		{"", "", vmm.ExitPowerOff, ""},
	} {
		if got := exitOf(c.cause, []byte(c.console)); got.Reason != c.want || got.Detail != c.detail {
			t.Errorf("%q, %q: got %+v", c.cause, c.console, got)
		}
	}
}
