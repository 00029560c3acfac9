package vmmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest/testguest"
)

// fakeState is what a Fake saves of a VM: its shape, which a clone must have.
// What its guest remembers is at the start of its memory, up to a zero.
type fakeState struct {
	Machine vmm.Machine
	CPUs    int
	MemMiB  int
	Disks   []vmm.Disk // without paths
	NICs    int
	Plug    bool
}

// maxRemembered is more than testguest can be told in a line.
const maxRemembered = 64 << 10

func stateOf(cfg vmm.Config, machine vmm.Machine) fakeState {
	s := fakeState{Machine: machine, CPUs: cfg.CPUs, MemMiB: cfg.MemMiB, NICs: len(cfg.NICs), Plug: cfg.Plug}
	for _, d := range cfg.Disks {
		s.Disks = append(s.Disks, vmm.Disk{ID: d.ID, ReadOnly: d.ReadOnly})
	}
	return s
}

// restore returns what the guest saved in cfg.Restore remembers.
func restore(cfg vmm.Config, machine vmm.Machine) (string, error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("restore virtual machine %s: %w", cfg.ID, err)
	}
	if err := checkSize(cfg.Restore.Memory, cfg.MemMiB); err != nil {
		return fail(err)
	}
	var readOnly bool
	err := control(cfg.Restore.Memory, func(fd uintptr) error {
		if ro, err := unix.IoctlGetInt(int(fd), unix.BLKROGET); err == nil {
			readOnly = ro != 0
			return nil
		}
		seals, err := unix.FcntlInt(fd, unix.F_GET_SEALS, 0)
		readOnly = seals&unix.F_SEAL_WRITE != 0
		return err
	})
	if err != nil || !readOnly {
		return fail(fmt.Errorf("the memory is neither sealed against writing nor a read-only device: %w", errdefs.ErrInvalidArgument))
	}
	var saved fakeState
	if err := json.NewDecoder(io.NewSectionReader(cfg.Restore.State, 0, 1<<20)).Decode(&saved); err != nil {
		return fail(fmt.Errorf("read state: %w", err))
	}
	if want := stateOf(cfg, machine); !reflect.DeepEqual(saved, want) {
		return fail(fmt.Errorf("the state is of %+v, not %+v: %w", saved, want, errdefs.ErrInvalidArgument))
	}
	b := make([]byte, maxRemembered)
	if _, err := cfg.Restore.Memory.ReadAt(b, 0); err != nil {
		return fail(fmt.Errorf("read memory: %w", err))
	}
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text), nil
}

func checkSize(memory *os.File, memMiB int) error {
	size, err := memory.Seek(0, io.SeekEnd) // a device's is not in its Stat
	if err == nil && size != int64(memMiB)<<20 {
		err = fmt.Errorf("memory has %d bytes, not %d MiB: %w", size, memMiB, errdefs.ErrInvalidArgument)
	}
	return err
}

// Save implements vmm.Saver. The guest stays paused.
func (v fakeView) Save(ctx context.Context, state *os.File) error {
	if err := v.Pause(ctx); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	fail := func(err error) error { return fmt.Errorf("save virtual machine %s: %w", v.cfg.ID, err) }
	if v.memory == nil {
		return fail(fmt.Errorf("its memory is its own: %w", errdefs.ErrFailedPrecondition))
	}
	for _, d := range v.disks {
		if d.Path != "" {
			return fail(fmt.Errorf("disk %s is no empty slot: %w", d.ID, errdefs.ErrFailedPrecondition))
		}
	}
	if _, err := v.memory.WriteAt([]byte(v.remembered+"\x00"), 0); err != nil {
		return fail(err)
	}
	if err := json.NewEncoder(state).Encode(stateOf(v.cfg, v.handle.Machine)); err != nil {
		return fail(err)
	}
	return nil
}

// Fill implements vmm.Filler.
func (v fakeView) Fill(ctx context.Context, disks []vmm.Disk) error {
	if err := v.alive(ctx); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	filled := slices.Clone(v.disks)
	for _, d := range disks {
		i := slices.IndexFunc(filled, func(slot vmm.Disk) bool { return slot.ID == d.ID })
		var err error
		switch {
		case i < 0:
			err = fmt.Errorf("there is no such slot: %w", errdefs.ErrNotFound)
		case filled[i].Path != "":
			err = fmt.Errorf("it is not empty: %w", errdefs.ErrAlreadyExists)
		case filled[i].ReadOnly != d.ReadOnly:
			err = fmt.Errorf("it is read-only or the disk is, not both: %w", errdefs.ErrInvalidArgument)
		default:
			err = checkFile(d.Path)
		}
		if err != nil {
			return fmt.Errorf("fill slot %s of virtual machine %s: %w", d.ID, v.cfg.ID, err)
		}
		filled[i].Path = d.Path
	}
	v.disks = filled
	return nil
}

// Empty implements vmm.Filler.
func (v fakeView) Empty(ctx context.Context, ids []string) error {
	if err := v.alive(ctx); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	emptied := slices.Clone(v.disks)
	for _, id := range ids {
		i := slices.IndexFunc(emptied, func(slot vmm.Disk) bool { return slot.ID == id })
		if i < 0 {
			return fmt.Errorf("empty slot %q of virtual machine %s: there is none: %w", id, v.cfg.ID, errdefs.ErrInvalidArgument)
		}
		emptied[i].Path = ""
	}
	v.disks = emptied
	return nil
}

// Plug implements vmm.Plugger.
func (v fakeView) Plug(ctx context.Context, d vmm.Disk) error {
	if err := v.alive(ctx); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	err := d.Validate()
	same := func(other vmm.Disk) bool { return other.ID == d.ID }
	switch {
	case err != nil:
	case !v.cfg.Plug:
		err = fmt.Errorf("it was not started for that: %w", errdefs.ErrNotImplemented)
	case slices.ContainsFunc(slices.Concat(v.disks, v.plugged), same):
		err = fmt.Errorf("there is a disk with that ID: %w", errdefs.ErrAlreadyExists)
	case len(v.plugged) >= vmm.MaxPlugged:
		err = fmt.Errorf("it has %d already: %w", len(v.plugged), errdefs.ErrResourceExhausted)
	default:
		err = checkFile(d.Path)
	}
	if err != nil {
		return fmt.Errorf("plug disk %q into virtual machine %s: %w", d.ID, v.cfg.ID, err)
	}
	v.plugged = append(v.plugged, d)
	return nil
}

// Unplug implements vmm.Plugger.
func (v fakeView) Unplug(ctx context.Context, id string) error {
	if err := v.alive(ctx); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.plugged = slices.DeleteFunc(v.plugged, func(d vmm.Disk) bool { return d.ID == id })
	return nil
}

// checkFile wants a regular file.
func checkFile(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file: %w", path, errdefs.ErrInvalidArgument)
	}
	return err
}

// openDisk opens a disk as the guest does. A disk that was an empty slot at
// first, or is a clone's, has the size of one.
func (v *fakeVM) openDisk(id string, flags int) (testguest.Disk, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	disks := slices.Concat(v.disks, v.plugged)
	i := slices.IndexFunc(disks, func(d vmm.Disk) bool { return d.ID == id })
	if i < 0 {
		return nil, fmt.Errorf("no disk %q", id)
	}
	d := disks[i]
	if d.ReadOnly && flags&unix.O_ACCMODE != os.O_RDONLY {
		return nil, unix.EROFS
	}
	if d.Path == "" {
		return emptySlot{}, nil
	}
	f, err := os.OpenFile(d.Path, flags, 0)
	if err != nil {
		return nil, err
	}
	if i < len(v.disks) && (v.cfg.Restore != nil || v.cfg.Disks[i].Path == "") {
		return filledSlot{f}, nil
	}
	return f, nil
}

// A filledSlot is a file that seems to be as large as a slot.
type filledSlot struct{ *os.File }

// Seek only tells the size.
func (filledSlot) Seek(int64, int) (int64, error) { return vmm.SlotBytes, nil }

// An emptySlot reads as zeros and forgets what is written.
type emptySlot struct{}

func (emptySlot) ReadAt(b []byte, _ int64) (int, error)  { clear(b); return len(b), nil }
func (emptySlot) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
func (emptySlot) Seek(int64, int) (int64, error)         { return vmm.SlotBytes, nil }
func (emptySlot) Sync() error                            { return nil }
func (emptySlot) Close() error                           { return nil }

// duplicate makes a descriptor of its own for the same open file.
func duplicate(f *os.File) (*os.File, error) {
	var fd int
	err := control(f, func(old uintptr) (err error) {
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
