package template

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/guesttest"
	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) {
	before := descriptors()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		// Templates that were handed out are closed by the garbage collector.
		for deadline := time.Now().Add(5 * time.Second); descriptors() > before && time.Now().Before(deadline); {
			runtime.GC()
			time.Sleep(10 * time.Millisecond)
		}
		if n := descriptors(); n > before && code == 0 {
			fmt.Printf("%d descriptors left, %d at first\n", n, before)
			code = 1
		}
		os.Exit(code)
	}))
}

func descriptors() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	return len(d)
}

// A bench is what Stores stand on, one after the other.
type bench struct {
	testing.TB
	cfg    Config
	driver *driver
	shape  Shape
	log    *lockedBuffer
}

// A driver is a fake whose VMs can be held up before they are saved.
type driver struct {
	vmmtest.Fake
	identity string
	hold     chan struct{} // nil: they aren't
	reached  chan struct{} // receives when one is

	mu     sync.Mutex
	starts int
	fail   error
}

func (d *driver) Probe(ctx context.Context) (vmm.Capabilities, error) {
	caps, err := d.Fake.Probe(ctx)
	caps.Identity += d.identity
	return caps, err
}

func (d *driver) Start(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	if cfg.Memory != nil {
		d.mu.Lock()
		d.starts++
		err := d.fail
		d.mu.Unlock()
		if err != nil {
			return nil, err
		}
		// What a guest would leave: data in three places, and a page of zeros.
		for _, at := range []int64{8192, 5<<20 - 4096, 40<<20 + 12} {
			if _, err := cfg.Memory.WriteAt([]byte(strings.Repeat("guest", 2000)), at); err != nil {
				return nil, err
			}
		}
		if _, err := cfg.Memory.WriteAt(zeroPage[:], 60<<20); err != nil {
			return nil, err
		}
	}
	vm, err := d.Fake.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return heldVM{vm.(savedVM), d}, nil
}

func (d *driver) made() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.starts
}

type savedVM interface {
	vmm.VM
	vmm.Saver
}

type heldVM struct {
	savedVM
	d *driver
}

func (v heldVM) Save(ctx context.Context, state *os.File) error {
	if v.d.hold != nil {
		v.d.reached <- struct{}{}
		select {
		case <-v.d.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return v.savedVM.Save(ctx, state)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func serveGuest(conn net.Conn, _ io.Writer, _ vmm.Config) vmm.Exit {
	g := guesttest.New()
	defer g.Close()
	g.Serve(conn) //nolint:errcheck // ends with the connection
	return vmm.Exit{Reason: vmm.ExitPowerOff}
}

func newBench(t testing.TB) *bench {
	t.Helper()
	dir := t.TempDir()
	run, err := os.MkdirTemp("", "tp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	b := &bench{
		TB: t, driver: &driver{Fake: vmmtest.Fake{Guest: serveGuest}}, log: new(lockedBuffer),
		shape: Shape{
			Kernel: dir + "/kernel", Initrd: dir + "/initrd-1", Cmdline: "quiet", CPUs: 2, MemMiB: 64, Layers: 2, Disks: 1, NIC: true,
		},
	}
	b.file(b.shape.Kernel, "kernel 1")
	b.file(b.shape.Initrd, "initrd")
	b.cfg = Config{
		Dir: dir + "/templates", RunDir: run, Driver: b.driver, Log: slog.New(slog.NewTextHandler(b.log, nil)),
		Timeout: 20 * time.Second, DialGuest: guest.Dial,
		Spare: func(context.Context) (*os.File, error) { return os.Open(os.DevNull) },
	}
	t.Cleanup(func() {
		if n := b.driver.VMs(); n != 0 {
			t.Errorf("%d VMs left", n)
		}
		if left, _ := os.ReadDir(run); len(left) > 0 {
			t.Errorf("left in RunDir: %v", left)
		}
		if t.Failed() {
			t.Log(b.log)
		}
	})
	return b
}

func (b *bench) file(path, content string) {
	b.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		b.Fatal(err)
	}
}

// open opens a Store as the next hyperd does.
func (b *bench) open() *Store {
	b.Helper()
	s, err := Open(b.Context(), b.cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Close)
	return s
}

func (b *bench) make(s *Store) Info {
	b.Helper()
	i, err := s.Make(b.Context(), b.shape)
	if err != nil {
		b.Fatal(err)
	}
	return i
}

func (b *bench) find(s *Store) *Template {
	b.Helper()
	t, err := s.Find(b.Context(), b.shape)
	if err != nil {
		b.Fatal(err)
	}
	return t
}

// notReady wants a NotReadyError that says why.
func (b *bench) notReady(s *Store, why string) {
	b.Helper()
	_, err := s.Find(b.Context(), b.shape)
	var not *NotReadyError
	if !errors.As(err, &not) || !errdefs.IsUnavailable(err) || !strings.Contains(not.Why, why) {
		b.Errorf("got %v, want that %q", err, why)
	}
}

// clone starts a clone, as the suite's fake checks it, and ends it.
func (b *bench) clone(t *Template, id string) {
	b.Helper()
	dir, err := os.MkdirTemp("", "tc")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	layer := filepath.Join(dir, "layer")
	b.file(layer, "layer")
	tap, err := os.Open(os.DevNull)
	if err != nil {
		b.Fatal(err)
	}
	defer tap.Close()
	cfg := vmm.Config{
		ID: id, Dir: dir, Kernel: "/nowhere", Cmdline: "x", CPUs: 1, MemMiB: 1,
		Disks: []vmm.Disk{{ID: LayerSlot(1), Path: layer, ReadOnly: true}},
		NICs:  []vmm.NIC{{Tap: tap, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}}},
	}
	t.Clone(&cfg)
	if len(cfg.Disks) != 3 || cfg.Disks[1].Path != layer || cfg.Kernel != "" || cfg.Machine != vmm.MachineMicroVM || cfg.Accel != vmm.AccelTCG {
		b.Errorf("configuration of a clone: %+v", cfg)
	}
	vm, err := b.driver.Start(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	if err := vm.Kill(b.Context()); err != nil {
		b.Error(err)
	}
}

// status waits until the only template has a status.
func (b *bench) status(s *Store, want Status) Info {
	b.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		list := s.List()
		if len(list) == 1 && list[0].Status == want {
			return list[0]
		}
		if time.Now().After(deadline) {
			b.Fatalf("got %+v, want one that is %s", list, want)
		}
	}
}

func TestLife(t *testing.T) {
	b := newBench(t)
	s := b.open()
	b.notReady(s, "it is being made")
	made := b.make(s)
	if got, err := s.Get(made.ID[:5]); err != nil || got.ID != made.ID {
		t.Errorf("get by prefix: %+v, %v", got, err)
	}
	if made.Status != StatusReady || made.Error != "" || made.MakeTime <= 0 || made.Shape != b.shape || made.VMM != "fake" || made.Accel != vmm.AccelTCG {
		t.Errorf("made %+v", made)
	}
	// 10,000 bytes three times, two pages of zeros, one of state.
	if got := made.MemoryBytes; got != (3*3+2+1)*pageSize {
		t.Errorf("template takes %d bytes of memory", got)
	}
	if made.DiskBytes < (3*3+1+1)*pageSize || made.DiskBytes > 1<<20 {
		t.Errorf("template takes %d bytes of disk", made.DiskBytes)
	}
	first := b.find(s)
	b.clone(first, "one")
	b.clone(first, "two")
	if i := s.List()[0]; i.Clones != 2 || time.Since(i.LastUsed) > time.Minute {
		t.Errorf("after two clones: %+v", i)
	}
	s.Close()
	b.notReady(s, "hyperd ends")
	b.clone(first, "later")

	s = b.open()
	if i := b.status(s, StatusReady); i.MemoryBytes != 0 || i.DiskBytes != made.DiskBytes || !i.Created.Equal(made.Created) {
		t.Errorf("in the next Store: %+v", i)
	}
	second := b.find(s)
	b.clone(second, "three")
	b.sameMemory(first, second)
	if n := b.driver.made(); n != 1 {
		t.Errorf("made %d times", n)
	}
	// Sealed: nothing writes, or punches holes.
	for _, f := range []*os.File{first.saved.Memory, first.saved.State, second.saved.Memory, second.saved.State} {
		_, werr := f.WriteAt([]byte("x"), 0)
		perr := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, pageSize)
		if werr == nil || perr == nil || f.Truncate(0) == nil {
			t.Errorf("%s can be changed: %v, %v", f.Name(), werr, perr)
		}
	}
	if err := s.Remove(made.ID); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(made.ID); !errdefs.IsNotFound(err) || len(s.List()) > 0 {
		t.Errorf("removed: %v, %v", err, s.List())
	}
	b.clone(second, "four")
	s.Close()
	b.empty()
}

func (b *bench) sameMemory(x, y *Template) {
	b.Helper()
	read := func(f *os.File) []byte {
		info, err := f.Stat()
		if err != nil {
			b.Fatal(err)
		}
		data, err := io.ReadAll(io.NewSectionReader(f, 0, info.Size()))
		if err != nil {
			b.Fatal(err)
		}
		return data
	}
	if !bytes.Equal(read(x.saved.Memory), read(y.saved.Memory)) || !bytes.Equal(read(x.saved.State), read(y.saved.State)) {
		b.Error("what was loaded is not what was made")
	}
}

// empty wants no files.
func (b *bench) empty() {
	b.Helper()
	if left, err := os.ReadDir(b.cfg.Dir); err != nil || len(left) > 0 {
		b.Errorf("left in Dir: %v, %v", left, err)
	}
}

// TestDamage: whatever happened to the files, the next Store makes a good template.
func TestDamage(t *testing.T) {
	flip := func(at int64) func(string) error {
		return func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			var c [1]byte
			if _, err := f.ReadAt(c[:], at); err != nil {
				return err
			}
			c[0] ^= 4
			_, err = f.WriteAt(c[:], at)
			return err
		}
	}
	cut := func(path string) error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		return os.Truncate(path, info.Size()-1)
	}
	replace := func(old, with string) func(string) error {
		return func(path string) error {
			data, err := os.ReadFile(path)
			if err != nil || !bytes.Contains(data, []byte(old)) {
				return errors.Join(err, fmt.Errorf("no %s in %s", old, data))
			}
			return os.WriteFile(path, bytes.Replace(data, []byte(old), []byte(with), 1), 0o600)
		}
	}
	fifo := func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) }
	for _, c := range []struct {
		name, file string
		damage     func(path string) error
		log        string // at loading; "": found when the Store opens
	}{
		{"memory flipped", memoryName, flip(5<<20 - 4096), "its hash is another one"},
		{"memory flipped in a hole", memoryName, flip(20 << 20), "its hash is another one"},
		{"memory cut", memoryName, cut, "67108863 bytes, not 67108864"},
		{"memory gone", memoryName, os.Remove, "no such file"},
		{"memory a fifo", memoryName, fifo, "is no file"},
		{"memory a hole", memoryName, func(p string) error { return errors.Join(os.Truncate(p, 0), os.Truncate(p, 64<<20)) }, "its hash is another one"},
		{"state flipped", stateName, flip(3), "its hash is another one"},
		{"state cut", stateName, cut, "bytes, not"},
		{"state gone", stateName, os.Remove, "no such file"},
		{"manifest flipped", manifestName, flip(200), ""},
		{"manifest cut", manifestName, cut, ""},
		{"manifest gone", manifestName, os.Remove, ""},
		{"manifest a fifo", manifestName, fifo, ""},
		{"manifest with more", manifestName, replace(`{"sha256"`, `{"x":1,"sha256"`), ""},
		{"manifest of another format", manifestName, replace(`"format":1`, `"format":2`), ""},
		{"all gone", "", os.RemoveAll, ""},
	} {
		for _, open := range []bool{false, true} { // damaged before, or while the Store is open
			t.Run(fmt.Sprintf("%s open=%t", c.name, open), func(t *testing.T) {
				b := newBench(t)
				s := b.open()
				id := b.make(s).ID
				s.Close()
				path := filepath.Join(b.cfg.Dir, id, c.file)
				if open {
					s = b.open()
				}
				if err := c.damage(path); err != nil {
					t.Fatal(err)
				}
				if !open {
					s = b.open()
					if n := len(s.List()); n != 0 && c.log == "" {
						t.Errorf("%d templates in the next Store", n)
					}
				}
				b.notReady(s, "it is being made")
				b.make(s)
				b.clone(b.find(s), "clone")
				if n := b.driver.made(); n != 2 {
					t.Errorf("made %d times", n)
				}
				if c.log != "" && !strings.Contains(b.log.String(), c.log) {
					t.Errorf("the log does not say %q", c.log)
				}
				s.Close()
				if _, err := readManifest(filepath.Join(b.cfg.Dir, id)); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestStale: a template is not used by what it was not made for, and goes.
func TestStale(t *testing.T) {
	other := func(f func(*Shape)) func(*bench) { return func(b *bench) { f(&b.shape) } }
	for _, c := range []struct {
		name   string
		change func(*bench)
		left   int // templates with the new one
	}{
		{"VMM", func(b *bench) { b.driver.identity = " 2" }, 1},
		{"kernel", func(b *bench) { b.file(b.shape.Kernel, "kernel 2") }, 1},
		{"initrd", func(b *bench) { b.shape.Initrd += "2"; b.file(b.shape.Initrd, "initrd") }, 1},
		{"size of initrd", func(b *bench) { b.file(b.shape.Initrd, "initrd more") }, 1},
		{"memory", other(func(s *Shape) { s.MemMiB++ }), 2},
		{"CPUs", other(func(s *Shape) { s.CPUs++ }), 2},
		{"layers", other(func(s *Shape) { s.Layers++ }), 2},
		{"disks", other(func(s *Shape) { s.Disks++ }), 2},
		{"network", other(func(s *Shape) { s.NIC = false }), 2},
		{"command line", other(func(s *Shape) { s.Cmdline += " x" }), 2},
		{"machine", other(func(s *Shape) { s.Machine = vmm.MachineQ35 }), 2},
		{"accelerator", func(b *bench) { b.cfg.Accel = vmm.AccelKVM }, 1},
	} {
		for _, running := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s running=%t", c.name, running), func(t *testing.T) {
				b := newBench(t)
				s := b.open()
				old := b.make(s).ID
				if !running {
					s.Close()
				}
				c.change(b)
				if !running {
					s = b.open()
				} else {
					s.cfg = b.cfg
				}
				b.notReady(s, "it is being made")
				if i := b.make(s); i.ID == old {
					t.Errorf("%s is used", old)
				}
				if got := s.List(); len(got) != c.left {
					t.Errorf("templates: %+v", got)
				}
				s.Close()
				if left, _ := os.ReadDir(b.cfg.Dir); len(left) != c.left {
					t.Errorf("left in Dir: %v", left)
				}
			})
		}
	}
}

func TestKeep(t *testing.T) {
	b := newBench(t)
	s := b.open()
	b.make(s)
	s.Close()
	b.cfg.Keep = func(shape Shape) bool { return shape != b.shape }
	if s = b.open(); len(s.List()) != 0 {
		t.Errorf("kept %+v", s.List())
	}
	b.empty()
}

// TestKilled: what a hyperd left that was killed is gone in the next one.
func TestKilled(t *testing.T) {
	b := newBench(t)
	b.driver.hold, b.driver.reached = make(chan struct{}), make(chan struct{}, 1)
	s := b.open()
	b.notReady(s, "it is being made")
	<-b.driver.reached
	// As killed: the VM runs on, its directory and half of a copy are there.
	id := s.List()[0].ID
	if n := b.driver.VMs(); n != 1 {
		t.Fatalf("%d VMs", n)
	}
	for _, dir := range []string{id + ".new", id + ".old1", "0123456789abcdef"} {
		if err := os.MkdirAll(filepath.Join(b.cfg.Dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		b.file(filepath.Join(b.cfg.Dir, dir, memoryName), "half")
	}
	next := b.open()
	if n := b.driver.VMs(); n != 0 {
		t.Errorf("%d VMs after the next Store opened", n)
	}
	b.empty()
	if left, _ := os.ReadDir(b.cfg.RunDir); len(left) > 0 {
		t.Errorf("left in RunDir: %v", left)
	}
	s.Close()
	b.driver.hold = nil
	b.make(next)
	b.clone(b.find(next), "clone")
}

func TestConcurrentMakes(t *testing.T) {
	b := newBench(t)
	s := b.open()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Make(b.Context(), b.shape); err != nil {
				t.Error(err)
			}
			if _, err := s.Find(b.Context(), b.shape); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := b.driver.made(); n != 1 {
		t.Errorf("made %d times", n)
	}
}

// TestEnd: what is being made ends with the Store, with its removal, but not
// with who asked for it.
func TestEnd(t *testing.T) {
	b := newBench(t)
	b.driver.hold, b.driver.reached = make(chan struct{}), make(chan struct{}, 1)
	s := b.open()
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan error)
	go func() {
		_, err := s.Make(ctx, b.shape)
		asked <- err
	}()
	<-b.driver.reached
	cancel()
	if err := <-asked; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	i := b.status(s, StatusMaking)
	if err := s.Remove(i.ID); err != nil || len(s.List()) != 0 || b.driver.VMs() != 0 {
		t.Errorf("remove: %v, %+v, %d VMs", err, s.List(), b.driver.VMs())
	}
	b.notReady(s, "it is being made")
	<-b.driver.reached
	s.Close()
	b.empty()
}

func TestFailure(t *testing.T) {
	b := newBench(t)
	s := b.open()
	b.driver.fail = &vmm.StartError{Err: errors.New("no luck"), Stderr: "a lot\nto see"}
	b.notReady(s, "it is being made")
	i := b.status(s, StatusFailed)
	if !strings.HasSuffix(i.Error, "no luck") {
		t.Errorf("got %q", i.Error)
	}
	b.notReady(s, "no luck")
	if n := b.driver.made(); n != 1 {
		t.Errorf("tried %d times", n)
	}
	if !strings.Contains(b.log.String(), "to see") {
		t.Error("the log lacks what there was to see")
	}
	// Make tries at once, Find after a while.
	if _, err := s.Make(t.Context(), b.shape); err == nil || !strings.Contains(err.Error(), "to see") {
		t.Errorf("got %v", err)
	}
	s.mu.Lock()
	e := s.entries[i.ID]
	if left := time.Until(e.retry); left < 2*minBackoff-5*time.Second || left > 2*minBackoff {
		t.Errorf("tried again in %v", left)
	}
	e.retry = time.Now()
	s.mu.Unlock()
	b.driver.mu.Lock()
	b.driver.fail = nil
	b.driver.mu.Unlock()
	b.notReady(s, "it is being made")
	b.make(s)
	b.find(s)
}

func TestBackoff(t *testing.T) {
	for n, want := range map[int]time.Duration{1: 30 * time.Second, 2: time.Minute, 5: 8 * time.Minute, 6: maxBackoff, 1000: maxBackoff} {
		if got := backoff(n); got != want {
			t.Errorf("after %d failures: %v, want %v", n, got, want)
		}
	}
}

// TestGuests that never come up, or die.
func TestGuests(t *testing.T) {
	for _, c := range []struct {
		name, want string
		guest      vmmtest.Guest
	}{
		{"silent", "the guest did not answer within", func(conn net.Conn, console io.Writer, _ vmm.Config) vmm.Exit {
			fmt.Fprintln(console, "I am silent")
			io.Copy(io.Discard, conn)
			return vmm.Exit{}
		}},
		{"dies", "the virtual machine has ended (panic oops)", func(net.Conn, io.Writer, vmm.Config) vmm.Exit {
			return vmm.Exit{Reason: vmm.ExitPanic, Detail: "oops"}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.driver.Guest = c.guest
			b.cfg.Timeout = 200 * time.Millisecond
			s := b.open()
			_, err := s.Make(t.Context(), b.shape)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if c.name == "silent" && !strings.Contains(err.Error(), "I am silent") {
				t.Errorf("the console is not in %v", err)
			}
			b.empty()
		})
	}
}

func TestCannotClone(t *testing.T) {
	b := newBench(t)
	s := b.open()
	b.driver.NoClones = true
	b.notReady(s, "can't clone")
	if _, err := s.Make(t.Context(), b.shape); err == nil || len(s.List()) > 0 {
		t.Errorf("got %v, %v", err, s.List())
	}
	b.driver.NoClones = false
	b.shape.Kernel += "-gone"
	b.notReady(s, "no such file")
}

func TestNoNetwork(t *testing.T) {
	b := newBench(t)
	b.cfg.Spare = nil
	s := b.open()
	if _, err := s.Make(t.Context(), b.shape); !errdefs.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}
	b.shape.NIC = false
	b.make(s)
}

func TestShortOfMemory(t *testing.T) {
	b := newBench(t)
	s := b.open()
	id := b.make(s).ID
	s.Close()
	s = b.open()
	s.available = func() (int64, error) { return spareBytes, nil }
	b.notReady(s, "256 MiB of memory available")
	if i := b.status(s, StatusFailed); i.ID != id || i.DiskBytes == 0 {
		t.Errorf("got %+v", i)
	}
	b.shape.CPUs++
	if _, err := s.Make(t.Context(), b.shape); !errdefs.IsResourceExhausted(err) {
		t.Errorf("got %v", err)
	}
	s.available = memAvailable
	b.shape.CPUs--
	b.make(s)
	if n := b.driver.made(); n != 1 {
		t.Errorf("made %d times: a lack of memory is no fault of the files", n)
	}
}

// TestFullDisk: the template works all the same.
func TestFullDisk(t *testing.T) {
	b := newBench(t)
	if err := os.Mkdir(b.cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", b.cfg.Dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(b.cfg.Dir, unix.MNT_DETACH) })
	s := b.open()
	i := b.make(s)
	if i.Status != StatusReady || !strings.Contains(i.Error, "no space left") || i.DiskBytes != 0 {
		t.Errorf("got %+v", i)
	}
	b.clone(b.find(s), "clone")
	b.empty()
	s.Close()
	if s = b.open(); len(s.List()) != 0 {
		t.Errorf("kept %+v", s.List())
	}
}

func TestUnused(t *testing.T) {
	b := newBench(t)
	b.cfg.Unused = 50 * time.Millisecond
	s := b.open()
	b.make(s)
	before := b.find(s)
	for deadline := time.Now().Add(10 * time.Second); s.List()[0].MemoryBytes != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still in memory")
		}
	}
	b.clone(before, "one")
	b.clone(b.find(s), "two") // from its files
	if n := b.driver.made(); n != 1 {
		t.Errorf("made %d times", n)
	}
}

func TestSpoiled(t *testing.T) {
	b := newBench(t)
	s := b.open()
	first := b.make(s)
	old := b.find(s)
	s.Spoiled(old, errors.New("it hangs\nconsole"))
	if i := b.status(s, StatusFailed); i.Error != "it can't be cloned: it hangs" || i.MemoryBytes != 0 || i.DiskBytes != 0 {
		t.Errorf("got %+v", i)
	}
	b.notReady(s, "it is being made") // at once
	if second := b.make(s); second.Created.Equal(first.Created) {
		t.Error("not made anew")
	}
	s.Spoiled(old, errors.New("late news"))
	s.Spoiled(b.find(s), errors.New("it hangs again"))
	b.notReady(s, "it hangs again")
	if n := b.driver.made(); n != 2 {
		t.Errorf("made %d times", n)
	}
	s.Close()
	b.empty()
}

// TestGrown: a template whose holes were filled is loaded anew.
func TestGrown(t *testing.T) {
	b := newBench(t)
	b.shape.MemMiB = 600
	s := b.open()
	b.make(s)
	old := b.find(s)
	mem, err := unix.Mmap(int(old.saved.Memory.Fd()), 0, 600<<20, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(mem); at += pageSize {
		if mem[at] == 1 {
			t.Fatal("what is in a hole?")
		}
	}
	if err := unix.Munmap(mem); err != nil {
		t.Fatal(err)
	}
	if n := s.List()[0].MemoryBytes; n < 600<<20 {
		t.Skipf("reading holes took %d bytes only", n)
	}
	if b.find(s) != old {
		t.Error("Find waited")
	}
	s.mu.Lock()
	task := s.entries[old.ID].task
	s.mu.Unlock()
	if task != nil {
		<-task.done
	}
	if n := s.List()[0].MemoryBytes; n > 1<<20 || b.find(s) == old || b.driver.made() != 1 {
		t.Errorf("takes %d bytes, made %d times", n, b.driver.made())
	}
}

func TestGet(t *testing.T) {
	b := newBench(t)
	s := b.open()
	for _, id := range []string{"0123456789abcdef", "0123f56789abcdef"} {
		s.newEntry(id, key{}, b.shape)
	}
	for ref, want := range map[string]func(error) bool{
		"": errdefs.IsNotFound, "9": errdefs.IsNotFound, "0123": errdefs.IsInvalidArgument, "01234": func(err error) bool { return err == nil },
	} {
		if _, err := s.Get(ref); !want(err) {
			t.Errorf("get %q: %v", ref, err)
		}
	}
	if err := s.Remove("0123"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}
