package guestinit

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guestinit/inroot"
)

// defaultDevices is what every container has in /dev (OCI runtime spec,
// config-linux.md, Default Devices).
var defaultDevices = []specs.LinuxDevice{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
	{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5},
	{Path: "/dev/full", Type: "c", Major: 1, Minor: 7},
	{Path: "/dev/random", Type: "c", Major: 1, Minor: 8},
	{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9},
	{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
}

var devLinks = [][2]string{
	{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"},
	{"pts/ptmx", "ptmx"},
}

// makeDevices fills /dev, in which the default devices are already if fitted.
func (c *container) makeDevices(root *inroot.Dir, fitted bool) error {
	dev, err := root.MkdirAll("/dev", 0o755)
	if err != nil {
		return fmt.Errorf("make /dev: %w", err)
	}
	defer dev.Close()
	devices, links := slices.Concat(defaultDevices, c.spec.Linux.Devices), devLinks
	if fitted {
		devices, links = c.spec.Linux.Devices, nil
	}
	for _, d := range devices {
		if err := makeDevice(root, d); err != nil {
			return fmt.Errorf("make device %s: %w", d.Path, err)
		}
	}
	for _, l := range links {
		if err := unix.Symlinkat(l[0], int(dev.Fd()), l[1]); err != nil && err != unix.EEXIST {
			return fmt.Errorf("link /dev/%s: %w", l[1], err)
		}
	}
	if p := c.spec.Process; p != nil && p.Terminal {
		f, err := root.Touch("/dev/console") // the terminal is mounted over it
		if err != nil {
			return fmt.Errorf("make /dev/console: %w", err)
		}
		f.Close()
	}
	return nil
}

func makeDevice(root *inroot.Dir, d specs.LinuxDevice) error {
	var kind uint32
	switch d.Type {
	case "c", "u":
		kind = unix.S_IFCHR
	case "b":
		kind = unix.S_IFBLK
	case "p":
		kind = unix.S_IFIFO
	default:
		return fmt.Errorf("unknown type %q", d.Type)
	}
	mode := os.FileMode(0o666)
	if d.FileMode != nil {
		mode = d.FileMode.Perm()
	}
	dir, err := root.MkdirAll(path.Dir(path.Clean("/"+d.Path)), 0o755)
	if err != nil {
		return err
	}
	defer dir.Close()
	name := path.Base(d.Path)
	err = unix.Mknodat(int(dir.Fd()), name, kind|uint32(mode), int(unix.Mkdev(uint32(d.Major), uint32(d.Minor))))
	if errors.Is(err, unix.EEXIST) {
		return nil // brought along by the image or a mount
	}
	if err != nil {
		return err
	}
	if d.UID != nil || d.GID != nil {
		return unix.Fchownat(int(dir.Fd()), name, idOr(d.UID), idOr(d.GID), unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}

func idOr(id *uint32) int {
	if id == nil {
		return -1
	}
	return int(*id)
}
