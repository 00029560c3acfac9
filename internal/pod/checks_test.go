package pod

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hyper-run/hyper/internal/guest/guesttest"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/session"
	"github.com/hyper-run/hyper/internal/probe"
)

func execProbe(script string) *Probe {
	return &Probe{
		Handler: Handler{Exec: []string{"sh", "-c", script}},
		Period:  20 * time.Millisecond, Timeout: 5 * time.Second, SuccessThreshold: 1, FailureThreshold: 2,
	}
}

// probed is a member with a probe.
func probed(name, script string, p Probes, policy string) CreateOptions {
	o := policied(name, script, policy, 0)
	o.Spec.Probes = p
	return o
}

// A container whose liveness probe fails is killed, and restarted as its policy says.
func TestLiveness(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	p := Probes{Liveness: execProbe("test ! -e " + dir + "/sick || { echo it is sick; exit 1; }")}
	b.makePod("web", PodSpec{},
		probed("again", "rm -f "+dir+"/sick; sleep 1000", p, "on-failure"),
		member("other", "sleep 1000"))
	alone := probed("", "sleep 1000", Probes{Liveness: p.Liveness}, "").Spec
	id := b.start(alone)
	if err := b.set.StartPod(t.Context(), "web", true); err != nil {
		t.Fatal(err)
	}
	pid := b.get("other").PID
	if err := os.WriteFile(dir+"/sick", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one is restarted", func() bool { c := b.get("again"); return c.RestartCount > 0 && c.Status == StatusRunning })
	if b.get("other").PID != pid {
		t.Error("its neighbour too")
	}
	os.WriteFile(dir+"/sick", nil, 0o600) //nolint:errcheck // as before
	eventually(t, "the other is killed", func() bool { return b.get(id).Status == StatusExited })
	if w, err := b.set.Why(t.Context(), id); err != nil || w.Cause != CauseProbe || !strings.Contains(w.Detail, "it is sick") {
		t.Errorf("%+v, %v", w, err)
	}
}

// What an earlier hyperd found out, and did not come to do, the next one does.
func TestAdoptWhatFails(t *testing.T) {
	b := newBench(t)
	o := probed("", "sleep 1000", Probes{Liveness: execProbe("exit 0")}, "").Spec
	o.Hooks.PostStart = &Handler{Sleep: time.Millisecond}
	id := b.start(o)
	c := b.set.mustFind(t, id)
	eventually(t, "the hook is done", func() bool { rr, _ := c.pod.running().runRecord(id); return rr.Hooked })
	err := c.pod.running().setRun(id, func(rr *runRecord) {
		rr.Probed = probe.State{Started: true, Failing: probe.Liveness, Message: "it was sick"}
	})
	if err != nil {
		t.Fatal(err)
	}
	b.down()
	b.up()
	b.set.Revive()
	eventually(t, "it is killed", func() bool { return b.get(id).Status == StatusExited })
	if w, err := b.set.Why(t.Context(), id); err != nil || w.Cause != CauseProbe || w.Detail != "it was sick" {
		t.Errorf("%+v, %v", w, err)
	}
}

// A hook that hyperd was ended over is run by the next one; a container whose hook fails is killed.
func TestHooks(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	o := member("", "sleep 1000").Spec
	o.Hooks.PostStart = &Handler{Exec: []string{"sh", "-c", "echo x >> " + dir + "/log; test -e " + dir + "/go || exec sleep 1000"}}
	o.Hooks.PreStop = &Handler{Exec: []string{"sh", "-c", "echo bye >> " + dir + "/log"}}
	id := b.start(o)
	log := func() string {
		data, _ := os.ReadFile(dir + "/log")
		return string(data)
	}
	eventually(t, "the hook runs", func() bool { return log() == "x\n" })
	if err := os.WriteFile(dir+"/go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	within(t, "end of hyperd", b.down)
	b.up()
	b.set.Revive()
	eventually(t, "the hook runs again", func() bool { return log() == "x\nx\n" })
	eventually(t, "it is ready", func() bool { return b.get(id).Ready })
	b.down()
	b.up()
	b.set.Revive()
	time.Sleep(50 * time.Millisecond)
	if err := b.set.Stop(t.Context(), id, "", nil); err != nil {
		t.Fatal(err)
	}
	if got := log(); got != "x\nx\nbye\n" {
		t.Errorf("%q", got)
	}
	bad := member("", "sleep 1000").Spec
	bad.Hooks.PostStart = &Handler{Exec: []string{"false"}}
	id = b.start(bad)
	eventually(t, "it is killed", func() bool { return b.get(id).Status == StatusExited })
	if c := b.get(id); c.Cause != CauseProbe {
		t.Errorf("%s", c.Cause)
	}
}

// A container that is paused is not asked how it is, whoever has paused it.
func TestPauseHoldsProbes(t *testing.T) {
	b := newBench(t)
	p := execProbe("exit 0")
	p.Period, p.Timeout, p.FailureThreshold = 5*time.Millisecond, 50*time.Millisecond, 1
	id := b.start(probed("", "sleep 1000", Probes{Liveness: p}, "").Spec)
	for i := range 6 {
		if err := b.set.Pause(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 {
			b.down()
			b.up()
			b.set.Revive()
		}
		time.Sleep(70 * time.Millisecond)
		if err := b.set.Resume(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if c := b.get(id); c.Status != StatusRunning || c.Probe != "" {
		t.Errorf("%s, %s", c.Status, c.Probe)
	}
}

// A muteGuest never says whether an exec has begun.
type muteGuest struct{ *guesttest.Guest }

func (g muteGuest) StartProcess(ctx context.Context, r *wire.StartProcessRequest) (*wire.StartProcessResponse, error) {
	if r.ExecId != "" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return g.Guest.StartProcess(ctx, r)
}

// A guest that never answers a probe or a hook keeps its container from nothing.
func TestChecksThatNeverAnswer(t *testing.T) {
	b := newBench(t)
	b.serve(func(g *guesttest.Guest) session.Handler { return muteGuest{g} })
	p := execProbe("exit 0")
	p.Timeout = 50 * time.Millisecond
	o := probed("", "read x; exit 3", Probes{Readiness: p}, "").Spec
	id := b.start(o)
	within(t, "the end", func() { b.wait(id) })
	o.Args = sh("sleep 1000").Args
	o.Hooks.PreStop = &Handler{Exec: []string{"true"}}
	id = b.start(o)
	one := 1
	within(t, "stop", func() {
		if err := b.set.Stop(t.Context(), id, "", &one); err != nil {
			t.Error(err)
		}
	})
}
