// Package inside is the tests that run in the lab (test/lab), where KVM works: what they prove is what KVM
// changes. Outside they are skipped. The lab sets
//
//	HYPER_LAB_DIR       the directory of the programs that the lab needs, built outside
//	HYPER_TEST_KERNEL   HyperKernel
//	HYPER_LAB_IMAGE     an OCI archive of an image called busybox
//	HYPER_CACHE         where hyperd finds HyperKernel
//
// A line of a test's log with NUMBER in it is a measurement. The lab is emulated: times prove nothing.
package inside

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-run/hyper/boot"
	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu"
)

// patience bounds one step: emulation of emulation on a busy host.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	if os.Getenv("HYPER_LAB_DIR") == "" {
		fmt.Println("skipped: these tests run in the lab (make lab)")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// kernel is HyperKernel.
func kernel(t *testing.T) string {
	t.Helper()
	path := os.Getenv("HYPER_TEST_KERNEL")
	if path == "" {
		t.Fatal("HYPER_TEST_KERNEL names no guest kernel")
	}
	return path
}

// program is the path of a program built outside.
func program(name string) string { return filepath.Join(os.Getenv("HYPER_LAB_DIR"), name) }

// initrd makes an initrd with a program as its /init.
func initrd(t *testing.T, name string) string {
	t.Helper()
	path, err := boot.Initrd(t.TempDir(), program(name), boot.Kernel{})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestProbe: KVM is found, and found out to work. The probe is about milliseconds, and this machine may
// be stopped that long at any time by the host it is emulated on: one probe of some has to say so.
func TestProbe(t *testing.T) {
	var caps vmm.Capabilities
	for range 10 {
		d := qemu.New(qemu.Options{})
		t.Cleanup(d.Close)
		var err error
		if caps, err = d.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s", caps.Accel, caps.AccelWhy)
		if caps.Accel == vmm.AccelKVM {
			return
		}
	}
	t.Error("not KVM")
}
