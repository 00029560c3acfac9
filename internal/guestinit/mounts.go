package guestinit

import (
	"fmt"
	"os"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/inroot"
)

// populate mounts what belongs into the container's root, with paths
// resolved inside it.
func (c *container) populate(r *wire.CreateContainerRequest) error {
	root, err := inroot.Open(workDir + "/r")
	if err != nil {
		return err
	}
	defer root.Close()
	done, err := c.fitted(root)
	if err != nil {
		return err
	}
	for _, m := range c.spec.Mounts[done:] {
		if err := c.mount(root, m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
	}
	if err := c.makeDevices(root, c.ready.dev && done > 0 && done == len(c.spec.Mounts)); err != nil {
		return err
	}
	for i, f := range r.Files {
		if err := bindFile(root, i, f); err != nil {
			return fmt.Errorf("put %s into container: %w", f.Path, err)
		}
	}
	if r.GetRootfs().GetReadOnly() || c.spec.Root != nil && c.spec.Root.Readonly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(root.FD(), "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("make root read-only: %w", err)
		}
	}
	return nil
}

func (c *container) mount(root *inroot.Dir, m specs.Mount) error {
	if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
		return fmt.Errorf("id-mapped mounts are not supported")
	}
	dest := path.Clean("/" + m.Destination)
	o := parseOptions(m.Options)
	if m.Type == "proc" || len(c.late) > 0 && strings.HasPrefix(dest, path.Clean(c.late[0].Destination)+"/") {
		// A proc shows the PID namespace of the process that mounts it.
		f, err := root.MkdirAll(dest, 0o755)
		if err != nil {
			return err
		}
		f.Close()
		c.late = append(c.late, specs.Mount{Destination: dest, Type: m.Type, Source: m.Source, Options: m.Options})
		if m.Type != "proc" && m.Type != "tmpfs" {
			return fmt.Errorf("only a tmpfs can be mounted below /proc")
		}
		return nil
	}
	if m.Type == "tmpfs" {
		o.data = append(modeOf(root, dest), o.data...)
	}
	tree, file, err := c.openTree(m, o)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := attach(root, dest, tree, file); err != nil {
		return err
	}
	return nil
}

// modeOf is the option that gives a tmpfs the mode of the directory it hides,
// as runc does; there may be none.
func modeOf(root *inroot.Dir, name string) []string {
	f, err := root.Path(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	return []string{fmt.Sprintf("mode=%04o", st.Mode&0o7777)}
}

// openTree makes a mount that is not attached anywhere yet. file says that
// it is one file and not a directory.
func (c *container) openTree(m specs.Mount, o options) (tree int, file bool, err error) {
	_, _, volume := volumeOf(m)
	switch {
	case volume:
		t := c.trees[0]
		c.trees = c.trees[1:]
		tree, file = t.fd, t.file
		if t.readOnly {
			o.set |= unix.MOUNT_ATTR_RDONLY
			o.clear &^= unix.MOUNT_ATTR_RDONLY
		}
	case m.Type == "bind" || o.bind:
		tree, file, err = clonePods(path.Clean(m.Source), o)
	case m.Type == "cgroup" || m.Type == "cgroup2":
		tree, file, err = cloneTree(c.group.Dir(), o)
	default:
		tree, err = newFilesystem(m, o)
		return tree, false, err
	}
	if err != nil {
		return -1, false, err
	}
	attr := unix.MountAttr{Attr_set: o.set, Attr_clr: o.clear, Propagation: o.propagation}
	if attr != (unix.MountAttr{}) {
		flags := uint(unix.AT_EMPTY_PATH)
		if o.recursive {
			flags |= unix.AT_RECURSIVE
		}
		if err := unix.MountSetattr(tree, "", flags, &attr); err != nil {
			unix.Close(tree)
			return -1, false, fmt.Errorf("set options: %w", err)
		}
	}
	return tree, file, nil
}

// clonePods clones a directory of the pod's, which is made if it does not exist.
func clonePods(source string, o options) (tree int, file bool, err error) {
	if !strings.HasPrefix(source, podDir+"/") {
		return -1, false, fmt.Errorf("source %s is not below %s", source, podDir)
	}
	if strings.HasPrefix(source+"/", volumesDir+"/") {
		return -1, false, fmt.Errorf("source %s is no volume", source)
	}
	if err := os.MkdirAll(path.Dir(source), 0o755); err != nil {
		return -1, false, err
	}
	if err := os.Mkdir(source, 0o755); err != nil && !os.IsExist(err) {
		return -1, false, err
	}
	return cloneTree(source, o)
}

func cloneTree(source string, o options) (tree int, file bool, err error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if o.recursive {
		flags |= unix.AT_RECURSIVE
	}
	fi, err := os.Stat(source)
	if err != nil {
		return -1, false, err
	}
	tree, err = unix.OpenTree(unix.AT_FDCWD, source, flags)
	if err != nil {
		return -1, false, fmt.Errorf("clone %s: %w", source, err)
	}
	return tree, !fi.IsDir(), nil
}

// newFilesystem mounts a file system of its own, such as a tmpfs.
func newFilesystem(m specs.Mount, o options) (int, error) {
	fs, err := unix.Fsopen(m.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("file system %q: %w", m.Type, err)
	}
	defer unix.Close(fs)
	source := m.Source
	if source == "" {
		source = m.Type
	}
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return -1, fmt.Errorf("set source: %w", err)
	}
	for _, d := range o.data {
		key, value, has := strings.Cut(d, "=")
		if has {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return -1, fmt.Errorf("option %s: %w", d, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(o.set))
	if err != nil {
		return -1, err
	}
	return tree, nil
}

// attach mounts a tree at a path in root, which it makes if need be.
func attach(root *inroot.Dir, dest string, tree int, file bool) error {
	var target *os.File
	var err error
	if file {
		target, err = root.Touch(dest)
	} else {
		target, err = root.MkdirAll(dest, 0o755)
	}
	if err != nil {
		return err
	}
	defer target.Close()
	return unix.MoveMount(tree, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// bindFile puts a file, held in memory, into root.
func bindFile(root *inroot.Dir, i int, f *wire.File) error {
	name := fmt.Sprintf("%s/f%d", workDir, i)
	if err := os.WriteFile(name, f.Content, os.FileMode(f.Mode&0o777)); err != nil {
		return err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return attach(root, f.Path, tree, true)
}
