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
