package api

import "time"

// A Pod is a VM and the containers in it.
type Pod struct {
	ID      string    `json:"id"`   // 64 hex digits
	Name    string    `json:"name"` // "": made for one container
	Created time.Time `json:"created"`
	Spec    PodSpec   `json:"spec"`

	Status     string         `json:"status"`          // created, running, degraded (not all run that should), paused, exited
	Ready      bool           `json:"ready"`           // all its containers are
	Error      string         `json:"error,omitempty"` // how its VM died, or why it did not start
	StartedAt  time.Time      `json:"startedAt,omitzero"`
	FinishedAt time.Time      `json:"finishedAt,omitzero"`
	Containers []PodContainer `json:"containers"` // in the order they were made
	Volumes    []PodVolume    `json:"volumes,omitempty"`

	Network *PodNetwork `json:"network,omitempty"` // while it runs, if it has one
	VM      *PodVM      `json:"vm,omitempty"`      // while it runs
}

// A PodSpec says what a pod shall be, for all its containers. Zero values are
// the usual ones.
type PodSpec struct {
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`

	Hostname   string            `json:"hostname,omitempty"` // "": the pod's name
	Domainname string            `json:"domainname,omitempty"`
	ExtraHosts []string          `json:"extraHosts,omitempty"` // name:address
	DNS        []string          `json:"dns,omitempty"`        // name servers instead of the network's
	DNSSearch  []string          `json:"dnsSearch,omitempty"`
	DNSOptions []string          `json:"dnsOptions,omitempty"`
	Network    string            `json:"network,omitempty"` // "default" ("" too) or "none"
	Sysctls    map[string]string `json:"sysctls,omitempty"`
	SharePID   bool              `json:"sharePID,omitempty"` // one PID namespace for all its containers
	ShmBytes   int64             `json:"shmBytes,omitempty"` // 0: 64 MiB

	MemoryBytes int64    `json:"memoryBytes,omitempty"` // 0: what its containers need together
	NanoCPUs    int64    `json:"nanoCPUs,omitempty"`    // likewise
	Kernel      string   `json:"kernel,omitempty"`      // path on the daemon's host, "hyperkernel" or "stock"
	KernelArgs  []string `json:"kernelArgs,omitempty"`  // parameters of the guest's kernel

	StopTimeout *int `json:"stopTimeout,omitempty"` // seconds, for containers without one of their own; nil: 10
	AutoRemove  bool `json:"autoRemove,omitempty"`  // it goes when its last container has ended
	Persist     bool `json:"persist,omitempty"`     // it is started again after the host was
}

// A PodCreate asks for a new pod, without containers.
type PodCreate struct {
	Name string  `json:"name,omitempty"` // "": a generated one
	Spec PodSpec `json:"spec"`
}

// A PodUpdate changes the size of a pod; what is zero stays.
type PodUpdate struct {
	MemoryBytes int64 `json:"memoryBytes,omitempty"`
	NanoCPUs    int64 `json:"nanoCPUs,omitempty"`
}

// A PlayOptions says what is done with the pods of a file.
type PlayOptions struct {
	File    string // what messages call it
	Create  bool   // they are not started
	Replace bool   // pods of the same names are removed first
	Wait    bool   // until all their containers are ready
	Timeout int    // seconds to wait; 0: for ever
}

// Played is what became of a pod file.
type Played struct {
	Pods     []Pod    `json:"pods"`
	Warnings []string `json:"warnings,omitempty"` // what of the file has no effect
}

// A PodContainer is a container as its pod knows it; Docker's API has the rest.
type PodContainer struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	Image        string    `json:"image"`
	Role         string    `json:"role"`   // main, init or sidecar
	Status       string    `json:"status"` // as in Docker's API
	Ready        bool      `json:"ready"`
	ExitCode     int       `json:"exitCode"`
	OOMKilled    bool      `json:"oomKilled,omitempty"`
	Error        string    `json:"error,omitempty"`
	Probe        string    `json:"probe,omitempty"` // what the last probe that failed said
	RestartCount int       `json:"restartCount"`
	StartedAt    time.Time `json:"startedAt,omitzero"`
	FinishedAt   time.Time `json:"finishedAt,omitzero"`
}

// A PodVolume is a directory that the containers of a pod share.
type PodVolume struct {
	Name   string `json:"name"`
	Memory bool   `json:"memory,omitempty"` // in the VM's memory, not on a disk
	Bytes  int64  `json:"bytes,omitempty"`  // its size; 0: 10 GiB, in memory half of the VM's
	Files  int    `json:"files,omitempty"`  // how many were in it from the beginning
}

// A PodNetwork is a pod's addresses.
type PodNetwork struct {
	Name          string `json:"name"`
	MAC           string `json:"mac"`
	Address       string `json:"address"`
	PrefixLen     int    `json:"prefixLen"`
	Gateway       string `json:"gateway"`
	IPv6          string `json:"ipv6,omitempty"`
	IPv6PrefixLen int    `json:"ipv6PrefixLen,omitempty"`
	IPv6Gateway   string `json:"ipv6Gateway,omitempty"`
}

// A PodVM is the virtual machine of a pod that runs.
type PodVM struct {
	HostPID    int           `json:"hostPID"`
	Accel      string        `json:"accel"` // kvm or tcg
	Machine    string        `json:"machine"`
	Kernel     string        `json:"kernel"`     // path
	KernelName string        `json:"kernelName"` // "hyperkernel 6.12.117"
	CPUs       int           `json:"cpus"`       // of the VM; the pod may have fewer
	MemMiB     int           `json:"memMiB"`     // likewise
	BootTime   time.Duration `json:"bootTime"`   // nanoseconds
	Road       string        `json:"road"`       // warm, clone or boot
	Template   string        `json:"template,omitempty"`
	ColdBoot   string        `json:"coldBoot,omitempty"` // why it had to boot
}

// PodStats are what a pod uses.
type PodStats struct {
	ID         string           `json:"id"`
	Name       string           `json:"name"`
	Guest      Usage            `json:"guest"` // all its containers together, seen from inside
	Host       HostUsage        `json:"host"`  // the VM, seen from outside
	Containers []ContainerUsage `json:"containers"`
}

// A ContainerUsage is what one container of a pod uses. Its network is the pod's.
type ContainerUsage struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Usage
}

// HostUsage is what a VM costs the host.
type HostUsage struct {
	CPUNanos uint64 `json:"cpuNanos"`
	PSSBytes uint64 `json:"pssBytes"` // memory, what is shared with other VMs in proportion
}

// A Usage is what is used inside a VM. Counters are since the start.
type Usage struct {
	ReadAt              time.Time `json:"readAt"`
	CPUNanos            uint64    `json:"cpuNanos"`
	CPUUserNanos        uint64    `json:"cpuUserNanos"`
	CPUSystemNanos      uint64    `json:"cpuSystemNanos"`
	CPUThrottledNanos   uint64    `json:"cpuThrottledNanos"`
	MemoryBytes         uint64    `json:"memoryBytes"`
	MemoryWorkingBytes  uint64    `json:"memoryWorkingBytes"` // without the page cache that could be dropped at once
	MemoryLimitBytes    uint64    `json:"memoryLimitBytes"`   // the VM's memory when there is no limit
	OOMKills            uint64    `json:"oomKills"`
	PIDs                uint64    `json:"pids"`
	PIDsLimit           uint64    `json:"pidsLimit,omitempty"` // 0: none
	BlockReadBytes      uint64    `json:"blockReadBytes"`
	BlockWriteBytes     uint64    `json:"blockWriteBytes"`
	BlockReads          uint64    `json:"blockReads"`
	BlockWrites         uint64    `json:"blockWrites"`
	NetworkReceiveBytes uint64    `json:"networkReceiveBytes"` // without the loopback
	NetworkSendBytes    uint64    `json:"networkSendBytes"`

	Pressure []Pressure `json:"pressure,omitempty"`
}

// A Pressure says how much time tasks lost waiting for a resource.
type Pressure struct {
	Resource    string  `json:"resource"` // cpu, memory, io
	Full        bool    `json:"full"`     // all tasks waited; else some
	Avg10       float64 `json:"avg10"`    // percent of the last 10, 60 and 300 s
	Avg60       float64 `json:"avg60"`
	Avg300      float64 `json:"avg300"`
	TotalMicros uint64  `json:"totalMicros"`
}

// A Why says why a container or a pod is not running.
type Why struct {
	What    string    `json:"what"` // "container" or "pod"
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Status  string    `json:"status"`
	At      time.Time `json:"at,omitzero"`
	Cause   string    `json:"cause"`             // running, created, exit, signal, stopped, oom, panic, vmm, start, probe, host
	Summary string    `json:"summary"`           // one sentence
	Detail  string    `json:"detail,omitempty"`  // memory at an OOM, what a probe answered, what was tried
	Stage   string    `json:"stage,omitempty"`   // of a start that failed
	Stderr  string    `json:"stderr,omitempty"`  // the VMM's last lines
	Console string    `json:"console,omitempty"` // the guest's last lines
	Log     []string  `json:"log,omitempty"`     // the container's last lines
}
