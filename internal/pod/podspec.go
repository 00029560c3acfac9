package pod

import (
	"context"
	"encoding/json"
	"time"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/keep"
	"github.com/hyper-run/hyper/internal/probe"
	"github.com/hyper-run/hyper/internal/vmm"
)

// A PodSpec says what a pod shall be that was made as such, and not for one
// container. What it says of names, network and sharing holds for all its containers.
type PodSpec struct {
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`

	Hostname   string            `json:"hostname,omitempty"` // "": the pod's name
	Domainname string            `json:"domainname,omitempty"`
	ExtraHosts []string          `json:"extraHosts,omitempty"` // name:address
	DNS        []string          `json:"dns,omitempty"`        // name servers instead of the network's
	DNSSearch  []string          `json:"dnsSearch,omitempty"`
	DNSOptions []string          `json:"dnsOptions,omitempty"`
	Network    string            `json:"network"` // "default" or "none"
	Sysctls    map[string]string `json:"sysctls,omitempty"`
	SharePID   bool              `json:"sharePID,omitempty"` // one PID namespace for all its containers
	ShmBytes   int64             `json:"shmBytes,omitempty"` // 0: 64 MiB

	Resources  PodResources `json:"resources"`
	Kernel     string       `json:"kernel,omitempty"`     // path; "": hyperd's choice
	KernelArgs []string     `json:"kernelArgs,omitempty"` // parameters of the guest's kernel, see CheckKernelArg

	Volumes []Volume `json:"volumes,omitempty"`

	StopTimeout *int `json:"stopTimeout,omitempty"` // seconds, for containers without one of their own; nil: 10
	AutoRemove  bool `json:"autoRemove,omitempty"`  // goes when its last container is removed
	UntilDone   bool `json:"untilDone,omitempty"`   // its VM ends when all its containers have ended for good
	Persist     bool `json:"persist,omitempty"`     // is started again after the host was

	// Edge is what the edge that made the pod wants back, unchanged.
	Edge json.RawMessage `json:"edge,omitempty"`
}

// PodResources are what a pod gets; zero means what its containers need together.
type PodResources struct {
	MemoryBytes int64 `json:"memoryBytes,omitempty"`
	NanoCPUs    int64 `json:"nanoCPUs,omitempty"`
}

// A Volume is a directory that the containers of a pod share. It is there as long as
// the pod, on a disk of its own or, with Memory, as long as the pod's VM.
type Volume struct {
	Name   string       `json:"name"`             // 1 to 63 of [a-z0-9-]
	Memory bool         `json:"memory,omitempty"` // in the VM's memory, not on a disk
	Bytes  int64        `json:"bytes,omitempty"`  // its size; 0: 10 GiB, in memory half of the VM's
	Files  []VolumeFile `json:"files,omitempty"`  // what is in it from the beginning; only with Memory
	Mode   uint32       `json:"mode,omitempty"`   // of its top directory, 0: 0777
	GID    uint32       `json:"gid,omitempty"`    // group of all in it; 0: root
}

// A VolumeFile is one file of a volume in memory. Field, if it is set, says of what
// of the pod the content is made at the start: see EnvField.
type VolumeFile struct {
	Path    string `json:"path"` // in the volume
	Content []byte `json:"content,omitempty"`
	Field   string `json:"field,omitempty"`
	Mode    uint32 `json:"mode"`
	Secret  bool   `json:"secret,omitempty"` // says where it is from, when the pod is written as a file
}

// A Mount puts a volume of the pod, or a directory or file in it, into a container.
type Mount struct {
	Volume   string `json:"volume"`
	SubPath  string `json:"subPath,omitempty"` // in the volume; made when it is not there
	Path     string `json:"path"`              // in the container
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// An EnvField sets a variable to what is only known when the pod runs. Fields:
// status.podIP, status.podIPs (with commas), status.hostIP, metadata.uid (the pod's ID).
type EnvField struct {
	Name  string `json:"name"`
	Field string `json:"field"`
}

// What containers are kept as, and what is done to look whether they are well.
type (
	Role          = keep.Role
	RestartPolicy = keep.Policy
	Handler       = probe.Handler
	HTTPGet       = probe.HTTPGet
	TCPSocket     = probe.TCPSocket
	GRPCCheck     = probe.GRPCCheck
	Probe         = probe.Probe
	Probes        = probe.Probes
)

// Roles, see [keep.Role].
const (
	RoleMain    = keep.RoleMain
	RoleInit    = keep.RoleInit
	RoleSidecar = keep.RoleSidecar
)

// Hooks of a container; nil: none. A container whose PostStart fails is killed;
// PreStop runs before the stop signal, within the time for stopping.
type Hooks struct {
	PostStart *Handler `json:"postStart,omitempty"`
	PreStop   *Handler `json:"preStop,omitempty"`
}

// IOLimit bounds what a container reads and writes of its own disk, per second; 0: no limit.
type IOLimit struct {
	ReadBytes  uint64 `json:"readBytes,omitempty"`
	WriteBytes uint64 `json:"writeBytes,omitempty"`
	Reads      uint64 `json:"reads,omitempty"`
	Writes     uint64 `json:"writes,omitempty"`
}

// PodStatus is where a pod is in its life.
type PodStatus string

// The states of a pod.
const (
	PodCreated  PodStatus = "created"  // never started
	PodRunning  PodStatus = "running"  // its VM runs, and all containers that should
	PodDegraded PodStatus = "degraded" // its VM runs, and not all containers that should
	PodPaused   PodStatus = "paused"
	PodExited   PodStatus = "exited" // no VM; PodInfo.Error says why if nobody stopped it
)

// PodInfo is a pod as it was at one moment.
type PodInfo struct {
	ID      string // 64 hex digits
	Name    string // "": made for one container, which has the name
	Created time.Time
	Spec    PodSpec // zero without a name

	Status     PodStatus
	Ready      bool   // all its containers are ready
	Error      string // how its VM died, or why it did not start
	StartedAt  time.Time
	FinishedAt time.Time
	Containers []Container // in the order they were made

	Net *NetworkInfo // nil: not running, or no network
	VM  *VMInfo      // nil: not running
}

// PodOptions name a new pod.
type PodOptions struct {
	Name string // "": a generated one
	Spec PodSpec
	// Containers are made with it, all or none. Their Pod is not looked at.
	Containers []CreateOptions
}

// PodStats are what a pod uses: seen from inside, all containers together, and
// from outside, the VMM's processes.
type PodStats struct {
	Guest      *wire.StatsResponse
	Host       vmm.HostUsage
	Containers map[string]*wire.StatsResponse // by ID, those that run
}

// Why says why a container or a pod is not running, with all there is to see.
type Why struct {
	What    string    `json:"what"` // "container" or "pod"
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Status  string    `json:"status"`
	At      time.Time `json:"at"`
	Cause   Cause     `json:"cause"`
	Summary string    `json:"summary"`           // one sentence
	Detail  string    `json:"detail,omitempty"`  // memory at an OOM, what a probe answered, what was tried
	Stage   string    `json:"stage,omitempty"`   // of a start that failed
	Stderr  string    `json:"stderr,omitempty"`  // the VMM's last lines
	Console string    `json:"console,omitempty"` // the guest's last lines
	Log     []string  `json:"log,omitempty"`     // the container's last lines
}

// A Cause is why something ended, in one word.
type Cause string

// Causes.
const (
	CauseRunning Cause = "running" // it has not ended
	CauseCreated Cause = "created" // it was never started
	CauseExit    Cause = "exit"    // the process exited by itself
	CauseSignal  Cause = "signal"  // a signal ended it that nobody here sent
	CauseStopped Cause = "stopped" // somebody stopped or killed it
	CauseOOM     Cause = "oom"     // it ran out of memory
	CausePanic   Cause = "panic"   // the guest's kernel panicked
	CauseVMM     Cause = "vmm"     // the VMM died
	CauseStart   Cause = "start"   // it did not start
	CauseProbe   Cause = "probe"   // a probe or a hook failed
	CauseHost    Cause = "host"    // the host, or hyperd, went down meanwhile
)

// Pods is what the edges call of pods, beside Containers; *Set implements it.
// ref is a pod's full ID, a unique prefix, or its name; also that of a
// container that has a pod of its own. Errors are as those of Containers.
type Pods interface {
	// CreatePod makes a pod and its first containers, all or nothing.
	CreatePod(ctx context.Context, o PodOptions) (id string, err error)
	// StartPod starts the VM and then the containers, as their roles say. It
	// returns when the VM runs and the start of the first was tried; the rest goes on
	// by itself. wait has it return when all are ready, or one of them never will be.
	StartPod(ctx context.Context, ref string, wait bool) error
	// StopPod stops all containers, mains first, then the VM. Nil timeout: their own.
	StopPod(ctx context.Context, ref string, timeout *int) error
	RestartPod(ctx context.Context, ref string, timeout *int) error
	KillPod(ctx context.Context, ref, signal string) error // sends it to every container's process
	PausePod(ctx context.Context, ref string) error        // all its containers
	ResumePod(ctx context.Context, ref string) error
	RemovePod(ctx context.Context, ref string, force bool) error
	UpdatePod(ctx context.Context, ref string, r PodResources) error
	GetPod(ref string) (PodInfo, error)
	ListPods() []PodInfo // newest first, also those of one container
	PodStats(ctx context.Context, ref string) (*PodStats, error)
	PodConsole(ctx context.Context, ref string) ([]byte, error) // last lines of the guest kernel's console
	Why(ctx context.Context, ref string) (Why, error)           // of a container, else of a pod
}
