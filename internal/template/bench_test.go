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

func (b *bench) sameMemory(x, y *Template) {
	b.Helper()
	read := func(f *os.File) []byte {
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			b.Fatal(err)
		}
		data, err := io.ReadAll(io.NewSectionReader(f, 0, size))
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
