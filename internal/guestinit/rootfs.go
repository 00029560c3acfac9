package guestinit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/device"
	"github.com/hyper-run/hyper/internal/guestinit/inroot"
)

// disks are the devices of a root file system.
type disks struct {
	layers []string // lowest first
	upper  string   // "": none
}

// diskPatience is how long a disk may take to show up after it was plugged in.
const diskPatience = 5 * time.Second

// A finder finds disks by their IDs. It has what the Service knew of them,
// which a clone has from its template, and asks the VM only for others.
type finder struct {
	known map[string]string // device by ID; others read it: replaced, never changed
	asked bool
}

func (s *Service) finder() *finder {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &finder{known: s.disks}
}

// keep remembers what a finder has learned.
func (s *Service) keep(f *finder) {
	if !f.asked {
		return
	}
	disks := maps.Clone(f.known)
	maps.DeleteFunc(disks, func(_, dev string) bool { return !device.Stays(dev) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disks = disks
}

func (f *finder) find(ctx context.Context, id string) (string, error) {
	if f.known[id] == "" && !f.asked {
		all := device.Disks(f.known)
		maps.Copy(all, f.known)
		f.known, f.asked = all, true
	}
	if dev := f.known[id]; dev != "" {
		return dev, nil
	}
	ctx, cancel := context.WithTimeout(ctx, diskPatience)
	defer cancel()
	return device.Disk(ctx, id, f.known)
}

// findDisks finds the devices of a root file system.
func (s *Service) findDisks(ctx context.Context, r *wire.RootFS) (*disks, error) {
	f := s.finder()
	defer s.keep(f)
	d := new(disks)
	for _, id := range r.GetLayers() {
		dev, err := f.find(ctx, id)
		if err != nil {
			return nil, err
		}
		d.layers = append(d.layers, dev)
	}
	var err error
	if r.GetUpper() != "" {
		d.upper, err = f.find(ctx, r.Upper)
	}
	return d, err
}

// mountRoot puts the container's root together in workDir, where this thread
// is, makes it the thread's root and drops all else from its mount namespace:
//
//	workDir     tmpfs, seen by nobody else
//	  0, 1, …   EROFS layers, lowest first; 0 is empty if there is none
//	  d         the writable disk, or a directory of the tmpfs; in it upper, work
//	  r         the overlay of these
func (c *container) mountRoot(d *disks, r *wire.CreateContainerRequest) (*inroot.Dir, error) {
	if err := mountOverlay(d); err != nil {
		return nil, err
	}
	if err := c.populate(r); err != nil {
		return nil, err
	}
	if err := os.Chdir(workDir + "/r"); err != nil {
		return nil, err
	}
	// The new root on top of the old, then the old one gone: no directory needed.
	if err := unix.PivotRoot(".", "."); err != nil {
		return nil, fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return nil, fmt.Errorf("unmount old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return nil, err
	}
	return inroot.Open("/")
}

// mountPoints are the directories of workDir that every root needs; a stage
// may have them ready.
var mountPoints = []string{"0", "d", "r"}

// makeDirs makes those directories that are not there.
func makeDirs(names ...string) error {
	for _, name := range names {
		if err := os.Mkdir(name, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// diskOptions are those of ext4. Which blocks are free is read when it is needed: reading
// it all at once takes a thread, and memory for each 128 MiB of the disk.
const diskOptions = "discard,no_prefetch_block_bitmaps"

func mountOverlay(d *disks) error {
	if err := makeDirs(mountPoints...); err != nil {
		return err
	}
	lower, err := mountLayers(d.layers)
	if err != nil {
		return err
	}
	const upper, work = "d/upper", "d/work"
	if d.upper == "" {
		err = makeDirs(upper, work)
	} else if err = unix.Mount(d.upper, "d", "ext4", 0, diskOptions); err != nil {
		err = fmt.Errorf("mount writable disk: %w", err)
	}
	if err != nil {
		return err
	}
	options := "lowerdir=" + strings.Join(lower, ":") + ",upperdir=" + upper + ",workdir=" + work
	err = unix.Mount("overlay", "r", "overlay", 0, options)
	if errors.Is(err, unix.ENOENT) { // not every disk comes with the directories
		if err := makeDirs(upper, work); err != nil {
			return err
		}
		err = unix.Mount("overlay", "r", "overlay", 0, options)
	}
	if err != nil {
		return fmt.Errorf("mount overlay of %d layers: %w", len(d.layers), err)
	}
	return nil
}

// mountLayers returns the directories of the lower layers, highest first:
// without a layer, an empty one.
func mountLayers(devices []string) ([]string, error) {
	lower := []string{"0"}
	for i, dev := range devices {
		name := strconv.Itoa(i)
		if i > 0 {
			if err := makeDirs(name); err != nil {
				return nil, err
			}
			lower = append([]string{name}, lower...)
		}
		if err := unix.Mount(dev, name, "erofs", unix.MS_RDONLY, ""); err != nil {
			return nil, fmt.Errorf("mount layer %d: %w", i, err)
		}
	}
	return lower, nil
}
