package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/host"
	"github.com/hyper-run/hyper/internal/template"
	"github.com/hyper-run/hyper/internal/vmm"
)

// clones has the next Set of b start clones, and keep warm ones ready.
func (b *bench) clones(warm int) {
	b.t.Helper()
	b.down()
	making := filepath.Join(b.t.TempDir(), "m")
	if err := os.Mkdir(making, 0o700); err != nil {
		b.t.Fatal(err)
	}
	b.alter = func(c *Config) {
		var err error
		c.Warm = warm
		c.Templates, err = template.Open(b.t.Context(), template.Config{
			Dir: filepath.Join(b.layout.Root, "templates"), RunDir: making, Driver: b.driver, Log: c.Log, Timeout: 10 * time.Second,
			DialGuest: guest.Dial, Spare: func(context.Context) (*os.File, error) { return os.Open(os.DevNull) },
		})
		if err != nil {
			b.t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(b.layout.Root, "templates"), 0o700); err != nil {
		b.t.Fatal(err)
	}
	b.up()
}

// template makes the usual template.
func (b *bench) template() template.Info {
	b.t.Helper()
	sh, err := b.set.Shape(0, 0, true)
	if err != nil {
		b.t.Fatal(err)
	}
	info, err := b.templates.Make(b.t.Context(), sh)
	if err != nil {
		b.t.Fatal(err)
	}
	return info
}

// startVM starts a container that goes on, and returns what VM it got.
func (b *bench) startVM(sp Spec) VMInfo {
	b.t.Helper()
	id := b.create(sp)
	if err := b.set.Start(b.t.Context(), id); err != nil {
		b.t.Fatal(err)
	}
	c, err := b.set.Get(id)
	if err != nil || c.VM == nil {
		b.t.Fatalf("%+v, %v", c, err)
	}
	tr, err := b.set.Trace(id)
	if err != nil || tr.Road != c.VM.Road || len(tr.Stages) < 3 {
		b.t.Errorf("trace %+v, %v", tr, err)
	}
	return *c.VM
}

// warm waits until n VMs are warm.
func (b *bench) warm(n int) {
	b.t.Helper()
	for range 500 {
		if ready, _ := b.set.Warm(); ready == n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ready, wanted := b.set.Warm()
	b.t.Fatalf("%d of %d VMs are warm, want %d", ready, wanted, n)
}

func TestStartIsClone(t *testing.T) {
	b := newBench(t)
	if vm := b.startVM(sh("sleep 100")); vm.Road != RoadBoot || vm.Cold != "templates are off" {
		t.Errorf("without templates: %+v", vm)
	}
	b.clones(0)
	made := b.template()
	vm := b.startVM(sh("sleep 100"))
	if vm.Road != RoadClone || vm.Template != made.ID || vm.Cold != "" || vm.CPUs != 4 || vm.MemMiB != 1024 {
		t.Errorf("got %+v, want a clone of %s", vm, made.ID)
	}
	large := sh("sleep 100")
	large.Resources.MemoryBytes = 1000 << 20 // with the kernel's share more than the usual VM has
	if vm := b.startVM(large); vm.Road != RoadBoot || vm.Cold == "" || vm.MemMiB < 1100 {
		t.Errorf("a large one: %+v", vm)
	}
	sized, err := b.set.Shape(0, 1016, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.templates.Make(t.Context(), sized); err != nil { // begun by the start
		t.Fatal(err)
	}
	if vm := b.startVM(large); vm.Road != RoadClone || vm.MemMiB != 2048 {
		t.Errorf("a second large one: %+v", vm)
	}
}

func TestNoCloneWithOwnKernel(t *testing.T) {
	b := newBench(t)
	b.clones(0)
	b.template()
	b.set.cfg.Boot = func(string) (BootFiles, error) {
		return BootFiles{Name: "own", Kernel: b.kernel, Initrd: b.kernel}, nil
	}
	own := sh("sleep 100")
	own.Kernel = b.kernel
	if vm := b.startVM(own); vm.Road != RoadBoot || vm.Cold != "it has a kernel of its own" {
		t.Errorf("got %+v", vm)
	}
}

func TestSpoiledTemplate(t *testing.T) {
	b := newBench(t)
	b.clones(1)
	b.template()
	b.driver.RefuseClones(&vmm.StartError{Err: errors.New("state is not for this machine")})
	if vm := b.startVM(sh("sleep 100")); vm.Road != RoadBoot || !strings.Contains(vm.Cold, "state is not for this machine") {
		t.Errorf("got %+v", vm)
	}
	b.driver.RefuseClones(nil)
	b.template() // made anew
	if vm := b.startVM(sh("sleep 100")); vm.Road == RoadBoot {
		t.Errorf("got %+v", vm)
	}
}

func TestWarm(t *testing.T) {
	b := newBench(t)
	b.clones(2)
	b.set.Prepare()
	b.warm(2)
	if vm := b.startVM(sh("sleep 100")); vm.Road != RoadWarm || vm.Template == "" || vm.BootTime <= 0 {
		t.Errorf("got %+v", vm)
	}
	b.warm(2) // refilled
	b.set.MemoryShort(true)
	b.warm(0)
	if vm := b.startVM(sh("sleep 100")); vm.Road != RoadClone {
		t.Errorf("got %+v", vm)
	}
	b.set.MemoryShort(false)
	b.warm(2)
	none := sh("sleep 100")
	none.Network = "none"
	if vm := b.startVM(none); vm.Road == RoadWarm {
		t.Errorf("without network: %+v", vm)
	}
	b.down() // gives back the warm ones, and lets the others run
	b.alter = nil
	b.up()
	if n := len(b.set.List(Filter{})); n != 3 {
		t.Errorf("%d containers run, want 3", n)
	}
}

// TestWarmAfterCrash: what a killed hyperd kept warm, the next one gives back.
func TestWarmAfterCrash(t *testing.T) {
	b := newBench(t)
	b.clones(1)
	b.set.Prepare()
	b.warm(1)
	m := b.set.warm.shelves[0].idle[0]
	b.set.warm.shelves[0].idle = nil // nobody will end it
	m.release()
	b.down()
	b.alter = nil
	b.up()
	select {
	case <-m.vm.Done():
	case <-time.After(10 * time.Second):
		t.Error("the VM still runs")
	}
}

func TestWarmVMDied(t *testing.T) {
	b := newBench(t)
	b.clones(1)
	b.set.Prepare()
	b.warm(1)
	m := b.set.warm.shelves[0].idle[0]
	if err := m.vm.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if vm := b.startVM(sh("sleep 100")); vm.Road != RoadClone {
		t.Errorf("got %+v", vm)
	}
}

func TestHostShortOfMemory(t *testing.T) {
	b := newBench(t)
	proc := t.TempDir()
	meminfo := func(availableMiB int) {
		text := fmt.Sprintf("MemTotal: %d kB\nMemAvailable: %d kB\n", 8<<20, availableMiB<<10)
		if err := os.WriteFile(proc+"/meminfo", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	meminfo(4000)
	if err := os.MkdirAll(proc+"/self", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(proc+"/self/mountinfo", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.down()
	b.alter = func(c *Config) {
		var err error
		if c.Memory, err = host.NewMemory(host.MemoryConfig{Proc: proc}); err != nil {
			t.Fatal(err)
		}
	}
	b.up()
	b.startVM(sh("sleep 100"))
	meminfo(200)
	id := b.create(sh("sleep 100"))
	var short *host.ShortError
	if err := b.set.Start(t.Context(), id); !errors.As(err, &short) || !errdefs.IsResourceExhausted(err) {
		t.Errorf("got %v", err)
	}
	meminfo(4000)
	if err := b.set.Start(t.Context(), id); err != nil {
		t.Error(err)
	}
}
