package probe_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/probe"
)

// A program stands for a container: what it runs is done by a function named
// by the first argument, which is told how often it was called before.
type program struct {
	run map[string]func(ctx context.Context, n int) (int, error)

	mu    sync.Mutex
	since time.Time
	calls map[string][]time.Duration // when, after since
	busy  map[string]bool
}

func newProgram(run map[string]func(context.Context, int) (int, error)) *program {
	return &program{run: run, since: time.Now(), calls: map[string][]time.Duration{}, busy: map[string]bool{}}
}

func (p *program) Exec(ctx context.Context, args []string) (int, []byte, error) {
	name := args[0]
	p.mu.Lock()
	n := len(p.calls[name])
	p.calls[name] = append(p.calls[name], time.Since(p.since))
	if p.busy[name] {
		panic(name + " is checked twice at a time")
	}
	p.busy[name] = true
	p.mu.Unlock()
	code, err := p.run[name](ctx, n)
	p.mu.Lock()
	p.busy[name] = false
	p.mu.Unlock()
	return code, fmt.Appendf(nil, "call %d", n), err
}

func (p *program) Dial(context.Context, string) (net.Conn, error) {
	return nil, errors.New("not a server")
}

func (p *program) times(name string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprint(p.calls[name])
}

// codes answers with these exit codes, the last of them for ever.
func codes(all ...int) func(context.Context, int) (int, error) {
	return func(_ context.Context, n int) (int, error) { return all[min(n, len(all)-1)], nil }
}

// hangs never answers.
func hangs(ctx context.Context, _ int) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

// check is a probe of so many seconds.
func check(name string, delay, period, timeout, failures int) *probe.Probe {
	return &probe.Probe{
		Handler: probe.Handler{Exec: []string{name}}, InitialDelay: time.Duration(delay) * time.Second,
		Period: time.Duration(period) * time.Second, Timeout: time.Duration(timeout) * time.Second,
		SuccessThreshold: 1, FailureThreshold: failures,
	}
}

// twice has a probe succeed twice before it counts.
func twice(p *probe.Probe) *probe.Probe {
	p.SuccessThreshold = 2
	return p
}

// withGrace gives a probe a grace of its own.
func withGrace(p *probe.Probe) *probe.Probe {
	p.Grace = &grace
	return p
}

var grace = 3

// history notes what a Prober reports and when.
type history struct {
	since time.Time
	lines []string
}

func (h *history) changed(s probe.State) {
	line := fmt.Sprintf("%v", time.Since(h.since))
	if s.Started {
		line += " started"
	}
	if s.Ready {
		line += " ready"
	}
	if s.Failing != "" {
		line += " failing " + string(s.Failing)
	}
	h.lines = append(h.lines, line)
}

type runs = map[string]func(context.Context, int) (int, error)

func unreachable(context.Context, int) (int, error) {
	return 0, fmt.Errorf("lost: %w", errdefs.ErrUnavailable)
}

var proberTests = []struct {
	name   string
	probes probe.Probes
	was    probe.State
	run    runs
	first  probe.State // as made
	want   []string
	last   probe.State // after 59 s
	calls  map[string]string
}{
	{"none", probe.Probes{}, probe.State{}, nil,
		probe.State{Started: true, Ready: true}, nil, probe.State{Started: true, Ready: true}, nil},
	{"readiness", probe.Probes{Readiness: check("r", 5, 10, 1, 3)}, probe.State{}, runs{"r": codes(1, 0)},
		probe.State{Started: true}, []string{"15s started ready"},
		probe.State{Started: true, Ready: true, Message: "readiness: r exited with code 1: call 0"},
		map[string]string{"r": "[5s 15s 25s 35s 45s 55s]"}},
	{"readiness with thresholds", probe.Probes{Readiness: twice(check("r", 0, 5, 1, 3))}, probe.State{}, runs{"r": codes(0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 0)},
		probe.State{Started: true}, []string{"15s started ready", "45s started", "55s started ready"},
		probe.State{Started: true, Ready: true, Message: "readiness: r exited with code 1: call 9"}, nil},
	{"liveness", probe.Probes{Liveness: check("l", 3, 10, 1, 3)}, probe.State{}, runs{"l": codes(1, 1, 0, 1, 1, 1, 0)},
		probe.State{Started: true, Ready: true}, []string{"53s started failing liveness"},
		probe.State{Started: true, Failing: probe.Liveness, Message: "liveness: l exited with code 1: call 5"},
		map[string]string{"l": "[3s 13s 23s 33s 43s 53s]"}},
	{"liveness with a grace of its own ends the others", probe.Probes{Liveness: withGrace(check("l", 0, 10, 1, 1)), Readiness: check("r", 5, 5, 1, 1)},
		probe.State{}, runs{"l": codes(0, 1), "r": codes(0)},
		probe.State{Started: true}, []string{"5s started ready", "10s started failing liveness"},
		probe.State{Started: true, Failing: probe.Liveness, Grace: &grace, Message: "liveness: l exited with code 1: call 1"},
		map[string]string{"l": "[0s 10s]"}},
	{"startup first", probe.Probes{Startup: check("s", 0, 2, 1, 5), Liveness: check("l", 0, 30, 1, 1), Readiness: check("r", 20, 30, 1, 1)},
		probe.State{}, runs{"s": codes(1, 1, 1, 0), "l": codes(0), "r": codes(0)},
		probe.State{}, []string{"6s started", "20s started ready"},
		probe.State{Started: true, Ready: true, Message: "startup: s exited with code 1: call 2"},
		map[string]string{"s": "[0s 2s 4s 6s]", "l": "[6s 36s]", "r": "[20s 50s]"}},
	{"startup only", probe.Probes{Startup: check("s", 1, 2, 1, 5)}, probe.State{}, runs{"s": codes(0)},
		probe.State{}, []string{"1s started ready"}, probe.State{Started: true, Ready: true}, map[string]string{"s": "[1s]"}},
	{"startup fails", probe.Probes{Startup: check("s", 0, 2, 1, 3), Liveness: check("l", 0, 1, 1, 1)}, probe.State{}, runs{"s": codes(7)},
		probe.State{}, []string{"4s failing startup"},
		probe.State{Failing: probe.Startup, Message: "startup: s exited with code 7: call 2"}, map[string]string{"s": "[0s 2s 4s]", "l": "[]"}},
	{"timeouts, longer than a period", probe.Probes{Liveness: check("l", 0, 2, 5, 3)}, probe.State{}, runs{"l": hangs},
		probe.State{Started: true, Ready: true}, []string{"15s started failing liveness"},
		probe.State{Started: true, Failing: probe.Liveness, Message: "liveness: timed out: run l: context deadline exceeded"},
		map[string]string{"l": "[0s 5s 10s]"}},
	{"one that hangs does not hold up another", probe.Probes{Liveness: check("l", 0, 20, 20, 9), Readiness: check("r", 0, 20, 1, 1)},
		probe.State{}, runs{"l": hangs, "r": codes(0)},
		probe.State{Started: true}, []string{"0s started ready"},
		probe.State{Started: true, Ready: true, Message: "liveness: timed out: run l: context deadline exceeded"},
		map[string]string{"r": "[0s 20s 40s]"}},
	{"what can't be reached", probe.Probes{Liveness: check("l", 0, 10, 1, 1)}, probe.State{}, runs{"l": unreachable},
		probe.State{Started: true, Ready: true}, nil, probe.State{Started: true, Ready: true}, map[string]string{"l": "[0s 10s 20s 30s 40s 50s]"}},
	{"known from before", probe.Probes{Startup: check("s", 0, 2, 1, 3), Readiness: check("r", 0, 25, 1, 2)},
		probe.State{Started: true, Ready: true}, runs{"s": codes(1), "r": codes(1)},
		probe.State{Started: true, Ready: true}, []string{"25s started"},
		probe.State{Started: true, Message: "readiness: r exited with code 1: call 2"}, map[string]string{"s": "[]", "r": "[0s 25s 50s]"}},
	{"failing before", probe.Probes{Liveness: check("l", 0, 2, 1, 3)},
		probe.State{Started: true, Failing: probe.Liveness}, runs{"l": codes(0)},
		probe.State{Started: true, Failing: probe.Liveness}, nil,
		probe.State{Started: true, Failing: probe.Liveness}, map[string]string{"l": "[]"}},
}

func TestProber(t *testing.T) {
	for _, tt := range proberTests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, h := newProgram(tt.run), &history{since: time.Now()}
				pr := probe.New(p, tt.probes, time.Now(), tt.was, h.changed)
				if got := pr.State(); got != tt.first {
					t.Errorf("at first: %+v, want %+v", got, tt.first)
				}
				time.Sleep(59 * time.Second)
				pr.Stop()
				pr.Stop()
				time.Sleep(time.Minute)
				if !slices.Equal(h.lines, tt.want) {
					t.Errorf("reported %q, want %q", h.lines, tt.want)
				}
				if got := pr.State(); got != tt.last {
					t.Errorf("at last: %+v, want %+v", got, tt.last)
				}
				for name, want := range tt.calls {
					if got := p.times(name); got != want {
						t.Errorf("%s was checked at %s, want %s", name, got, want)
					}
				}
			})
		})
	}
}

// TestSince: the delay is counted from the container's start, however late the Prober is.
func TestSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProgram(runs{"l": codes(0)})
		pr := probe.New(p, probe.Probes{Liveness: check("l", 30, 10, 1, 1)}, time.Now().Add(-20*time.Second), probe.State{}, nil)
		time.Sleep(25 * time.Second)
		pr.Stop()
		if got := p.times("l"); got != "[10s 20s]" {
			t.Errorf("checked at %s", got)
		}
	})
}

func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		run := func(ctx context.Context, n int) (int, error) {
			if n == 1 {
				return hangs(ctx, n) // until it is held
			}
			return 0, nil
		}
		p, h := newProgram(runs{"l": run}), &history{since: time.Now()}
		pr := probe.New(p, probe.Probes{Liveness: check("l", 0, 10, 5, 1)}, time.Now(), probe.State{}, h.changed)
		time.Sleep(12 * time.Second)
		pr.Hold(true)
		pr.Hold(true)
		time.Sleep(15 * time.Second)
		pr.Hold(false) // at 27 s, the next was due at 20 s
		time.Sleep(15 * time.Second)
		pr.Stop()
		pr.Hold(true)
		if got := p.times("l"); got != "[0s 10s 27s 37s]" || h.lines != nil {
			t.Errorf("checked at %s, reported %q", got, h.lines)
		}
	})
}

// TestStop: it waits for the check under way, and for who is told of it.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(ctx context.Context, _ int) (int, error) {
			<-ctx.Done()
			time.Sleep(3 * time.Second)
			return 0, nil
		}
		pr := probe.New(newProgram(runs{"l": slow}), probe.Probes{Liveness: check("l", 0, 10, 60, 1)}, time.Now(), probe.State{}, nil)
		time.Sleep(time.Second)
		at := time.Now()
		pr.Stop()
		if took := time.Since(at); took != 3*time.Second {
			t.Errorf("a check under way: Stop took %v", took)
		}

		told := false
		pr = probe.New(newProgram(runs{"r": codes(0)}), probe.Probes{Readiness: check("r", 0, 10, 60, 1)}, time.Now(), probe.State{}, func(probe.State) {
			time.Sleep(4 * time.Second)
			told = true
		})
		time.Sleep(time.Second)
		pr.Stop()
		if !told {
			t.Error("Stop did not wait for who is told of a change")
		}
	})
}

// TestCheap: no goroutine without probes, one with three that wait.
func TestCheap(t *testing.T) {
	const n = 100
	before := runtime.NumGoroutine()
	var all []*probe.Prober
	for range n {
		all = append(all, probe.New(nil, probe.Probes{}, time.Now(), probe.State{}, nil))
	}
	if more := runtime.NumGoroutine() - before; more > 0 {
		t.Errorf("%d goroutines for containers without probes", more)
	}
	p := check("x", 3600, 10, 1, 1)
	for range n {
		all = append(all, probe.New(nil, probe.Probes{Startup: p, Liveness: p, Readiness: p}, time.Now(), probe.State{}, nil))
	}
	if more := runtime.NumGoroutine() - before; more > n {
		t.Errorf("%d goroutines for %d containers with probes", more, n)
	}
	for _, pr := range all {
		pr.Stop()
	}
}
