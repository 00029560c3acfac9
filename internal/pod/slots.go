package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/template"
	"github.com/hyper-run/hyper/internal/vmm"
)

// A slot is a place for a disk of a VM: one it was started with, or one that
// was plugged in when there was none left of those.
type slot struct {
	Path     string   // of the file; "": it is empty
	ReadOnly bool     //
	Plugged  bool     `json:",omitempty"`
	Users    []string // whom it is for: IDs of containers, or volumes (volumeUser)
}

// slotsOf are the slots of a VM that was started with these disks for user.
func slotsOf(disks []vmm.Disk, user string) map[string]slot {
	slots := map[string]slot{}
	for _, d := range disks {
		sl := slot{Path: d.Path, ReadOnly: d.ReadOnly}
		if d.Path != "" {
			sl.Users = []string{user}
		}
		slots[d.ID] = sl
	}
	return slots
}

// A needs is what disks somebody wants of a VM.
type needs struct {
	user   string   // see slot.Users
	layers []string // paths, lowest first
	disk   string   // path of the writable disk, "": none
}

// disks are the VM's disks when it is started for n: with the IDs of slots,
// whether it is a clone or boots, so that the guest is told the same in both cases.
func (n *needs) disks() []vmm.Disk {
	if n == nil {
		return nil
	}
	var disks []vmm.Disk
	for i, path := range n.layers {
		disks = append(disks, vmm.Disk{ID: template.LayerSlot(i), Path: path, ReadOnly: true})
	}
	if n.disk != "" {
		disks = append(disks, vmm.Disk{ID: template.DiskSlot(0), Path: n.disk})
	}
	return disks
}

// placed says where the guest finds what n wants; all of it has a slot.
func (m *machine) placed(n *needs) *wire.RootFS {
	m.recMu.Lock()
	defer m.recMu.Unlock()
	at := func(path string) string {
		for id, sl := range m.rec.Slots {
			if sl.Path == path && slices.Contains(sl.Users, n.user) {
				return id
			}
		}
		return ""
	}
	root := &wire.RootFS{}
	for _, path := range n.layers {
		root.Layers = append(root.Layers, at(path))
	}
	if n.disk != "" {
		root.Upper = at(n.disk)
	}
	return root
}

// place gives what n wants a place in a running VM. A layer that is there
// already is shared. Precondition: the pod's op is held.
func (m *machine) place(ctx context.Context, n *needs) error {
	slots := m.record().Slots
	changed := map[string]slot{}
	var fill, plug []vmm.Disk
	take := func(path string, readOnly bool) {
		id, sl := findSlot(slots, path, readOnly)
		d := vmm.Disk{ID: id, Path: path, ReadOnly: readOnly}
		switch {
		case sl.Path == path: // shared
		case sl.Plugged:
			plug = append(plug, d)
		default:
			fill = append(fill, d)
		}
		sl.Path, sl.Users = path, append(slices.Clone(sl.Users), n.user)
		slots[id], changed[id] = sl, sl
	}
	for _, path := range n.layers {
		take(path, true)
	}
	if n.disk != "" {
		for _, sl := range slots {
			if sl.Path == n.disk {
				return fmt.Errorf("the guest has not let go of its disk yet: %w", errdefs.ErrUnavailable)
			}
		}
		take(n.disk, false)
	}
	if len(slots) > vmm.MaxDisks+vmm.MaxPlugged {
		return fmt.Errorf("the VM has no room for more than %d disks: %w", vmm.MaxDisks+vmm.MaxPlugged, errdefs.ErrResourceExhausted)
	}
	err := m.update(func(r *vmRecord) {
		for id, sl := range changed {
			r.Slots[id] = sl
		}
	})
	if err == nil {
		err = m.insert(ctx, fill, plug)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("give the VM its disks: %w", err), m.vacate(context.WithoutCancel(ctx), n.user))
	}
	return nil
}

// slotTimeout bounds what a VMM takes to change its disks: who waits holds the pod's op.
const slotTimeout = 20 * time.Second

// findSlot finds a place for a file: where it is already if it may be shared,
// an empty slot, or else a new one that is to be plugged.
func findSlot(slots map[string]slot, path string, readOnly bool) (string, slot) {
	empty := ""
	for id, sl := range slots {
		if readOnly && sl.Path == path && sl.ReadOnly {
			return id, sl
		}
		if sl.Path == "" && sl.ReadOnly == readOnly && !sl.Plugged && (empty == "" || cmp.Or(cmp.Compare(len(id), len(empty)), strings.Compare(id, empty)) < 0) {
			empty = id
		}
	}
	if empty != "" {
		return empty, slots[empty]
	}
	for i := 0; ; i++ {
		id := fmt.Sprintf("p%d", i)
		if _, taken := slots[id]; !taken {
			return id, slot{ReadOnly: readOnly, Plugged: true}
		}
	}
}

func (m *machine) insert(ctx context.Context, fill, plug []vmm.Disk) error {
	ctx, cancel := context.WithTimeout(ctx, slotTimeout)
	defer cancel()
	if len(fill) > 0 {
		f, ok := m.vm.(vmm.Filler)
		if !ok {
			return fmt.Errorf("fill slots: %w", errdefs.ErrNotImplemented)
		}
		if err := f.Fill(ctx, fill); err != nil {
			return err
		}
	}
	for _, d := range plug {
		p, ok := m.vm.(vmm.Plugger)
		if !ok {
			return fmt.Errorf("plug a disk: %w", errdefs.ErrNotImplemented)
		}
		if err := p.Plug(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// vacate gives up what user has, which the guest uses no more. What
// nobody else uses is taken out of the VM. Precondition: the pod's op is held.
func (m *machine) vacate(ctx context.Context, user string) error {
	var empty, unplug, shared []string
	for id, sl := range m.record().Slots {
		switch {
		case !slices.Contains(sl.Users, user):
		case slices.ContainsFunc(sl.Users, func(u string) bool { return u != user }):
			shared = append(shared, id)
		case sl.Plugged:
			unplug = append(unplug, id)
		default:
			empty = append(empty, id)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, slotTimeout)
	defer cancel()
	var errs []error
	if f, ok := m.vm.(vmm.Filler); ok && len(empty) > 0 {
		errs = append(errs, f.Empty(ctx, empty))
	}
	if p, ok := m.vm.(vmm.Plugger); ok {
		for _, id := range unplug {
			errs = append(errs, p.Unplug(ctx, id))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take disks out of the VM: %w", err)
	}
	return m.update(func(r *vmRecord) {
		for _, id := range shared {
			sl := r.Slots[id]
			sl.Users = slices.DeleteFunc(slices.Clone(sl.Users), func(u string) bool { return u == user })
			r.Slots[id] = sl
		}
		for _, id := range empty {
			r.Slots[id] = slot{ReadOnly: r.Slots[id].ReadOnly}
		}
		for _, id := range unplug {
			delete(r.Slots, id)
		}
	})
}
