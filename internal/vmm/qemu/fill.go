package qemu

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu/qmp"
)

// firstFillSet is the first number of a set of descriptors that Fill uses;
// those below are argv's.
const firstFillSet = 1 + vmm.MaxDisks

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
	if v.slots == nil {
		if err := v.findSlots(ctx); err != nil {
			return err
		}
	}
	left := maps.Clone(v.slots)
	for _, d := range disks {
		readOnly, empty := left[d.ID]
		switch {
		case !empty:
			return fmt.Errorf("disk %q is no empty slot: %w", d.ID, errdefs.ErrInvalidArgument)
		case readOnly != d.ReadOnly:
			return fmt.Errorf("slot %s has read-only %s, unlike the disk: %w", d.ID, onOff(readOnly), errdefs.ErrInvalidArgument)
		}
		delete(left, d.ID)
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	var nodes []qmp.Node
	for _, d := range disks {
		f, device, err := openDisk(d)
		if err != nil {
			return err
		}
		files = append(files, f)
		nodes = append(nodes, qmp.Node{Driver: fileDriver(device), Name: fileNode(d.ID), ReadOnly: d.ReadOnly, Discard: "unmap"})
	}
	if err := v.replace(ctx, disks, nodes, files); err != nil {
		return err
	}
	v.slots = left
	return nil
}

// replace puts nodes of files under the nodes of disks.
func (v *vm) replace(ctx context.Context, disks []vmm.Disk, nodes []qmp.Node, files []*os.File) error {
	var calls []*qmp.Call
	var tops []qmp.Node
	for i, n := range nodes {
		// A set stays as long as its node: QEMU drops it when that goes.
		n.Filename = fdset(v.nextSet)
		calls = append(calls, v.qmp.AddFD(ctx, files[i], v.nextSet), v.qmp.BlockdevAdd(ctx, n))
		v.nextSet++
		tops = append(tops, qmp.Node{Driver: "raw", Name: diskNode(disks[i].ID), File: n.Name, ReadOnly: n.ReadOnly, Discard: "unmap"})
	}
	calls = append(calls, v.qmp.BlockdevReopen(ctx, tops))
	err := qmp.WaitAll(ctx, calls...)
	// What is no longer below a disk's node goes: the empty nodes, or, when
	// that failed, those of the files. Others QEMU refuses to delete.
	calls = nil
	for i, d := range disks {
		unused := emptyNode(d.ID)
		if err != nil {
			unused = nodes[i].Name
		}
		calls = append(calls, v.qmp.BlockdevDel(ctx, unused))
	}
	if err != nil {
		_ = qmp.WaitAll(ctx, calls...)
		return err
	}
	return qmp.WaitAll(ctx, calls...)
}

// findSlots asks QEMU which slots are empty, after another hyperd may have
// filled some.
func (v *vm) findSlots(ctx context.Context) error {
	sets, err := v.qmp.FDSets(ctx)
	if err != nil {
		return err
	}
	v.nextSet = max(firstFillSet, slices.Max(append(sets, 0))+1)
	nodes, err := v.qmp.BlockNodes(ctx)
	if err != nil {
		return err
	}
	v.slots = make(map[string]bool)
	for _, n := range nodes {
		if id, ok := strings.CutPrefix(n.Name, emptyNode("")); ok {
			v.slots[id] = n.ReadOnly
		}
	}
	return nil
}
