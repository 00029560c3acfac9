package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/store"
	"github.com/hyper-run/hyper/internal/vmm"
)

// policied is a member with a restart policy.
func policied(name, script, policy string, most int) CreateOptions {
	o := member(name, script)
	o.Spec.Restart = RestartPolicy{Policy: policy, Max: most, Delay: time.Millisecond}
	return o
}

// slowGuest has every guest take its time before it answers.
func (b *bench) slowGuest(d time.Duration) {
	b.driver.Guest = func(conn net.Conn, console io.Writer, cfg vmm.Config) vmm.Exit {
		time.Sleep(d)
		return serveFakeGuest(conn, console, cfg)
	}
}

// While a pod is adopted, its keeper must not start what is not adopted yet.
func TestAdoptWithPolicies(t *testing.T) {
	b := newBench(t)
	b.makePod("web", PodSpec{}, policied("aa", "sleep 1000", "always", 0), policied("bb", "sleep 1000", "always", 0), policied("cc", "sleep 1000", "always", 0))
	if err := b.set.StartPod(t.Context(), "web", true); err != nil {
		t.Fatal(err)
	}
	pid := b.get("cc").PID
	for range 3 {
		b.down()
		within(t, "adoption", b.up)
		b.set.Revive()
		time.Sleep(20 * time.Millisecond)
		if c := b.get("cc"); c.PID != pid || c.RestartCount != 0 {
			t.Fatalf("%+v", c)
		}
	}
}

// A pod is removed by force however long somebody takes to stop it.
func TestRemovalWhileStopping(t *testing.T) {
	b := newBench(t)
	b.makePod("web", PodSpec{}, member("aa", "trap '' TERM; echo ready; while :; do sleep 0.05; done"), member("bb", "sleep 1000"))
	if err := b.set.StartPod(t.Context(), "web", true); err != nil {
		t.Fatal(err)
	}
	b.printed("aa", "ready")
	long := 1000
	stopped := make(chan error, 2)
	for range 2 {
		go func() { stopped <- b.set.StopPod(t.Context(), "web", &long) }()
	}
	eventually(t, "it is being stopped", func() bool { return b.get("bb").Status == StatusExited })
	within(t, "removal", func() {
		if err := b.set.RemovePod(t.Context(), "web", true); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		if err := <-stopped; err != nil && !errdefs.IsNotFound(err) && !errdefs.IsNotModified(err) {
			t.Error(err)
		}
	}
	if n := b.driver.VMs(); n != 0 {
		t.Errorf("%d VMs", n)
	}
}

// What is asked of a pod while it is being started leaves no VM that nobody wants.
func TestStopWhileStarting(t *testing.T) {
	for what, do := range map[string]func(s *Set) error{
		"stop":   func(s *Set) error { return s.StopPod(context.Background(), "web", nil) },
		"remove": func(s *Set) error { return s.RemovePod(context.Background(), "web", false) },
		"force":  func(s *Set) error { return s.RemovePod(context.Background(), "web", true) },
	} {
		t.Run(what, func(t *testing.T) {
			b := newBench(t)
			b.slowGuest(200 * time.Millisecond)
			b.makePod("web", PodSpec{}, member("aa", "sleep 1000"), member("bb", "sleep 1000"))
			var wg sync.WaitGroup
			wg.Go(func() { b.set.StartPod(t.Context(), "web", true) }) //nolint:errcheck // it may be interrupted
			time.Sleep(50 * time.Millisecond)
			err := do(b.set)
			within(t, "start", wg.Wait)
			p, gerr := b.set.GetPod("web")
			if what == "remove" && errdefs.IsConflict(err) { // its containers ran already
				return
			}
			if err != nil || b.driver.VMs() != 0 || gerr == nil && p.Status != PodExited {
				t.Errorf("%v; %d VMs, %s", err, b.driver.VMs(), p.Status)
			}
		})
	}
}

func TestManyStartPods(t *testing.T) {
	b := newBench(t)
	b.makePod("web", PodSpec{}, member("aa", "sleep 1000"), member("bb", "sleep 1000"))
	zero := 0
	for range 3 {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := b.set.StartPod(t.Context(), "web", true); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if p := b.getPod("web"); p.Status != PodRunning || !p.Ready || b.driver.VMs() != 1 {
			t.Errorf("%+v, %d VMs", p, b.driver.VMs())
		}
		if err := b.set.StopPod(t.Context(), "web", &zero); err != nil {
			t.Error(err)
		}
	}
}

// All at once, and hyperd ends meanwhile: nothing hangs, nothing is left.
func TestPodsUnderFire(t *testing.T) {
	b := newBench(t)
	b.layered()
	for round := range 3 {
		b.makePod("web", PodSpec{}, policied("aa", "sleep 0.01; exit 1", "always", 0), member("bb", "sleep 1000"), member("cc", "exit 1"))
		zero := 0
		var wg sync.WaitGroup
		for _, f := range []func() error{
			func() error { return b.set.StartPod(t.Context(), "web", false) },
			func() error { return b.set.StopPod(t.Context(), "web", &zero) },
			func() error { return b.set.Restart(t.Context(), "bb", "", &zero) },
			func() error { return b.set.Start(t.Context(), "cc") },
			func() error { return b.set.Stop(t.Context(), "aa", "", &zero) },
			func() error { return b.set.Pause(t.Context(), "bb") },
		} {
			wg.Go(func() {
				for range 6 {
					f() //nolint:errcheck // most of it fails
				}
			})
		}
		if round == 1 {
			time.Sleep(50 * time.Millisecond)
			within(t, "end of hyperd", b.set.Close)
			wg.Wait()
			b.down()
			within(t, "start of hyperd", b.up)
			b.set.Revive()
		}
		within(t, "all of it", wg.Wait)
		within(t, "removal", func() {
			if err := b.set.RemovePod(t.Context(), "web", true); err != nil {
				t.Error(err)
			}
		})
		if n := b.driver.VMs(); n != 0 {
			t.Errorf("%d VMs", n)
		}
	}
}

// What a killed hyperd was making or removing goes.
func TestHalfPods(t *testing.T) {
	b := newBench(t)
	b.makePod("web", PodSpec{}, member("aa", "sleep 1000"), member("bb", "sleep 1000"))
	if err := b.set.StartPod(t.Context(), "web", true); err != nil {
		t.Fatal(err)
	}
	p, err := b.set.findPod("web")
	if err != nil {
		t.Fatal(err)
	}
	attached := *p.record().Attachment
	if err := p.setHalf(true); err != nil {
		t.Fatal(err)
	}
	b.down()
	b.up()
	b.set.Revive()
	if pods, all := b.set.ListPods(), b.set.List(Filter{All: true}); len(pods)+len(all)+b.driver.VMs() != 0 {
		t.Errorf("%+v, %+v, %d VMs", pods, all, b.driver.VMs())
	}
	if _, err := b.net.Open(t.Context(), attached); !errdefs.IsNotFound(err) {
		t.Errorf("it is still attached: %v", err)
	}
}

// A VM whose guest was never told who it is can't be gone on with.
func TestAdoptHalfStartedPod(t *testing.T) {
	b := newBench(t)
	b.makePod("web", PodSpec{}, member("aa", "sleep 1000"))
	if err := b.set.StartPod(t.Context(), "web", true); err != nil {
		t.Fatal(err)
	}
	c := b.set.mustFind(t, "aa")
	m := c.pod.running()
	if err := m.update(func(r *vmRecord) { r.Begun = false; r.Containers[c.id] = runRecord{} }); err != nil {
		t.Fatal(err)
	}
	b.down()
	b.up()
	b.set.Revive()
	if p := b.getPod("web"); p.VM != nil || b.driver.VMs() != 0 {
		t.Errorf("%+v, %d VMs", p, b.driver.VMs())
	}
	if err := b.set.StartPod(t.Context(), "web", true); err != nil {
		t.Error(err)
	}
}

// The host was rebooted: pods that ran say so, those that persist or have containers that shall
// always run come back with their addresses, stopped ones do not.
func TestReboot(t *testing.T) {
	b := newBench(t)
	b.makePod("plain", PodSpec{}, member("aa", "sleep 1000"))
	b.makePod("persists", PodSpec{Persist: true}, member("bb", "sleep 1000"))
	b.makePod("policy", PodSpec{}, policied("cc", "sleep 1000", "always", 0), member("dd", "sleep 1000"))
	b.makePod("stopped", PodSpec{Persist: true}, policied("ee", "sleep 1000", "always", 0))
	pods := []string{"plain", "persists", "policy", "stopped"}
	nets := map[string]NetworkInfo{}
	for _, name := range pods {
		if err := b.set.StartPod(t.Context(), name, true); err != nil {
			t.Fatal(err)
		}
		nets[name] = *b.getPod(name).Net
	}
	zero := 0
	if err := b.set.StopPod(t.Context(), "stopped", &zero); err != nil {
		t.Fatal(err)
	}
	b.reboot()
	b.set.Revive()
	eventually(t, "two are back", func() bool {
		return b.get("bb").Status == StatusRunning && b.get("cc").Status == StatusRunning
	})
	for _, name := range []string{"plain", "stopped"} {
		if p := b.getPod(name); p.Status != PodExited {
			t.Errorf("%s is %s", name, p.Status)
		}
	}
	if w, err := b.set.Why(t.Context(), "plain"); err != nil || w.Cause != CauseHost {
		t.Errorf("%+v, %v", w, err)
	}
	if c := b.get("dd"); c.Status != StatusExited || c.Cause != CauseHost {
		t.Errorf("without a policy: %s, %s", c.Status, c.Cause)
	}
	for _, name := range pods {
		if err := b.set.StartPod(t.Context(), name, true); err != nil {
			t.Fatal(err)
		}
		if got := *b.getPod(name).Net; got != nets[name] {
			t.Errorf("%s has %+v, had %+v", name, got, nets[name])
		}
	}
}

// reboot is the end of hyperd, of all VMs and of what is kept for one boot of the host.
func (b *bench) reboot() {
	b.t.Helper()
	vms, err := store.Load[vmRecord](b.stores[1], bucketVMs)
	if err != nil {
		b.t.Fatal(err)
	}
	b.set.Close()
	for _, rec := range vms {
		if err := b.driver.Sweep(context.Background(), rec.ID); err != nil {
			b.t.Fatal(err)
		}
		if err := b.stores[1].Delete(bucketVMs, rec.ID); err != nil {
			b.t.Fatal(err)
		}
	}
	b.down()
	b.up()
}

// Somebody starts a container: its restarts are counted anew, in whatever pod it is.
func TestStartCountsAnew(t *testing.T) {
	b := newBench(t)
	b.makePod("web", PodSpec{}, policied("aa", "exit 3", "on-failure", 2))
	for range 2 {
		if err := b.set.Start(t.Context(), "aa"); err != nil { // starts the VM too
			t.Fatal(err)
		}
		eventually(t, "two restarts", func() bool { c := b.get("aa"); return c.Status == StatusExited && c.RestartCount == 2 })
		time.Sleep(20 * time.Millisecond)
	}
	b.makePod("app", PodSpec{}, policied("bb", "sleep 1000", "always", 0))
	if err := b.set.Start(t.Context(), "bb"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if c := b.get("bb"); c.Status != StatusRunning {
		t.Errorf("started in a pod that did not run: %s", c.Status)
	}
}

// A stop holds, whatever the keeper is at.
func TestStopOfWhatRestarts(t *testing.T) {
	b := newBench(t)
	zero := 0
	for i := range 15 {
		o := policied("", "exit 1", "always", 0)
		o.Spec.Restart.MaxDelay = time.Millisecond
		id := b.start(o.Spec)
		eventually(t, "it restarts", func() bool { return b.get(id).RestartCount > 1+i%3 })
		time.Sleep(time.Duration(i) * time.Millisecond)
		if err := b.set.Stop(t.Context(), id, "", &zero); err != nil && !errdefs.IsNotModified(err) {
			t.Error(err)
		}
		n := b.get(id).RestartCount
		time.Sleep(20 * time.Millisecond)
		if c := b.get(id); c.Status != StatusExited || c.RestartCount > n {
			t.Errorf("%s after %d restarts, %d when it was stopped", c.Status, c.RestartCount, n)
		}
	}
}

// A pod that is there for its containers only is not over while one of them is restarted by hand.
func TestRestartOfTheOnly(t *testing.T) {
	b := newBench(t)
	b.makePod("job", PodSpec{UntilDone: true}, member("aa", "sleep 1000"))
	if err := b.set.StartPod(t.Context(), "job", true); err != nil {
		t.Fatal(err)
	}
	zero := 0
	for range 5 {
		if err := b.set.Restart(t.Context(), "aa", "", &zero); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(20 * time.Millisecond)
	if p := b.getPod("job"); p.Status != PodRunning {
		t.Errorf("%s", p.Status)
	}
	if err := b.set.Stop(t.Context(), "aa", "", &zero); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod is over", func() bool { return b.getPod("job").Status == PodExited })
}

func TestWaitReady(t *testing.T) {
	b := newBench(t)
	role := func(o CreateOptions, r Role) CreateOptions { o.Spec.Role = r; return o }
	b.makePod("mixed", PodSpec{}, role(member("ii", "true"), RoleInit), member("done", "sleep 0.1"), member("runs", "sleep 1000"))
	b.makePod("bad", PodSpec{}, member("fails", "sleep 0.1; exit 3"), member("goes-on", "sleep 1000"))
	b.makePod("init", PodSpec{}, role(member("fails-first", "test -e "+t.TempDir()+"/x; x=$?; exit $x"), RoleInit), member("main", "sleep 1000"))
	within(t, "one that ends well", func() {
		if err := b.set.StartPod(t.Context(), "mixed", true); err != nil {
			t.Error(err)
		}
	})
	within(t, "one that never is", func() {
		// It is ready as long as it runs.
		if err := b.set.StartPod(t.Context(), "bad", true); err != nil && !errdefs.IsFailedPrecondition(err) {
			t.Error(err)
		}
	})
	within(t, "an init container that fails", func() {
		for range 2 { // it is tried again each time
			if err := b.set.StartPod(t.Context(), "init", true); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("%v", err)
			}
			if n := b.get("fails-first").ExitCode; n != 1 {
				t.Errorf("exit code %d", n)
			}
			zero := 0
			if err := b.set.StopPod(t.Context(), "init", &zero); err != nil {
				t.Error(err)
			}
		}
	})
}

// An init container that failed is run again when its pod is started again.
func TestInitAgain(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	o := member("ii", "test -e "+dir+"/x || { touch "+dir+"/x; exit 1; }")
	o.Spec.Role = RoleInit
	b.makePod("job", PodSpec{}, o, member("main", "sleep 1000"))
	if err := b.set.StartPod(t.Context(), "job", true); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("%v", err)
	}
	if err := b.set.RestartPod(t.Context(), "job", nil); err != nil {
		t.Error(err)
	}
	eventually(t, "main runs", func() bool { return b.get("main").Status == StatusRunning })
}

// The keeper leaves nothing running that was stopped, and ends when there is nothing to keep.
func TestKeeperEnds(t *testing.T) {
	b := newBench(t)
	o := policied("", "exit 0", "on-failure", 0)
	id := b.start(o.Spec)
	b.wait(id)
	p := b.set.mustFind(t, id).pod
	kept := func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.kept
	}
	eventually(t, "its keeper has left", func() bool { return !kept() })
	if err := b.set.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	b.wait(id)
}

// While somebody waits for a restart, nobody takes the container for one that is gone.
func TestRestartingIsListed(t *testing.T) {
	b := newBench(t)
	o := policied("", "exit 1", "always", 0)
	o.Spec.Restart.Delay = time.Minute
	id := b.start(o.Spec)
	eventually(t, "restarting", func() bool { return b.get(id).Status == StatusRestarting })
	if all := b.set.List(Filter{}); !slices.ContainsFunc(all, func(c Container) bool { return c.ID == id }) {
		t.Error("it is not listed")
	}
	if err := b.set.Remove(t.Context(), id, false); !errdefs.IsConflict(err) {
		t.Errorf("removed: %v", err)
	}
	if err := b.set.Start(t.Context(), id); err != nil {
		t.Errorf("started by hand: %v", err)
	}
}

// hyperd is told to end while a pod starts: it does not wait for it for ever, and the next one goes on
// where it was.
func TestPodStartDuringClose(t *testing.T) {
	for _, after := range []time.Duration{0, 20, 100, 160, 250} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			b := newBench(t)
			b.slowGuest(100 * time.Millisecond)
			b.makePod("web", PodSpec{}, member("aa", "sleep 1000"), policied("bb", "sleep 1000", "always", 0))
			started := make(chan error, 1)
			go func() { started <- b.set.StartPod(context.Background(), "web", true) }()
			time.Sleep(after * time.Millisecond)
			within(t, "end of hyperd", b.set.Close)
			within(t, "start", func() { <-started })
			b.down()
			within(t, "start of hyperd", b.up)
			b.set.Revive()
			p := b.getPod("web")
			if p.VM == nil { // it was not begun
				if p.Status != PodCreated && p.Status != PodExited {
					t.Errorf("%s", p.Status)
				}
				return
			}
			eventually(t, "all run", func() bool { p := b.getPod("web"); return p.Ready && p.Status == PodRunning })
		})
	}
}

// A pod whose VM died is tried again as its containers' policies say, also when its VM does not start
// at once; when somebody asked for the start, it stays as it was.
func TestVMThatDoesNotStart(t *testing.T) {
	b := newBench(t)
	b.makePod("web", PodSpec{}, policied("aa", "sleep 1000", "always", 0), member("bb", "sleep 1000"))
	var fails atomic.Int32
	boot := b.set.cfg.Boot
	b.set.cfg.Boot = func(kernel string) (BootFiles, error) {
		if fails.Add(-1) >= 0 {
			return BootFiles{}, errors.New("no kernel today")
		}
		return boot(kernel)
	}
	fails.Store(1)
	if err := b.set.StartPod(t.Context(), "web", true); err == nil || !strings.Contains(err.Error(), "no kernel today") {
		t.Errorf("%v", err)
	}
	time.Sleep(50 * time.Millisecond)
	if p := b.getPod("web"); p.Status != PodExited || b.get("aa").Status != StatusCreated {
		t.Errorf("%s, %s", p.Status, b.get("aa").Status)
	}
	if w, err := b.set.Why(t.Context(), "web"); err != nil || w.Cause != CauseStart || w.Stage != "plan" {
		t.Errorf("%+v, %v", w, err)
	}
	if err := b.set.StartPod(t.Context(), "web", true); err != nil {
		t.Fatal(err)
	}
	fails.Store(3)
	if err := b.set.mustFind(t, "aa").pod.running().vm.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs again", func() bool { c := b.get("aa"); return c.Status == StatusRunning && c.RestartCount > 3 })
	if c := b.get("bb"); c.Status != StatusExited {
		t.Errorf("without a policy: %s", c.Status)
	}
}
