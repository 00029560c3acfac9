package guestinit

import (
	"fmt"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guestinit/inroot"
)

// Fittings are what a stage has of what an ordinary container asks for, so
// that one which asks for the same need not make it.
type fittings struct {
	mounts  []specs.Mount // below fitDir, but for proc; the first of a container's, or not used
	dev     bool          // a /dev with the default devices is among them
	devices []specs.LinuxDeviceCgroup
}

// fitDir is where a stage has them.
const fitDir = workDir + "/p"

// fit makes fittings on this thread, the stage's.
func (s *stage) fit(spec *specs.Spec) error {
	if err := os.Mkdir(fitDir, 0o755); err != nil {
		return err
	}
	root, err := inroot.Open(fitDir)
	if err != nil {
		return err
	}
	defer root.Close()
	c := &container{spec: &specs.Spec{Linux: &specs.Linux{}}, group: s.group}
	n := slices.IndexFunc(spec.Mounts, func(m specs.Mount) bool { return !independent(m) })
	if n < 0 {
		n = len(spec.Mounts)
	}
	for _, m := range spec.Mounts[:n] {
		if err := c.mount(root, m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
	}
	if err := c.makeDevices(root, false); err != nil {
		return err
	}
	s.ready.mounts = spec.Mounts[:n]
	s.ready.dev = slices.ContainsFunc(s.ready.mounts, func(m specs.Mount) bool { return path.Clean(m.Destination) == "/dev" })
	if spec.Linux == nil || spec.Linux.Resources == nil {
		return nil
	}
	s.ready.devices = spec.Linux.Resources.Devices
	return s.group.Set(&specs.LinuxResources{Devices: s.ready.devices})
}

// independent says whether a mount does not depend on what it is mounted over.
func independent(m specs.Mount) bool {
	mode := func(o string) bool { return strings.HasPrefix(o, "mode=") }
	return m.Type != "tmpfs" || slices.ContainsFunc(m.Options, mode)
}

// limit sets the container's limits. The rules on devices may be there.
func (f *fittings) limit(c *container) error {
	var r specs.LinuxResources
	if c.spec.Linux.Resources != nil {
		r = *c.spec.Linux.Resources
	}
	switch {
	case len(f.devices) == 0:
	case len(r.Devices) == 0:
		if err := c.group.AllowAllDevices(); err != nil {
			return err
		}
	case reflect.DeepEqual(r.Devices, f.devices):
		r.Devices = nil
	}
	return c.group.Set(&r)
}

// fitted mounts the fittings in root, and returns how many of the container's
// mounts these are. File systems such as sysfs and mqueue show the namespaces
// they were mounted in, so a container with its own ones makes its own.
func (c *container) fitted(root *inroot.Dir) (int, error) {
	n := len(c.ready.mounts)
	if n == 0 || len(c.spaces) > 1 || len(c.spec.Mounts) < n || !reflect.DeepEqual(c.spec.Mounts[:n], c.ready.mounts) {
		return 0, nil
	}
	var done []string
	for _, m := range c.ready.mounts {
		dest := path.Clean("/" + m.Destination)
		if m.Type == "proc" {
			if err := c.mount(root, m); err != nil {
				return 0, fmt.Errorf("mount %s: %w", dest, err)
			}
			continue
		}
		if slices.ContainsFunc(done, func(dir string) bool { return strings.HasPrefix(dest, dir+"/") }) {
			continue // with it
		}
		if err := copyTo(root, dest); err != nil {
			return 0, fmt.Errorf("mount %s: %w", dest, err)
		}
		done = append(done, dest)
	}
	return n, nil
}

// copyTo mounts a copy of the fittings at dest, with all below it: the
// mounts themselves would be listed before the root, which is younger.
func copyTo(root *inroot.Dir, dest string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, fitDir+dest, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return attach(root, dest, tree, false)
}
