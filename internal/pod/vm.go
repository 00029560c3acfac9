package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/probe"
	"github.com/hyper-run/hyper/internal/template"
	"github.com/hyper-run/hyper/internal/vmm"
)

// A vmRecord is what is kept of a pod's VM while it exists, in the runtime
// store. It is put before the first thing it describes is made, and deleted
// after the last is gone.
type vmRecord struct {
	ID         string              // of the VM: 12 hex digits
	PodID      string              // that it is for; "": it is warm, for whoever comes
	Attachment *network.Attachment // nil: no network, or not attached yet
	Handle     *vmm.Handle         // nil: not started yet
	Info       VMInfo
	Containers map[string]runRecord // that run in it, or are about to, by ID
	Slots      map[string]slot      // by the ID of the disk in the guest
	Memory     int64                // that containers might use at most so far, bytes
	Begun      bool                 // its pod was made as such, and the guest told who it is
}

// A runRecord is what is kept of a container that runs.
type runRecord struct {
	PID       uint32 // 0: it is about to be started
	StartedAt time.Time
	Paused    bool
	Stdin     bool
	Hooked    bool        // its hook after the start is done
	Probed    probe.State // what its probes last said
	// Left: it is over, or was not started, but the guest has not let go of it yet.
	Left bool `json:",omitempty"`
	// How it ended, kept from before the guest is told to forget it until the
	// container's record has it; nil: not yet.
	Ended *End `json:",omitempty"`
}

// A machine is the VM of a pod, with all the pod has on the host because of
// it. It makes the connection to the guest, and makes it anew when it is lost.
type machine struct {
	set      *Set
	vm       vmm.VM
	template *template.Template // that it is a clone of; nil: none, or adopted
	fresh    bool               // this hyperd made it: nobody has talked to the guest before
	bootedAt time.Time          // when the VMM was started

	ctx    context.Context // ends when this hyperd lets go of the VM
	cancel context.CancelFunc

	saving    sync.Mutex // held while the record is written, so that the last state stays
	destroyed bool       // guarded by saving: the record goes, or has gone
	recMu     sync.Mutex // guards rec, of which the maps are changed by update only
	rec       vmRecord

	sizes sizes // guarded by recMu

	dialling lock // held while dialling
	mu       sync.Mutex
	client   *guest.Client // guarded by mu, set under dialling
}

// redials bounds how often in a row a guest may drop the connection without
// anything having come of it before its VM is given up.
const redials = 5

func newMachine(s *Set, rec vmRecord, vm vmm.VM) *machine {
	ctx, cancel := context.WithCancel(context.Background())
	return &machine{set: s, rec: rec, vm: vm, ctx: ctx, cancel: cancel, dialling: newLock()}
}

// guest returns the live connection to the guest, dialling when there is none.
func (m *machine) guest(ctx context.Context) (*guest.Client, error) {
	if err := m.dialling.acquire(ctx); err != nil {
		return nil, fmt.Errorf("dial guest: %w", err)
	}
	defer m.dialling.release()
	m.mu.Lock()
	old := m.client
	m.mu.Unlock()
	if old != nil && old.Err() == nil {
		return old, nil
	}
	if old != nil {
		old.Close()
	}
	conn, err := m.vm.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial guest: %w", err)
	}
	var c *guest.Client
	if old == nil && m.fresh {
		// Nobody has talked to it yet: the first call goes out before it answers.
		c, err = m.set.cfg.OpenGuest(conn, guest.Options{Fresh: true})
	} else {
		c, err = m.set.cfg.DialGuest(ctx, conn)
	}
	if err != nil {
		return nil, fmt.Errorf("dial guest: %w", err)
	}
	m.mu.Lock()
	m.client = c
	m.mu.Unlock()
	go m.closeAtEnd(c)
	return c, nil
}

// closeAtEnd ends the connection with the VM. One that stopped by itself stays
// to be read, connection and all, and would never answer a call.
func (m *machine) closeAtEnd(c *guest.Client) {
	select {
	case <-m.vm.Done():
	case <-c.Done():
		return
	}
	t := time.NewTimer(deathTimeout) // for what it said last to be read
	defer t.Stop()
	select {
	case <-t.C:
		c.Close()
	case <-c.Done():
	}
}

// deathTimeout is how far apart the end of a VMM and that of its connections
// may be seen.
const deathTimeout = time.Second

// dies says, once the guest is lost, whether that is because its VM ended.
func (m *machine) dies() bool {
	t := time.NewTimer(deathTimeout)
	defer t.Stop()
	select {
	case <-m.vm.Done():
		return true
	case <-t.C:
		return false
	}
}

func describeExit(e vmm.Exit) string {
	text := map[vmm.ExitReason]string{
		vmm.ExitPowerOff: "the guest powered off",
		vmm.ExitReset:    "the guest reset itself",
		vmm.ExitPanic:    "the guest's kernel panicked",
		vmm.ExitKilled:   "it was killed",
		vmm.ExitCrashed:  "the VMM died",
	}[e.Reason]
	if e.Detail != "" {
		text += " (" + e.Detail + ")"
	}
	return text
}

// console is the last lines of the guest's console, "" when there are none.
func (m *machine) console() string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	out, err := m.vm.Console(ctx)
	if err != nil {
		return "(" + err.Error() + ")"
	}
	return vmm.LastLines(out, vmm.ConsoleLines)
}

// release lets go of the VM; it runs on.
func (m *machine) release() {
	m.cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.client != nil {
		m.client.Close()
	}
}

// destroy ends the VM. What else the pod has is given back in the background,
// because taking a device off a bridge takes the kernel 30 ms; the channel is
// closed when that is done, and only then may the pod start again.
func (m *machine) destroy(ctx context.Context) <-chan struct{} {
	ctx = context.WithoutCancel(ctx) // often it is called because ctx has ended
	m.saving.Lock()
	m.destroyed = true
	m.saving.Unlock()
	m.release()
	if m.vm != nil {
		if err := m.vm.Kill(ctx); err != nil {
			m.set.log.Error("end virtual machine", "vm", m.id(), "err", err)
		}
	}
	done := make(chan struct{})
	m.set.background.Go(func() {
		defer close(done)
		if err := m.set.reclaim(ctx, m.record(), m.vm); err != nil {
			m.set.log.Error("clean up after a virtual machine", "err", err)
		}
	})
	return done
}

// reclaim gives back what rec describes. vm is nil when it is gone already.
// The record goes last, so that a crash in between is cleaned up at start-up.
func (s *Set) reclaim(ctx context.Context, rec vmRecord, vm vmm.VM) error {
	var errs []error
	if vm != nil {
		errs = append(errs, vm.Kill(ctx))
	}
	if rec.Attachment != nil && s.cfg.Network != nil && !s.keepsAttachment(rec) {
		errs = append(errs, s.cfg.Network.Detach(ctx, *rec.Attachment))
	}
	errs = append(errs, s.cfg.Groups.Remove(rec.ID), os.RemoveAll(s.cfg.Layout.Pod(rec.ID)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("give back what VM %s had: %w", rec.ID, err)
	}
	return s.cfg.Runtime.Delete(bucketVMs, rec.ID)
}

// keepsAttachment says whether the VM's pod keeps its addresses while it has no VM.
func (s *Set) keepsAttachment(rec vmRecord) bool {
	s.mu.Lock()
	p := s.pods[rec.PodID]
	s.mu.Unlock()
	if p == nil {
		return false
	}
	kept := p.record().Attachment
	return kept != nil && kept.PodID == rec.Attachment.PodID
}

// isDestroyed says whether the VM is ended here, for good.
func (m *machine) isDestroyed() bool {
	m.saving.Lock()
	defer m.saving.Unlock()
	return m.destroyed
}

// update changes the record and writes it. Errors: vmm.ErrGone when the VM is destroyed.
func (m *machine) update(change func(*vmRecord)) error {
	m.saving.Lock()
	defer m.saving.Unlock()
	m.recMu.Lock()
	change(&m.rec)
	m.recMu.Unlock()
	if m.destroyed {
		return fmt.Errorf("record virtual machine %s: %w", m.id(), vmm.ErrGone)
	}
	return m.set.cfg.Runtime.Put(bucketVMs, m.id(), m.record())
}

// record returns a copy of the record.
func (m *machine) record() vmRecord {
	m.recMu.Lock()
	defer m.recMu.Unlock()
	r := m.rec
	r.Containers, r.Slots = maps.Clone(r.Containers), maps.Clone(r.Slots)
	return r
}

func (m *machine) id() string { return m.rec.ID } // never changes

// grow records what containers may use of the VM from now on; of the host it never
// gets less.
func (m *machine) grow(z size) (size, error) {
	err := m.update(func(r *vmRecord) { r.Memory = max(r.Memory, z.memory) })
	z.memory = m.record().Memory
	return z, err
}

func (m *machine) info() VMInfo {
	m.recMu.Lock()
	defer m.recMu.Unlock()
	return m.rec.Info
}

func (m *machine) attachment() *network.Attachment {
	m.recMu.Lock()
	defer m.recMu.Unlock()
	return m.rec.Attachment
}

// runRecord returns what is kept of a container that runs in the VM.
func (m *machine) runRecord(id string) (runRecord, bool) {
	m.recMu.Lock()
	defer m.recMu.Unlock()
	rr, ok := m.rec.Containers[id]
	return rr, ok
}

// setRun records what is known of a container that runs in the VM.
func (m *machine) setRun(id string, change func(*runRecord)) error {
	return m.update(func(r *vmRecord) {
		rr := r.Containers[id]
		change(&rr)
		r.Containers[id] = rr
	})
}

func networkInfo(a *network.Attachment) *NetworkInfo {
	if a == nil {
		return nil
	}
	n := &NetworkInfo{Network: a.Network, MAC: a.MAC.String()}
	for _, p := range a.Addrs {
		if p.Addr().Is4() {
			n.Address, n.PrefixLen = p.Addr().String(), p.Bits()
		} else {
			n.IPv6, n.IPv6PrefixLen = p.Addr().String(), p.Bits()
		}
	}
	for _, g := range a.Gateway {
		if g.Is4() {
			n.Gateway = g.String()
		} else {
			n.IPv6Gateway = g.String()
		}
	}
	return n
}
