package vmmtest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
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
		Config:   vmm.Config{Kernel: kernel, CPUs: 1, MemMiB: vmm.MinMemMiB},
		Crash:    f.Crash,
		Patience: 5 * time.Second,
	})
	if n := f.VMs(); n != 0 {
		t.Errorf("%d VMs left", n)
	}
}

// TestFakeClones: what a Fake has beyond the contract, for tests of its users.
func TestFakeClones(t *testing.T) {
	started := make(chan string, 1)
	f := &vmmtest.Fake{Guest: func(conn net.Conn, _ io.Writer, cfg vmm.Config) vmm.Exit {
		started <- cfg.ID
		io.Copy(io.Discard, conn)
		return vmm.Exit{Reason: vmm.ExitPowerOff}
	}}
	start := func(cfg vmm.Config) (vmm.VM, error) {
		cfg.Dir, cfg.CPUs, cfg.MemMiB = t.TempDir(), 1, vmm.MinMemMiB
		vm, err := f.Start(t.Context(), cfg)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { vm.Kill(context.Background()) })
		if id := <-started; id != cfg.ID {
			t.Errorf("guest %s started, not %s", id, cfg.ID)
		}
		return vm, nil
	}
	kernel, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	memory := vmmtest.Memfd(t, "memory", vmm.MinMemMiB<<20)
	saved := &vmm.Saved{Memory: memory, State: vmmtest.Memfd(t, "state", 0)}
	vm, err := start(vmm.Config{ID: "template", Kernel: kernel, Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(vm.(vmm.Saver).Save(t.Context(), saved.State), vm.Kill(t.Context())); err != nil {
		t.Fatal(err)
	}

	clone := vmm.Config{ID: "clone", Restore: saved}
	if _, err := start(clone); !errdefs.IsInvalidArgument(err) {
		t.Errorf("clone of memory that is not sealed: got %v", err)
	}
	vmmtest.Seal(t, memory)
	if _, err := start(clone); err != nil {
		t.Error(err)
	}
	refusal := errors.New("no")
	f.RefuseClones(refusal)
	if _, err := start(clone); !errors.Is(err, refusal) {
		t.Errorf("refused clone: got %v", err)
	}
	f.RefuseClones(nil)
	if _, err := start(clone); err != nil {
		t.Error(err)
	}
	f.NoClones = true
	if caps, err := f.Probe(t.Context()); err != nil || caps.Clones {
		t.Errorf("capabilities %+v, %v", caps, err)
	}
	if _, err := start(clone); !errdefs.IsNotImplemented(err) {
		t.Errorf("clone of a driver that makes none: got %v", err)
	}
}
