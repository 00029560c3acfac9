package qemu

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu/qmp"
)

// Names of block nodes; their common length counts (see qmp.Client.Send).
func diskNode(id string) string  { return "d-" + id } // the guest's disk
func emptyNode(id string) string { return "e-" + id } // below that, of a slot that is empty
func fileNode(id string) string  { return "f-" + id } // below that, of the file

// slotOf returns the ID of the disk that a node is below.
func slotOf(node string) (id string, ok bool) {
	if id, ok = strings.CutPrefix(node, emptyNode("")); !ok {
		id, ok = strings.CutPrefix(node, fileNode(""))
	}
	return id, ok
}

// plugName is the name of the device of a disk that was plugged in, and of its node:
// all that is known of it, so that it is known after Adopt.
func plugName(lun int, id string) string { return "p" + strconv.Itoa(lun) + "-" + id }

// plugOf is the other way of plugName; lun is 0 for another name.
func plugOf(name string) (lun int, id string) {
	number, id, _ := strings.Cut(name, "-")
	if number, ok := strings.CutPrefix(number, "p"); ok {
		lun, _ = strconv.Atoi(number)
	}
	return lun, id
}

// diskSet is the number of the set of descriptors of the i-th disk, from 1 on.
func diskSet(i int) int { return i + 1 }

// firstFreeSet is the first number of a set of descriptors that Fill and Plug
// use; those below are argv's.
const firstFreeSet = 1 + vmm.MaxDisks

const setPath = "/dev/fdset/"

// fdset is the name of a set of descriptors.
func fdset(n int) string { return setPath + strconv.Itoa(n) }

// setOf is the other way of fdset; 0: file is not in one.
func setOf(file string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(file, setPath))
	return n
}

// A slot is what there is below the node of a disk.
type slot struct {
	readOnly bool
	set      int // of the descriptor of its file; 0: none
}

// slotsOf are disks as argv has them.
func slotsOf(disks []vmm.Disk) map[string]slot {
	slots := make(map[string]slot)
	for i, d := range disks {
		s := slot{readOnly: d.ReadOnly}
		if d.Path != "" {
			s.set = diskSet(i)
		}
		slots[d.ID] = s
	}
	return slots
}

// knowDisks asks QEMU what disks there are, unless that is known: another
// hyperd may have changed them. What one that was killed had begun is undone.
func (v *vm) knowDisks(ctx context.Context) error {
	if v.slots != nil {
		return nil
	}
	devices, err := v.qmp.Devices(ctx)
	if err != nil {
		return err
	}
	nodes, err := v.qmp.BlockNodes(ctx)
	if err != nil {
		return err
	}
	if calls := v.dropUnused(ctx, nodes, devices); len(calls) > 0 {
		_ = qmp.WaitAll(ctx, calls...) // QEMU refuses for those in use
		if nodes, err = v.qmp.BlockNodes(ctx); err != nil {
			return err
		}
	}
	v.nextSet, err = v.dropSets(ctx, nodes)
	if err != nil {
		return err
	}
	v.plugs = nil
	if slices.Contains(devices, controller) {
		v.plugs = make(map[string]*plug)
	}
	slots := make(map[string]slot)
	for _, n := range nodes {
		lun, plugged := plugOf(n.Name)
		if id, ok := slotOf(n.Name); ok {
			slots[id] = slot{n.ReadOnly, setOf(n.File)}
		} else if lun != 0 && slices.Contains(devices, n.Name) {
			v.plugs[plugged] = &plug{lun: lun, set: setOf(n.File)}
			v.lastLUN = max(v.lastLUN, lun)
		}
	}
	v.slots = slots
	return nil
}

// dropUnused deletes nodes that nothing uses, as far as QEMU does so: of two
// below one disk it refuses to delete the one it uses.
func (v *vm) dropUnused(ctx context.Context, nodes []qmp.NodeInfo, devices []string) []*qmp.Call {
	var calls []*qmp.Call
	seen := make(map[string]bool)
	for _, n := range nodes {
		id, ok := slotOf(n.Name)
		lun, _ := plugOf(n.Name)
		switch {
		case ok && seen[id]:
			calls = append(calls, v.qmp.BlockdevDel(ctx, emptyNode(id)), v.qmp.BlockdevDel(ctx, fileNode(id)))
		case ok:
			seen[id] = true
		case lun != 0 && !slices.Contains(devices, n.Name):
			calls = append(calls, v.qmp.BlockdevDel(ctx, n.Name))
		}
	}
	return calls
}

// dropSets closes the descriptors that no node uses. next is a number that is free,
// as are all above it.
func (v *vm) dropSets(ctx context.Context, nodes []qmp.NodeInfo) (next int, err error) {
	sets, err := v.qmp.FDSets(ctx)
	if err != nil {
		return 0, err
	}
	var calls []*qmp.Call
	for _, set := range sets {
		if !slices.ContainsFunc(nodes, func(n qmp.NodeInfo) bool { return setOf(n.File) == set }) {
			calls = append(calls, v.qmp.RemoveFD(ctx, set))
		}
	}
	return max(firstFreeSet, slices.Max(append(sets, 0))+1), qmp.WaitAll(ctx, calls...)
}

// undoTimeout bounds the undoing of what could not be done, or not be waited for.
const undoTimeout = 2 * time.Second

func undoing(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
}

// lookAgain undoes what was begun, after an error, which may be that of the
// waiting only.
func (v *vm) lookAgain(ctx context.Context) {
	ctx, cancel := undoing(ctx)
	defer cancel()
	v.slots = nil
	_ = v.knowDisks(ctx) // or the next time
}
