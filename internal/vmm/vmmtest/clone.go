package vmmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/vmm"
)

// A template is a saved VM whose guest remembers templateKnows.
type template struct {
	cfg   vmm.Config // of clones, but for ID, Dir and the files behind Disks
	saved vmm.Saved
	hash  string // of its memory
}

const templateKnows = "what the template knew"

// slots are the disks of the template, all empty.
func slots() []vmm.Disk {
	return []vmm.Disk{{ID: "fixed", ReadOnly: true}, {ID: "own"}, {ID: "spare"}}
}

// needClones skips the test when d cannot clone.
func (s *suite) needClones(t *testing.T, d vmm.Driver) {
	t.Helper()
	caps, err := d.Probe(s.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	if !caps.Clones {
		t.Skip("driver makes no clones")
	}
	if caps.Identity == "" {
		t.Error("a driver that makes clones has no identity")
	}
}

// template returns the suite's template, which the first call makes. The
// guest's stream is open as it is saved.
func (s *suite) template(t *testing.T, d vmm.Driver) *template {
	t.Helper()
	if s.made != nil {
		return s.made
	}
	cfg := s.config(t)
	cfg.Disks, cfg.Plug = slots(), true
	cfg.Memory = Memfd(s.t, "memory", int64(cfg.MemMiB)<<20)
	state := Memfd(s.t, "state", 0)
	vm := s.start(t, d, cfg)
	saver, ok := vm.(vmm.Saver)
	if !ok {
		t.Fatalf("%T is no Saver", vm)
	}
	c := s.dial(t, vm)
	s.expect(t, c, "remember "+templateKnows, "ok")
	s.empty(t, c, cfg.Disks...)
	start := time.Now()
	if err := saver.Save(s.ctx(t), state); err != nil {
		t.Fatal(err)
	}
	t.Logf("saved in %v", time.Since(start))
	s.kill(t, vm)
	Seal(t, cfg.Memory)
	Seal(t, state)

	made := &template{cfg: s.o.Config, saved: vmm.Saved{Memory: cfg.Memory, State: state}, hash: hash(t, cfg.Memory)}
	made.cfg.Plug = true
	made.cfg.Machine, made.cfg.Accel = vm.Handle().Machine, vm.Handle().Accel
	made.cfg.Kernel, made.cfg.Initrd, made.cfg.Cmdline = "", "", ""
	made.cfg.Restore = &made.saved
	s.made = made
	return made
}

func hash(t *testing.T, f *os.File) string {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, info.Size())); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d bytes, %x", info.Size(), sum.Sum(nil))
}

// unchanged checks the template's memory.
func (m *template) unchanged(t *testing.T) {
	t.Helper()
	if got := hash(t, m.saved.Memory); got != m.hash {
		t.Errorf("the template's memory has changed: %s, was %s", got, m.hash)
	}
}

// cloneConfig is that of a clone whose slots are empty but for filled.
func (s *suite) cloneConfig(t *testing.T, m *template, filled ...vmm.Disk) vmm.Config {
	t.Helper()
	cfg := s.config(t)
	dir, id := cfg.Dir, cfg.ID
	cfg = m.cfg
	cfg.Dir, cfg.ID, cfg.Disks = dir, id, slots()
	for _, d := range filled {
		for i := range cfg.Disks {
			if cfg.Disks[i].ID == d.ID {
				cfg.Disks[i] = d
			}
		}
	}
	return cfg
}

// empty checks slots without files.
func (s *suite) empty(t *testing.T, c *client, disks ...vmm.Disk) {
	t.Helper()
	for _, d := range disks {
		s.expect(t, c, "read "+d.ID, "")
		s.expect(t, c, fmt.Sprintf("read %s %d", d.ID, int64(vmm.SlotBytes)/2), "")
		s.expect(t, c, "size "+d.ID, fmt.Sprint(int64(vmm.SlotBytes)))
	}
}

// files checks slots with the files fixed and own, of 1 MiB.
func (s *suite) files(t *testing.T, c *client, fixed, own vmm.Disk, text string) {
	t.Helper()
	s.expect(t, c, "read fixed", "fixed of "+text)
	s.expect(t, c, "read own", "own of "+text)
	s.fails(t, c, "write fixed broken")
	s.expect(t, c, "write own changed by "+text, "ok")
	for _, d := range []vmm.Disk{fixed, own} {
		s.expect(t, c, "size "+d.ID, fmt.Sprint(int64(vmm.SlotBytes)))
		s.fails(t, c, "read "+d.ID+" 1048576")
	}
	for _, f := range []struct{ path, want string }{
		{fixed.Path, "fixed of " + text + "\n"}, {own.Path, "changed by " + text + "\n"},
	} {
		if b, err := os.ReadFile(f.path); err != nil || !strings.HasPrefix(string(b), f.want) || len(b) != 1<<20 {
			t.Errorf("file %s on the host: %.40q, %d bytes, %v, want %q", f.path, b, len(b), err, f.want)
		}
	}
}

// fails expects an error of the guest.
func (s *suite) fails(t *testing.T, c *client, request string) {
	t.Helper()
	if got := s.ask(t, c, request); !strings.HasPrefix(got, "error: ") {
		t.Errorf("%s: got %q, want an error", request, got)
	}
}

func ownDisks(t *testing.T, text string) (fixed, own vmm.Disk) {
	return disk(t, "fixed", "fixed of "+text, true), disk(t, "own", "own of "+text, false)
}

func (s *suite) clone(t *testing.T) {
	d := s.newDriver(t)
	s.needClones(t, d)
	m := s.template(t, d)
	fixedA, ownA := ownDisks(t, "a")
	fixedB, ownB := ownDisks(t, "b")
	start := time.Now()
	vms := s.startAll(t, d, s.cloneConfig(t, m, fixedA, ownA), s.cloneConfig(t, m, fixedB, ownB))
	t.Logf("two clones in %v", time.Since(start))
	a, b := s.dial(t, vms[0]), s.dial(t, vms[1])
	s.expect(t, a, "recall", templateKnows)
	s.expect(t, b, "recall", templateKnows)
	s.files(t, a, fixedA, ownA, "a")
	s.files(t, b, fixedB, ownB, "b")
	s.expect(t, a, "remember only a", "ok")
	s.expect(t, b, "recall", templateKnows)

	third := s.start(t, d, s.cloneConfig(t, m))
	c := s.dial(t, third)
	s.expect(t, c, "recall", templateKnows)
	s.empty(t, c, slots()...)
	s.expect(t, a, "recall", "only a")
	s.pausing(t, vms[0], a)
	s.meter(t, vms[0])
	s.console(t, vms[0], a)

	// Another hyperd takes over.
	d.Close()
	d = s.newDriver(t)
	t.Cleanup(d.Close)
	for i, vm := range vms {
		var err error
		if vms[i], err = d.Adopt(s.ctx(t), vm.Handle()); err != nil {
			t.Fatal(err)
		}
	}
	s.expect(t, s.dial(t, vms[0]), "recall", "only a")
	s.kill(t, vms[0])
	s.done(t, vms[0], vmm.ExitKilled)
	s.dial(t, vms[1]).send(t, "poweroff")
	s.done(t, vms[1], vmm.ExitPowerOff)
	s.expectGone(t, vms[1])
	s.kill(t, vms[1])
	m.unchanged(t)
}

func (s *suite) cloneErrors(t *testing.T) {
	d := s.newDriver(t)
	t.Cleanup(d.Close)
	s.needClones(t, d)
	m := s.template(t, d)
	info, err := m.saved.State.Stat()
	if err != nil {
		t.Fatal(err)
	}
	state := make([]byte, info.Size())
	if _, err := m.saved.State.ReadAt(state, 0); err != nil {
		t.Fatal(err)
	}
	stateOf := func(b []byte) func(t *testing.T, c *vmm.Config) {
		return func(t *testing.T, c *vmm.Config) {
			f := Memfd(t, "state", 0)
			if _, err := f.Write(b); err != nil {
				t.Fatal(err)
			}
			Seal(t, f)
			c.Restore = &vmm.Saved{Memory: m.saved.Memory, State: f}
		}
	}
	for name, spoil := range map[string]func(*testing.T, *vmm.Config){
		"empty state":     stateOf(nil),
		"truncated state": stateOf(state[:len(state)/2]),
		"garbage state":   stateOf(bytes.Repeat([]byte("garbage\n"), len(state)/8+1)),
		"fewer disks":     func(_ *testing.T, c *vmm.Config) { c.Disks = c.Disks[:1] },
		"no controller":   func(_ *testing.T, c *vmm.Config) { c.Plug = false },
		"more memory": func(t *testing.T, c *vmm.Config) {
			c.MemMiB *= 2
			withMemory(t, c, int64(c.MemMiB)<<20)
		},
		"truncated memory": func(t *testing.T, c *vmm.Config) { withMemory(t, c, 1<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := s.cloneConfig(t, m)
			spoil(t, &cfg)
			s.cloneFails(t, d, cfg)
		})
	}
	// None of this has done harm.
	vm := s.start(t, d, s.cloneConfig(t, m))
	s.expect(t, s.dial(t, vm), "recall", templateKnows)
	s.kill(t, vm)
	m.unchanged(t)
}

// withMemory gives a clone memory of another size than was saved.
func withMemory(t *testing.T, c *vmm.Config, size int64) {
	f := Memfd(t, "memory", size)
	Seal(t, f)
	c.Restore = &vmm.Saved{Memory: f, State: c.Restore.State}
}

// cloneFails: a clone that cannot be does not start or ends soon, and says
// why.
func (s *suite) cloneFails(t *testing.T, d vmm.Driver, cfg vmm.Config) {
	t.Helper()
	untouched := leaveForeign(t, cfg)
	begin := time.Now()
	vm, err := d.Start(s.ctx(t), cfg)
	if err != nil {
		t.Log(err)
		untouched()
	} else {
		s.killAtEnd(t, vm.Handle())
		s.done(t, vm, vmm.ExitCrashed)
		exit := vm.Exit()
		t.Logf("%+v", exit)
		if exit.Detail == "" && exit.Stderr == "" {
			t.Error("the VM ended without a word")
		}
		s.kill(t, vm)
	}
	if took := time.Since(begin); took > s.o.Patience/4 || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it took %v to see", took)
	}
}

// fill: files come to a VM that was booted with empty slots, and to a clone.
func (s *suite) fill(t *testing.T) {
	d := s.newDriver(t)
	s.needClones(t, d)
	t.Cleanup(func() { d.Close() })
	t.Run("booted", func(t *testing.T) {
		cfg := s.config(t)
		cfg.Disks = slots()
		vm := s.fillVM(t, &d, cfg)
		// It has no memory that would be left, and no empty slots.
		if err := vm.(vmm.Saver).Save(s.ctx(t), Memfd(t, "state", 0)); err == nil {
			t.Error("saved a VM without Config.Memory")
		}
		s.kill(t, vm)
	})
	t.Run("clone", func(t *testing.T) {
		m := s.template(t, d)
		vm := s.fillVM(t, &d, s.cloneConfig(t, m))
		s.kill(t, vm)
		err := vm.(vmm.Filler).Fill(s.ctx(t), []vmm.Disk{disk(t, "own", "late", false)})
		if !errors.Is(err, vmm.ErrGone) {
			t.Errorf("fill: got %v, want ErrGone", err)
		}
		m.unchanged(t)
	})
}

// fillVM starts a VM, fills its slots and returns it as a new driver has it.
func (s *suite) fillVM(t *testing.T, d *vmm.Driver, cfg vmm.Config) vmm.VM {
	t.Helper()
	vm := s.start(t, *d, cfg)
	filler, ok := vm.(vmm.Filler)
	if !ok {
		t.Skipf("%T is no Filler", vm)
	}
	c := s.dial(t, vm)
	s.empty(t, c, cfg.Disks...)
	fixed, own := ownDisks(t, "filled")
	s.fillFails(t, filler, disk(t, "spare", "spare", false))
	start := time.Now()
	if err := filler.Fill(s.ctx(t), []vmm.Disk{own, fixed}); err != nil {
		t.Fatal(err)
	}
	t.Logf("filled in %v", time.Since(start))
	s.files(t, c, fixed, own, "filled")
	if err := filler.Fill(s.ctx(t), []vmm.Disk{disk(t, "own", "again", false)}); err == nil {
		t.Error("filled a slot twice")
	}
	s.expect(t, c, "read own", "changed by filled")
	s.expect(t, c, "read spare", "")

	(*d).Close()
	*d = s.newDriver(t)
	vm, err := (*d).Adopt(s.ctx(t), vm.Handle())
	if err != nil {
		t.Fatal(err)
	}
	filler = vm.(vmm.Filler)
	s.fillFails(t, filler, disk(t, "spare", "spare", false), disk(t, "own", "again", false))
	c = s.dial(t, vm)
	if err := filler.Fill(s.ctx(t), []vmm.Disk{disk(t, "spare", "later", false)}); err != nil {
		t.Fatal(err)
	}
	s.expect(t, c, "read spare", "later")
	s.expect(t, c, "read own", "changed by filled")
	s.expect(t, c, "read fixed", "fixed of filled")
	return vm
}

// refill: slots are emptied and filled again, those that a clone had files in
// from its start too, and by another hyperd.
func (s *suite) refill(t *testing.T) {
	d := s.newDriver(t)
	s.needClones(t, d)
	t.Cleanup(func() { d.Close() })
	m := s.template(t, d)
	fixed, own := ownDisks(t, "start")
	vm := s.start(t, d, s.cloneConfig(t, m, fixed, own))
	if _, ok := vm.(vmm.Filler); !ok {
		t.Skipf("%T is no Filler", vm)
	}
	c := s.dial(t, vm)
	s.files(t, c, fixed, own, "start")
	for round := range 3 {
		filler := vm.(vmm.Filler)
		if err := filler.Empty(s.ctx(t), []string{"own", "unknown"}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("emptied an unknown slot: %v", err)
		}
		text := fmt.Sprint("round ", round)
		s.expect(t, c, "write own "+text, "ok")
		start := time.Now()
		for range 2 { // it is idempotent
			if err := filler.Empty(s.ctx(t), []string{"own", "fixed", "spare", "own"}); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("emptied in %v", time.Since(start)/2)
		s.empty(t, c, slots()...)
		s.expect(t, c, "write own lost", "ok")
		if b, err := os.ReadFile(own.Path); err != nil || !strings.HasPrefix(string(b), text+"\n") {
			t.Errorf("file on the host: %.20q, %v, want %q", b, err, text)
		}
		fixed, own = ownDisks(t, text)
		if err := filler.Fill(s.ctx(t), []vmm.Disk{own, fixed}); err != nil {
			t.Fatal(err)
		}
		s.files(t, c, fixed, own, text)
		d.Close()
		d = s.newDriver(t)
		var err error
		if vm, err = d.Adopt(s.ctx(t), vm.Handle()); err != nil {
			t.Fatal(err)
		}
		c = s.dial(t, vm)
	}
	s.kill(t, vm)
	if err := vm.(vmm.Filler).Empty(s.ctx(t), []string{"own"}); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("empty: got %v, want ErrGone", err)
	}
	m.unchanged(t)
}

// fillFails: when one disk cannot be, none is filled. good can.
func (s *suite) fillFails(t *testing.T, filler vmm.Filler, good vmm.Disk, more ...vmm.Disk) {
	t.Helper()
	for _, bad := range append(more,
		disk(t, "unknown", "", false),
		disk(t, "fixed", "", false),
		disk(t, good.ID, "", !good.ReadOnly),
		good, // twice
		vmm.Disk{ID: "own", Path: "/nonexistent"},
		vmm.Disk{ID: "own", Path: "/dev/null"},
		vmm.Disk{ID: "own"},
	) {
		if err := filler.Fill(s.ctx(t), []vmm.Disk{good, bad}); err == nil {
			t.Errorf("filled %+v", bad)
		} else {
			t.Log(err)
		}
	}
}
