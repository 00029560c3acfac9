// Package vmmtest is the conformance suite that every VMM driver passes, and
// Fake, a driver without virtual machines that passes it too.
package vmmtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hyper-run/hyper/internal/vmm"
)

// Options fit the suite to a driver.
type Options struct {
	// Config is a VM whose guest is testguest. The suite sets ID, Dir and
	// Disks.
	Config vmm.Config
	// Crash ends a VM's processes from outside; nil means SIGKILL to its PID.
	Crash func(vmm.Handle) error
	// Patience bounds each step; 0 means a minute, for emulation on a busy host.
	Patience time.Duration
}

// Run runs the suite. newDriver is called several times; each driver it
// returns can adopt what an earlier one started.
func Run(t *testing.T, newDriver func(t *testing.T) vmm.Driver, o Options) {
	if o.Patience == 0 {
		o.Patience = time.Minute
	}
	if o.Crash == nil {
		o.Crash = func(h vmm.Handle) error { return syscall.Kill(h.PID, syscall.SIGKILL) }
	}
	s := &suite{newDriver: newDriver, o: o, t: t}
	for _, c := range []struct {
		name string
		run  func(*suite, *testing.T)
	}{
		{"Life", (*suite).life},
		{"PowerOff", func(s *suite, t *testing.T) { s.stops(t, "poweroff", vmm.ExitPowerOff) }},
		{"Reset", func(s *suite, t *testing.T) { s.stops(t, "reboot", vmm.ExitReset) }},
		{"Panic", func(s *suite, t *testing.T) { s.stops(t, "panic", vmm.ExitPanic) }},
		{"Crash", (*suite).crash},
		{"StoppedUnseen", (*suite).stoppedUnseen},
		{"StartErrors", (*suite).startErrors},
		{"Sweep", (*suite).sweep},
		{"Procs", (*suite).procs},
		{"Clone", (*suite).clone},
		{"CloneErrors", (*suite).cloneErrors},
		{"Fill", (*suite).fill},
		{"Refill", (*suite).refill},
		{"Plug", (*suite).plug},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(s, t) })
	}
}

type suite struct {
	newDriver func(t *testing.T) vmm.Driver
	o         Options
	t         *testing.T // of the whole suite
	vms       int
	made      *template // once it is needed
}

func (s *suite) ctx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), s.o.Patience)
	t.Cleanup(cancel)
	return ctx
}

// config is that of a VM nobody has started yet, in a directory of its own.
func (s *suite) config(t *testing.T) vmm.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm") // shorter than t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s.vms++
	cfg := s.o.Config
	cfg.Dir, cfg.ID = dir, fmt.Sprintf("suite-%d-%d", os.Getpid(), s.vms)
	return cfg
}

// start starts cfg and makes sure that it does not survive the test.
func (s *suite) start(t *testing.T, d vmm.Driver, cfg vmm.Config) vmm.VM {
	t.Helper()
	return s.startAll(t, d, cfg)[0]
}

// startAll is start for several at once.
func (s *suite) startAll(t *testing.T, d vmm.Driver, cfgs ...vmm.Config) []vmm.VM {
	t.Helper()
	ctx := s.ctx(t)
	vms, errs := make([]vmm.VM, len(cfgs)), make([]error, len(cfgs))
	var started sync.WaitGroup
	for i, cfg := range cfgs {
		started.Go(func() { vms[i], errs[i] = d.Start(ctx, cfg) })
	}
	started.Wait()
	for i, vm := range vms {
		if errs[i] == nil {
			s.killAtEnd(t, vm.Handle())
		}
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return vms
}

// killAtEnd kills a VM, unless the test does. It may fail before it has
// closed the driver that the VM is connected to: then there is no adopting.
func (s *suite) killAtEnd(t *testing.T, h vmm.Handle) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		d := s.newDriver(t)
		defer d.Close()
		vm, err := d.Adopt(ctx, h)
		if err == nil {
			err = vm.Kill(ctx)
		}
		if err != nil && !errors.Is(err, vmm.ErrGone) {
			t.Logf("%v; ended from outside: %v", err, s.o.Crash(h))
		}
	})
}

// client is the host's end of a testguest.
type client struct {
	conn  net.Conn
	in    *bufio.Reader
	token string
	asked int
}

var clients int

func (s *suite) dial(t *testing.T, vm vmm.VM) *client {
	t.Helper()
	conn, err := vm.Dial(s.ctx(t))
	if err != nil {
		if errors.Is(err, vmm.ErrGone) {
			<-vm.Done()
			t.Logf("%+v", vm.Exit())
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	clients++
	c := &client{conn: conn, in: bufio.NewReader(conn), token: fmt.Sprintf("c%d", clients)}
	// Ends what an earlier connection may have left of a line.
	if _, err := fmt.Fprintln(conn); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *client) send(t *testing.T, request string) {
	t.Helper()
	c.asked++
	if _, err := fmt.Fprintf(c.conn, "%s-%d %s\n", c.token, c.asked, request); err != nil {
		t.Fatalf("%s: %v", request, err)
	}
}

// answer waits for the answer to the last request, and skips older ones.
func (c *client) answer(wait time.Duration) (string, error) {
	c.conn.SetReadDeadline(time.Now().Add(wait))
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return "", err
		}
		token, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if token == fmt.Sprintf("%s-%d", c.token, c.asked) {
			return text, nil
		}
	}
}

func (s *suite) ask(t *testing.T, c *client, request string) string {
	t.Helper()
	c.send(t, request)
	text, err := c.answer(s.o.Patience)
	if err != nil {
		t.Fatalf("%s: %v", request, err)
	}
	return text
}

func (s *suite) expect(t *testing.T, c *client, request, want string) {
	t.Helper()
	if got := s.ask(t, c, request); got != want {
		t.Errorf("%s: got %q, want %q", request, got, want)
	}
}

// done waits for the end of a VM.
func (s *suite) done(t *testing.T, vm vmm.VM, want vmm.ExitReason) {
	t.Helper()
	select {
	case <-vm.Done():
	case <-time.After(s.o.Patience):
		t.Fatal("VM has not ended")
	}
	if got := vm.Exit(); got.Reason != want {
		t.Errorf("exit %+v, want %s", got, want)
	}
}

func (s *suite) kill(t *testing.T, vm vmm.VM) {
	t.Helper()
	start := time.Now()
	if err := vm.Kill(s.ctx(t)); err != nil {
		t.Fatal(err)
	}
	t.Logf("killed in %v", time.Since(start))
	if err := vm.Kill(s.ctx(t)); err != nil {
		t.Errorf("second kill: %v", err)
	}
}

// expectGone checks what a VM says after its end. A VM that has stopped by
// itself still has a console.
func (s *suite) expectGone(t *testing.T, vm vmm.VM) {
	t.Helper()
	ctx := s.ctx(t)
	if conn, err := vm.Dial(ctx); !errors.Is(err, vmm.ErrGone) {
		if err == nil {
			conn.Close()
		}
		t.Errorf("dial: got %v, want ErrGone", err)
	}
	if err := vm.Pause(ctx); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("pause: got %v, want ErrGone", err)
	}
	if err := vm.Resume(ctx); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("resume: got %v, want ErrGone", err)
	}
}

// disk makes a disk of 1 MiB that begins with text.
func disk(t *testing.T, id, text string, readOnly bool) vmm.Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "with,comma "+id)
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	return vmm.Disk{ID: id, Path: path, ReadOnly: readOnly}
}

func (s *suite) life(t *testing.T) {
	d := s.newDriver(t)
	caps, err := d.Probe(s.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	if caps.Version == "" || caps.AccelWhy == "" || (caps.Accel != vmm.AccelKVM && caps.Accel != vmm.AccelTCG) {
		t.Errorf("capabilities %+v", caps)
	}
	cfg := s.config(t)
	cfg.Disks = []vmm.Disk{disk(t, "fixed", "sealed", true), disk(t, "own", "fresh", false)}
	vm := s.start(t, d, cfg)
	h := vm.Handle()
	if h.Driver != d.Name() || h.ID != cfg.ID || h.Dir != cfg.Dir || h.PID <= 0 || h.BootID == "" || h.Accel == "" || h.Machine == "" {
		t.Errorf("handle %+v", h)
	}
	c := s.dial(t, vm)
	s.expect(t, c, "echo one two", "one two")
	s.disks(t, c, cfg)
	s.oneStream(t, vm, c)
	c = s.dial(t, vm)
	s.expect(t, c, "echo again", "again")
	s.pausing(t, vm, c)
	s.meter(t, vm)
	s.console(t, vm, c)

	// Another hyperd takes over.
	d.Close()
	d = s.newDriver(t)
	t.Cleanup(d.Close)
	if vm, err = d.Adopt(s.ctx(t), h); err != nil {
		t.Fatal(err)
	}
	if vm.Handle() != h {
		t.Errorf("handle changed to %+v", vm.Handle())
	}
	c = s.dial(t, vm)
	s.expect(t, c, "echo adopted", "adopted")
	s.console(t, vm, c)
	s.sameDirectory(t, d, cfg, c)
	s.otherProcess(t, d, h)

	s.kill(t, vm)
	s.done(t, vm, vmm.ExitKilled)
	s.expectGone(t, vm)
	if _, err := vm.Console(s.ctx(t)); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("console: got %v, want ErrGone", err)
	}
	if _, err := d.Adopt(s.ctx(t), h); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("adopt: got %v, want ErrGone", err)
	}
}

func (s *suite) disks(t *testing.T, c *client, cfg vmm.Config) {
	s.expect(t, c, "read fixed", "sealed")
	s.expect(t, c, "read own", "fresh")
	if got := s.ask(t, c, "write fixed broken"); !strings.HasPrefix(got, "error: ") {
		t.Errorf("write to read-only disk: %q", got)
	}
	s.expect(t, c, "write own changed", "ok")
	for i, want := range []string{"sealed\n", "changed\n"} {
		b, err := os.ReadFile(cfg.Disks[i].Path)
		if err != nil || !strings.HasPrefix(string(b), want) {
			t.Errorf("disk %s on the host: %.20q, %v, want %q", cfg.Disks[i].ID, b, err, want)
		}
	}
}

func (s *suite) oneStream(t *testing.T, vm vmm.VM, c *client) {
	if conn, err := vm.Dial(s.ctx(t)); err == nil {
		conn.Close()
		t.Error("second stream was opened beside the first")
	}
	s.expect(t, c, "echo still", "still")
	c.conn.Close()
}

func (s *suite) pausing(t *testing.T, vm vmm.VM, c *client) {
	for range 2 {
		if err := vm.Pause(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
	}
	c.send(t, "echo late")
	if text, err := c.answer(200 * time.Millisecond); err == nil {
		t.Errorf("a paused guest answered %q", text)
	}
	for range 2 {
		if err := vm.Resume(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := c.answer(s.o.Patience); err != nil || text != "late" {
		t.Errorf("resumed guest answered %q, %v", text, err)
	}
}

func (s *suite) meter(t *testing.T, vm vmm.VM) {
	m, ok := vm.(vmm.Meter)
	if !ok {
		return
	}
	u, err := m.HostUsage(s.ctx(t))
	if err != nil || u.PSSBytes == 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	t.Logf("usage %+v", u)
}

func (s *suite) console(t *testing.T, vm vmm.VM, c *client) {
	mark := "mark of " + c.token
	s.expect(t, c, "console "+mark, "ok")
	for range 2 { // reading takes nothing away
		if b, err := vm.Console(s.ctx(t)); err != nil || !strings.Contains(string(b), mark) {
			t.Errorf("console without %q: %q, %v", mark, b, err)
		}
	}
}

// sameDirectory: a second VM in the same place must not harm the first.
func (s *suite) sameDirectory(t *testing.T, d vmm.Driver, cfg vmm.Config, c *client) {
	if _, err := d.Start(s.ctx(t), cfg); err == nil {
		t.Fatal("two VMs in one directory")
	}
	s.expect(t, c, "echo unharmed", "unharmed")
}

// otherProcess: a handle whose process is another one now is gone.
func (s *suite) otherProcess(t *testing.T, d vmm.Driver, h vmm.Handle) {
	for name, spoil := range map[string]func(*vmm.Handle){
		"other start time": func(h *vmm.Handle) { h.StartTime++ },
		"other boot":       func(h *vmm.Handle) { h.BootID = "00000000-0000-0000-0000-000000000000" },
		"other process":    func(h *vmm.Handle) { h.PID = os.Getpid() },
		"no process":       func(h *vmm.Handle) { h.PID = 1<<22 + 1 },
	} {
		h := h
		spoil(&h)
		if _, err := d.Adopt(s.ctx(t), h); !errors.Is(err, vmm.ErrGone) {
			t.Errorf("adopt %s: got %v, want ErrGone", name, err)
		}
	}
}

// stops has the guest end itself.
func (s *suite) stops(t *testing.T, how string, want vmm.ExitReason) {
	d := s.newDriver(t)
	t.Cleanup(d.Close)
	vm := s.start(t, d, s.config(t))
	c := s.dial(t, vm)
	s.console(t, vm, c)
	mark := "mark of " + c.token
	c.send(t, how)
	s.done(t, vm, want)
	if b, err := vm.Console(s.ctx(t)); err != nil || !strings.Contains(string(b), mark) {
		t.Errorf("console of a stopped VM: %q, %v", b, err)
	}
	if want == vmm.ExitPanic && vm.Exit().Detail == "" {
		t.Error("panic without a message")
	}
	s.expectGone(t, vm)
	s.kill(t, vm)
	if got := vm.Exit().Reason; got != want {
		t.Errorf("exit after kill: %s, want %s", got, want)
	}
}

func (s *suite) crash(t *testing.T) {
	d := s.newDriver(t)
	t.Cleanup(d.Close)
	vm := s.start(t, d, s.config(t))
	s.expect(t, s.dial(t, vm), "echo up", "up")
	if err := s.o.Crash(vm.Handle()); err != nil {
		t.Fatal(err)
	}
	s.done(t, vm, vmm.ExitCrashed)
	s.expectGone(t, vm)
	s.kill(t, vm)
	if _, err := d.Adopt(s.ctx(t), vm.Handle()); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("adopt: got %v, want ErrGone", err)
	}
}

// stoppedUnseen: the guest powers off while no driver is there.
func (s *suite) stoppedUnseen(t *testing.T) {
	d := s.newDriver(t)
	vm := s.start(t, d, s.config(t))
	c := s.dial(t, vm)
	s.expect(t, c, "poweroff 200ms", "soon")
	d.Close()
	time.Sleep(time.Second)
	d = s.newDriver(t)
	t.Cleanup(d.Close)
	vm, err := d.Adopt(s.ctx(t), vm.Handle())
	if err != nil {
		t.Fatal(err)
	}
	s.done(t, vm, vmm.ExitPowerOff)
	s.kill(t, vm)
}

func (s *suite) startErrors(t *testing.T) {
	d := s.newDriver(t)
	t.Cleanup(d.Close)
	for name, spoil := range map[string]func(*vmm.Config){
		"invalid id":            func(c *vmm.Config) { c.ID = "a,b" },
		"no such kernel":        func(c *vmm.Config) { c.Kernel = "/nonexistent" },
		"kernel is a directory": func(c *vmm.Config) { c.Kernel = "/" },
		"no such disk":          func(c *vmm.Config) { c.Disks = []vmm.Disk{{ID: "x", Path: "/nonexistent"}} },
		"disk is a terminal":    func(c *vmm.Config) { c.Disks = []vmm.Disk{{ID: "x", Path: "/dev/null"}} },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := s.config(t)
			spoil(&cfg)
			s.startFails(t, d, s.ctx(t), cfg)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(s.ctx(t))
		cancel()
		s.startFails(t, d, ctx, s.config(t))
	})
	t.Run("no directory", func(t *testing.T) {
		cfg := s.config(t)
		os.Remove(cfg.Dir)
		if _, err := d.Start(s.ctx(t), cfg); err == nil {
			t.Error("started")
		}
	})
}

// startFails: an error that says something, and nothing left.
func (s *suite) startFails(t *testing.T, d vmm.Driver, ctx context.Context, cfg vmm.Config) {
	t.Helper()
	untouched := leaveForeign(t, cfg)
	vm, err := d.Start(ctx, cfg)
	if err == nil {
		vm.Kill(context.Background())
		t.Fatal("started")
	}
	t.Log(err)
	untouched()
}

// leaveForeign puts a file into the VM's directory. The function it returns
// checks that there is nothing else.
func leaveForeign(t *testing.T, cfg vmm.Config) (untouched func()) {
	t.Helper()
	foreign := filepath.Join(cfg.Dir, "foreign")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		left, err := filepath.Glob(filepath.Join(cfg.Dir, "*"))
		if err != nil || len(left) != 1 || left[0] != foreign {
			t.Errorf("in the directory: %v, %v", left, err)
		}
	}
}

// sweep: a VM whose handle was lost is found by its name.
func (s *suite) sweep(t *testing.T) {
	d := s.newDriver(t)
	t.Cleanup(d.Close)
	sweeper, ok := d.(vmm.Sweeper)
	if !ok {
		t.Skip("driver is no Sweeper")
	}
	cfg := s.config(t)
	vm := s.start(t, d, cfg)
	if err := sweeper.Sweep(s.ctx(t), cfg.ID+"0"); err != nil {
		t.Error(err)
	}
	s.expect(t, s.dial(t, vm), "echo there", "there")
	if err := sweeper.Sweep(s.ctx(t), cfg.ID); err != nil {
		t.Error(err)
	}
	s.done(t, vm, vmm.ExitCrashed)
	if err := sweeper.Sweep(s.ctx(t), cfg.ID); err != nil {
		t.Error(err)
	}
}
