package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/hyper-run/hyper/internal/store"
)

// layered has every image be the files that its Layers name.
func (b *bench) layered() {
	b.t.Helper()
	b.down()
	dir := b.t.TempDir()
	old := b.alter
	b.alter = func(c *Config) {
		if old != nil {
			old(c)
		}
		c.Layers = func(_ context.Context, sp Spec, _ int) ([]string, error) {
			var paths []string
			for _, l := range sp.Layers {
				p := filepath.Join(dir, string(l))
				if err := os.WriteFile(p, []byte(l), 0o600); err != nil {
					return nil, err
				}
				paths = append(paths, p)
			}
			return paths, nil
		}
	}
	b.up()
}

func (b *bench) get(ref string) Container {
	b.t.Helper()
	c, err := b.set.Get(ref)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *bench) getPod(ref string) PodInfo {
	b.t.Helper()
	p, err := b.set.GetPod(ref)
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

func member(name, script string) CreateOptions {
	sp := sh(script)
	sp.Env = []string{"PATH=" + os.Getenv("PATH")}
	return CreateOptions{Name: name, Spec: sp}
}

// makePod makes a pod that is removed at the end of the test.
func (b *bench) makePod(name string, sp PodSpec, containers ...CreateOptions) {
	b.t.Helper()
	if sp.Network == "" {
		sp.Network = "default"
	}
	if _, err := b.set.CreatePod(b.t.Context(), PodOptions{Name: name, Spec: sp, Containers: containers}); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { // before bench.end
		if err := b.set.RemovePod(context.Background(), name, true); err != nil && !errdefs.IsNotFound(err) {
			b.t.Error(err)
		}
		for _, s := range b.stores {
			left, err := store.Load[podRecord](s, bucketPods)
			for _, rec := range left {
				if rec.Name == name {
					b.t.Errorf("left: %+v", rec)
				}
			}
			if err != nil {
				b.t.Error(err)
			}
		}
	})
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 1000 {
		if done() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not within 10 s: %s", what)
}

// A container that joins another's network is in its VM, which lasts as long
// as one of them runs, whichever that is.
func TestJoin(t *testing.T) {
	b := newBench(t)
	b.layered()
	layers := []digest.Digest{"one", "two"}
	sp := sh("read x")
	sp.Stdin, sp.Layers = true, layers
	first := b.start(sp)
	join := sh("sleep 1000")
	join.JoinNet, join.Layers, join.Network = first, layers, "default"
	join.Env = []string{"PATH=" + os.Getenv("PATH")}
	second, _, err := b.set.Create(t.Context(), CreateOptions{Pod: first, Spec: join})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.set.Start(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if one, two := b.get(first), b.get(second); one.VM.HostPID != two.VM.HostPID || one.PodID != two.PodID || b.driver.VMs() != 1 {
		t.Errorf("%+v and %+v, %d VMs", one.VM, two.VM, b.driver.VMs())
	}
	m := b.set.mustFind(t, first).pod.running()
	used := func() (users []string) {
		for _, sl := range m.record().Slots {
			if sl.Path != "" {
				users = append(users, fmt.Sprintf("%s:%d", filepath.Base(sl.Path), len(sl.Users)))
			}
		}
		slices.Sort(users)
		return users
	}
	if got := fmt.Sprint(used()); got != "[disk.ext4:1 disk.ext4:1 one:2 two:2]" {
		t.Errorf("slots %s", got)
	}
	if err := b.set.Kill(t.Context(), first, "KILL"); err != nil {
		t.Fatal(err)
	}
	b.wait(first)
	eventually(t, "the first's slots are free", func() bool { return fmt.Sprint(used()) == "[disk.ext4:1 one:1 two:1]" })
	if b.driver.VMs() != 1 || b.get(second).Status != StatusRunning {
		t.Errorf("%d VMs, the other is %s", b.driver.VMs(), b.get(second).Status)
	}
	if err := b.set.Kill(t.Context(), second, "KILL"); err != nil {
		t.Fatal(err)
	}
	b.wait(second)
	if n := b.driver.VMs(); n != 0 {
		t.Errorf("%d VMs", n)
	}
	if err := b.set.Start(t.Context(), second); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "non running container") {
		t.Errorf("joined to nobody: %v", err)
	}
}

// A pod outlives its containers, keeps its VM, and starts them again with it.
func TestPodLife(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	b.makePod("web", PodSpec{}, member("web-a", "sleep 1000"), member("web-b", "sleep 1000"))
	if p := b.getPod("web"); p.Status != PodCreated || len(p.Containers) != 2 {
		t.Fatalf("%+v", p)
	}
	if err := b.set.StartPod(ctx, "web", false); err != nil {
		t.Fatal(err)
	}
	p := b.getPod("web")
	if p.Status != PodRunning || p.VM == nil || p.Net == nil || !p.Ready || b.driver.VMs() != 1 {
		t.Errorf("started: %+v", p)
	}
	if got := b.set.mustFind(t, "web-a").hostname(); got != "web" {
		t.Errorf("hostname %s", got)
	}
	if err := b.set.Kill(ctx, "web-a", "KILL"); err != nil {
		t.Fatal(err)
	}
	b.wait("web-a")
	eventually(t, "degraded", func() bool { return b.getPod("web").Status == PodDegraded })
	if err := b.set.RemovePod(ctx, "web", false); !errdefs.IsConflict(err) {
		t.Errorf("remove while it runs: %v", err)
	}
	if err := b.set.Start(ctx, "web-a"); err != nil {
		t.Fatal(err)
	}
	if err := b.set.PausePod(ctx, "web"); err != nil || b.getPod("web").Status != PodPaused {
		t.Errorf("pause: %v, %s", err, b.getPod("web").Status)
	}
	if err := b.set.ResumePod(ctx, "web"); err != nil || b.getPod("web").Status != PodRunning {
		t.Errorf("resume: %v, %s", err, b.getPod("web").Status)
	}
	now := 0
	if err := b.set.StopPod(ctx, "web", &now); err != nil {
		t.Fatal(err)
	}
	if p := b.getPod("web"); p.Status != PodExited || p.Error != "" || b.driver.VMs() != 0 {
		t.Errorf("stopped: %s %q, %d VMs", p.Status, p.Error, b.driver.VMs())
	}
	if err := b.set.StopPod(ctx, "web", &now); !errdefs.IsNotModified(err) {
		t.Errorf("stop again: %v", err)
	}
	if err := b.set.StartPod(ctx, "web", true); err != nil {
		t.Fatal(err)
	}
	again := b.getPod("web")
	if again.Status != PodRunning || *again.Net != *p.Net {
		t.Errorf("started again: %s, %+v, was %+v", again.Status, again.Net, p.Net)
	}
	for _, ref := range []string{"web", p.ID, p.ID[:8], "web-b"} {
		if got := b.getPod(ref).ID; got != p.ID {
			t.Errorf("%s is pod %s", ref, got)
		}
	}
}

// A new hyperd takes over a pod with all that runs in it, and takes out what
// the old one was about to start.
func TestAdoptPod(t *testing.T) {
	b := newBench(t)
	b.makePod("web", PodSpec{}, member("aa", "sleep 1000"), member("bb", "sleep 1000"), member("cc", "exit 3"))
	if err := b.set.StartPod(t.Context(), "web", false); err != nil {
		t.Fatal(err)
	}
	b.wait("cc")
	pid := b.get("bb").PID
	m := b.set.mustFind(t, "bb").pod.running()
	half := b.set.mustFind(t, "cc").id
	eventually(t, "cc left", func() bool { _, in := m.runRecord(half); return !in })
	if err := m.setRun(half, func(*runRecord) {}); err != nil {
		t.Fatal(err)
	}
	b.down()
	b.up()
	if p := b.getPod("web"); p.Status != PodDegraded || b.get("bb").PID != pid || b.get("aa").Status != StatusRunning || b.get("cc").ExitCode != 3 {
		t.Errorf("%s: %+v", p.Status, p.Containers)
	}
	m = b.set.mustFind(t, "bb").pod.running()
	eventually(t, "what was half made is gone", func() bool { _, in := m.runRecord(half); return !in })
	b.set.Revive()
	if err := b.set.Start(t.Context(), "cc"); err != nil {
		t.Fatal(err)
	}
	if st := b.wait("cc"); st.Code != 3 {
		t.Errorf("exit code %d", st.Code)
	}
}

// Init containers run one after the other before the others, sidecars as long as these.
func TestRoles(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	role := func(o CreateOptions, r Role) CreateOptions {
		o.Spec.Role = r
		return o
	}
	say := func(what string) string { return "echo " + what + " >> " + dir + "/order" }
	b.makePod("job", PodSpec{UntilDone: true},
		role(member("i1", "sleep 0.3; "+say("init1")), RoleInit),
		role(member("side", say("side")+"; trap '"+say("side-ends")+"; exit 0' TERM; while :; do sleep 0.1; done"), RoleSidecar),
		role(member("i2", say("init2")), RoleInit),
		member("main", "sleep 0.3; "+say("main")))
	if err := b.set.StartPod(t.Context(), "job", false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod is over", func() bool { return b.getPod("job").Status == PodExited })
	got, err := os.ReadFile(dir + "/order")
	if want := "init1\nside\ninit2\nmain\nside-ends\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if n := b.driver.VMs(); n != 0 {
		t.Errorf("%d VMs", n)
	}
}

// A start that fails says so, and leaves the rest of the pod.
func TestStartPodReports(t *testing.T) {
	b := newBench(t)
	bad := member("bad", "")
	bad.Spec.Args = []string{"/no/such/program"}
	b.makePod("web", PodSpec{}, member("good", "sleep 1000"), bad)
	err := b.set.StartPod(t.Context(), "web", false)
	if err == nil || !strings.Contains(err.Error(), "start container bad") || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("%v", err)
	}
	if b.get("good").Status != StatusRunning {
		t.Errorf("the other is %s", b.get("good").Status)
	}
	w, err := b.set.Why(t.Context(), "bad")
	if err != nil || w.Cause != CauseStart || !strings.Contains(w.Summary, "did not start") {
		t.Errorf("%+v, %v", w, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := b.set.StartPod(ctx, "web", true); err == nil || !strings.Contains(err.Error(), "container bad") {
		t.Errorf("wait for what never is: %v", err)
	}
}

func TestRestartPolicies(t *testing.T) {
	b := newBench(t)
	policy := func(script, policy string, most int) string {
		sp := sh(script)
		sp.Restart = RestartPolicy{Policy: policy, Max: most, Delay: time.Millisecond}
		return b.start(sp)
	}
	fails := policy("exit 3", "on-failure", 2)
	well := policy("exit 0", "on-failure", 0)
	always := policy("read x || sleep 1000", "always", 0)
	eventually(t, "two restarts", func() bool {
		c := b.get(fails)
		return c.RestartCount == 2 && c.Status == StatusExited && c.ExitCode == 3
	})
	if c := b.get(well); c.RestartCount != 0 {
		t.Errorf("ended well: %d restarts", c.RestartCount)
	}
	pid := b.get(always).PID
	m := b.set.mustFind(t, always).pod.running()
	if err := m.vm.Kill(t.Context()); err != nil { // not by a user
		t.Fatal(err)
	}
	eventually(t, "restarted", func() bool {
		c := b.get(always)
		return c.Status == StatusRunning && c.RestartCount == 1 && c.PID != pid
	})
	b.down()
	b.up()
	b.set.Revive()
	now := 0
	if err := b.set.Stop(t.Context(), always, "", &now); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if c := b.get(always); c.Status != StatusExited {
		t.Errorf("stopped by its user: %s", c.Status)
	}
	b.down()
	b.up()
	b.set.Revive() // as Docker: "always" runs again
	eventually(t, "revived", func() bool { return b.get(always).Status == StatusRunning })
}

func TestBadPods(t *testing.T) {
	b := newBench(t)
	b.makePod("taken", PodSpec{}, member("mine", "true"))
	mounted := member("m", "true")
	mounted.Spec.Mounts = []Mount{{Volume: "nope", Path: "/x"}}
	for _, tt := range []struct {
		o    PodOptions
		want string
	}{
		{PodOptions{Name: "taken"}, "already in use"},
		{PodOptions{Name: "-x"}, "Invalid pod name"},
		{PodOptions{Name: "pp", Containers: []CreateOptions{member("new", "true"), member("mine", "true")}}, "already in use"},
		{PodOptions{Name: "pp", Containers: []CreateOptions{mounted}}, `no volume "nope"`},
		{PodOptions{Name: "pp", Spec: PodSpec{Volumes: []Volume{{Name: "a", Memory: true}, {Name: "a", Memory: true}}}}, "twice"},
		{PodOptions{Name: "pp", Spec: PodSpec{Volumes: []Volume{{Name: "A/b"}}}}, "want a name"},
		{PodOptions{Name: "pp", Spec: PodSpec{Resources: PodResources{MemoryBytes: 1}}}, "Minimum memory"},
		{PodOptions{Name: "pp", Spec: PodSpec{Resources: PodResources{NanoCPUs: 1e15}}}, "range of CPUs"},
		{PodOptions{Name: "pp", Spec: PodSpec{KernelArgs: []string{"init=/bin/sh"}}}, "kernel parameter"},
		{PodOptions{Name: "pp", Spec: PodSpec{KernelArgs: []string{"a b"}}}, "kernel parameter"},
	} {
		if _, err := b.set.CreatePod(t.Context(), tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("want %q: %v", tt.want, err)
		}
	}
	if pods, all := b.set.ListPods(), b.set.List(Filter{All: true}); len(pods) != 1 || len(all) != 1 {
		t.Errorf("left: %d pods, %d containers", len(pods), len(all))
	}
	if _, err := b.set.GetPod("none"); !errdefs.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	if _, _, err := b.set.Create(t.Context(), CreateOptions{Pod: "none", Spec: sh("true")}); !errdefs.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	if err := b.set.StopPod(t.Context(), "taken", nil); err != nil && !errors.Is(err, errdefs.ErrNotModified) {
		t.Errorf("stop what never ran: %v", err)
	}
}
