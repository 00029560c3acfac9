package template

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/boot"
	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

// bootInitrd packs hyperstart.
func bootInitrd(t testing.TB, kernel string) string {
	t.Helper()
	dir := t.TempDir()
	hs := filepath.Join(dir, "hyperstart")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", hs, "github.com/hyper-run/hyper/cmd/hyperstart")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build hyperstart: %v\n%s", err, out)
	}
	initrd, err := boot.Initrd(dir, hs, boot.Kernel{Path: kernel})
	if err != nil {
		t.Fatal(err)
	}
	return initrd
}

// newTap makes a tap that is connected to nothing and goes with its descriptor.
func newTap(context.Context) (*os.File, error) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq("hyptt%d")
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, ifr)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// newBootBench has QEMU and hyperstart in the place of fakes.
func newBootBench(t *testing.T) *bench {
	t.Helper()
	kernel := vmmtest.Kernel(t)
	b := newBench(t)
	d := qemu.New(qemu.Options{})
	t.Cleanup(d.Close)
	b.cfg.Driver, b.cfg.Timeout, b.cfg.Spare = d, time.Minute, newTap
	b.shape = Shape{Kernel: kernel, Initrd: bootInitrd(t, kernel), CPUs: 2, MemMiB: 1024, Layers: 4, Disks: 1, NIC: true, Plug: true}
	if tap, err := newTap(t.Context()); err != nil {
		t.Logf("without a network: %v", err)
		b.shape.NIC = false
	} else {
		tap.Close()
	}
	return b
}

// bootClone starts a clone and returns when hyperstart answers.
func (b *bench) bootClone(t *Template, id string) *guest.Client {
	b.Helper()
	dir, err := os.MkdirTemp("", "tc")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	cfg := vmm.Config{ID: id, Dir: dir}
	if t.Shape.NIC {
		tap, err := newTap(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { tap.Close() })
		cfg.NICs = []vmm.NIC{{Tap: tap, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}}}
	}
	t.Clone(&cfg)
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	begin := time.Now()
	vm, err := b.cfg.Driver.Start(ctx, cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { vm.Kill(context.Background()) })
	conn, err := vm.Dial(ctx)
	if err != nil {
		b.Fatal(err)
	}
	c, err := b.cfg.DialGuest(ctx, conn)
	if err != nil {
		console, _ := vm.Console(ctx)
		b.Fatalf("%v\n%s", err, console)
	}
	b.Cleanup(func() { c.Close() })
	b.Logf("clone %s answered after %v", id, time.Since(begin).Round(time.Millisecond))
	return c
}

// TestBoot makes a real template, loads it in the next Store and clones it there.
func TestBoot(t *testing.T) {
	b := newBootBench(t)
	s := b.open()
	i := b.make(s)
	t.Logf("made in %.2f s: %d MiB of memory, %d MiB on disk", i.MakeTime, i.MemoryBytes>>20, i.DiskBytes>>20)
	made := b.find(s)
	b.bootClone(made, "t-made")
	s.Close()

	s = b.open()
	begin := time.Now()
	loaded := b.find(s)
	t.Logf("loaded in %v", time.Since(begin).Round(time.Millisecond))
	i = s.List()[0]
	var clones []*guest.Client
	for n := range 2 {
		clones = append(clones, b.bootClone(loaded, fmt.Sprint("t-clone-", n)))
	}
	for _, c := range clones {
		info, err := c.Info(t.Context(), &wire.InfoRequest{})
		if err != nil || info.Cpus != 2 || info.MemTotalBytes>>20 < 800 || info.UptimeNanos == 0 {
			t.Errorf("a clone says %v, %v", info, err)
		}
	}
	// What clones did, template and files know nothing of.
	b.sameMemory(made, loaded)
	if now := s.List()[0]; now.Clones != 2 || now.Status != StatusReady {
		t.Errorf("after two clones: %+v", now)
	}
	s.Close()
	if _, saved, err := s.read(t.Context(), s.dir(i.ID), s.entries[i.ID].key); err != nil {
		t.Error(err)
	} else {
		closeSaved(saved)
	}
}

// TestBootKilled: a QEMU whose hyperd was killed while it made a template is
// ended by the next one.
func TestBootKilled(t *testing.T) {
	b := newBootBench(t)
	reached := make(chan struct{})
	b.cfg.DialGuest = func(ctx context.Context, conn net.Conn) (*guest.Client, error) {
		defer conn.Close()
		close(reached)
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	s := b.open()
	b.notReady(s, "it is being made")
	<-reached
	b.cfg.DialGuest = guest.Dial
	next := b.open()
	if left, _ := os.ReadDir(b.cfg.RunDir); len(left) > 0 {
		t.Errorf("left in RunDir: %v", left)
	}
	b.status(s, StatusFailed) // its VM is gone
	s.Close()
	b.make(next)
	b.bootClone(b.find(next), "t-next")
}
