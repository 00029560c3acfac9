package guestinit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/inroot"
)

// volumesDir is where the pod's volumes are mounted, each below its name.
const volumesDir = podDir + "/volumes"

// A volume is one that is mounted.
type volume struct {
	disk     bool
	readOnly bool // for containers: it has files
}

// addVolumes mounts those volumes that are not there yet. The caller holds
// s.configuring.
func (s *Service) addVolumes(list []*wire.Volume) error {
	for _, v := range list {
		if err := checkVolume(v); err != nil {
			return err
		}
		s.mu.Lock()
		_, there := s.volumes[v.Name]
		s.mu.Unlock()
		if there {
			continue
		}
		if err := s.addVolume(v); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}

const maxVolumeName = 63

func checkVolume(v *wire.Volume) error {
	letters := strings.Trim(v.Name, "abcdefghijklmnopqrstuvwxyz0123456789-")
	if v.Name == "" || len(v.Name) > maxVolumeName || letters != "" {
		return fmt.Errorf("volume %q: bad name", v.Name)
	}
	if v.Mode > 0o7777 {
		return fmt.Errorf("volume %s: bad mode %o", v.Name, v.Mode)
	}
	return nil
}

func (s *Service) addVolume(v *wire.Volume) error {
	dir := path.Join(volumesDir, v.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	mounted := false
	err := s.mountVolume(dir, v)
	if err == nil {
		mounted = true
		err = fillVolume(dir, v)
	}
	if err != nil {
		if mounted {
			unix.Unmount(dir, unix.MNT_DETACH)
		}
		os.Remove(dir)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.volumes == nil {
		s.volumes = map[string]volume{}
	}
	s.volumes[v.Name] = volume{disk: v.Disk != "", readOnly: len(v.Files) > 0}
	return nil
}

func (s *Service) mountVolume(dir string, v *wire.Volume) error {
	if v.Disk == "" {
		options := ""
		if v.Bytes != 0 {
			options = fmt.Sprintf("size=%d", v.Bytes)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
			return fmt.Errorf("mount memory: %w", err)
		}
		return nil
	}
	f := s.finder()
	defer s.keep(f)
	dev, err := f.find(context.Background(), v.Disk)
	if err != nil {
		return err
	}
	if err := unix.Mount(dev, dir, "ext4", 0, diskOptions); err != nil {
		return fmt.Errorf("mount disk %s: %w", v.Disk, err)
	}
	if err := mountInstead(dir, "upper"); err != nil {
		unix.Unmount(dir, unix.MNT_DETACH)
		return err
	}
	return nil
}

// mountInstead makes one directory of what is mounted at dir take its place.
func mountInstead(dir, name string) error {
	if err := os.Mkdir(path.Join(dir, name), 0o755); err != nil && !os.IsExist(err) {
		return err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, path.Join(dir, name), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("clone %s: %w", name, err)
	}
	defer unix.Close(tree)
	if err := unix.Unmount(dir, 0); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", name, err)
	}
	return nil
}

// fillVolume gives a volume its mode and group and puts its files into it.
func fillVolume(dir string, v *wire.Volume) error {
	root, err := inroot.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	mode := v.Mode
	if mode == 0 {
		mode = 0o777
	}
	if v.Gid != 0 {
		mode |= unix.S_ISGID
		if err := os.Chown(dir, -1, int(v.Gid)); err != nil {
			return err
		}
	}
	if err := unix.Chmod(dir, mode); err != nil {
		return err
	}
	for _, f := range v.Files {
		if err := putFile(root, f, int(v.Gid)); err != nil {
			return fmt.Errorf("put file %s: %w", f.Path, err)
		}
	}
	return nil
}

// putFile replaces what is there: a disk may have it from an earlier VM, with
// whatever containers made of it.
func putFile(root *inroot.Dir, f *wire.File, gid int) error {
	name := path.Clean("/" + f.Path)
	if name == "/" || f.Mode > 0o7777 {
		return errors.New("bad path or mode")
	}
	dir, err := root.MkdirAll(path.Dir(name), 0o755)
	if err != nil {
		return err
	}
	defer dir.Close()
	at := int(dir.Fd())
	if err := unix.Unlinkat(at, path.Base(name), 0); err != nil && err != unix.ENOENT {
		return err
	}
	fd, err := unix.Openat(at, path.Base(name), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	if _, err := file.Write(f.Content); err != nil {
		return err
	}
	if err := file.Chown(-1, gid); err != nil {
		return err
	}
	return unix.Fchmod(int(file.Fd()), f.Mode) // after chown, which takes bits away
}

// A volumeTree is a part of a volume that is about to be mounted.
type volumeTree struct {
	fd       int
	file     bool // and not a directory
	readOnly bool
}

// volumeOf splits the source of a mount. ok says that it is one of a volume.
func volumeOf(m specs.Mount) (name, sub string, ok bool) {
	rest, ok := strings.CutPrefix(m.Source, volumesDir+"/")
	if !ok || m.Type != "bind" && !parseOptions(m.Options).bind {
		return "", "", false
	}
	name, sub, _ = strings.Cut(rest, "/")
	return name, sub, true
}

// openVolumes opens what the container mounts of volumes, in the order of its
// mounts. It is done on a thread of the VM's mount namespace: a stage's was
// made before some of the volumes were mounted, and has none of them.
func (s *Service) openVolumes(c *container) error {
	for _, m := range c.spec.Mounts {
		name, sub, ok := volumeOf(m)
		if !ok {
			continue
		}
		s.mu.Lock()
		v, ok := s.volumes[name]
		s.mu.Unlock()
		if !ok {
			return status.Errorf(codes.InvalidArgument, "mount %s: the pod has no volume %q", m.Destination, name)
		}
		tree, err := openVolume(name, sub, parseOptions(m.Options).recursive)
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "mount %s: volume %s: %v", m.Destination, name, err)
		}
		tree.readOnly = v.readOnly
		c.trees = append(c.trees, tree)
		if v.disk {
			c.synced = append(c.synced, path.Join(volumesDir, name))
		}
	}
	return nil
}

// openVolume opens a directory or file of a volume, never outside of it, whatever
// containers have put there. A directory that is missing is made as the volume is.
func openVolume(name, sub string, recursive bool) (volumeTree, error) {
	root, err := inroot.Open(path.Join(volumesDir, name))
	if err != nil {
		return volumeTree{}, err
	}
	defer root.Close()
	f, err := root.Path(sub)
	if errors.Is(err, unix.ENOENT) {
		var top unix.Stat_t
		if err := unix.Fstat(root.FD(), &top); err != nil {
			return volumeTree{}, err
		}
		f, err = root.MkdirAll(sub, top.Mode&0o1777)
	}
	if err != nil {
		return volumeTree{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return volumeTree{}, err
	}
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(int(f.Fd()), "", flags)
	if err != nil {
		return volumeTree{}, fmt.Errorf("clone %s: %w", sub, err)
	}
	return volumeTree{fd: fd, file: !fi.IsDir()}, nil
}

// removeVolumes unmounts all volumes, which no container uses any more.
func (s *Service) removeVolumes() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.volumes {
		unix.Unmount(path.Join(volumesDir, name), unix.MNT_DETACH)
	}
	s.volumes = nil
}
