package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu/qmp"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

// pluggable is the configuration of clones with two slots and a controller.
func pluggable(t testing.TB, d *Driver, m vmm.Machine) vmm.Config {
	t.Helper()
	return saved(t, d, vmm.Config{
		Machine: m, Kernel: vmmtest.Kernel(t), Initrd: vmmtest.Initrd(t), CPUs: 2, MemMiB: 256,
		Disks: []vmm.Disk{{ID: "l0", ReadOnly: true}, {ID: "w0"}}, Plug: true,
	})
}

// until asks the guest until an answer begins with prefix, or, with not, no
// longer does.
func until(t testing.TB, ask func(string) string, request, prefix string, not bool) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		got := ask(request)
		if strings.HasPrefix(got, prefix) != not {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: still %q", request, got)
		}
	}
}

// held are what a QEMU holds of a file's descriptors.
func held(t *testing.T, v *vm, path string) int {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", v.handle.PID))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range fds {
		if target, _ := os.Readlink(fd); target == path {
			n++
		}
	}
	return n
}

// leftovers are the sets and nodes that QEMU has, without the slots'.
func leftovers(t *testing.T, v *vm) (sets []int, nodes []string) {
	t.Helper()
	sets, err := v.qmp.FDSets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all, err := v.qmp.BlockNodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range all {
		nodes = append(nodes, n.Name)
	}
	slices.Sort(nodes)
	return sets, nodes
}

// TestNothingIsLeft: of files that went QEMU keeps no descriptor, set or node.
func TestNothingIsLeft(t *testing.T) {
	for _, m := range []vmm.Machine{vmm.MachineMicroVM, vmm.MachineQ35} {
		t.Run(string(m), func(t *testing.T) {
			d := New(Options{})
			t.Cleanup(d.Close)
			started := fileOf(t, "w0", make([]byte, 1<<20), false)
			v, ask := clone(t, d, pluggable(t, d, m), started)
			ask("echo here")
			var files []vmm.Disk
			for i := range 5 {
				disk := fileOf(t, "w0", fmt.Appendf(make([]byte, 0, 4096), "%-4095d\n", i), false)
				plug := fileOf(t, fmt.Sprint("plug", i), fmt.Appendf(make([]byte, 0, 4096), "%-4095d\n", i), false)
				files = append(files, disk, plug)
				if err := errors.Join(v.Empty(t.Context(), []string{"w0", "l0"}), v.Fill(t.Context(), []vmm.Disk{disk}), v.Plug(t.Context(), plug)); err != nil {
					t.Fatal(err)
				}
				if got := strings.TrimSpace(ask("read w0")); got != fmt.Sprint(i) {
					t.Errorf("read %d: %q", i, got)
				}
				until(t, ask, "read "+plug.ID, "error", true)
				if held(t, v, disk.Path) == 0 || held(t, v, plug.Path) == 0 {
					t.Error("a file is not open") // else the next check checks nothing
				}
				if err := v.Unplug(t.Context(), plug.ID); err != nil {
					t.Fatal(err)
				}
			}
			if err := v.Empty(t.Context(), []string{"w0"}); err != nil {
				t.Fatal(err)
			}
			for _, f := range append(files, started) {
				if n := held(t, v, f.Path); n != 0 {
					t.Errorf("QEMU holds %d descriptors of %s", n, f.Path)
				}
			}
			sets, nodes := leftovers(t, v)
			if want := []string{"d-l0", "d-w0", "e-l0", "e-w0"}; len(sets) != 0 || !slices.Equal(nodes, want) {
				t.Errorf("sets %v, nodes %v, want %v", sets, nodes, want)
			}
		})
	}
}

// TestManyPlugs: as many disks as there may be, at the same time; all go, while
// the guest is still finding them, and another one comes.
func TestManyPlugs(t *testing.T) {
	d := New(Options{})
	t.Cleanup(d.Close)
	v, ask := clone(t, d, pluggable(t, d, vmm.MachineMicroVM))
	ask("echo here")
	file := fileOf(t, "x", make([]byte, 4096), true)
	each := func(what string, do func(id string) error) {
		t.Helper()
		start := time.Now()
		errs := make([]error, vmm.MaxPlugged)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { errs[i] = do(fmt.Sprint("x", i)) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s %d in %v", what, len(errs), time.Since(start))
	}
	plug := func(id string) error {
		return v.Plug(t.Context(), vmm.Disk{ID: id, Path: file.Path, ReadOnly: true})
	}
	each("plugged", plug)
	if err := plug("more"); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one more: %v", err)
	}
	start := time.Now()
	until(t, ask, fmt.Sprint("size x", vmm.MaxPlugged-1), "4096", false)
	t.Logf("the guest has the last after %v more", time.Since(start))
	each("unplugged", func(id string) error { return v.Unplug(t.Context(), id) })
	if sets, nodes := leftovers(t, v); len(sets) != 0 || len(nodes) != 4 {
		t.Errorf("left: sets %v, nodes %v", sets, nodes)
	}
	if err := plug("again"); err != nil {
		t.Error(err)
	}
	until(t, ask, "size again", "4096", false)
}

// TestPlugPaused: disks come and go while the guest is paused, more than it
// has room for events; it finds those that are left.
func TestPlugPaused(t *testing.T) {
	d := New(Options{})
	t.Cleanup(d.Close)
	v, ask := clone(t, d, pluggable(t, d, vmm.MachineMicroVM))
	ask("echo here")
	if err := v.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	file := fileOf(t, "x", make([]byte, 4096), true)
	const disks = 30
	for i := range disks {
		if err := v.Plug(t.Context(), vmm.Disk{ID: fmt.Sprint("x", i), Path: file.Path, ReadOnly: true}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range disks / 2 {
		if err := v.Unplug(t.Context(), fmt.Sprint("x", 2*i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for i := range disks {
		until(t, ask, fmt.Sprint("size x", i), "4096", i%2 == 0)
	}
	t.Logf("the guest has them after %v", time.Since(start))
	if sets, _ := leftovers(t, v); len(sets) != disks/2 || held(t, v, file.Path) != disks {
		t.Errorf("sets %v, %d descriptors", sets, held(t, v, file.Path))
	}
}

// TestUndoneHalves: what a killed hyperd had begun the next one undoes.
func TestUndoneHalves(t *testing.T) {
	ctx := t.Context()
	d := New(Options{})
	v, ask := clone(t, d, pluggable(t, d, vmm.MachineMicroVM))
	ask("echo here")
	disk, late := fileOf(t, "w0", []byte(fmt.Sprintf("%-4095s\n", "w0")), false), fileOf(t, "late", make([]byte, 4096), false)
	if err := errors.Join(v.Fill(ctx, []vmm.Disk{disk}), v.Plug(ctx, late)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(late.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	node := func(driver, name string, set int) qmp.Node {
		n := qmp.Node{Driver: driver, Name: name, ReadOnly: true, Discard: "unmap"}
		if set != 0 {
			n.Filename = fdset(set)
		} else {
			n.Size = vmm.SlotBytes
		}
		return n
	}
	if err := qmp.WaitAll(ctx,
		v.qmp.AddFD(ctx, f, 100),                                                            // alone
		v.qmp.AddFD(ctx, f, 101), v.qmp.BlockdevAdd(ctx, node("file", fileNode("l0"), 101)), // a Fill
		v.qmp.BlockdevAdd(ctx, node("null-co", emptyNode("w0"), 0)),                              // an Empty
		v.qmp.AddFD(ctx, f, 102), v.qmp.BlockdevAdd(ctx, node("file", plugName(9, "half"), 102)), // a Plug
	); err != nil {
		t.Fatal(err)
	}
	_, before := leftovers(t, v)
	t.Log(before)

	d.Close()
	d = New(Options{})
	t.Cleanup(d.Close)
	adopted, err := d.Adopt(ctx, v.Handle())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { adopted.Kill(context.Background()) })
	v = adopted.(*vm)
	if err := v.Unplug(ctx, "none"); err != nil {
		t.Fatal(err)
	}
	sets, nodes := leftovers(t, v)
	want := []string{"d-l0", "d-w0", "e-l0", "f-w0", "p1-late"}
	if !slices.Equal(nodes, want) || len(sets) != 2 {
		t.Errorf("sets %v, nodes %v, want %v", sets, nodes, want)
	}
	layer := fileOf(t, "l0", make([]byte, 4096), true)
	half := fileOf(t, "half", make([]byte, 4096), false)
	if err := errors.Join(v.Fill(ctx, []vmm.Disk{layer}), v.Plug(ctx, half), v.Unplug(ctx, "late"), v.Empty(ctx, []string{"w0"})); err != nil {
		t.Error(err)
	}
}

// TestPlugFails: a disk that can't be had leaves nothing; nor does a Plug that
// nobody waits for.
func TestPlugFails(t *testing.T) {
	d := New(Options{})
	t.Cleanup(d.Close)
	cfg := pluggable(t, d, vmm.MachineMicroVM)
	first, ask := clone(t, d, cfg)
	ask("echo here")
	v, ask := clone(t, d, cfg)
	ask("echo here")
	disk := fileOf(t, "x", make([]byte, 4096), false)
	if err := first.Plug(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	if err := v.Plug(t.Context(), disk); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("a disk that another VM writes: %v", err)
	}
	slot := vmm.Disk{ID: "w0", Path: disk.Path}
	if err := v.Fill(t.Context(), []vmm.Disk{slot}); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("the same in a slot: %v", err)
	}
	if sets, nodes := leftovers(t, v); len(sets) != 0 || len(nodes) != 4 || held(t, v, disk.Path) != 0 {
		t.Errorf("left: sets %v, nodes %v, %d descriptors", sets, nodes, held(t, v, disk.Path))
	}
	if err := first.Unplug(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*100*time.Microsecond)
		err := v.Plug(ctx, disk)
		cancel()
		if err == nil {
			err = v.Unplug(t.Context(), "x")
		} else if errors.Is(err, context.DeadlineExceeded) {
			err = nil
		}
		if err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	if err := v.Plug(t.Context(), disk); err != nil {
		t.Error(err)
	}
	until(t, ask, "size x", "4096", false)
}
