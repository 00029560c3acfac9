package pod

import (
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// A Stage is one part of a start.
type Stage struct {
	Name string        `json:"name"`
	At   time.Duration `json:"at"`   // after the request came
	Took time.Duration `json:"took"` // nanoseconds, as At
}

// A Trace says where the time of a start went.
type Trace struct {
	Container string    `json:"container"`
	Begin     time.Time `json:"begin"` // of the request
	Road      Road      `json:"road"`
	Stages    []Stage   `json:"stages"`
}

// A Meter gets every start that succeeded, and then when its container first wrote something.
type Meter interface {
	Started(Trace)
	Wrote(Road, Stage)
}

// maxTraces is how many starts are remembered.
const maxTraces = 256

// A trace is one that is being taken.
type trace struct {
	set *Set
	mu  sync.Mutex
	t   Trace
	at  time.Time // end of the last stage

	wrote sync.Once // when the first output came
}

func (s *Set) newTrace(container string, begin time.Time) *trace {
	return &trace{set: s, t: Trace{Container: container, Begin: begin}, at: begin}
}

// stage says that the part of this name has just ended.
func (tr *trace) stage(name string) { tr.until(name, time.Now()) }

// until says that it has ended at a time, which is after the last one's end.
func (tr *trace) until(name string, now time.Time) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.addLocked(name, tr.at, now.Sub(tr.at))
	tr.at = now
}

func (tr *trace) addLocked(name string, from time.Time, took time.Duration) {
	tr.t.Stages = append(tr.t.Stages, Stage{name, from.Sub(tr.t.Begin), took})
}

// guest adds what the guest says that the parts of Run took. The rest of the time
// since the last stage went on the way, there and back.
func (tr *trace) guest(resp *wire.RunResponse) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	now := time.Now()
	way := now.Sub(tr.at)
	took := resp.TookNanos[:min(len(resp.TookNanos), 3)]
	for _, n := range took {
		way -= min(time.Duration(n), way)
	}
	tr.addLocked("wire", tr.at, way)
	at := tr.at.Add(way)
	for i, n := range took {
		d := min(time.Duration(n), now.Sub(at))
		tr.addLocked([]string{"configure", "mount", "exec"}[i], at, d)
		at = at.Add(d)
	}
	tr.at = now
}

// output adds when the container's first output came. tr may be nil.
func (tr *trace) output() {
	if tr != nil {
		tr.wrote.Do(func() {
			tr.stage("first output")
			if m := tr.set.cfg.Meter; m != nil {
				t := tr.copy()
				m.Wrote(t.Road, t.Stages[len(t.Stages)-1])
			}
		})
	}
}

// end keeps the trace. The first output may still be added to it.
func (tr *trace) end(road Road) {
	tr.mu.Lock()
	tr.t.Road = road
	tr.mu.Unlock()
	s := tr.set
	s.mu.Lock()
	s.traces = append(s.traces, tr)
	if extra := len(s.traces) - maxTraces; extra > 0 {
		s.traces = slices.Delete(s.traces, 0, extra)
	}
	s.mu.Unlock()
	if s.cfg.Meter != nil {
		s.cfg.Meter.Started(tr.copy())
	}
}

// nextStage is what comes after each stage.
var nextStage = map[string]string{
	"": "plan", "wait": "plan", "plan": "prepare", "prepare": "vmm", "vmm": "answer", "fill": "run", "answer": "run",
	"wire": "run", "configure": "mount", "mount": "exec",
}

// failedAt is the stage in which a start has failed.
func (tr *trace) failedAt() string {
	t := tr.copy()
	last := ""
	if n := len(t.Stages); n > 0 {
		last = t.Stages[n-1].Name
	}
	return nextStage[last]
}

func (tr *trace) copy() Trace {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	t := tr.t
	t.Stages = slices.Clone(t.Stages)
	return t
}

// Trace returns where the time of a container's latest start went. The
// container may be gone. Errors: errdefs NotFound when it is too long ago, or
// never started.
func (s *Set) Trace(ref string) (Trace, error) {
	if c, err := s.find(ref); err == nil {
		ref = c.id
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, tr := range slices.Backward(s.traces) {
		if tr.t.Container == ref {
			return tr.copy(), nil
		}
	}
	return Trace{}, textError{"no start of container " + ref + " is remembered", errdefs.ErrNotFound}
}
