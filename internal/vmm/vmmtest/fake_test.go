package vmmtest_test

import (
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFake(t *testing.T) {
	kernel, err := os.Executable() // any file
	if err != nil {
		t.Fatal(err)
	}
	f := new(vmmtest.Fake)
	vmmtest.Run(t, func(*testing.T) vmm.Driver { return f }, vmmtest.Options{
		Config:   vmm.Config{Kernel: kernel, CPUs: 1, MemMiB: 128},
		Crash:    f.Crash,
		Patience: 5 * time.Second,
	})
	if n := f.VMs(); n != 0 {
		t.Errorf("%d VMs left", n)
	}
}
