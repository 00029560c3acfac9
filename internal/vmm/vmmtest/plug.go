package vmmtest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/vmm"
)

// plug: disks come to a VM that was booted with Config.Plug, and to a clone,
// and go again.
func (s *suite) plug(t *testing.T) {
	d := s.newDriver(t)
	t.Cleanup(func() { d.Close() })
	t.Run("booted", func(t *testing.T) {
		cfg := s.config(t)
		cfg.Disks, cfg.Plug = slots(), true
		s.plugVM(t, &d, cfg)
	})
	t.Run("clone", func(t *testing.T) {
		s.needClones(t, d)
		m := s.template(t, d)
		fixed, own := ownDisks(t, "clone")
		s.plugVM(t, &d, s.cloneConfig(t, m, fixed, own))
		m.unchanged(t)
	})
	t.Run("not prepared", func(t *testing.T) {
		vm := s.start(t, d, s.config(t))
		if p, ok := vm.(vmm.Plugger); ok {
			if err := p.Plug(s.ctx(t), disk(t, "late", "", false)); !errdefs.IsNotImplemented(err) {
				t.Errorf("plug: got %v", err)
			}
			if err := p.Unplug(s.ctx(t), "late"); err != nil {
				t.Errorf("unplug: %v", err)
			}
		}
		s.kill(t, vm)
	})
}

// plugVM starts a VM and plugs disks into it, before and after a new driver
// has it.
func (s *suite) plugVM(t *testing.T, d *vmm.Driver, cfg vmm.Config) {
	t.Helper()
	vm := s.start(t, *d, cfg)
	p, ok := vm.(vmm.Plugger)
	if !ok {
		t.Skipf("%T is no Plugger", vm)
	}
	c := s.dial(t, vm)
	s.expect(t, c, "echo up", "up")
	late, sealed := disk(t, "late", "late", false), disk(t, "sealed", "sealed", true)
	for _, disk := range []vmm.Disk{late, sealed} {
		s.plugged(t, p, c, disk)
	}
	s.plugFails(t, p, late)
	s.expect(t, c, "write late changed", "ok")
	s.fails(t, c, "write sealed broken")
	s.onHost(t, late, "changed")
	s.onHost(t, sealed, "sealed")

	(*d).Close()
	*d = s.newDriver(t)
	vm, err := (*d).Adopt(s.ctx(t), vm.Handle())
	if err != nil {
		t.Fatal(err)
	}
	p, c = vm.(vmm.Plugger), s.dial(t, vm)
	s.plugFails(t, p, late)
	s.plugged(t, p, c, disk(t, "later", "later", false))
	s.expect(t, c, "read late", "changed")
	s.unplugged(t, p, c, "late")
	s.expect(t, c, "read later", "later")
	s.fails(t, c, "write sealed broken")
	for i := range 3 { // the same ID with another file
		s.plugged(t, p, c, disk(t, "late", fmt.Sprint("again ", i), false))
		s.unplugged(t, p, c, "late")
	}
	s.kill(t, vm)
	if err := p.Plug(s.ctx(t), disk(t, "last", "", false)); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("plug: got %v, want ErrGone", err)
	}
	if err := p.Unplug(s.ctx(t), "sealed"); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("unplug: got %v, want ErrGone", err)
	}
}

// plugged plugs a disk of 1 MiB in and waits until the guest has it.
func (s *suite) plugged(t *testing.T, p vmm.Plugger, c *client, d vmm.Disk) {
	t.Helper()
	start := time.Now()
	if err := p.Plug(s.ctx(t), d); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	s.await(t, c, "size "+d.ID, true)
	t.Logf("plugged in %v, the guest has it after %v", took, time.Since(start))
	s.expect(t, c, "size "+d.ID, fmt.Sprint(1<<20))
	if b, err := os.ReadFile(d.Path); err != nil {
		t.Error(err)
	} else {
		text, _, _ := strings.Cut(string(b), "\n")
		s.expect(t, c, "read "+d.ID, text)
	}
}

// unplugged takes a disk away and waits until the guest has seen it.
func (s *suite) unplugged(t *testing.T, p vmm.Plugger, c *client, id string) {
	t.Helper()
	start := time.Now()
	for range 2 { // it is idempotent
		if err := p.Unplug(s.ctx(t), id); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("unplugged in %v", time.Since(start))
	s.await(t, c, "size "+id, false)
}

// await asks the guest until it knows an answer, or no more.
func (s *suite) await(t *testing.T, c *client, request string, known bool) {
	t.Helper()
	for end := time.Now().Add(s.o.Patience); ; {
		got := s.ask(t, c, request)
		if strings.HasPrefix(got, "error: ") != known {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: still %q", request, got)
		}
	}
}

func (s *suite) onHost(t *testing.T, d vmm.Disk, want string) {
	t.Helper()
	if b, err := os.ReadFile(d.Path); err != nil || !strings.HasPrefix(string(b), want+"\n") {
		t.Errorf("disk %s on the host: %.20q, %v, want %q", d.ID, b, err, want)
	}
}

// plugFails: there is a disk like there already.
func (s *suite) plugFails(t *testing.T, p vmm.Plugger, there vmm.Disk) {
	t.Helper()
	for _, c := range []struct {
		disk vmm.Disk
		is   func(error) bool
	}{
		{there, errdefs.IsAlreadyExists},
		{disk(t, "spare", "", false), errdefs.IsAlreadyExists}, // a slot
		{vmm.Disk{ID: "a,b", Path: there.Path}, errdefs.IsInvalidArgument},
		{vmm.Disk{ID: "x"}, errdefs.IsInvalidArgument},
		{vmm.Disk{ID: "x", Path: "/dev/null"}, errdefs.IsInvalidArgument},
		{vmm.Disk{ID: "x", Path: "/nonexistent"}, func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
	} {
		if err := p.Plug(s.ctx(t), c.disk); !c.is(err) {
			t.Errorf("plugged %+v: %v", c.disk, err)
		} else {
			t.Log(err)
		}
	}
}
