// Package pod owns pods and their containers: the state machine, and all
// that a pod holds on the host (VM, disks, network, logs, records).
//
// A pod is one VM. A container always belongs to a pod; one made by itself
// gets a pod of its own, which goes when it goes. API types of any edge stop
// at the edge: nothing here knows Docker's.
//
// The road of a start, and what undoes each step, is in start.go.
package pod

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// A Spec says what a container shall be. It is complete: defaults from the
// image have been applied by Create.
type Spec struct {
	Image   string            `json:"image"`   // as the user named it
	ImageID string            `json:"imageID"` // digest of the image's config
	Layers  []digest.Digest   `json:"layers"`  // diffIDs of the image's layers, lowest first
	Args    []string          `json:"args"`    // entrypoint and command
	Env     []string          `json:"env"`     // NAME=value
	Dir     string            `json:"dir,omitempty"`
	User    string            `json:"user,omitempty"`   // user[:group], names or numbers
	Groups  []string          `json:"groups,omitempty"` // additional
	Labels  map[string]string `json:"labels,omitempty"`

	Hostname   string   `json:"hostname,omitempty"` // "": the short ID
	Domainname string   `json:"domainname,omitempty"`
	ExtraHosts []string `json:"extraHosts,omitempty"` // name:address
	DNS        []string `json:"dns,omitempty"`        // name servers instead of the network's
	DNSSearch  []string `json:"dnsSearch,omitempty"`
	DNSOptions []string `json:"dnsOptions,omitempty"`
	Network    string   `json:"network"` // "default" or "none"

	TTY         bool    `json:"tty,omitempty"`
	Stdin       bool    `json:"stdin,omitempty"`       // keep standard input open
	StdinOnce   bool    `json:"stdinOnce,omitempty"`   // close it when the first attached client leaves
	ConsoleSize [2]uint `json:"consoleSize,omitempty"` // height, width
	Init        bool    `json:"init,omitempty"`

	StopSignal  string `json:"stopSignal,omitempty"`  // "": SIGTERM
	StopTimeout *int   `json:"stopTimeout,omitempty"` // seconds, nil: 10
	AutoRemove  bool   `json:"autoRemove,omitempty"`

	ReadOnly  bool              `json:"readOnly,omitempty"`
	Tmpfs     map[string]string `json:"tmpfs,omitempty"`     // path → mount options
	ShmBytes  int64             `json:"shmBytes,omitempty"`  // 0: 64 MiB
	DiskBytes int64             `json:"diskBytes,omitempty"` // 0: 10 GiB
	Kernel    string            `json:"kernel,omitempty"`    // path; "": hyperd's choice

	Privileged    bool              `json:"privileged,omitempty"`
	CapAdd        []string          `json:"capAdd,omitempty"`
	CapDrop       []string          `json:"capDrop,omitempty"`
	NoNewPrivs    bool              `json:"noNewPrivs,omitempty"`
	Seccomp       string            `json:"seccomp,omitempty"`    // "": default profile, "unconfined", or the profile's JSON (Docker's format)
	MaskedPaths   []string          `json:"maskedPaths,omitzero"` // nil: the defaults
	ReadonlyPaths []string          `json:"readonlyPaths,omitzero"`
	Ulimits       []Ulimit          `json:"ulimits,omitempty"`
	Sysctls       map[string]string `json:"sysctls,omitempty"`
	OOMScoreAdj   int               `json:"oomScoreAdj,omitempty"`

	Resources Resources `json:"resources"`
	Log       LogConfig `json:"log"`

	// Of containers in a pod with others.
	JoinNet string  `json:"joinNet,omitempty"` // ID of the container whose pod it joined; it must run when this starts
	PIDMode string  `json:"pidMode,omitempty"` // "": its own PID namespace, "pod", "vm", or the ID of a container of the pod
	IPCMode string  `json:"ipcMode,omitempty"` // "": the pod's, "private"
	Mounts  []Mount `json:"mounts,omitempty"`

	Role      Role          `json:"role,omitempty"`
	Restart   RestartPolicy `json:"restart"`
	Probes    Probes        `json:"probes"`
	Hooks     Hooks         `json:"hooks"`
	EnvFields []EnvField    `json:"envFields,omitempty"`
	// Expand says that Args and Env have references $(NAME) to variables,
	// replaced at the start as Kubernetes does.
	Expand bool `json:"expand,omitempty"`

	// Edge is what the edge that made the container wants back in inspect,
	// unchanged and not looked at.
	Edge json.RawMessage `json:"edge,omitempty"`
}

// Resources are a container's limits; zero means none.
type Resources struct {
	MemoryBytes            int64  `json:"memoryBytes,omitempty"`
	MemorySwapBytes        int64  `json:"memorySwapBytes,omitempty"` // memory + swap, -1: no limit
	MemoryReservationBytes int64  `json:"memoryReservationBytes,omitempty"`
	NanoCPUs               int64  `json:"nanoCPUs,omitempty"`
	CPUShares              uint64 `json:"cpuShares,omitempty"`
	CPUPeriodUs            uint64 `json:"cpuPeriodUs,omitempty"`
	CPUQuotaUs             int64  `json:"cpuQuotaUs,omitempty"`
	CPUSet                 string `json:"cpuSet,omitempty"`
	PIDs                   int64  `json:"pids,omitempty"`

	IO IOLimit `json:"io"`
}

// A Ulimit is one resource limit, named as in setrlimit(2) without RLIMIT_, lower case.
type Ulimit struct {
	Name string `json:"name"`
	Soft int64  `json:"soft"`
	Hard int64  `json:"hard"`
}

// LogConfig says how output is kept. Drivers: "json-file" ("" too), "none".
type LogConfig struct {
	Driver   string `json:"driver,omitempty"`
	MaxBytes int64  `json:"maxBytes,omitempty"` // per file, 0: no limit
	MaxFiles int    `json:"maxFiles,omitempty"` // 0: 1
}

// Status is where a container is in its life:
//
//	          Create        Start         exit
//	(nothing) ─────▶ created ───▶ running ────▶ exited ──┐ Start
//	                    │       ▲   │  ▲          │  ▲   │
//	                    │  Pause│   ▼  │Resume    │  └───┼── (failed start
//	                    │       paused            │      │    also ends here)
//	                    └──────────Remove─────────┴──▶ removing ─▶ (nothing)
type Status string

// The states of a container, as Docker calls them.
const (
	StatusCreated    Status = "created"
	StatusRunning    Status = "running"
	StatusPaused     Status = "paused"
	StatusRestarting Status = "restarting"
	StatusRemoving   Status = "removing"
	StatusExited     Status = "exited"
	StatusDead       Status = "dead"
)

// A Container is a container as it was at one moment. Values are copies.
type Container struct {
	ID      string // 64 hex digits
	Name    string // without a slash
	PodID   string
	Created time.Time
	Spec    Spec

	Status       Status
	PID          uint32 // in the VM
	ExitCode     int
	OOMKilled    bool
	Error        string // why the last start failed, or how the VM died
	Cause        Cause  // of its end, "" while it runs
	StartedAt    time.Time
	FinishedAt   time.Time
	RestartCount int
	Started      bool     // its startup probe, if any, has succeeded
	Ready        bool     // it runs, and its readiness probe, if any, says so
	Probe        string   // what the last probe that failed said
	Execs        []string // ids of execs, running or not yet forgotten

	LogPath string
	Disk    string // path of the writable disk

	Net *NetworkInfo // nil: not running, or no network
	VM  *VMInfo      // nil: not running
}

// NetworkInfo is a container's address, in text form.
type NetworkInfo struct {
	Network, MAC, Gateway, Address string
	PrefixLen                      int
	IPv6, IPv6Gateway              string
	IPv6PrefixLen                  int
}

// VMInfo says what virtual machine a container runs in.
type VMInfo struct {
	HostPID    int           `json:"hostPID"`
	Accel      string        `json:"accel"`
	Machine    string        `json:"machine"`
	Kernel     string        `json:"kernel"`     // path
	KernelName string        `json:"kernelName"` // "hyperkernel 6.12.117" …
	CPUs       int           `json:"cpus"`       // of the VM; its containers may have fewer
	MemMiB     int           `json:"memMiB"`     // likewise
	BootTime   time.Duration `json:"bootTime"`   // exec of the VMM to hyperstart answering
	Road       Road          `json:"road"`       // how it came to be
	Template   string        `json:"template,omitempty"`
	Cold       string        `json:"coldBoot,omitempty"` // why it had to boot
}

// CreateOptions name a new container.
type CreateOptions struct {
	Name string // "": a generated one
	Pod  string // ID or name of the pod it shall be in; "": one of its own
	Spec Spec
}

// Filter selects containers; zero selects running ones.
type Filter struct {
	All bool
}

// Logs and streams.
type (
	// AttachOptions say what of a container's stdio to take.
	AttachOptions struct {
		Stdin          io.Reader // nil: none
		Stdout, Stderr io.Writer // nil: none; a TTY has only Stdout
		Logs           bool      // first what was logged so far
		Stream         bool      // then live, until the process ends
		// Attached is called once, when what follows will reach the client.
		Attached func()
	}

	// ExecSpec is a further process in a running container.
	ExecSpec struct {
		Args                  []string
		Env                   []string
		Dir                   string
		User                  string
		TTY                   bool
		Stdin, Stdout, Stderr bool // what to attach
		Privileged            bool
		ConsoleSize           [2]uint
		Edge                  json.RawMessage
	}

	// An Exec is an exec as it was at one moment.
	Exec struct {
		ID, ContainerID string
		Spec            ExecSpec
		Running         bool
		Started         bool
		PID             uint32
		ExitCode        *int // nil until it has exited
	}
)

// WaitCondition says what Wait waits for.
type WaitCondition string

// Conditions of Wait, as in Docker's API.
const (
	WaitNotRunning WaitCondition = "not-running"
	WaitNextExit   WaitCondition = "next-exit"
	WaitRemoved    WaitCondition = "removed"
)

// An ExitStatus is what Wait returns.
type ExitStatus struct {
	Code  int
	Error string
}

// Containers is what the edges call; *Set implements it (there is one
// implementation: edges declare the subset they need).
//
// Every method that takes ref accepts a full ID, a unique ID prefix or a name
// (with or without a leading slash); errors are containerd/errdefs kinds:
// NotFound, AlreadyExists, InvalidArgument, FailedPrecondition or Conflict
// (state), Unavailable, NotImplemented.
type Containers interface {
	Create(ctx context.Context, o CreateOptions) (id string, warnings []string, err error)
	Start(ctx context.Context, ref string) error
	// Stop sends the stop signal, then after the timeout SIGKILL. signal ""
	// and timeout nil mean the container's own. Nil when it is not running.
	Stop(ctx context.Context, ref, signal string, timeout *int) error
	Restart(ctx context.Context, ref, signal string, timeout *int) error
	Kill(ctx context.Context, ref, signal string) error
	Pause(ctx context.Context, ref string) error
	Resume(ctx context.Context, ref string) error
	Rename(ctx context.Context, ref, name string) error
	Remove(ctx context.Context, ref string, force bool) error
	Update(ctx context.Context, ref string, r Resources) error
	SetRestart(ctx context.Context, ref string, p RestartPolicy) error
	Wait(ctx context.Context, ref string, cond WaitCondition) (<-chan ExitStatus, error)
	Resize(ctx context.Context, ref string, height, width uint) error
	Attach(ctx context.Context, ref string, o AttachOptions) error
	Get(ref string) (Container, error)
	List(f Filter) []Container
	Stats(ctx context.Context, ref string) (*wire.StatsResponse, error)
	Processes(ctx context.Context, ref string) ([]*wire.Process, error)

	CreateExec(ctx context.Context, ref string, s ExecSpec) (execID string, err error)
	// StartExec runs the exec; with o it returns when the process has ended and
	// all output was delivered, with a nil o once it runs.
	StartExec(ctx context.Context, execID string, o *AttachOptions) error
	ResizeExec(ctx context.Context, execID string, height, width uint) error
	GetExec(execID string) (Exec, error)
}
