package inside

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

// TestConformance is the suite that every driver passes, here with KVM.
func TestConformance(t *testing.T) {
	for _, m := range []vmm.Machine{vmm.MachineMicroVM, vmm.MachineQ35} {
		t.Run(string(m), func(t *testing.T) {
			if testing.Short() && m != vmm.MachineMicroVM {
				t.Skip("it is for guests with a stock kernel")
			}
			vmmtest.Run(t, newDriver, vmmtest.Options{Patience: patience, Config: vmm.Config{
				Accel: vmm.AccelKVM, Machine: m, Kernel: kernel(t), Initrd: initrd(t, "testguest"), CPUs: 1, MemMiB: 128,
			}})
		})
	}
}

func newDriver(*testing.T) vmm.Driver { return qemu.New(qemu.Options{Accel: vmm.AccelKVM}) }

// TestEveryDisk fills a machine with devices and reads each disk after the console was used: the devices
// of microvm have interrupt lines of their own only as long as the driver is careful. QEMU's two I/O APICs
// use the same routes in KVM, so that line n of the second loses interrupts when the first uses line n.
func TestEveryDisk(t *testing.T) {
	for _, m := range []vmm.Machine{vmm.MachineMicroVM, vmm.MachineQ35} {
		t.Run(string(m), func(t *testing.T) {
			if testing.Short() && m != vmm.MachineMicroVM {
				t.Skip("its devices have lines of their own")
			}
			everyDisk(t, m)
		})
	}
}

func everyDisk(t *testing.T, m vmm.Machine) {
	const disks = 17                   // as many devices as a template has
	dir, err := os.MkdirTemp("", "ed") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := vmm.Config{
		ID: "every-disk", Dir: filepath.Join(dir, "vm"), Machine: m, Kernel: kernel(t), Initrd: initrd(t, "testguest"), CPUs: 1, MemMiB: 128,
	}
	if err := os.Mkdir(cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range disks {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, fmt.Appendf(nil, "%-4095d\n", i), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.Disks = append(cfg.Disks, vmm.Disk{ID: fmt.Sprint(i), Path: path, ReadOnly: true})
	}
	d := newDriver(t)
	t.Cleanup(d.Close)
	v, err := d.Start(ctxOf(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Kill(context.Background()) }) //nolint:errcheck // it ends with the lab, too
	conn, err := v.Dial(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	ask := func(request string) string {
		t.Helper()
		fmt.Fprintln(conn, "t "+request) //nolint:errcheck // then there is no answer
		line, err := in.ReadString('\n')
		if err != nil {
			console, _ := v.Console(ctxOf(t))
			t.Fatalf("%s: %v\n%s", request, err, console)
		}
		return strings.TrimSpace(strings.TrimPrefix(line, "t "))
	}
	ask("console hello")
	for i := range disks {
		if got := ask("read " + fmt.Sprint(i)); got != fmt.Sprint(i) {
			t.Errorf("disk %d reads %q", i, got)
		}
	}
}
