package pod

import (
	"strings"
	"sync"

	profiles "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/hyper-run/hyper/internal/seccomp"
)

// A filterCache keeps compiled seccomp filters: most containers have the same
// profile and capabilities, which are all that shapes one.
type filterCache struct {
	mu sync.Mutex
	m  map[filterKey]*seccomp.Filter
}

type filterKey struct{ profile, capabilities string }

// maxFilters bounds the cache, which starts anew when it is full.
const maxFilters = 64

var filters filterCache

// get returns the filter of a container, nil for none. It is shared: nobody
// changes it.
func (c *filterCache) get(sp Spec, spec *specs.Spec) (*seccomp.Filter, error) {
	if sp.Privileged || sp.Seccomp == "unconfined" {
		return nil, nil
	}
	key := filterKey{sp.Seccomp, strings.Join(spec.Process.Capabilities.Bounding, " ")}
	c.mu.Lock()
	f := c.m[key]
	c.mu.Unlock()
	if f != nil {
		return f, nil
	}
	var profile *specs.LinuxSeccomp
	var err error
	if sp.Seccomp == "" {
		profile, err = profiles.GetDefaultProfile(spec)
	} else {
		profile, err = profiles.LoadProfile(sp.Seccomp, spec)
	}
	if err != nil {
		return nil, err
	}
	if f, err = seccomp.Compile(profile); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) == maxFilters {
		c.m = map[filterKey]*seccomp.Filter{}
	}
	c.m[key] = f
	return f, nil
}
