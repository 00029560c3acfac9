package inside

import (
	"testing"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

// TestConformance is the suite that every driver passes, here with KVM.
func TestConformance(t *testing.T) {
	for _, m := range []vmm.Machine{vmm.MachineMicroVM, vmm.MachineQ35} {
		t.Run(string(m), func(t *testing.T) {
			vmmtest.Run(t, newDriver, vmmtest.Options{Patience: patience, Config: vmm.Config{
				Accel: vmm.AccelKVM, Machine: m, Kernel: kernel(t), Initrd: initrd(t, "testguest"), CPUs: 1, MemMiB: 128,
			}})
		})
	}
}

func newDriver(*testing.T) vmm.Driver { return qemu.New(qemu.Options{Accel: vmm.AccelKVM}) }
