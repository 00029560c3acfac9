package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func newRandom() io.Reader {
	return rand.NewChaCha8([32]byte([]byte("hyper test images, always alike.")))
}

const overlayPrefix = "trusted.overlay."

// tarUpper writes the layer that an overlay's upper directory (or any
// directory) stands for: char 0:0 becomes a whiteout, an opaque directory gets its mark.
func tarUpper(dir, out string) error {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	u := &upper{dir: dir, w: tar.NewWriter(f), links: map[uint64]string{}}
	if err := filepath.WalkDir(dir, u.add); err != nil {
		return err
	}
	if err := u.w.Close(); err != nil {
		return err
	}
	return f.Close()
}

type upper struct {
	dir   string
	w     *tar.Writer
	links map[uint64]string // by inode
}

func (u *upper) add(p string, d fs.DirEntry, err error) error {
	if err != nil || p == u.dir {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return err
	}
	name, err := filepath.Rel(u.dir, p)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		return u.w.WriteHeader(&tar.Header{Name: path.Join(path.Dir(name), ".wh."+path.Base(name)), Typeflag: tar.TypeReg, Mode: 0o600, ModTime: epoch})
	}
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return nil
	}
	h, err := header(p, name, &st)
	if err != nil {
		return err
	}
	opaque := h.PAXRecords["SCHILY.xattr."+overlayPrefix+"opaque"] == "y"
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "SCHILY.xattr."+overlayPrefix) {
			delete(h.PAXRecords, key)
		}
	}
	if first, ok := u.links[st.Ino]; ok {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
	} else if st.Nlink > 1 && !d.IsDir() {
		u.links[st.Ino] = name
	}
	if err := u.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if opaque {
		return u.w.WriteHeader(&tar.Header{Name: name + "/.wh..wh..opq", Typeflag: tar.TypeReg, Mode: 0o600, ModTime: epoch})
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(u.w, f)
	return err
}

func header(p, name string, st *unix.Stat_t) (*tar.Header, error) {
	info, err := os.Lstat(p)
	if err != nil {
		return nil, err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(p); err != nil {
			return nil, err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return nil, err
	}
	h.Name, h.Format, h.Uname, h.Gname = name, tar.FormatPAX, "", ""
	if info.IsDir() {
		h.Name += "/"
	}
	if h.ModTime.After(epoch) {
		h.ModTime = epoch
	}
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	xattrs, err := readXattrs(p)
	if err != nil {
		return nil, err
	}
	h.PAXRecords = xattrs
	return h, nil
}

func readXattrs(p string) (map[string]string, error) {
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, names)
	if err != nil {
		return nil, fmt.Errorf("list xattrs of %s: %w", p, err)
	}
	records := map[string]string{}
	for name := range bytes.SplitSeq(names[:n], []byte{0}) {
		if len(name) == 0 {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, string(name), value)
		if err != nil {
			return nil, fmt.Errorf("xattr %s of %s: %w", name, p, err)
		}
		records["SCHILY.xattr."+string(name)] = string(value[:n])
	}
	return records, nil
}
