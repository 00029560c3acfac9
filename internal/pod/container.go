package pod

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/keep"
	"github.com/hyper-run/hyper/internal/logs"
	"github.com/hyper-run/hyper/internal/vmm"
)

// Buckets of the stores.
const (
	bucketContainers = "containers" // record by container ID; in both stores
	bucketVMs        = "vms"        // vmRecord by VM ID; runtime
	bucketExecs      = "execs"      // execRecord by exec ID; runtime
)

// A record is what is kept of a container: in the durable store, or in the
// runtime store when it removes itself at its end.
type record struct {
	ID           string
	Name         string
	PodID        string
	Created      time.Time
	Spec         Spec
	Status       Status // created, exited, or running (as last known)
	End                 // of the last run, or of the last start if that failed
	StartedAt    time.Time
	RestartCount int // by its policy, since somebody started it
	Streak       int // of these, how many came soon after the last
	// Stopped: somebody stopped it, or nobody ever started it; its policy does not start it again. That
	// counts until its pod is started: StoppedIn is the pod's Starts then, and Tried at its last start.
	Stopped          bool
	StoppedIn, Tried uint64
}

// An End is how a run of a container ended, or a start that failed.
type End struct {
	Cause      Cause
	ExitCode   int
	Signal     int // that ended the process, 0: none
	OOMKilled  bool
	Error      string // one line; "" when the process ended by itself
	Detail     string // of an OOM, of a probe; what was tried
	Stage      string // of a start
	Stderr     string // the VMM's last lines, when the VM was the reason
	Console    string // the guest kernel's
	FinishedAt time.Time
}

// text is all that is to be said of an end that was no exit, "" of one that was.
func (e End) text() string {
	if e.Error == "" {
		return ""
	}
	se := vmm.StartError{Err: errors.New(e.Error), Stderr: e.Stderr, Console: e.Console}
	if e.Cause == CauseStart {
		se.Tried = e.Detail
	}
	return se.Error()
}

// oneLine makes text one line that is harmless on a terminal.
func oneLine(text string) string {
	const most = 40 // lines
	return strings.ReplaceAll(vmm.LastLines([]byte(text), most), "\n", "; ")
}

// A container is one container of the Set.
type container struct {
	set   *Set
	id    string
	podID string
	pod   *pod // never changes once the container is in the Set

	// op is held by whoever changes what the container has on the host:
	// Start, Remove, and the end of a run. It is taken before its pod's.
	op sync.Mutex

	saving sync.Mutex // held while the record is written or deleted, so that the last state stays

	mu      sync.Mutex // guards what follows
	rec     record     // rec.Status is the container's state
	run     *run       // what only a running container has
	doing   keep.State // starting or stopping, while its keeper does that
	busy    int        // how many restart it
	asked   bool       // the start under way is not its keeper's
	waiters []waiter
	removed bool
	started chan struct{} // closed while it runs

	out [2]*fanout // who is attached to stdout and stderr, in this run or the next
}

type waiter struct {
	cond WaitCondition
	ch   chan ExitStatus
}

// transitions lists where each state may go; see the diagram at Status.
var transitions = map[Status][]Status{
	StatusCreated:  {StatusRunning, StatusCreated, StatusRemoving},
	StatusRunning:  {StatusPaused, StatusExited},
	StatusPaused:   {StatusRunning, StatusExited},
	StatusExited:   {StatusRunning, StatusExited, StatusRemoving},
	StatusRemoving: {StatusCreated, StatusExited}, // a removal that did not succeed
}

// transitionLocked is the only place where a container's state changes.
func (c *container) transitionLocked(to Status) error {
	if !slices.Contains(transitions[c.rec.Status], to) {
		return fmt.Errorf("container %s is %s and cannot become %s: %w", c.rec.Name, c.rec.Status, to, errdefs.ErrConflict)
	}
	c.rec.Status = to
	return nil
}

func (c *container) view() Container {
	c.mu.Lock()
	r, run := c.rec, c.run
	c.mu.Unlock()
	if r.Status == StatusExited && c.isRestarting() {
		r.Status = StatusRestarting
	}
	v := Container{
		ID: r.ID, Name: r.Name, PodID: r.PodID, Created: r.Created, Spec: r.Spec,
		Status: r.Status, ExitCode: r.ExitCode, OOMKilled: r.OOMKilled, Error: r.text(),
		StartedAt: r.StartedAt, FinishedAt: r.FinishedAt, RestartCount: r.RestartCount, Cause: r.Cause,
		Disk: c.set.cfg.Layout.ContainerDisk(r.ID),
	}
	if r.Spec.Log.Driver != "none" {
		v.LogPath = logs.Path(c.set.cfg.Layout.ContainerLogs(r.ID))
	}
	if run != nil {
		v.PID = run.pid
		v.Net = networkInfo(run.vm.attachment())
		info := run.vm.info()
		v.VM = &info
		v.Execs = run.execIDs()
		v.Started, v.Ready, v.Probe = run.checks.view()
		v.Ready = v.Ready && r.Status == StatusRunning
	} else if r.Cause == CauseProbe {
		v.Probe = r.Detail
	}
	return v
}

// isRestarting says that it does not run but will again.
func (c *container) isRestarting() bool {
	if _, err := c.running(); err == nil {
		return false
	}
	if !c.spec().keeps() && c.spec().Role != RoleSidecar {
		return false
	}
	p := c.pod
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kept && slices.Contains(p.outlook.restarting, c.id)
}

// spec is what the container shall be. Only its limits ever change.
func (c *container) spec() Spec {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Spec
}

func (c *container) name() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Name
}

// running returns the run of a container that runs or is paused.
func (c *container) running() (*run, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run == nil {
		return nil, textError{fmt.Sprintf("container %s is not running", c.id), errdefs.ErrConflict}
	}
	return c.run, nil
}

// live is running, and not paused either.
func (c *container) live() (*run, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.run == nil:
		return nil, textError{fmt.Sprintf("container %s is not running", c.id), errdefs.ErrConflict}
	case c.rec.Status == StatusPaused:
		return nil, textError{fmt.Sprintf("Container %s is paused, unpause the container first", c.rec.Name), errdefs.ErrConflict}
	}
	return c.run, nil
}

// save writes the record where it belongs. A container that removes itself
// must not outlive the host's boot, so its record need not either.
func (c *container) save() error {
	c.saving.Lock()
	defer c.saving.Unlock()
	c.mu.Lock()
	r := c.rec
	removed := c.removed
	c.mu.Unlock()
	if removed {
		return nil
	}
	st := c.set.cfg.Store
	if r.Spec.AutoRemove {
		st = c.set.cfg.Runtime
	}
	return st.Put(bucketContainers, r.ID, r)
}

func (c *container) notifyLocked(st ExitStatus, conds ...WaitCondition) {
	kept := c.waiters[:0]
	for _, w := range c.waiters {
		if slices.Contains(conds, w.cond) {
			w.ch <- st // buffered
		} else {
			kept = append(kept, w)
		}
	}
	c.waiters = kept
}

// release lets go of a running container without stopping it.
func (c *container) release() {
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r != nil {
		c.pod.release()
		<-r.released
	}
}
