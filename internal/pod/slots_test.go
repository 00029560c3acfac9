package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/hyper-run/hyper/internal/guest/guesttest"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/session"
	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

// A crankyDriver makes VMs whose slots do as the test says.
type crankyDriver struct {
	*vmmtest.Fake
	fail func(op string) error // of fill, empty, plug, unplug; after it was done
}

func (d *crankyDriver) Start(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	vm, err := d.Fake.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return crankyVM{vm, d}, nil
}

func (d *crankyDriver) Adopt(ctx context.Context, h vmm.Handle) (vmm.VM, error) {
	vm, err := d.Fake.Adopt(ctx, h)
	if err != nil {
		return nil, err
	}
	return crankyVM{vm, d}, nil
}

type crankyVM struct {
	vmm.VM
	d *crankyDriver
}

func (v crankyVM) Fill(ctx context.Context, disks []vmm.Disk) error {
	return errors.Join(v.VM.(vmm.Filler).Fill(ctx, disks), v.d.fail("fill"))
}

func (v crankyVM) Empty(ctx context.Context, ids []string) error {
	return errors.Join(v.VM.(vmm.Filler).Empty(ctx, ids), v.d.fail("empty"))
}

func (v crankyVM) Plug(ctx context.Context, disk vmm.Disk) error {
	return errors.Join(v.VM.(vmm.Plugger).Plug(ctx, disk), v.d.fail("plug"))
}

func (v crankyVM) Unplug(ctx context.Context, id string) error {
	return errors.Join(v.VM.(vmm.Plugger).Unplug(ctx, id), v.d.fail("unplug"))
}

// cranky has VMs' slots fail as said, from now on.
func (b *bench) cranky(fail func(op string) error) {
	b.t.Helper()
	b.down()
	old := b.alter
	b.alter = func(c *Config) {
		if old != nil {
			old(c)
		}
		c.Driver = &crankyDriver{b.driver, fail}
	}
	b.up()
}

// serve has every guest be what wrap makes of a fake one.
func (b *bench) serve(wrap func(g *guesttest.Guest) session.Handler) {
	b.driver.Guest = func(conn net.Conn, _ io.Writer, _ vmm.Config) vmm.Exit {
		g := guesttest.New()
		defer g.Close()
		session.Serve(wire.ServeLink(conn), wrap(g), func() {}) //nolint:errcheck // ends with the connection
		return vmm.Exit{Reason: vmm.ExitPowerOff}
	}
}

// used are the files in the slots of a pod's VM, and how many use each.
func (b *bench) used(ref string) string {
	b.t.Helper()
	var users []string
	for _, sl := range b.set.mustFind(b.t, ref).pod.running().record().Slots {
		if sl.Path != "" {
			users = append(users, fmt.Sprintf("%s:%d", filepath.Base(sl.Path), len(sl.Users)))
		}
	}
	slices.Sort(users)
	return fmt.Sprint(users)
}

func (b *bench) layeredMember(name string, layers ...digest.Digest) CreateOptions {
	o := member(name, "sleep 1000")
	o.Spec.Layers = layers
	return o
}

// Whatever fails of giving a VM its disks, or taking them back, leaves no slot
// that nobody uses, and none that two use.
func TestSlotsThatFail(t *testing.T) {
	var failing atomic.Value
	failing.Store("")
	fail := func(op string) error {
		if failing.Load() == op {
			return fmt.Errorf("%s: %w", op, errdefs.ErrUnavailable)
		}
		return nil
	}
	b := newBench(t)
	b.layered()
	b.cranky(fail)
	var many []digest.Digest // more than there are slots: some are plugged
	for i := range layerSlots + 2 {
		many = append(many, digest.Digest(fmt.Sprintf("layer%02d", i)))
	}
	b.makePod("web", PodSpec{}, b.layeredMember("aa", "one"), b.layeredMember("bb", many...))
	if err := b.set.Start(t.Context(), "aa"); err != nil {
		t.Fatal(err)
	}
	before := b.used("aa")
	for _, op := range []string{"fill", "plug"} {
		failing.Store(op)
		if err := b.set.Start(t.Context(), "bb"); err == nil || !strings.Contains(err.Error(), op) {
			t.Errorf("%s: %v", op, err)
		}
		if got := b.used("aa"); got != before {
			t.Errorf("after %s: %s, before %s", op, got, before)
		}
	}
	failing.Store("")
	if err := b.set.Start(t.Context(), "bb"); err != nil {
		t.Fatal(err)
	}
	with := b.used("aa")
	for _, op := range []string{"empty", "unplug"} {
		failing.Store(op)
		if err := b.set.Kill(t.Context(), "bb", ""); err != nil {
			t.Fatal(err)
		}
		b.wait("bb")
		if err := b.set.Start(t.Context(), "bb"); err == nil || !strings.Contains(err.Error(), op) {
			t.Errorf("%s: %v", op, err)
		}
		failing.Store("")
		if err := b.set.Start(t.Context(), "bb"); err != nil { // it is asked for again
			t.Fatal(err)
		}
		if got := b.used("aa"); got != with {
			t.Errorf("after %s: %s, before %s", op, got, with)
		}
	}
	failing.Store("empty")
	if err := b.set.Kill(t.Context(), "bb", ""); err != nil {
		t.Fatal(err)
	}
	b.wait("bb")
	failing.Store("")
	b.down() // what is left of it, the next hyperd takes out
	b.up()
	eventually(t, "its slots are free", func() bool { return b.used("aa") == before })
	if err := b.set.Remove(t.Context(), "bb", false); err != nil {
		t.Error(err)
	}
}

// A deafGuest does not do what it is told.
type deafGuest struct {
	*guesttest.Guest
	keeps, kills func() bool // whether it keeps containers; kills processes
}

func (g deafGuest) DeleteContainer(ctx context.Context, r *wire.DeleteContainerRequest) (*wire.DeleteContainerResponse, error) {
	if g.keeps() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return g.Guest.DeleteContainer(ctx, r)
}

func (g deafGuest) Signal(ctx context.Context, r *wire.SignalRequest) (*wire.SignalResponse, error) {
	if !g.kills() {
		return &wire.SignalResponse{}, nil
	}
	return g.Guest.Signal(ctx, r)
}

func yes() bool { return true }
func no() bool  { return false }

// A guest that does not let go of a container keeps neither others waiting nor its VM for ever.
func TestGuestThatKeepsContainers(t *testing.T) {
	impatient(t)
	unmount := unmountTimeout
	unmountTimeout = time.Second
	t.Cleanup(func() { unmountTimeout = unmount })
	b := newBench(t)
	b.layered()
	var keeps atomic.Bool
	keeps.Store(true)
	b.serve(func(g *guesttest.Guest) session.Handler { return deafGuest{g, keeps.Load, yes} })
	b.makePod("web", PodSpec{}, b.layeredMember("aa", "one"), b.layeredMember("bb", "one"), b.layeredMember("cc", "one"))
	for _, c := range []string{"aa", "bb"} {
		if err := b.set.Start(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	go b.set.Kill(t.Context(), "aa", "") //nolint:errcheck // looked at below
	time.Sleep(50 * time.Millisecond)
	begin := time.Now()
	if err := b.set.Start(t.Context(), "cc"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > unmountTimeout/2 {
		t.Errorf("another waited for %v", took)
	}
	eventually(t, "aa has ended", func() bool { return b.get("aa").Status == StatusExited })
	if err := b.set.Start(t.Context(), "aa"); err == nil || !strings.Contains(err.Error(), "let go") {
		t.Errorf("started again: %v", err)
	}
	keeps.Store(false)
	if err := b.set.Start(t.Context(), "aa"); err != nil {
		t.Errorf("started again, when it had let go: %v", err)
	}

	// One that joined another: their VM ends with the last of them.
	keeps.Store(true)
	one := b.start(sh("sleep 1000"))
	join := sh("sleep 1000")
	join.JoinNet, join.Network = one, "default"
	join.Env = []string{"PATH=" + os.Getenv("PATH")}
	two, _, err := b.set.Create(t.Context(), CreateOptions{Pod: one, Spec: join})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.set.Start(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{one, two} {
		if err := b.set.Kill(t.Context(), id, ""); err != nil {
			t.Fatal(err)
		}
		b.wait(id)
	}
	eventually(t, "the VM of both has gone", func() bool { return b.driver.VMs() == 1 })
	keeps.Store(false)
}

// A guest that kills no process loses its VM, and those that ran beside it are told why.
func TestGuestThatKillsNobody(t *testing.T) {
	impatient(t)
	b := newBench(t)
	b.serve(func(g *guesttest.Guest) session.Handler { return deafGuest{g, no, no} })
	b.makePod("web", PodSpec{}, member("aa", "sleep 1000"), member("bb", "sleep 1000"))
	if err := b.set.StartPod(t.Context(), "web", true); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	within(t, "kill", func() {
		if err := b.set.Kill(t.Context(), "aa", ""); err != nil {
			t.Error(err)
		}
	})
	if took := time.Since(begin); took < (patience+1)*killTimeout {
		t.Errorf("its neighbour's VM was ended after %v", took)
	}
	b.wait("bb")
	if c := b.get("aa"); c.Cause != CauseStopped {
		t.Errorf("who was killed: %s", c.Cause)
	}
	if w, err := b.set.Why(t.Context(), "bb"); err != nil || w.Cause != CauseVMM || !strings.Contains(w.Detail, "did not end container aa") {
		t.Errorf("its neighbour: %+v, %v", w, err)
	}
}

// A slowRun is a guest in which the container that is named takes a while to be configured.
type slowRun struct {
	*guesttest.Guest
	slow string
}

func (g slowRun) Run(ctx context.Context, r *wire.RunRequest) (*wire.RunResponse, error) {
	if r.Create.Id == g.slow {
		time.Sleep(200 * time.Millisecond)
	}
	return g.Guest.Run(ctx, r)
}

// Of starts side by side each says what the pod may use with it: in the end that is
// what all may use, whoever the guest hears last.
func TestSizeOfStartsSideBySide(t *testing.T) {
	b := newBench(t)
	guests := make(chan *guesttest.Guest, 1)
	var slow atomic.Value
	slow.Store("")
	b.serve(func(g *guesttest.Guest) session.Handler {
		guests <- g
		return slowRun{g, slow.Load().(string)}
	})
	limited := func(name string) CreateOptions {
		o := member(name, "sleep 1000")
		o.Spec.Resources.MemoryBytes = 64 * mib
		return o
	}
	b.makePod("web", PodSpec{}, limited("aa"), limited("bb"), limited("cc"))
	slow.Store(b.set.mustFind(t, "aa").id)
	if err := b.set.StartPod(t.Context(), "web", false); err != nil {
		t.Fatal(err)
	}
	g := <-guests
	zero := 0
	for _, c := range []string{"aa", "bb", "cc"} {
		if err := b.set.Stop(t.Context(), c, "", &zero); err != nil && !errdefs.IsNotModified(err) {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for i, c := range []string{"aa", "bb", "cc"} {
		wg.Go(func() {
			time.Sleep(time.Duration(i) * 30 * time.Millisecond)
			if err := b.set.Start(t.Context(), c); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, want := g.Configured().MemoryMaxBytes, uint64(3*(64+16)*mib); got != want {
		t.Errorf("the pod may use %d MiB, want %d", got/mib, want/mib)
	}
}
