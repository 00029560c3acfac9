package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/event"
	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/host"
	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/store"
	"github.com/hyper-run/hyper/internal/template"
	"github.com/hyper-run/hyper/internal/vmm"
)

// BootFiles are what a VM boots from.
type BootFiles struct {
	Name   string // what to call the kernel: "hyperkernel 6.12.117"
	Kernel string // path
	Initrd string // path
	Stock  bool   // not ours: it may need PCI
}

// Config is what a Set works with.
type Config struct {
	Layout     store.Layout
	Store      *store.Store // durable
	Runtime    *store.Store // of this boot of the host
	Driver     vmm.Driver
	Network    network.Driver // nil: only network "none"; NetworkErr says why
	NetworkErr error
	Events     *event.Bus
	Log        *slog.Logger

	Templates *template.Store // nil: every VM boots
	Groups    *host.Groups    // nil: the host bounds nothing
	Memory    *host.Memory    // nil: the host has always enough
	Meter     Meter           // nil: nobody counts

	// Layers finds the container's image layers as files, lowest first, and
	// merges them into one when there are more than max.
	Layers func(ctx context.Context, sp Spec, max int) ([]string, error)
	// Rehearsal is a small container that ends by itself, for warm VMs of an
	// emulator to run ahead; nil: none.
	Rehearsal func(ctx context.Context) (Spec, error)
	// CreateDisk makes a writable disk at path, bytes large; nobody uses a
	// scratch disk after the first VM that has it has ended.
	CreateDisk func(path string, bytes int64, scratch bool) error
	// Boot chooses kernel and initrd; kernel "" means the default one.
	Boot func(kernel string) (BootFiles, error)
	// DialGuest is guest.Dial, OpenGuest is guest.Open.
	DialGuest func(ctx context.Context, conn net.Conn) (*guest.Client, error)
	OpenGuest func(conn net.Conn, o guest.Options) (*guest.Client, error)

	Accel        vmm.Accel
	VM           Size // of the usual VM, which larger containers get a multiple of
	MemMiB       int  // for a container without a limit
	CPUs         int  // that containers see, unless they are promised more
	HostCPUs     int
	Warm         int           // clones of each shape to keep ready
	StartTimeout time.Duration // for a guest to answer after the VM started
}

// A Size is that of a VM.
type Size struct{ CPUs, MemMiB int }

// A Set is all pods and containers of one hyperd. Its methods may be called
// concurrently.
//
// Lock order: pod.life, container.op, pod.op, Set.mu, pod.mu or container.mu. Nothing blocks while
// holding Set.mu, pod.mu or container.mu.
type Set struct {
	cfg Config
	log *slog.Logger

	mu         sync.Mutex
	containers map[string]*container // by ID
	names      map[string]string     // name → ID
	pods       map[string]*pod       // by ID; those of one container too
	podNames   map[string]string     // name → ID
	execs      map[string]*exec      // by ID
	traces     []*trace              // of the latest starts
	settled    bool                  // all that was there is known
	closing    bool

	warm       *warmPool
	background sync.WaitGroup
}

var _ Containers = (*Set)(nil)

// New returns the Set of what the stores say there is. Call Adopt before use.
func New(cfg Config) *Set {
	s := &Set{
		cfg: cfg, log: cfg.Log,
		containers: map[string]*container{}, names: map[string]string{}, execs: map[string]*exec{},
		pods: map[string]*pod{}, podNames: map[string]string{},
	}
	s.warm = newWarmPool(s, cfg.Warm)
	return s
}

// Close lets go of everything without stopping it: pods run on, and are found
// again by the next hyperd.
func (s *Set) Close() {
	s.mu.Lock()
	s.closing = true
	all := s.allLocked()
	pods := slices.Collect(maps.Values(s.pods))
	s.mu.Unlock()
	s.warm.close()
	for _, p := range pods {
		p.release()
	}
	for _, c := range all {
		c.release()
	}
	s.background.Wait()
}

func (s *Set) isAdopted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settled
}

func (s *Set) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

func (s *Set) allLocked() []*container {
	all := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		all = append(all, c)
	}
	return all
}

// find returns the container that ref means: ID, name, or unique ID prefix,
// in this order, as Docker.
func (s *Set) find(ref string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := strings.TrimPrefix(ref, "/")
	if c := s.containers[ref]; c != nil {
		return c, nil
	}
	if id, ok := s.names[name]; ok {
		if c := s.containers[id]; c != nil {
			return c, nil
		}
	}
	var found *container
	if isHex(ref) {
		for id, c := range s.containers {
			if !strings.HasPrefix(id, ref) {
				continue
			}
			if found != nil {
				return nil, fmt.Errorf("multiple IDs found with provided prefix: %s: %w", ref, errdefs.ErrInvalidArgument)
			}
			found = c
		}
	}
	if found == nil {
		return nil, notFound("No such container: " + ref)
	}
	return found, nil
}

func isHex(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// notFound is an error whose text is exactly msg: clients compare it.
func notFound(msg string) error { return textError{msg, errdefs.ErrNotFound} }

// A textError has a kind without showing it in its text.
type textError struct {
	msg  string
	kind error
}

func (e textError) Error() string { return e.msg }
func (e textError) Unwrap() error { return e.kind }

// newID returns a random ID: 64 hex digits, of which the first twelve are not
// all decimal, so that a short ID is never taken for a number.
func newID() string {
	for {
		b := make([]byte, 32)
		rand.Read(b)
		id := hex.EncodeToString(b)
		if _, err := strconv.ParseInt(id[:12], 10, 64); err != nil {
			return id
		}
	}
}

// Get returns one container.
func (s *Set) Get(ref string) (Container, error) {
	c, err := s.find(ref)
	if err != nil {
		return Container{}, err
	}
	return c.view(), nil
}

// List returns the containers that f selects, newest first.
func (s *Set) List(f Filter) []Container {
	s.mu.Lock()
	all := s.allLocked()
	s.mu.Unlock()
	views := make([]Container, 0, len(all))
	for _, c := range all {
		v := c.view()
		if f.All || v.Status == StatusRunning || v.Status == StatusPaused || v.Status == StatusRestarting {
			views = append(views, v)
		}
	}
	slices.SortFunc(views, func(a, b Container) int { return b.Created.Compare(a.Created) })
	return views
}

func (s *Set) publish(c *container, action string, attrs ...string) {
	v := c.view()
	m := make(map[string]string, len(v.Spec.Labels)+4)
	for k, l := range v.Spec.Labels {
		m[k] = l
	}
	m["name"], m["image"] = v.Name, v.Spec.Image
	for i := 0; i+1 < len(attrs); i += 2 {
		m[attrs[i]] = attrs[i+1]
	}
	s.cfg.Events.Publish(event.Event{Time: time.Now(), Type: "container", Action: action, ID: v.ID, Attrs: m})
}
