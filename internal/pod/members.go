package pod

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/network"
)

// bucketPods has the podRecords by pod ID, of pods that were made as such; durable.
const bucketPods = "pods"

// A podRecord is what is kept of a pod that was made as such. One that was
// made for a container needs none: the container's record names it.
type podRecord struct {
	ID         string
	Name       string
	Created    time.Time
	Spec       PodSpec
	Half       bool                // it is being made or removed
	Wanted     bool                // it was started, and nobody stopped it
	Starts     uint64              // how often somebody started it
	End                            // of its last VM, or of a start that failed
	Attachment *network.Attachment // that it keeps, with its addresses; nil: none yet
	StartedAt  time.Time
}

// A pod is one VM at a time, and the containers that run in it.
type pod struct {
	set *Set
	id  string

	life lock // held by whoever makes, stops or removes the pod: it is closed then. Taken before all others

	// op is held by whoever makes, fills or ends the VM. It is taken after a
	// container's op, and never while the guest runs something.
	op        sync.Mutex
	reclaimed <-chan struct{} // guarded by op: closed when what the last VM had is given back; may be nil

	saving sync.Mutex // held while the record is written or deleted

	mu       sync.Mutex // guards what follows
	rec      podRecord  // Name is "": made for one container
	machine  *machine   // nil: no VM
	removed  bool
	closed   string          // why nothing can be started in it, "": it can
	starting int             // starts under way in it
	kept     bool            // its keeper runs
	emptied  bool            // a container of it was removed
	gone     <-chan struct{} // closed when it has been removed after its last container; nil: that is not under way
	changed  chan struct{}   // closed and made anew when something of it has changed
	asked    bool            // the keeper was asked for since it looked last
	outlook  outlook         // of its keeper

	again chan struct{} // wakes the keeper
}

// explicit says that the pod was made as such.
func (p *pod) explicit() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rec.Name != ""
}

func (p *pod) record() podRecord {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rec
}

// running returns the pod's VM, nil when there is none that lives.
func (p *pod) running() *machine {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.machine == nil || isClosed(p.machine.vm.Done()) {
		return nil
	}
	return p.machine
}

func (p *pod) setMachine(m *machine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.machine = m
}

// hasMembersLocked says whether a pod has containers.
func (s *Set) hasMembersLocked(podID string) bool {
	for _, c := range s.containers {
		if c.podID == podID {
			return true
		}
	}
	return false
}

// members returns the pod's containers, in the order they were made.
func (s *Set) members(podID string) []*container {
	s.mu.Lock()
	var all []*container
	for _, c := range s.containers {
		if c.podID == podID {
			all = append(all, c)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b *container) int {
		return cmp.Or(a.rec.Created.Compare(b.rec.Created), cmp.Compare(a.id, b.id)) // neither ever changes
	})
	return all
}

// podLocked returns the pod of an ID, which it makes if there is none.
func (s *Set) podLocked(id string) *pod {
	p := s.pods[id]
	if p == nil {
		p = s.newPod(id)
		s.pods[id] = p
	}
	return p
}

func (s *Set) newPod(id string) *pod {
	return &pod{set: s, id: id, rec: podRecord{ID: id}, life: newLock(), changed: make(chan struct{}), again: make(chan struct{}, 1)}
}

// A size is what some containers need of a VM together.
type size struct {
	memory   int64   // bytes that they may use, with their page cache
	limits   int64   // of that, what those need that have a limit
	cpus     int     // that they see
	quota    float64 // CPUs that they may use, 0: all they see
	reserved int64   // bytes that they were promised
}

// sizeOf adds up what containers need; what was said of the pod goes before.
// All that have no limit share what one of them would have.
func (s *Set) sizeOf(all []Resources, whole PodResources) size {
	// Room for what hyperstart keeps for each, which must not push a
	// container below its own limit.
	const own = 16 * mib
	var z size
	var promised int64 // billionths of a CPU
	open, unbounded := len(all) == 0, false
	for _, r := range all {
		if r.MemoryBytes > 0 {
			z.limits += r.MemoryBytes + own
		}
		open = open || r.MemoryBytes == 0
		z.reserved += r.MemoryReservationBytes
		promised += r.NanoCPUs
		unbounded = unbounded || quota(r) == 0
		z.quota += quota(r)
	}
	z.memory = z.limits
	if open {
		z.memory += int64(s.cfg.MemMiB) * mib
	}
	if unbounded || len(all) == 0 {
		z.quota = 0
	}
	if whole.MemoryBytes > 0 { // of a VM with less room than for all, each gets less beside its own
		z.limits = whole.MemoryBytes + own
		z.memory = whole.MemoryBytes + int64(max(1, len(all)))*own
	}
	if whole.NanoCPUs > 0 {
		promised, z.quota = whole.NanoCPUs, float64(whole.NanoCPUs)/1e9
	}
	// As with Docker they see the host's CPUs, unless they are promised more.
	z.cpus = max(s.cfg.CPUs, int((promised+1e9-1)/1e9))
	return z
}

// sizeOfPod is what the containers of a pod need that is started with them all. Init containers run
// before the others, one after the other.
func (s *Set) sizeOfPod(all []Spec, whole PodResources) size {
	var stay, before []Resources
	var first []size
	for _, sp := range all {
		switch sp.Role {
		case RoleInit:
			first = append(first, s.sizeOf(append(slices.Clone(before), sp.Resources), whole))
			continue
		case RoleSidecar:
			before = append(before, sp.Resources)
		}
		stay = append(stay, sp.Resources)
	}
	z := s.sizeOf(stay, whole)
	for _, f := range first {
		z.memory, z.limits, z.reserved = max(z.memory, f.memory), max(z.limits, f.limits), max(z.reserved, f.reserved)
		z.cpus = max(z.cpus, f.cpus)
		if z.quota > 0 {
			z.quota = max(z.quota, f.quota)
		}
		if f.quota == 0 {
			z.quota = 0
		}
	}
	return z
}

// sizeWith is what the containers that run in the VM need, and those of add.
func (p *pod) sizeWith(m *machine, add ...*container) size {
	var all []Resources
	for _, c := range p.set.members(p.id) {
		running := false
		if m != nil {
			rr, there := m.runRecord(c.id)
			running = there && !rr.Left
		}
		if running || slices.Contains(add, c) {
			all = append(all, c.spec().Resources)
		}
	}
	return p.set.sizeOf(all, p.record().Spec.Resources)
}

// conf tells the guest what the pod may use.
func (z size) conf() *wire.ConfigureRequest {
	return &wire.ConfigureRequest{MemoryMaxBytes: uint64(z.memory), Cpus: uint32(z.cpus)}
}

// sizes are what was told to a guest last. Starts side by side tell it each what the pod
// may use with them, and nobody knows which of it the guest heard last.
type sizes struct {
	wanted  size
	telling int  // starts that tell it at the moment
	mixed   bool // these do not say the same
}

// sizing notes what the guest is told; n is 1 for a start, which unifySize ends. Precondition: p.op is held.
func (m *machine) sizing(z size, n int) {
	m.recMu.Lock()
	defer m.recMu.Unlock()
	w := m.sizes.wanted
	m.sizes.mixed = m.sizes.mixed || m.sizes.telling > 0 && (w.memory != z.memory || w.cpus != z.cpus)
	m.sizes.wanted = z
	m.sizes.telling += n
}

// unifySize ends the telling of a start. The last tells the guest what the pod may use with all of them.
func (p *pod) unifySize(ctx context.Context, m *machine) error {
	m.recMu.Lock()
	m.sizes.telling--
	last := m.sizes.telling == 0 && m.sizes.mixed
	m.recMu.Unlock()
	if !last {
		return nil
	}
	p.op.Lock()
	defer p.op.Unlock()
	m.recMu.Lock()
	m.sizes.mixed = m.sizes.telling > 0
	z := m.sizes.wanted
	m.recMu.Unlock()
	return m.tell(ctx, z)
}

// tell tells the guest what the pod may use.
func (m *machine) tell(ctx context.Context, z size) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	g, err := m.guest(ctx)
	if err == nil {
		_, err = g.Configure(ctx, z.conf())
	}
	return err
}

// fit makes z fit into a running VM: those without a limit have to share what
// there is. It says why it can't, "" when it can.
func (i VMInfo) fit(z *size) string {
	room := vmRoom(i.MemMiB)
	if z.limits > room || z.cpus > i.CPUs {
		return fmt.Sprintf("its running VM has room for %d MiB and %d CPUs", room/mib, i.CPUs)
	}
	z.memory = min(z.memory, room)
	return ""
}

// fits is fit for what already runs in the VM.
func (m *machine) fits(z *size) error {
	info := m.info()
	if why := info.fit(z); why != "" {
		return fmt.Errorf("%s; stop it to give it more: %w", why, conflict)
	}
	return nil
}

// destroyMachine ends the pod's VM. Precondition: p.op is held.
func (p *pod) destroyMachine(ctx context.Context) {
	p.mu.Lock()
	m := p.machine
	p.mu.Unlock()
	if m != nil {
		p.reclaimed = m.destroy(ctx)
		p.setMachine(nil)
	}
}

// waitReclaimed waits until what the last VM had is given back. Precondition: p.op is held.
func (p *pod) waitReclaimed() {
	if p.reclaimed != nil {
		<-p.reclaimed
		p.reclaimed = nil
	}
}
