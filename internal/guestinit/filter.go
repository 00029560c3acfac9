package guestinit

import (
	"encoding/json"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guestinit/seccomp"
)

// A filterCache keeps the last compiled seccomp filters: most containers have
// the same profile, and compiling takes an emulated guest a while.
type filterCache struct {
	mu sync.Mutex
	m  map[string]*filter
}

type filter struct {
	prog  []unix.SockFilter
	flags uint
}

// maxFilters bounds the cache; it starts anew when it is full.
const maxFilters = 8

// get compiles a profile; nil has no filter.
func (c *filterCache) get(sc *specs.LinuxSeccomp) (*filter, error) {
	if sc == nil {
		return nil, nil
	}
	key, err := json.Marshal(sc)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.m[string(key)]; f != nil {
		return f, nil
	}
	prog, flags, err := seccomp.Compile(sc)
	if err != nil {
		return nil, err
	}
	if c.m == nil || len(c.m) == maxFilters {
		c.m = map[string]*filter{}
	}
	f := &filter{prog, flags}
	c.m[string(key)] = f
	return f, nil
}
