// Package api has the types of Hyper's own API, beside Docker's on the same
// socket. All paths begin with [Prefix]; bodies are JSON; errors are
// {"message": …} with Docker's status codes.
//
//	GET    /templates             []Template
//	POST   /templates             TemplateRequest → Template, once it is made
//	GET    /templates/{id}        Template
//	DELETE /templates/{id}        nothing
//	GET    /containers/{id}/trace Trace
//	GET    /warm                  Warm
//
//	GET    /pods                  []Pod, newest first, also those of one container (Name "")
//	POST   /pods                  PodCreate → Pod
//	GET    /pods/{id}             Pod
//	DELETE /pods/{id}             nothing; force=true also when it runs
//	POST   /pods/{id}/start       nothing; wait=true once all containers are ready, within timeout=SECONDS
//	POST   /pods/{id}/stop        nothing; t=SECONDS until it is killed
//	POST   /pods/{id}/restart     nothing; t=SECONDS
//	POST   /pods/{id}/kill        nothing; signal=SIGNAL to the process of every container
//	POST   /pods/{id}/pause       nothing
//	POST   /pods/{id}/unpause     nothing
//	POST   /pods/{id}/update      PodUpdate → nothing
//	GET    /pods/{id}/stats       PodStats
//	GET    /pods/{id}/console     the last lines of the guest kernel's console, as text
//	GET    /pods/{id}/generate    the pod as a Kubernetes v1/Pod, YAML
//	POST   /pods/play             a pod file (YAML) → Played; start=false only creates, replace=true
//	                              removes pods of the same names first, wait=true as above,
//	                              file=NAME is what messages call it
//	GET    /why/{ref}             Why, of a container or a pod
//
// A pod's {id} is its ID, a unique prefix of it, its name, or the name or ID
// of a container that has a pod of its own.
package api

import "time"

// Prefix is where the native API begins, with its version.
const Prefix = "/hyper/v1"

// A Template is a saved VM that others are cloned from.
type Template struct {
	ID       string    `json:"id"`     // 16 hex digits
	Status   string    `json:"status"` // loading, making, ready, failed
	Error    string    `json:"error,omitempty"`
	Kernel   string    `json:"kernel"` // path
	Accel    string    `json:"accel"`  // kvm or tcg
	VMM      string    `json:"vmm"`    // which build it belongs to
	CPUs     int       `json:"cpus"`
	MemMiB   int       `json:"memMiB"`
	Layers   int       `json:"layers"` // slots for image layers
	Disks    int       `json:"disks"`  // slots for writable disks
	NIC      bool      `json:"nic"`
	Created  time.Time `json:"created"`
	LastUsed time.Time `json:"lastUsed"`
	Clones   int       `json:"clones"` // that this daemon made of it
	// MemoryBytes is what it takes of the host's memory, once for all its
	// clones; DiskBytes what its copy takes on disk.
	MemoryBytes int64   `json:"memoryBytes"`
	DiskBytes   int64   `json:"diskBytes"`
	MakeSeconds float64 `json:"makeSeconds"`
}

// A TemplateRequest asks for a template; zero values are those of the usual one.
type TemplateRequest struct {
	CPUs   int  `json:"cpus,omitempty"`
	MemMiB int  `json:"memMiB,omitempty"`
	NoNIC  bool `json:"noNIC,omitempty"`
}

// A Trace says where the time of a container's start went.
type Trace struct {
	Container string    `json:"container"`
	Begin     time.Time `json:"begin"` // when the request came
	Road      string    `json:"road"`  // warm, clone or boot
	Stages    []Stage   `json:"stages"`
}

// A Stage is one part of a start, in nanoseconds.
type Stage struct {
	Name string        `json:"name"`
	At   time.Duration `json:"at"` // after Begin
	Took time.Duration `json:"took"`
}

// Warm is the state of the pool of VMs that are kept ready.
type Warm struct {
	Ready  int `json:"ready"`
	Wanted int `json:"wanted"`
}
