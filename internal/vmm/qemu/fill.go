package qemu

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu/qmp"
)

// Fill implements vmm.Filler. A slot's node is a filter over an empty node,
// which a node of the file takes the place of:
//
//	virtio-blk ── d-ID (raw) ──┬── e-ID (null-co), then deleted
//	                           └── f-ID (file), after blockdev-reopen
//
// All slots are filled or none.
func (v *vm) Fill(ctx context.Context, disks []vmm.Disk) error {
	if len(disks) == 0 {
		return nil
	}
	v.filling.Lock()
	defer v.filling.Unlock()
	return v.command("fill slots of", func() error { return v.fill(ctx, disks) })
}

func (v *vm) fill(ctx context.Context, disks []vmm.Disk) error {
	if err := v.knowDisks(ctx); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for _, d := range disks {
		s, ok := v.slots[d.ID]
		switch {
		case !ok || s.set != 0 || seen[d.ID]:
			return fmt.Errorf("disk %q is no empty slot: %w", d.ID, errdefs.ErrInvalidArgument)
		case s.readOnly != d.ReadOnly:
			return fmt.Errorf("slot %s has read-only %s, unlike the disk: %w", d.ID, onOff(s.readOnly), errdefs.ErrInvalidArgument)
		}
		seen[d.ID] = true
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	var changes []change
	var added []*qmp.Call
	for _, d := range disks {
		f, device, err := openDisk(d)
		if err != nil {
			return err
		}
		files = append(files, f)
		below := qmp.Node{
			Driver: fileDriver(device), Name: fileNode(d.ID), Filename: fdset(v.nextSet + len(changes)),
			ReadOnly: d.ReadOnly, Discard: "unmap",
		}
		changes = append(changes, change{d.ID, below, emptyNode(d.ID)})
	}
	for i := range changes {
		added = append(added, v.qmp.AddFD(ctx, files[i], v.nextSet+i))
	}
	if err := v.replace(ctx, changes, added); err != nil {
		return err
	}
	for i, d := range disks {
		v.slots[d.ID] = slot{d.ReadOnly, v.nextSet + i}
	}
	v.nextSet += len(disks)
	return nil
}

// Empty implements vmm.Filler: what Fill does, the other way.
func (v *vm) Empty(ctx context.Context, ids []string) error {
	v.filling.Lock()
	defer v.filling.Unlock()
	return v.command("empty slots of", func() error { return v.empty(ctx, ids) })
}

func (v *vm) empty(ctx context.Context, ids []string) error {
	if err := v.knowDisks(ctx); err != nil {
		return err
	}
	emptied := make(map[string]slot)
	var changes []change
	for _, id := range ids {
		s, ok := v.slots[id]
		if !ok {
			return fmt.Errorf("disk %q is no slot: %w", id, errdefs.ErrInvalidArgument)
		}
		if _, twice := emptied[id]; s.set == 0 || twice {
			continue
		}
		emptied[id] = s
		below := qmp.Node{
			Driver: "null-co", Name: emptyNode(id), Size: vmm.SlotBytes, ReadZeroes: true,
			ReadOnly: s.readOnly, Discard: "unmap",
		}
		changes = append(changes, change{id, below, fileNode(id)})
	}
	if len(changes) == 0 {
		return nil
	}
	if err := v.replace(ctx, changes, nil); err != nil {
		return err
	}
	var calls []*qmp.Call
	for id, s := range emptied {
		calls = append(calls, v.qmp.RemoveFD(ctx, s.set))
		v.slots[id] = slot{readOnly: s.readOnly}
	}
	return qmp.WaitAll(ctx, calls...)
}

// A change puts another node below that of a disk.
type change struct {
	id   string
	node qmp.Node
	old  string // what is there, and goes
}

// replace makes changes, all or none, after what calls do.
func (v *vm) replace(ctx context.Context, changes []change, calls []*qmp.Call) error {
	var tops []qmp.Node
	for _, c := range changes {
		calls = append(calls, v.qmp.BlockdevAdd(ctx, c.node))
		tops = append(tops, qmp.Node{Driver: "raw", Name: diskNode(c.id), File: c.node.Name, ReadOnly: c.node.ReadOnly, Discard: "unmap"})
	}
	err := qmp.WaitAll(ctx, append(calls, v.qmp.BlockdevReopen(ctx, tops))...)
	if err == nil {
		calls = nil
		for _, c := range changes {
			calls = append(calls, v.qmp.BlockdevDel(ctx, c.old))
		}
		err = qmp.WaitAll(ctx, calls...)
	}
	if err != nil {
		v.lookAgain(ctx)
	}
	return err
}
