package keep_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/hyper-run/hyper/internal/keep"
)

// A world is a pod whose containers live as chance has it, and what is known of
// it by having watched, which keep must find out by looking.
type world struct {
	keep.Pod
	rand *rand.Rand
	log  []string

	inited map[string]bool // init containers that ended well in this VM
	tried  map[string]bool // those that were started in this VM
}

func newWorld(seed uint64) *world {
	w := &world{rand: rand.New(rand.NewPCG(seed, 1)), inited: map[string]bool{}, tried: map[string]bool{}}
	w.Now = t0
	for i := range 1 + w.rand.IntN(6) {
		id := []string{"i", "s", "m", "m"}[w.rand.IntN(4)] + fmt.Sprint(i)
		ct := c(id, created, policy([]string{"", "no", "always", "unless-stopped", "on-failure"}[w.rand.IntN(5)]))
		if ct.Policy.Policy == keep.OnFailure {
			ct.Policy.Max = w.rand.IntN(3)
		}
		ct.Stopped = w.rand.IntN(10) == 0
		w.Containers = append(w.Containers, ct)
	}
	return w
}

func (w *world) mainTried() bool {
	for id := range w.tried {
		if id[0] == 'm' {
			return true
		}
	}
	return false
}

func alive(ct *keep.Container) bool {
	return ct.State == starting || ct.State == running || ct.State == stopping
}

// step plans, checks the plan and has it under way.
func (w *world) step() (keep.Plan, error) {
	before := slices.Clone(w.Containers)
	plan := keep.Next(w.Pod)
	if !slices.Equal(before, w.Containers) || !reflect.DeepEqual(plan, keep.Next(w.Pod)) {
		return plan, fmt.Errorf("not pure")
	}
	seen := map[string]bool{}
	for _, a := range plan.Actions {
		i := slices.IndexFunc(w.Containers, func(c keep.Container) bool { return c.ID == a.ID })
		if seen[a.ID] {
			return plan, fmt.Errorf("%v: a second action", a)
		}
		seen[a.ID] = true
		if err := w.check(plan, a, i); err != nil {
			return plan, fmt.Errorf("%v: %w", a, err)
		}
	}
	for _, a := range plan.Actions {
		w.apply(a)
	}
	for _, a := range keep.Next(w.Pod).Actions {
		if seen[a.ID] {
			return plan, fmt.Errorf("%v is asked for while it is under way", a)
		}
	}
	return plan, nil
}

// check holds an action against what was watched.
func (w *world) check(plan keep.Plan, a keep.Action, i int) error {
	ct := &w.Containers[i]
	switch a.Verb {
	case keep.Kill, keep.Stop:
		return w.checkStop(plan, a, i)
	case keep.Restart:
		switch {
		case ct.State != exited:
			return fmt.Errorf("it has not ended")
		case ct.Role != keep.RoleSidecar && ct.Policy.Policy != "always" && ct.Policy.Policy != "unless-stopped" && ct.Policy.Policy != "on-failure":
			return fmt.Errorf("its policy is %q", ct.Policy.Policy)
		case w.Now.Sub(ct.FinishedAt) < 100*time.Millisecond:
			return fmt.Errorf("too soon")
		case a.Restarts != ct.Restarts+1 || a.Streak > a.Restarts || a.Streak < 1:
			return fmt.Errorf("counts of %+v", ct)
		case ct.Role != keep.RoleSidecar && ct.Policy.Max > 0 && a.Restarts > ct.Policy.Max:
			return fmt.Errorf("too often")
		}
	}
	switch {
	case alive(ct):
		return fmt.Errorf("it is %s", ct.State)
	case w.Stop || plan.Done:
		return fmt.Errorf("the pod is over")
	case ct.Stopped && (ct.Role != keep.RoleInit || w.tried[ct.ID]):
		return fmt.Errorf("it was stopped")
	case w.mainTried() && ct.Role == keep.RoleInit:
		return fmt.Errorf("main containers were started already")
	case w.inited[ct.ID]:
		return fmt.Errorf("it has done its work")
	case w.mainTried(), ct.Role == keep.RoleSidecar && w.tried[ct.ID]:
		return nil
	}
	for j := range w.Containers {
		p := &w.Containers[j]
		if p == ct && ct.Role != keep.RoleMain {
			break
		}
		switch {
		case p.Role == keep.RoleInit && !w.inited[p.ID]:
			return fmt.Errorf("before %s ended well", p.ID)
		case p.Role == keep.RoleSidecar && !(p.State == running && p.Started) && !(p.Stopped && !alive(p)):
			return fmt.Errorf("before %s started", p.ID)
		}
	}
	return nil
}

func (w *world) checkStop(plan keep.Plan, a keep.Action, i int) error {
	ct := &w.Containers[i]
	switch {
	case ct.State != running:
		return fmt.Errorf("it is %s", ct.State)
	case a.Verb == keep.Kill && !ct.Failing:
		return fmt.Errorf("it is well")
	case a.Verb == keep.Kill:
		return nil
	case !w.Stop && !plan.Done:
		return fmt.Errorf("it is needed")
	}
	for j := range w.Containers {
		p := &w.Containers[j]
		if ct.Role == keep.RoleSidecar && alive(p) && (p.Role == keep.RoleMain || p.Role == keep.RoleSidecar && j > i) {
			return fmt.Errorf("before %s ended", p.ID)
		}
	}
	return nil
}

func (w *world) apply(a keep.Action) {
	w.log = append(w.log, fmt.Sprintf("%s %s", a.Verb, a.ID))
	for i := range w.Containers {
		ct := &w.Containers[i]
		if ct.ID != a.ID {
			continue
		}
		if a.Verb == keep.Kill || a.Verb == keep.Stop {
			ct.State = stopping
			return
		}
		if a.Verb == keep.Restart {
			ct.Restarts, ct.Streak = a.Restarts, a.Streak
		}
		ct.State, ct.Stopped, ct.Old, ct.Started, ct.Failing, ct.StartFailed = starting, false, false, false, false, false
		w.tried[ct.ID] = true
	}
}

func (w *world) exit(ct *keep.Container, code int) {
	if ct.State == starting {
		ct.StartFailed = true
	}
	ct.State, ct.ExitCode, ct.FinishedAt = exited, code, w.Now
	if ct.Role == keep.RoleInit && code == 0 && !ct.Failing && !ct.StartFailed {
		w.inited[ct.ID] = true
	}
}

// happen has something happen to a container, or to the pod.
func (w *world) happen() {
	ct := &w.Containers[w.rand.IntN(len(w.Containers))]
	what := w.rand.IntN(100)
	w.log = append(w.log, fmt.Sprintf("%s/%d", ct.ID, what))
	w.Now = w.Now.Add(time.Duration(w.rand.IntN(300)) * time.Millisecond)
	switch {
	case what < 75:
		w.live(ct, what)
	case what < 85:
		w.Now = w.Now.Add(time.Duration(w.rand.IntN(20)) * time.Second)
	case what < 89: // the user stops it
		if ct.Stopped = ct.State != created; ct.State == running {
			ct.State = stopping
		}
	case what < 93: // the user starts it
		if ct.State == exited || ct.State == created {
			ct.State, ct.Stopped, ct.Restarts, ct.Streak = created, false, 0, 0
			delete(w.tried, ct.ID)
			delete(w.inited, ct.ID)
		}
	case what < 95: // the VM dies
		for i := range w.Containers {
			if alive(&w.Containers[i]) {
				w.exit(&w.Containers[i], 137)
			}
			w.Containers[i].Old = w.Containers[i].State == exited
		}
		clear(w.tried)
		clear(w.inited)
	case what < 97:
		w.Stop = true
	default: // the user starts the pod
		w.Stop = false
		if slices.ContainsFunc(w.Containers, func(ct keep.Container) bool { return alive(&ct) }) {
			return
		}
		for i := range w.Containers {
			ct := &w.Containers[i]
			ct.State, ct.Stopped, ct.Restarts, ct.Streak = created, false, 0, 0
		}
		clear(w.tried)
		clear(w.inited)
	}
}

// live has a container go on with its life.
func (w *world) live(ct *keep.Container, what int) {
	switch {
	case ct.State == starting && what < 70:
		ct.State, ct.StartedAt = running, w.Now
	case ct.State == starting:
		w.exit(ct, 128)
	case ct.State == stopping:
		w.exit(ct, what%2*143)
	case ct.State != running:
	case what < 40:
		ct.Started = true
	case what < 45 && ct.Role != keep.RoleInit:
		ct.Failing = true
	case ct.Role == keep.RoleInit, what < 55:
		w.exit(ct, max(0, what%4-1))
	}
}

// settle has all go well from now on, until nothing is to be done any more.
func (w *world) settle() error {
	w.Stop = false
	for i := range w.Containers {
		if ct := &w.Containers[i]; ct.Role == keep.RoleInit && (ct.State == created || ct.Old) {
			ct.Stopped = false // else it holds up sidecars while no main container needs it
		}
	}
	for range 1000 {
		plan, err := w.step()
		if err != nil {
			return err
		}
		busy := len(plan.Actions) > 0
		for i := range w.Containers {
			ct := &w.Containers[i]
			switch {
			case ct.State == starting:
				ct.State, ct.StartedAt = running, w.Now
			case ct.State == stopping:
				w.exit(ct, 0)
			case ct.State == running && ct.Role == keep.RoleInit:
				w.exit(ct, 0)
			case ct.State == running && !ct.Started:
				ct.Started = true
			default:
				continue
			}
			busy = true
		}
		if busy {
			continue
		}
		if plan.Wake.IsZero() {
			return w.settled(plan)
		}
		w.Now = plan.Wake
	}
	return fmt.Errorf("it never comes to rest")
}

func (w *world) settled(plan keep.Plan) error {
	for i := range w.Containers {
		ct := &w.Containers[i]
		switch {
		case plan.Done && ct.Role != keep.RoleInit && alive(ct):
			return fmt.Errorf("%s still runs", ct.ID)
		case !plan.Done && ct.Role != keep.RoleInit && !alive(ct) && !ct.Stopped && (ct.State == created || ct.Role == keep.RoleSidecar):
			return fmt.Errorf("%s does not run", ct.ID)
		case slices.Contains(plan.Restarting, ct.ID):
			return fmt.Errorf("%s is not restarted", ct.ID)
		}
	}
	if plan.Phase == keep.Pending {
		return fmt.Errorf("still pending")
	}
	return nil
}

// TestModel checks, for pods that live as chance has it, that no container is
// started twice, none before those it needs, none that must not be, and that
// all comes to rest as it should when all goes well.
func TestModel(t *testing.T) {
	for seed := range uint64(400) {
		w := newWorld(seed)
		err := func() error {
			for range 150 {
				if _, err := w.step(); err != nil {
					return err
				}
				w.happen()
			}
			w.log = append(w.log, "settle")
			return w.settle()
		}()
		if err != nil {
			for _, ct := range w.Containers {
				t.Logf("%+v", ct)
			}
			t.Fatalf("seed %d: %v\nafter %v", seed, err, w.log)
		}
	}
}
