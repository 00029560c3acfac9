package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/network"
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
	Containers map[string]runRecord // that run in it, by ID
}

// A runRecord is what is kept of a container that runs.
type runRecord struct {
	PID       uint32
	StartedAt time.Time
	Paused    bool
	Stdin     bool
	Ended     *endRecord `json:",omitempty"` // nil: not yet
}

// An endRecord is how a process ended, kept from before the guest is told to
// forget it until the container's record has it.
type endRecord struct {
	Code int
	OOM  bool
	At   time.Time
}

// A machine is the VM of a pod, with all the pod has on the host because of
// it. It makes the connection to the guest, and makes it anew when it is lost.
type machine struct {
	set      *Set
	rec      vmRecord // changed only under the container's op lock
	vm       vmm.VM
	template *template.Template // that it is a clone of; nil: none, or adopted
	trace    *trace             // of the start; nil: adopted
	launched *guest.Process     // that it was started for; nil: adopted
	bootedAt time.Time          // when the VMM was started

	ctx    context.Context // ends when this hyperd lets go of the VM
	cancel context.CancelFunc

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
	if old == nil && m.trace != nil {
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
	if m.launched != nil {
		m.launched.Close()
	}
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
	m.release()
	if m.vm != nil {
		if err := m.vm.Kill(ctx); err != nil {
			m.set.log.Error("end virtual machine", "vm", m.rec.ID, "err", err)
		}
	}
	done := make(chan struct{})
	m.set.background.Go(func() {
		defer close(done)
		if err := m.set.reclaim(ctx, m.rec, m.vm); err != nil {
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
	if rec.Attachment != nil && s.cfg.Network != nil {
		errs = append(errs, s.cfg.Network.Detach(ctx, *rec.Attachment))
	}
	errs = append(errs, s.cfg.Groups.Remove(rec.ID), os.RemoveAll(s.cfg.Layout.Pod(rec.ID)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("give back what VM %s had: %w", rec.ID, err)
	}
	return s.cfg.Runtime.Delete(bucketVMs, rec.ID)
}

func (m *machine) save() error { return m.set.cfg.Runtime.Put(bucketVMs, m.rec.ID, m.rec) }

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
