package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
)

// MemoryConfig says what to keep free. Zero values are the defaults.
type MemoryConfig struct {
	// Reserve is what admission leaves for others, in bytes: 256 MiB or 3 %
	// of the host's memory, whichever is more.
	Reserve int64
	// Groups are where VMs run: limits of cgroups above them count like the
	// host's memory. Nil, or Groups that do nothing: VMs are in hyperd's own cgroup.
	Groups *Groups
	Proc   string // "/proc"
}

// Memory is the host's memory. Methods may be called concurrently.
type Memory struct {
	proc    string
	reserve int64
	bounds  []bound

	mu      sync.Mutex
	pending int64  // admitted, and not released
	low     bool   // what Watch tells
	wake    func() // of Watch, when it runs
}

// A bound is a cgroup that VMs are in, and may have a limit.
type bound struct {
	dir string
	v2  bool
}

// NewMemory reads how much memory there is.
func NewMemory(cfg MemoryConfig) (*Memory, error) {
	if cfg.Proc == "" {
		cfg.Proc = procDir
	}
	m := &Memory{proc: cfg.Proc, reserve: cfg.Reserve}
	total, _, err := m.read()
	if err != nil {
		return nil, err
	}
	if m.reserve == 0 {
		m.reserve = max(256*mib, total*3/100)
	}
	mounts, err := cgroupMounts(cfg.Proc)
	if err != nil {
		return nil, err
	}
	top, ok := controlled(mounts, "memory")
	if !ok {
		return m, nil
	}
	dir := top.own(cfg.Proc, "memory")
	if cfg.Groups != nil {
		for _, p := range cfg.Groups.parents {
			if p.memory {
				dir = p.dir
			}
		}
	}
	for ; ; dir = filepath.Dir(dir) {
		m.bounds = append(m.bounds, bound{dir, top.v2})
		if dir == top.dir || len(dir) <= len(top.dir) {
			return m, nil
		}
	}
}

// A ShortError says that the host has too little memory left for a VM. It is
// of kind errdefs.ErrResourceExhausted.
type ShortError struct {
	Need      int64 // bytes
	Available int64 // what the host, or the cgroup of VMs, has
	Reserve   int64 // of this: is left for others
	Pending   int64 // of this: is for VMs that are starting
}

func (e *ShortError) Error() string {
	return fmt.Sprintf("host is short of memory: %d MiB are needed, %d MiB are available, of which %d MiB are kept free and %d MiB are for others that are starting",
		e.Need/mib, e.Available/mib, e.Reserve/mib, e.Pending/mib)
}

// Unwrap gives the kind.
func (e *ShortError) Unwrap() error { return errdefs.ErrResourceExhausted }

// Admit reserves need bytes for a VM that is about to start, so that those
// that start at the same time do not count on the same memory. The
// reservation ends with release, to be called when the VM has taken what it
// takes at once, or did not start; further calls do nothing. The error is a
// *ShortError, or that of reading /proc. Nil Memory admits everything.
func (m *Memory) Admit(need int64) (release func(), err error) {
	if m == nil {
		return func() {}, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	available, err := m.available()
	if err != nil {
		return nil, err
	}
	if available-m.reserve-m.pending < need {
		m.judgeLocked(available-m.pending, false)
		return nil, &ShortError{Need: need, Available: available, Reserve: m.reserve, Pending: m.pending}
	}
	m.pending += need
	m.judgeLocked(available-m.pending, false)
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.pending -= need
	}), nil
}

// available is what VMs can still take, the reserve included.
func (m *Memory) available() (int64, error) {
	_, available, err := m.read()
	if err != nil {
		return 0, err
	}
	for _, b := range m.bounds {
		if left, ok := b.left(); ok {
			available = min(available, left)
		}
	}
	return available, nil
}

// read reads /proc/meminfo, in bytes.
func (m *Memory) read() (total, available int64, err error) {
	data, err := os.ReadFile(filepath.Join(m.proc, "meminfo"))
	if err != nil {
		return 0, 0, fmt.Errorf("read the host's memory: %w", err)
	}
	total, ok1 := field(data, "MemTotal:")
	available, ok2 := field(data, "MemAvailable:")
	if !ok1 || !ok2 {
		return 0, 0, errors.New("read the host's memory: no MemTotal or no MemAvailable in meminfo")
	}
	return total << 10, available << 10, nil
}

// left is what a cgroup's limit leaves; ok is false when there is none.
// Pages of files that nobody used lately go when others are needed.
func (b bound) left() (n int64, ok bool) {
	limit, usage, cache := "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
	if b.v2 {
		limit, usage, cache = "memory.max", "memory.current", "inactive_file"
	}
	const unlimited = 1 << 62 // v1 says it with a number
	most, ok := readInt(filepath.Join(b.dir, limit))
	if !ok || most >= unlimited {
		return 0, false
	}
	used, ok := readInt(filepath.Join(b.dir, usage))
	if !ok {
		return 0, false
	}
	stat, _ := os.ReadFile(filepath.Join(b.dir, "memory.stat"))
	files, _ := field(stat, cache)
	return most - used + min(files, used), true
}
