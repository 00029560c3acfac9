package pod

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/guest/guesttest"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/session"
	"github.com/hyper-run/hyper/internal/network"
)

func TestSizes(t *testing.T) {
	b := newBench(t)
	mem := func(m int64, cpus float64, role Role) Spec {
		return Spec{Role: role, Resources: Resources{MemoryBytes: m * mib, NanoCPUs: int64(cpus * 1e9)}}
	}
	for _, tt := range []struct {
		name          string
		all           []Spec
		whole         PodResources
		memory        int64 // MiB
		limits        int64
		cpus, quota10 int
	}{
		{"nothing", nil, PodResources{}, 128, 0, 1, 0},
		{"one without a limit", []Spec{mem(0, 0, "")}, PodResources{}, 128, 0, 1, 0},
		{"many without a limit share", []Spec{mem(0, 0, ""), mem(0, 0, "")}, PodResources{}, 128, 0, 1, 0},
		{"limits add up", []Spec{mem(64, 0.5, ""), mem(32, 1, "")}, PodResources{}, 128, 128, 2, 15},
		{"with and without", []Spec{mem(64, 0.5, ""), mem(0, 0, "")}, PodResources{}, 208, 80, 1, 0},
		{"init containers come before", []Spec{mem(64, 1, RoleInit), mem(48, 1, RoleInit), mem(32, 1, "")}, PodResources{}, 80, 80, 1, 10},
		{"and beside sidecars", []Spec{mem(32, 1, RoleSidecar), mem(64, 1, RoleInit), mem(32, 1, "")}, PodResources{}, 128, 128, 2, 20},
		{"given", []Spec{mem(64, 0.5, ""), mem(32, 1, "")}, PodResources{MemoryBytes: 256 * mib, NanoCPUs: 3e9}, 288, 272, 3, 30},
	} {
		z := b.set.sizeOfPod(tt.all, tt.whole)
		if z.memory != tt.memory*mib || z.limits != tt.limits*mib || z.cpus != tt.cpus || int(z.quota*10+0.5) != tt.quota10 {
			t.Errorf("%s: %d MiB, limits %d, %d CPUs, quota %v", tt.name, z.memory/mib, z.limits/mib, z.cpus, z.quota)
		}
	}
}

// A tellingGuest tells in what order it was told limits.
type tellingGuest struct {
	*guesttest.Guest
	mu   *sync.Mutex
	told *[]string
}

func (g tellingGuest) add(what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	*g.told = append(*g.told, what)
}

func (g tellingGuest) Configure(ctx context.Context, r *wire.ConfigureRequest) (*wire.ConfigureResponse, error) {
	g.add("pod")
	return g.Guest.Configure(ctx, r)
}

func (g tellingGuest) Update(ctx context.Context, r *wire.UpdateRequest) (*wire.UpdateResponse, error) {
	g.add("container")
	return g.Guest.Update(ctx, r)
}

// What gets less does so before its pod, what gets more after it.
func TestUpdateOrder(t *testing.T) {
	b := newBench(t)
	var mu sync.Mutex
	var told []string
	b.serve(func(g *guesttest.Guest) session.Handler { return tellingGuest{g, &mu, &told} })
	sp := sh("sleep 1000")
	sp.Resources.MemoryBytes = 128 * mib
	id := b.start(sp)
	for _, tt := range []struct {
		memory int64
		want   string
	}{{64, "container pod"}, {96, "pod container"}} {
		mu.Lock()
		told = nil
		mu.Unlock()
		if err := b.set.Update(t.Context(), id, Resources{MemoryBytes: tt.memory * mib}); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(told, " "); got != tt.want {
			t.Errorf("to %d MiB: %s", tt.memory, got)
		}
	}
	before := slices.Clone(told)
	if err := b.set.Update(t.Context(), id, Resources{MemoryBytes: 1 << 40}); !errdefs.IsConflict(err) {
		t.Errorf("more than there is: %v", err)
	}
	if !slices.Equal(told, before) || b.get(id).Spec.Resources.MemoryBytes != 96*mib {
		t.Errorf("told %v, has %d", told, b.get(id).Spec.Resources.MemoryBytes)
	}
}

// A pod whose addresses are of another network than there is now gets others.
func TestNetworkMadeAnew(t *testing.T) {
	b := newBench(t)
	b.makePod("web", PodSpec{}, member("aa", "sleep 1000"))
	zero := 0
	for _, start := range []bool{true, false} {
		if err := b.set.StartPod(t.Context(), "web", true); err != nil {
			t.Fatal(err)
		}
		if start {
			if err := b.set.StopPod(t.Context(), "web", &zero); err != nil {
				t.Fatal(err)
			}
			if err := b.net.Restore(t.Context(), []network.Attachment{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	p, err := b.set.findPod("web")
	if err != nil {
		t.Fatal(err)
	}
	a := p.record().Attachment
	if f, err := b.net.Open(t.Context(), *a); err != nil {
		t.Errorf("what it has is not its own: %v", err)
	} else {
		f.Close()
	}
	if err := b.set.RemovePod(t.Context(), "web", true); err != nil {
		t.Fatal(err)
	}
	if _, err := b.net.Open(t.Context(), *a); !errdefs.IsNotFound(err) {
		t.Errorf("it was not given back: %v", err)
	}
}

func TestBadPodSpecs(t *testing.T) {
	b := newBench(t)
	for _, tt := range []struct {
		sp   PodSpec
		want string
	}{
		{PodSpec{Network: "mine"}, "network mine not found"},
		{PodSpec{Kernel: "/no/such"}, "kernel /no/such"},
		{PodSpec{ShmBytes: -1}, "/dev/shm"},
		{PodSpec{Volumes: []Volume{{Name: "a", Memory: true, Files: []VolumeFile{{Path: "x", Content: make([]byte, 4<<20)}}}}}, "more than 3 MiB"},
	} {
		if _, err := b.set.CreatePod(t.Context(), PodOptions{Name: "pp", Spec: tt.sp}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("want %q: %v", tt.want, err)
		}
	}
	if len(b.set.ListPods()) > 0 {
		t.Error("pods left")
	}
}

// Parameters of the guest's kernel reach it whatever else keeps the VM from being a clone.
func TestKernelArgs(t *testing.T) {
	b := newBench(t)
	own := b.kernel + "-own"
	old := b.set.cfg.Boot
	b.set.cfg.Boot = func(kernel string) (BootFiles, error) {
		if kernel == own {
			return BootFiles{Name: "own", Kernel: own, Initrd: own}, nil
		}
		return old(kernel)
	}
	b.makePod("plain", PodSpec{KernelArgs: []string{"loglevel=7", "x"}})
	b.makePod("own", PodSpec{KernelArgs: []string{"loglevel=7", "x"}, Kernel: own})
	for _, name := range []string{"plain", "own"} {
		p, err := b.set.findPod(name)
		if err != nil {
			t.Fatal(err)
		}
		pl, err := p.plan(t.Context(), nil)
		if err != nil || !strings.HasSuffix(pl.shape.Cmdline, " loglevel=7 x") || pl.cold == "" {
			t.Errorf("%s: %q, cold %q, %v", name, pl.shape.Cmdline, pl.cold, err)
		}
	}
}
