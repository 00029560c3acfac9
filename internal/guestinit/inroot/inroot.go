// Package inroot opens and makes files below a container's root without ever
// leaving it: symbolic links, absolute or with "..", are resolved as if that
// directory were the root (openat2(2), RESOLVE_IN_ROOT). What an image or a
// container put there can't lead elsewhere.
package inroot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// A Dir is a directory to stay in, as an O_PATH descriptor.
type Dir struct{ f *os.File }

// Open opens a directory.
func Open(dir string) (*Dir, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", dir, err)
	}
	return &Dir{os.NewFile(uintptr(fd), dir)}, nil
}

// Close closes the descriptor.
func (d *Dir) Close() error { return d.f.Close() }

// FD is the descriptor, valid until Close.
func (d *Dir) FD() int { return int(d.f.Fd()) }

// OpenFile opens name with flags of open(2).
func (d *Dir) OpenFile(name string, flags int, mode uint32) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(d.FD(), clean(name), &how)
		if err == unix.EAGAIN || err == unix.EINTR { // something was renamed on the way
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// clean makes name relative, so that "" and "/" are the root.
func clean(name string) string {
	if name = strings.TrimLeft(name, "/"); name == "" {
		return "."
	}
	return name
}

// Path opens name to refer to it only.
func (d *Dir) Path(name string) (*os.File, error) { return d.OpenFile(name, unix.O_PATH, 0) }

// ReadFile reads a regular file of at most limit bytes.
func (d *Dir) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := d.OpenFile(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: not a regular file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("read %s: larger than %d bytes", name, limit)
	}
	return b, nil
}

// MkdirAll makes name and its parents where they do not exist, and opens it.
func (d *Dir) MkdirAll(name string, mode uint32) (*os.File, error) {
	f, err := d.OpenFile(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	base := clean(name)
	at, err := d.Path("")
	if err != nil {
		return nil, err
	}
	defer func() { at.Close() }()
	done := ""
	for part := range strings.SplitSeq(base, "/") {
		if part == "" {
			continue
		}
		done = done + "/" + part // with its links: OpenFile resolves all of it anew
		next, err := d.OpenFile(done, unix.O_PATH|unix.O_DIRECTORY, 0)
		if errors.Is(err, unix.ENOENT) {
			if part == ".." || part == "." {
				return nil, &os.PathError{Op: "mkdir", Path: name, Err: unix.ENOENT}
			}
			if err := unix.Mkdirat(int(at.Fd()), part, mode); err != nil && err != unix.EEXIST {
				return nil, &os.PathError{Op: "mkdir", Path: done, Err: err}
			}
			next, err = d.OpenFile(done, unix.O_PATH|unix.O_DIRECTORY, 0)
		}
		if err != nil {
			return nil, err
		}
		at.Close()
		at = next
	}
	return d.OpenFile(done, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// Touch makes name a file if it does not exist, with its parents, and opens
// it to refer to it only.
func (d *Dir) Touch(name string) (*os.File, error) {
	f, err := d.Path(name)
	if !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	parent, err := d.MkdirAll(path.Dir(clean(name)), 0o755)
	if err != nil {
		return nil, err
	}
	parent.Close()
	f, err = d.OpenFile(name, unix.O_CREAT|unix.O_RDONLY|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return nil, err
	}
	f.Close()
	return d.Path(name)
}
