package keep

import "time"

// A Role says how a container takes part in its pod's life.
type Role string

// Roles. A pod's main containers start when its init containers have ended
// well, one after the other. A sidecar is started in their row, and when it has
// started the next is; it runs until the main containers have ended.
const (
	RoleMain    Role = ""
	RoleInit    Role = "init"
	RoleSidecar Role = "sidecar"
)

// A Policy says what happens when a container's process ends.
type Policy struct {
	Policy string `json:"policy,omitempty"` // "" and "no", "always", "unless-stopped", "on-failure"
	Max    int    `json:"max,omitempty"`    // of on-failure: how often in a row; 0: for ever
	// The wait before a restart, doubled each time, up to MaxDelay; a run of ResetAfter
	// begins anew. Zero: 100 ms, 1 min, 10 s, as Docker.
	Delay      time.Duration `json:"delay,omitempty"`
	MaxDelay   time.Duration `json:"maxDelay,omitempty"`
	ResetAfter time.Duration `json:"resetAfter,omitempty"`
}

// The policies. An init container that ended well is never restarted; a sidecar
// always is, whatever its policy, which still says how long to wait.
const (
	Never         = "no"
	Always        = "always"
	UnlessStopped = "unless-stopped"
	OnFailure     = "on-failure"
)

// A State is where a container is, seen from who keeps it.
type State string

// States. What was asked of a container that is starting or stopping is under
// way: nothing more is done to it until that ends.
const (
	StateCreated  State = "created" // not tried since somebody started it, or its pod
	StateStarting State = "starting"
	StateRunning  State = "running" // also paused
	StateStopping State = "stopping"
	StateExited   State = "exited" // also when its start failed
)

// A Container is what is looked at of a container to decide about it.
type Container struct {
	ID     string
	Role   Role
	Policy Policy
	State  State

	// Stopped: somebody stopped it since its last start, or nobody ever started it
	// or its pod. It is left alone until somebody does, who clears this.
	Stopped bool
	// Old: it ended before the VM started that its pod has now, or its pod has none. An
	// init container has to run again in a new VM, if any main container does.
	Old bool

	Started bool // while it runs: its PostStart is done, and its startup probe, if any, has succeeded
	// Failing: a probe or a hook of this run failed. Stays set when the run has ended,
	// which then counts as a failure whatever the exit code is.
	Failing bool
	Grace   *int // with Failing: seconds to stop in; nil: the container's

	// Of its last run.
	StartFailed           bool // there was none: it did not start
	ExitCode              int
	StartedAt, FinishedAt time.Time

	Restarts int // by policy, since somebody started it
	Streak   int // of these, how many since a run that lasted ResetAfter
}

// A Pod is what is looked at of a pod to decide about its containers.
type Pod struct {
	Containers []Container // in their order
	Stop       bool        // it is to stop, or to stay stopped
	Now        time.Time
}

// A Verb is what is to be done to a container.
type Verb string

// Verbs.
const (
	Start   Verb = "start"   // for the first time since somebody asked for it, or in this VM
	Restart Verb = "restart" // its policy says so; Restarts and Streak are to be recorded
	Kill    Verb = "kill"    // stop it because a probe or hook failed, in Grace
	Stop    Verb = "stop"    // stop it because it is not needed any more
)

// An Action is something to do to one container.
type Action struct {
	Verb             Verb
	ID               string
	Restarts, Streak int  // of Restart: the container's, from now on
	Grace            *int // of Kill: seconds to stop in; nil: the container's
}

// A Phase is where a pod is in its life, in Kubernetes' words.
type Phase string

// Phases.
const (
	Pending   Phase = "Pending"   // some main container has not been started yet
	Running   Phase = "Running"   // all have, and one runs or will again
	Succeeded Phase = "Succeeded" // all have ended well, for good
	Failed    Phase = "Failed"    // all have ended for good, not all well
)

// A Plan is what to do next.
type Plan struct {
	Actions []Action // at once, in any order and side by side; at most one for a container
	// Wake is when to look again although nothing has changed; zero: never.
	Wake  time.Time
	Phase Phase
	// Done: the main containers have ended for good, or never will start because an init
	// container failed. What is left to do is to stop the sidecars.
	Done bool
	// Restarting are the IDs of those that have ended and will be restarted.
	Restarting []string
}
