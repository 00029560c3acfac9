package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

// patience is for emulation on a busy host.
const patience = time.Minute

func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// bootVM starts a VM and returns it with a function that asks its testguest.
func bootVM(t testing.TB, d *Driver, cfg vmm.Config) (vmm.VM, func(request string) string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	v, err := d.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Kill(context.Background()) })
	conn, err := v.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	in := bufio.NewReader(conn)
	return v, func(request string) string {
		t.Helper()
		conn.SetDeadline(time.Now().Add(patience))
		fmt.Fprintln(conn, "t "+request)
		line, err := in.ReadString('\n')
		if err != nil {
			console, _ := v.Console(ctx)
			t.Fatalf("%s: %v\n%s", request, err, console)
		}
		return strings.TrimPrefix(strings.TrimSpace(line), "t ")
	}
}

// newTap makes a tap device that goes with its descriptor.
func newTap(t testing.TB) *os.File {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no tap devices: %v", err)
	}
	t.Cleanup(func() { f.Close() })
	ifr, err := unix.NewIfreq(fmt.Sprintf("hypt%d", os.Getpid()%1_000_000))
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, ifr); err != nil {
		t.Skipf("no tap devices: %v", err)
	}
	return f
}

// TestFullMachine has all devices of a large pod on each machine.
func TestFullMachine(t *testing.T) {
	kernel, initrd := vmmtest.Kernel(t), vmmtest.Initrd(t)
	for _, m := range []vmm.Machine{vmm.MachineMicroVM, vmm.MachineQ35} {
		t.Run(string(m), func(t *testing.T) {
			cfg := vmm.Config{
				ID: "full", Dir: shortDir(t), Machine: m, Kernel: kernel, Initrd: initrd, CPUs: 2, MemMiB: 4096,
				NICs: []vmm.NIC{{Tap: newTap(t), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}, MTU: 1400}},
			}
			disks := min(vmm.MaxDisks, slots[m]-fixedDevices-len(cfg.NICs))
			for i := range disks {
				path := filepath.Join(t.TempDir(), "disk")
				if err := os.WriteFile(path, fmt.Appendf(make([]byte, 0, 4096), "%-4095d\n", i), 0o600); err != nil {
					t.Fatal(err)
				}
				cfg.Disks = append(cfg.Disks, vmm.Disk{ID: fmt.Sprintf("disk-number-%08d", i), Path: path, ReadOnly: true})
			}
			d := New(Options{})
			t.Cleanup(d.Close)
			_, ask := bootVM(t, d, cfg)
			for request, want := range map[string]string{
				"fact cpus": "2", "fact macs": "02:00:00:00:00:09/1400",
				"read disk-number-00000000": "0", fmt.Sprintf("read disk-number-%08d", disks-1): strconv.Itoa(disks - 1),
			} {
				if got := strings.TrimSpace(ask(request)); got != want {
					t.Errorf("%s: got %q, want %q", request, got, want)
				}
			}
			if got := ask("fact clocksource"); !strings.HasPrefix(got, "tsc") && got != "kvm-clock" {
				t.Errorf("clock source %q is coarse", got)
			}
		})
	}
}

func TestGarbageKernel(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, []byte(strings.Repeat("no kernel", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	d := New(Options{})
	defer d.Close()
	dir := shortDir(t)
	_, err := d.Start(t.Context(), vmm.Config{ID: "garbage", Dir: dir, Kernel: kernel, CPUs: 1, MemMiB: 64, Machine: vmm.MachineQ35})
	if errdefs.IsUnavailable(err) {
		t.Skip(err)
	}
	var start *vmm.StartError
	if !errors.As(err, &start) {
		t.Fatalf("got %v, want a StartError", err)
	}
	if !strings.Contains(start.Err.Error(), "kernel") || start.Stderr == "" || !strings.Contains(start.Tried, "-kernel") {
		t.Errorf("got %q", err)
	}
	if left, _ := filepath.Glob(dir + "/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestMissingQEMU(t *testing.T) {
	d := New(Options{Binary: "/nonexistent/qemu"})
	if _, err := d.Probe(t.Context()); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "apt install") {
		t.Errorf("got %v", err)
	}
}

func TestForcedAccelerator(t *testing.T) {
	caps, err := New(Options{Accel: vmm.AccelKVM}).Probe(t.Context())
	if errdefs.IsUnavailable(err) {
		t.Skip(err)
	}
	if err != nil || caps.Accel != vmm.AccelKVM || caps.AccelWhy != "forced by configuration" {
		t.Errorf("got %+v, %v", caps, err)
	}
}

// BenchmarkColdBoot is from before QEMU is started to the first answer of the
// guest, on each machine and with several CPUs.
func BenchmarkColdBoot(b *testing.B) {
	kernel, initrd := vmmtest.Kernel(b), vmmtest.Initrd(b)
	d := New(Options{})
	b.Cleanup(d.Close)
	if _, err := d.Probe(b.Context()); err != nil {
		b.Fatal(err)
	}
	for _, m := range []vmm.Machine{vmm.MachineMicroVM, vmm.MachineQ35} {
		for _, cpus := range []int{1, 2, 4} {
			b.Run(fmt.Sprintf("%s/%d", m, cpus), func(b *testing.B) {
				for range b.N {
					v, ask := bootVM(b, d, vmm.Config{
						ID: "bench", Dir: shortDir(b), Machine: m, Kernel: kernel, Initrd: initrd, CPUs: cpus, MemMiB: 128,
					})
					ask("echo x")
					b.StopTimer()
					v.Kill(b.Context())
					b.StartTimer()
				}
			})
		}
	}
}

// TestWritableDiskIsLocked: two VMs never write one disk, while many may read.
func TestWritableDiskIsLocked(t *testing.T) {
	kernel := vmmtest.Kernel(t)
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	d := New(Options{})
	t.Cleanup(d.Close)
	start := func(readOnly bool) error {
		v, err := d.Start(t.Context(), vmm.Config{
			ID: "lock", Dir: shortDir(t), Kernel: kernel, CPUs: 1, MemMiB: 64,
			Disks: []vmm.Disk{{ID: "d", Path: path, ReadOnly: readOnly}},
		})
		if err == nil {
			t.Cleanup(func() { v.Kill(context.Background()) })
		}
		return err
	}
	if err := errors.Join(start(true), start(true)); err != nil {
		t.Fatalf("readers: %v", err)
	}
	if err := start(false); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("writer beside readers: %v", err)
	}
}
