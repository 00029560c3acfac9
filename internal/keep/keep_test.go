package keep_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hyper-run/hyper/internal/keep"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// An option changes what a container of a test is.
type option func(*keep.Container)

func c(id string, state keep.State, opts ...option) keep.Container {
	ct := keep.Container{ID: id, State: state}
	switch id[0] {
	case 'i':
		ct.Role = keep.RoleInit
	case 's':
		ct.Role = keep.RoleSidecar
	}
	if state == keep.StateExited {
		ct.StartedAt, ct.FinishedAt = t0.Add(-time.Hour-time.Second), t0.Add(-time.Hour)
	}
	for _, o := range opts {
		o(&ct)
	}
	return ct
}

func code(n int) option { return func(c *keep.Container) { c.ExitCode = n } }
func policy(p string) option {
	return func(c *keep.Container) { c.Policy.Policy = p }
}
func most(n int) option     { return func(c *keep.Container) { c.Policy.Max = n } }
func restarts(n int) option { return func(c *keep.Container) { c.Restarts, c.Streak = n, n } }
func ended(ago, ran time.Duration) option {
	return func(c *keep.Container) { c.FinishedAt = t0.Add(-ago); c.StartedAt = c.FinishedAt.Add(-ran) }
}
func started(c *keep.Container)     { c.Started = true }
func stopped(c *keep.Container)     { c.Stopped = true }
func old(c *keep.Container)         { c.Old = true }
func failing(c *keep.Container)     { c.Failing = true }
func startFailed(c *keep.Container) { c.StartFailed = true }

func acts(v keep.Verb, ids ...string) (all []keep.Action) {
	for _, id := range ids {
		all = append(all, keep.Action{Verb: v, ID: id})
	}
	return all
}

func again(id string, restarts, streak int) []keep.Action {
	return []keep.Action{{Verb: keep.Restart, ID: id, Restarts: restarts, Streak: streak}}
}

const (
	created  = keep.StateCreated
	starting = keep.StateStarting
	running  = keep.StateRunning
	stopping = keep.StateStopping
	exited   = keep.StateExited
)

type nextTest struct {
	name string
	stop bool
	in   []keep.Container
	want keep.Plan
}

func runNext(t *testing.T, tests []nextTest) {
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := keep.Next(keep.Pod{Containers: tt.in, Stop: tt.stop, Now: t0})
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("plan (-want +got):\n%s", d)
			}
		})
	}
}

func TestOrder(t *testing.T) {
	type cs = []keep.Container
	runNext(t, []nextTest{
		{"empty", false, nil, keep.Plan{Phase: keep.Running}},
		{"mains together", false, cs{c("m1", created), c("m2", created)},
			keep.Plan{Actions: acts(keep.Start, "m1", "m2"), Phase: keep.Pending}},
		{"first of the row", false, cs{c("i1", created), c("i2", created), c("m", created)},
			keep.Plan{Actions: acts(keep.Start, "i1"), Phase: keep.Pending}},
		{"the order is that of the row only", false, cs{c("m", created), c("i1", created), c("i2", created)},
			keep.Plan{Actions: acts(keep.Start, "i1"), Phase: keep.Pending}},
		{"under way", false, cs{c("i1", starting), c("i2", created), c("m", created)}, keep.Plan{Phase: keep.Pending}},
		{"init runs", false, cs{c("i1", running, started), c("i2", created), c("m", created)}, keep.Plan{Phase: keep.Pending}},
		{"next init", false, cs{c("i1", exited), c("i2", created), c("m", created)},
			keep.Plan{Actions: acts(keep.Start, "i2"), Phase: keep.Pending}},
		{"init done, mains", false, cs{c("i1", exited), c("i2", exited), c("m1", created), c("m2", created)},
			keep.Plan{Actions: acts(keep.Start, "m1", "m2"), Phase: keep.Pending}},
		{"init failed for good", false, cs{c("i1", exited, code(1)), c("i2", created), c("m", created)},
			keep.Plan{Phase: keep.Failed, Done: true}},
		{"init failed, again", false, cs{c("i1", exited, code(1), policy("on-failure")), c("m", created)},
			keep.Plan{Actions: again("i1", 1, 1), Phase: keep.Pending, Restarting: []string{"i1"}}},
		{"init of a pod that always restarts", false, cs{c("i1", exited, policy("always")), c("m", created)},
			keep.Plan{Actions: acts(keep.Start, "m"), Phase: keep.Pending}},
		{"init failed too often", false, cs{c("i1", exited, code(1), policy("on-failure"), most(2), restarts(2)), c("m", created)},
			keep.Plan{Phase: keep.Failed, Done: true}},
		{"init stopped by the user", false, cs{c("i1", exited, code(143), policy("always"), stopped), c("m", created)},
			keep.Plan{Phase: keep.Failed, Done: true}},
		{"init that nobody started, needed", false, cs{c("i1", created, stopped), c("m", created)},
			keep.Plan{Actions: acts(keep.Start, "i1"), Phase: keep.Pending}},
		{"init that nobody started, not needed", false, cs{c("i1", created, stopped), c("m", created, stopped)},
			keep.Plan{Phase: keep.Pending}},
		{"init failed after mains began", false, cs{c("i1", exited, code(1)), c("m", running)}, keep.Plan{Phase: keep.Running}},
		{"init added later", false, cs{c("i1", created), c("m", running)}, keep.Plan{Phase: keep.Running}},

		{"sidecar in the row", false, cs{c("s1", created), c("i1", created), c("m", created)},
			keep.Plan{Actions: acts(keep.Start, "s1"), Phase: keep.Pending}},
		{"sidecar runs, not started", false, cs{c("s1", running), c("i1", created), c("m", created)}, keep.Plan{Phase: keep.Pending}},
		{"sidecar started", false, cs{c("s1", running, started), c("i1", created), c("m", created)},
			keep.Plan{Actions: acts(keep.Start, "i1"), Phase: keep.Pending}},
		{"sidecar last of the row", false, cs{c("i1", exited), c("s1", running), c("m", created)}, keep.Plan{Phase: keep.Pending}},
		{"sidecar ended while an init runs", false, cs{c("s1", exited), c("i1", running), c("i2", created), c("m", created)},
			keep.Plan{Actions: again("s1", 1, 1), Phase: keep.Pending, Restarting: []string{"s1"}}},
		{"an init waits for a sidecar to be back", false, cs{c("s1", running), c("i1", exited, code(1), policy("always")), c("m", created)},
			keep.Plan{Phase: keep.Pending, Restarting: []string{"i1"}}},
		{"a later sidecar does not", false, cs{c("i1", exited), c("s1", running), c("s2", exited), c("m", created)},
			keep.Plan{Actions: again("s2", 1, 1), Phase: keep.Pending, Restarting: []string{"s2"}}},
		{"sidecar stopped by the user holds up nobody", false, cs{c("s1", exited, code(1), stopped), c("m", created)},
			keep.Plan{Actions: acts(keep.Start, "m"), Phase: keep.Pending}},
		{"sidecar is restarted always", false, cs{c("s1", exited, policy("no")), c("m", running)},
			keep.Plan{Actions: again("s1", 1, 1), Phase: keep.Running, Restarting: []string{"s1"}}},
		{"mains are restarted without their sidecar", false, cs{c("s1", starting), c("m", exited, policy("always"))},
			keep.Plan{Actions: again("m", 1, 1), Phase: keep.Running, Restarting: []string{"m"}}},
		{"sidecars only", false, cs{c("s1", running, started), c("s2", created)},
			keep.Plan{Actions: acts(keep.Start, "s2"), Phase: keep.Pending}},

		{"added to a running pod, not started", false, cs{c("m1", running), c("m2", created, stopped)}, keep.Plan{Phase: keep.Running}},
		{"added to a running pod, started", false, cs{c("m1", running), c("m2", created)},
			keep.Plan{Actions: acts(keep.Start, "m2"), Phase: keep.Pending}},
		{"one of the mains ended", false, cs{c("m1", exited), c("m2", running)}, keep.Plan{Phase: keep.Running}},
	})
}

func TestPolicy(t *testing.T) {
	type cs = []keep.Container
	over := func(p keep.Phase) keep.Plan { return keep.Plan{Phase: p, Done: true} }
	restart := func(n, streak int) keep.Plan {
		return keep.Plan{Actions: again("m", n, streak), Phase: keep.Running, Restarting: []string{"m"}}
	}
	runNext(t, []nextTest{
		{"no", false, cs{c("m", exited, policy("no"))}, over(keep.Succeeded)},
		{"none", false, cs{c("m", exited, code(3))}, over(keep.Failed)},
		{"unknown", false, cs{c("m", exited, code(3), policy("perhaps"))}, over(keep.Failed)},
		{"no, start failed", false, cs{c("m", exited, startFailed)}, over(keep.Failed)},
		{"always, ended well", false, cs{c("m", exited, policy("always"))}, restart(1, 1)},
		{"always, stopped", false, cs{c("m", exited, policy("always"), stopped)}, over(keep.Succeeded)},
		{"always, start failed", false, cs{c("m", exited, policy("always"), startFailed)}, restart(1, 1)},
		{"unless-stopped", false, cs{c("m", exited, policy("unless-stopped"), code(1))}, restart(1, 1)},
		{"unless-stopped, stopped", false, cs{c("m", exited, policy("unless-stopped"), code(1), stopped)}, over(keep.Failed)},
		{"on-failure, ended well", false, cs{c("m", exited, policy("on-failure"))}, over(keep.Succeeded)},
		{"on-failure", false, cs{c("m", exited, policy("on-failure"), code(1), restarts(7))}, restart(8, 8)},
		{"on-failure, stopped", false, cs{c("m", exited, policy("on-failure"), code(143), stopped)}, over(keep.Failed)},
		{"on-failure, start failed", false, cs{c("m", exited, policy("on-failure"), startFailed)}, restart(1, 1)},
		{"on-failure, a probe failed, ended well", false, cs{c("m", exited, policy("on-failure"), failing)}, restart(1, 1)},
		{"on-failure:3, third", false, cs{c("m", exited, policy("on-failure"), most(3), code(1), restarts(2))}, restart(3, 3)},
		{"on-failure:3, fourth", false, cs{c("m", exited, policy("on-failure"), most(3), code(1), restarts(3))}, over(keep.Failed)},
		{"on-failure:3, a long run counts", false,
			cs{c("m", exited, policy("on-failure"), most(3), code(1), restarts(3), ended(time.Hour, time.Hour))}, over(keep.Failed)},
		{"a long run begins anew", false, cs{c("m", exited, policy("always"), restarts(9), ended(time.Second, 10*time.Second))}, restart(10, 1)},
		{"a start that failed was no run", false,
			cs{c("m", exited, policy("always"), restarts(9), ended(time.Hour, 10*time.Hour), startFailed)}, restart(10, 10)},
		{"one will be restarted, one failed", false, cs{c("m1", exited, code(1)), c("m2", running)}, keep.Plan{Phase: keep.Running}},
		{"all ended, one badly", false, cs{c("m1", exited), c("m2", exited, code(1)), c("i", exited)}, over(keep.Failed)},
		{"all ended but for one that nobody started", false, cs{c("m1", exited), c("m2", created, stopped)}, over(keep.Succeeded)},
		{"nobody started it", false, cs{c("m", created, stopped)}, keep.Plan{Phase: keep.Running}},
		{"restart under way", false, cs{c("m", starting, restarts(1))}, keep.Plan{Phase: keep.Running}},
		{"start under way", false, cs{c("m", starting)}, keep.Plan{Phase: keep.Pending}},
	})
}

func TestBackoff(t *testing.T) {
	kubernetes := keep.Policy{Policy: "always", Delay: 10 * time.Second, MaxDelay: 5 * time.Minute, ResetAfter: 10 * time.Minute}
	docker := keep.Policy{Policy: "always"}
	tests := []struct {
		policy keep.Policy
		streak int
		ran    time.Duration
		want   time.Duration
	}{
		{docker, 0, 0, 100 * time.Millisecond},
		{docker, 1, 0, 200 * time.Millisecond},
		{docker, 9, 0, 51200 * time.Millisecond},
		{docker, 10, 0, time.Minute},
		{docker, 1 << 40, 0, time.Minute},
		{docker, 10, 10*time.Second - 1, time.Minute},
		{docker, 10, 10 * time.Second, 100 * time.Millisecond},
		{kubernetes, 0, 0, 10 * time.Second},
		{kubernetes, 4, 0, 160 * time.Second},
		{kubernetes, 5, 0, 5 * time.Minute},
		{kubernetes, 5, 9 * time.Minute, 5 * time.Minute},
		{kubernetes, 5, 10 * time.Minute, 10 * time.Second},
		{keep.Policy{Policy: "always", Delay: time.Hour}, 0, 0, time.Minute},
		{keep.Policy{Policy: "always", Delay: 1, MaxDelay: 1<<63 - 1}, 40, 0, 1 << 40},
	}
	for _, tt := range tests {
		ct := keep.Container{ID: "m", State: exited, Policy: tt.policy, Restarts: tt.streak, Streak: tt.streak,
			StartedAt: t0.Add(-tt.ran), FinishedAt: t0}
		due := t0.Add(tt.want)
		for now, want := range map[time.Time]bool{t0: false, due.Add(-1): false, due: true, due.Add(time.Hour): true, t0.Add(-1): true} {
			got := keep.Next(keep.Pod{Containers: []keep.Container{ct}, Now: now})
			if started := len(got.Actions) == 1; started != want {
				t.Errorf("%v: at %v: restarted is %v", tt, now.Sub(t0), started)
			}
			if !want && !got.Wake.Equal(due) {
				t.Errorf("%v: at %v: wake after %v", tt, now.Sub(t0), got.Wake.Sub(t0))
			}
		}
	}
	soon, late := c("m1", exited, policy("always"), ended(0, 0)), c("m2", exited, policy("always"), ended(0, 0), restarts(3))
	for _, cs := range [][]keep.Container{{soon, late}, {late, soon}} {
		if got := keep.Next(keep.Pod{Containers: cs, Now: t0}).Wake; !got.Equal(t0.Add(100 * time.Millisecond)) {
			t.Errorf("wake for the first of two after %v", got.Sub(t0))
		}
	}
}

func TestFailing(t *testing.T) {
	grace := 7
	ct := c("m", running, failing)
	ct.Grace = &grace
	runNext(t, []nextTest{
		{"a probe failed", false, []keep.Container{ct, c("m2", running)},
			keep.Plan{Actions: []keep.Action{{Verb: keep.Kill, ID: "m", Grace: &grace}}, Phase: keep.Running}},
		{"being killed", false, []keep.Container{c("m", stopping, failing)}, keep.Plan{Phase: keep.Running}},
		{"not yet running", false, []keep.Container{c("m", starting, failing)}, keep.Plan{Phase: keep.Pending}},
		{"sidecar", false, []keep.Container{c("s", running, failing), c("m", created)},
			keep.Plan{Actions: acts(keep.Kill, "s"), Phase: keep.Pending}},
		{"killed, restarted", false, []keep.Container{c("m", exited, failing, policy("always"))},
			keep.Plan{Actions: again("m", 1, 1), Phase: keep.Running, Restarting: []string{"m"}}},
		{"killed, for good", false, []keep.Container{c("m", exited, failing)}, keep.Plan{Phase: keep.Failed, Done: true}},
	})
}

func TestEnd(t *testing.T) {
	type cs = []keep.Container
	runNext(t, []nextTest{
		{"done: last sidecar first", false, cs{c("s1", running, started), c("s2", running, started), c("m", exited)},
			keep.Plan{Actions: acts(keep.Stop, "s2"), Phase: keep.Running, Done: true}},
		{"done: one at a time", false, cs{c("s1", running, started), c("s2", stopping), c("m", exited)},
			keep.Plan{Phase: keep.Running, Done: true}},
		{"done: one that is just starting", false, cs{c("s1", running, started), c("s2", starting), c("m", exited)},
			keep.Plan{Phase: keep.Running, Done: true}},
		{"done: then the first", false, cs{c("s1", running, started), c("s2", exited, code(1)), c("m", exited)},
			keep.Plan{Actions: acts(keep.Stop, "s1"), Phase: keep.Running, Done: true}},
		{"done: sidecars do not count", false, cs{c("s1", exited, code(143)), c("s2", exited, code(1)), c("m", exited)},
			keep.Plan{Phase: keep.Succeeded, Done: true}},
		{"done: an init that was run once more does not count", false, cs{c("i1", exited, code(1)), c("m", exited)},
			keep.Plan{Phase: keep.Succeeded, Done: true}},
		{"done: stopped even if failing", false, cs{c("s1", running, failing), c("m", exited, code(1))},
			keep.Plan{Actions: acts(keep.Stop, "s1"), Phase: keep.Running, Done: true}},
		{"done: an init failed", false, cs{c("s1", running, started), c("i1", exited, code(1)), c("m", created)},
			keep.Plan{Actions: acts(keep.Stop, "s1"), Phase: keep.Pending, Done: true}},
		{"no longer done", false, cs{c("s1", exited), c("m", running)},
			keep.Plan{Actions: again("s1", 1, 1), Phase: keep.Running, Restarting: []string{"s1"}}},

		{"stop: mains together, then sidecars", true, cs{c("s1", running), c("m1", running), c("m2", running, failing), c("m3", stopping)},
			keep.Plan{Actions: acts(keep.Stop, "m1", "m2"), Phase: keep.Running}},
		{"stop: wait for mains", true, cs{c("s1", running), c("m1", stopping)}, keep.Plan{Phase: keep.Running}},
		{"stop: wait for a start", true, cs{c("s1", running), c("m1", starting)}, keep.Plan{Phase: keep.Pending}},
		{"stop: last sidecar", true, cs{c("s1", running), c("s2", running), c("m1", exited, policy("always"))},
			keep.Plan{Actions: acts(keep.Stop, "s2"), Phase: keep.Running, Done: false}},
		{"stop: an init, others never start", true, cs{c("i1", running), c("i2", created), c("m1", created)},
			keep.Plan{Actions: acts(keep.Stop, "i1"), Phase: keep.Pending}},
		{"stopped", true, cs{c("i1", exited), c("m1", exited, policy("always")), c("m2", exited)}, keep.Plan{Phase: keep.Succeeded, Done: false}},
		{"stopped with a signal", true, cs{c("m1", exited, policy("always"), code(143))}, keep.Plan{Phase: keep.Failed}},
		{"stopped before mains", true, cs{c("i1", exited), c("m1", created)}, keep.Plan{Phase: keep.Pending}},
		{"never started", true, cs{c("i1", created), c("m1", created)}, keep.Plan{Phase: keep.Pending}},
	})
}

func TestNewVM(t *testing.T) {
	type cs = []keep.Container
	runNext(t, []nextTest{
		{"the row again", false, cs{c("i1", exited, old), c("i2", exited, old), c("s1", exited, old, code(137)), c("m", exited, old, code(137), policy("always"))},
			keep.Plan{Actions: acts(keep.Start, "i1"), Phase: keep.Pending, Restarting: []string{"s1", "m"}}},
		{"its second", false, cs{c("i1", exited), c("i2", exited, old), c("m", exited, old, code(137), policy("always"))},
			keep.Plan{Actions: acts(keep.Start, "i2"), Phase: keep.Pending, Restarting: []string{"m"}}},
		{"its sidecar", false, cs{c("i1", exited), c("s1", exited, old), c("m", exited, old, policy("always"))},
			keep.Plan{Actions: again("s1", 1, 1), Phase: keep.Pending, Restarting: []string{"s1", "m"}}},
		{"the main that failed only", false, cs{c("i1", exited), c("m1", exited, old, policy("on-failure")), c("m2", exited, old, code(137), policy("on-failure"))},
			keep.Plan{Actions: again("m2", 1, 1), Phase: keep.Running, Restarting: []string{"m2"}}},
		{"an init that was stopped with the pod", false, cs{c("i1", exited, old, stopped), c("m", created)},
			keep.Plan{Actions: acts(keep.Start, "i1"), Phase: keep.Pending}},
		{"nothing to be restarted", false, cs{c("i1", exited, old), c("s1", exited, old, code(137)), c("m", exited, old, code(137))},
			keep.Plan{Phase: keep.Failed, Done: true}},
		{"an init was running", false, cs{c("i1", exited, old, code(137)), c("m", created)}, keep.Plan{Phase: keep.Failed, Done: true}},
		{"an init was running, again", false, cs{c("i1", exited, old, code(137), policy("on-failure")), c("m", created)},
			keep.Plan{Actions: again("i1", 1, 1), Phase: keep.Pending, Restarting: []string{"i1"}}},
	})
}

func TestRevive(t *testing.T) {
	tests := []struct {
		policy string
		opts   []option
		want   bool
	}{
		{"", nil, false},
		{"no", []option{code(137)}, false},
		{"always", nil, true},
		{"always", []option{stopped}, true},
		{"unless-stopped", nil, true},
		{"unless-stopped", []option{stopped}, false},
		{"on-failure", nil, false},
		{"on-failure", []option{code(137)}, true},
		{"on-failure", []option{code(137), stopped}, false},
		{"on-failure", []option{code(137), most(2), restarts(2)}, false},
	}
	for _, tt := range tests {
		for _, state := range []keep.State{exited, running} { // running: as last recorded
			if got := keep.Revive(c("m", state, append(tt.opts, policy(tt.policy))...)); got != tt.want {
				t.Errorf("%s %s, %d options: %v", tt.policy, state, len(tt.opts), got)
			}
		}
		if keep.Revive(c("m", created, append(tt.opts, policy(tt.policy))...)) {
			t.Errorf("%s: one that was never started", tt.policy)
		}
	}
	if !keep.Revive(c("s", exited)) || keep.Revive(c("s", exited, stopped)) || keep.Revive(c("i", exited, policy("always"))) {
		t.Error("sidecar or init container")
	}
}
