package qemu

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newDriver(t *testing.T) vmm.Driver { return New(Options{}) }

func TestConformance(t *testing.T) {
	kernel, initrd := vmmtest.Kernel(t), vmmtest.Initrd(t)
	for _, m := range []vmm.Machine{vmm.MachineMicroVM, vmm.MachineQ35} {
		t.Run(string(m), func(t *testing.T) {
			vmmtest.Run(t, newDriver, vmmtest.Options{Config: vmm.Config{
				Machine: m, Kernel: kernel, Initrd: initrd, CPUs: 1, MemMiB: 128,
			}})
		})
	}
}
