package qemu

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu/qmp"
)

// controller is the ID of the device that disks are plugged into, where one
// virtio device serves them all: a microvm has places for few.
const controller = "scsi"

// maxLUN is the last number that both QEMU and Linux understand in an event.
// There are more than disks can be, and each is used again as late as can be:
// a guest may still be busy with removing the disk that had it.
const maxLUN = 255

// unplugTimeout bounds the wait for QEMU to let go of a disk; 60 ms are usual.
const unplugTimeout = 10 * time.Second

// A plug is a disk that was plugged in.
type plug struct {
	lun, set int
	gone     chan struct{} // closed when its device is deleted; nil: it stays
}

// Plug implements vmm.Plugger.
func (v *vm) Plug(ctx context.Context, d vmm.Disk) error {
	v.filling.Lock()
	defer v.filling.Unlock()
	return v.command(fmt.Sprintf("plug disk %q into", d.ID), func() error { return v.plug(ctx, d) })
}

func (v *vm) plug(ctx context.Context, d vmm.Disk) error {
	if err := d.Validate(); err != nil {
		return err
	}
	if err := v.knowDisks(ctx); err != nil {
		return err
	}
	_, slot := v.slots[d.ID]
	switch {
	case v.plugs == nil:
		return fmt.Errorf("it was not started with a controller: %w", errdefs.ErrNotImplemented)
	case slot || v.plugs[d.ID] != nil:
		return fmt.Errorf("there is a disk with that ID: %w", errdefs.ErrAlreadyExists)
	case len(v.plugs) >= vmm.MaxPlugged:
		return fmt.Errorf("it has %d already: %w", len(v.plugs), errdefs.ErrResourceExhausted)
	}
	f, device, err := openDisk(d)
	if err != nil {
		return err
	}
	defer f.Close()
	p := &plug{lun: v.freeLUN(), set: v.nextSet}
	name := plugName(p.lun, d.ID)
	err = qmp.WaitAll(ctx,
		v.qmp.AddFD(ctx, f, p.set),
		v.qmp.BlockdevAdd(ctx, qmp.Node{
			Driver: fileDriver(device), Name: name, Filename: fdset(p.set), ReadOnly: d.ReadOnly, Discard: "unmap",
		}),
		v.qmp.AddSCSIDisk(ctx, qmp.SCSIDisk{
			ID: name, Bus: controller + ".0", LUN: p.lun, Drive: name, Serial: d.ID,
			WriteError: "report", ReadError: "report", RotationRate: 1,
		}))
	v.nextSet++
	v.lastLUN = p.lun
	if err != nil {
		v.undoPlug(ctx, name)
		return err
	}
	v.plugs[d.ID] = p
	return nil
}

// undoPlug takes away what there is of a disk after an error, which may be that
// of the waiting only.
func (v *vm) undoPlug(ctx context.Context, name string) {
	ctx, cancel := undoing(ctx)
	defer cancel()
	if gone, err := v.deleteDevice(ctx, name); err == nil {
		select {
		case <-gone:
		case <-v.qmp.Done():
		case <-ctx.Done():
		}
	}
	v.lookAgain(ctx)
}

// freeLUN is the next after the last that was given.
func (v *vm) freeLUN() int {
	used := make(map[int]bool)
	for _, p := range v.plugs {
		used[p.lun] = true
	}
	lun := v.lastLUN%maxLUN + 1
	for used[lun] {
		lun = lun%maxLUN + 1
	}
	return lun
}

// Unplug implements vmm.Plugger. QEMU does not ask the guest.
func (v *vm) Unplug(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, unplugTimeout, fmt.Errorf("QEMU did not let go of it within %v", unplugTimeout))
	defer cancel()
	return v.command(fmt.Sprintf("unplug disk %q from", id), func() error { return v.unplug(ctx, id) })
}

func (v *vm) unplug(ctx context.Context, id string) error {
	p, err := v.leave(ctx, id)
	if p == nil || err != nil {
		return err
	}
	// Others need not wait with us.
	select {
	case <-p.gone:
	case <-v.qmp.Done():
		return v.qmp.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	v.filling.Lock()
	defer v.filling.Unlock()
	err = qmp.WaitAll(ctx, v.qmp.BlockdevDel(ctx, plugName(p.lun, id)), v.qmp.RemoveFD(ctx, p.set))
	if v.plugs[id] != p {
		return nil // somebody else has done it
	}
	delete(v.plugs, id)
	if err != nil {
		v.lookAgain(ctx)
	}
	return err
}

// leave has QEMU begin to delete the device of a disk; nil: there is none.
func (v *vm) leave(ctx context.Context, id string) (*plug, error) {
	v.filling.Lock()
	defer v.filling.Unlock()
	if err := v.knowDisks(ctx); err != nil {
		return nil, err
	}
	p := v.plugs[id]
	if p == nil || p.gone != nil {
		return p, nil
	}
	gone, err := v.deleteDevice(ctx, plugName(p.lun, id))
	if err != nil {
		v.slots = nil // look again the next time
		return nil, err
	}
	p.gone = gone
	return p, nil
}

// deleteDevice has QEMU begin to delete a device; gone is closed when it has.
func (v *vm) deleteDevice(ctx context.Context, name string) (gone chan struct{}, err error) {
	gone = make(chan struct{})
	v.mu.Lock()
	v.leaving[name] = gone
	v.mu.Unlock()
	if err := v.qmp.DeviceDel(ctx, name).Wait(ctx, nil); err != nil {
		v.left(name)
		return nil, err
	}
	return gone, nil
}

// left is told that QEMU has deleted a device.
func (v *vm) left(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if gone := v.leaving[name]; gone != nil {
		close(gone)
		delete(v.leaving, name)
	}
}
