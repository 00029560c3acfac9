package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/rootfs/erofs"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // of AUFS, which has more of them than the opaque mark
	whiteoutOpaque = ".wh..wh..opq"

	xattrRecord = "SCHILY.xattr."
	maxName     = 255
	maxPath     = 4095
	maxSymlinks = 40
	maxMemory   = 256 << 20 // for names, targets of symlinks and xattrs of directories
)

// readLayer reads a layer to its end, adding its files to w, and returns its
// tree, in which whiteouts are those of overlayfs.
func (s *Store) readLayer(ctx context.Context, w *erofs.Writer, diffID digest.Digest, r io.Reader) (*erofs.Inode, error) {
	source := newHashReader(ctx, r, diffID, s.Limits.Bytes)
	defer source.Close()
	l := &layer{w: w, root: newDir(0o755), limits: s.Limits}
	err := l.read(source)
	if err == nil {
		// What follows the end marks counts for the digest too.
		_, err = io.Copy(io.Discard, source)
	}
	if err != nil {
		return nil, err
	}
	return l.root, source.Verify()
}

// A layer is one layer's tree while its tar is read.
type layer struct {
	w        *erofs.Writer
	root     *erofs.Inode
	limits   Limits
	entries  int
	bytes    int64        // of files
	memory   int          // bytes of what is kept of names
	whiteout *erofs.Inode // one for all names, nil before the first
}

func newDir(mode uint16) *erofs.Inode {
	return &erofs.Inode{Mode: unix.S_IFDIR | mode, Children: map[string]*erofs.Inode{}}
}

func (l *layer) read(r io.Reader) error {
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", invalidTar(err))
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := l.add(h, t); err != nil {
			return fmt.Errorf("%s %.200q: %w", typeName(h.Typeflag), h.Name, invalidTar(err))
		}
	}
}

// invalidTar gives errors of package tar their kind.
func invalidTar(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

func (l *layer) add(h *tar.Header, data io.Reader) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if name == "" { // the root itself
		if h.Typeflag != tar.TypeDir {
			return invalid("the root is not a directory")
		}
		return l.setDirMetadata(l.root, h)
	}
	dirName, base := path.Split(name)
	parent, err := l.dir(dirName, true)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return l.addWhiteout(parent, base)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return l.addDir(parent, base, h)
	case tar.TypeLink:
		return l.addLink(parent, base, h.Linkname)
	}
	in, err := l.newInode(h, data)
	if err != nil {
		return err
	}
	return l.put(parent, base, in)
}

// put gives an inode a name; what had it before loses it, a directory with all that is in it.
func (l *layer) put(parent *erofs.Inode, base string, in *erofs.Inode) error {
	if l.entries++; l.entries > l.limits.Entries {
		return invalid("layer has more than %d entries", l.limits.Entries)
	}
	parent.Children[base] = in
	return l.remember(len(base))
}

func (l *layer) remember(n int) error {
	if l.memory += n; l.memory > maxMemory {
		return invalid("names, symlinks and xattrs of directories have more than %d bytes", maxMemory)
	}
	return nil
}

func (l *layer) addDir(parent *erofs.Inode, base string, h *tar.Header) error {
	old := parent.Children[base]
	if old != nil && old.IsDir() {
		return l.setDirMetadata(old, h)
	}
	in := newDir(0)
	if err := l.setDirMetadata(in, h); err != nil {
		return err
	}
	if old != nil && old.IsWhiteout() {
		setOpaque(in)
	}
	return l.put(parent, base, in)
}

func (l *layer) setDirMetadata(in *erofs.Inode, h *tar.Header) error {
	isOpaque := in.Xattrs[erofs.OpaqueXattr] != ""
	if err := setMetadata(in, h); err != nil {
		return err
	}
	if isOpaque {
		setOpaque(in)
	}
	size := 0
	for name, value := range in.Xattrs {
		size += len(name) + len(value)
	}
	return l.remember(size)
}

// addWhiteout hides names of lower layers, not those of its own layer, whichever comes first.
func (l *layer) addWhiteout(parent *erofs.Inode, base string) error {
	if base == whiteoutOpaque {
		setOpaque(parent)
		return nil
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return invalid("whiteout of no name")
	}
	if old := parent.Children[hidden]; old != nil {
		if old.IsDir() {
			setOpaque(old)
		}
		return nil
	}
	if l.whiteout == nil {
		l.whiteout = &erofs.Inode{Mode: unix.S_IFCHR}
		if err := l.w.Add(l.whiteout, nil); err != nil {
			return err
		}
	}
	return l.put(parent, hidden, l.whiteout)
}

func setOpaque(in *erofs.Inode) {
	if in.Xattrs == nil {
		in.Xattrs = map[string]string{}
	}
	in.Xattrs[erofs.OpaqueXattr] = "y"
}

// addLink makes a hard link. The target is an earlier entry of the same layer,
// as the file system that a layer is a difference of can't have links between layers.
func (l *layer) addLink(parent *erofs.Inode, base, linkname string) error {
	target, err := cleanName(linkname)
	if err != nil {
		return fmt.Errorf("target of the link: %w", err)
	}
	dirName, name := path.Split(target)
	dir, err := l.dir(dirName, false)
	if err != nil {
		return fmt.Errorf("target of the link %.200q: %w", linkname, err)
	}
	in := dir.Children[name]
	switch {
	case in == nil || in == l.whiteout:
		return invalid("hard link to %.200q, which the layer does not have", linkname)
	case in.IsDir():
		return invalid("hard link to the directory %.200q", linkname)
	}
	return l.put(parent, base, in)
}

// newInode makes an inode that is neither a directory nor another name of one.
func (l *layer) newInode(h *tar.Header, data io.Reader) (*erofs.Inode, error) {
	in := &erofs.Inode{}
	if err := setMetadata(in, h); err != nil {
		return nil, err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		in.Mode |= unix.S_IFREG
		in.Size = h.Size
		if l.bytes += h.Size; h.Size < 0 || l.bytes < 0 || l.bytes > l.limits.Bytes {
			return nil, invalid("files of the layer have more than %d bytes", l.limits.Bytes)
		}
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxPath || strings.Contains(h.Linkname, "\x00") {
			return nil, invalid("target of the symlink has %d bytes or a NUL", len(h.Linkname))
		}
		// Linux shows every symlink so, whatever the archive says.
		in.Mode = unix.S_IFLNK | 0o777
		in.Target = h.Linkname
		if err := l.remember(len(in.Target)); err != nil {
			return nil, err
		}
	case tar.TypeFifo:
		in.Mode |= unix.S_IFIFO
	case tar.TypeChar, tar.TypeBlock:
		in.Mode |= unix.S_IFCHR
		if h.Typeflag == tar.TypeBlock {
			in.Mode ^= unix.S_IFCHR ^ unix.S_IFBLK
		}
		rdev, ok := erofs.Rdev(h.Devmajor, h.Devminor)
		if !ok {
			return nil, invalid("device number %d:%d", h.Devmajor, h.Devminor)
		}
		in.Rdev = rdev
	default:
		return nil, invalid("unknown type %q", h.Typeflag)
	}
	err := l.w.Add(in, data)
	in.Xattrs = nil // they are in the image now
	return in, err
}

// setMetadata sets what every type of inode has.
func setMetadata(in *erofs.Inode, h *tar.Header) error {
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > math.MaxUint32 || int64(h.Gid) > math.MaxUint32 {
		return invalid("owner %d:%d", h.Uid, h.Gid)
	}
	in.Mode = in.Mode&unix.S_IFMT | uint16(h.Mode&0o7777)
	in.UID, in.GID = uint32(h.Uid), uint32(h.Gid)
	in.Mtime, in.MtimeNsec = h.ModTime.Unix(), uint32(h.ModTime.Nanosecond())
	in.Xattrs = nil
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		// overlayfs hides its own from users; from a layer they could only confuse it.
		if !ok || !erofs.XattrSupported(name) || strings.HasPrefix(name, "trusted.overlay.") || strings.Contains(name, "\x00") {
			continue
		}
		if in.Xattrs == nil {
			in.Xattrs = map[string]string{}
		}
		in.Xattrs[name] = value
	}
	return nil
}

// dir finds a directory by a clean path, following symlinks within the layer
// as a file system rooted in it would. With create, missing ones are made.
func (l *layer) dir(name string, create bool) (*erofs.Inode, error) {
	stack := []*erofs.Inode{l.root} // the directories down to the current one
	rest := splitPath(name)
	for links := 0; len(rest) > 0; {
		base := rest[0]
		rest = rest[1:]
		if base == ".." {
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		cur := stack[len(stack)-1]
		in := cur.Children[base]
		switch {
		case in == nil || in == l.whiteout:
			if !create {
				return nil, invalid("no directory %.200q", name)
			}
			next := newDir(0o755)
			if in != nil {
				setOpaque(next)
			}
			if err := l.put(cur, base, next); err != nil {
				return nil, err
			}
			stack = append(stack, next)
		case in.IsDir():
			stack = append(stack, in)
		case in.Mode&unix.S_IFMT == unix.S_IFLNK:
			if links++; links > maxSymlinks {
				return nil, invalid("too many symlinks in %.200q", name)
			}
			if strings.HasPrefix(in.Target, "/") {
				stack = stack[:1]
			}
			rest = append(splitPath(in.Target), rest...)
		default:
			return nil, invalid("%.200q is not a directory", base)
		}
	}
	return stack[len(stack)-1], nil
}

func splitPath(name string) []string {
	parts := strings.Split(name, "/")
	kept := parts[:0]
	for _, p := range parts {
		if p != "" && p != "." {
			kept = append(kept, p)
		}
	}
	return kept
}

// cleanName checks a name of the archive and gives it relative to the layer's root, which is "".
func cleanName(name string) (string, error) {
	if len(name) > maxPath {
		return "", invalid("name of %d bytes", len(name))
	}
	if strings.Contains(name, "\x00") {
		return "", invalid("name with a NUL")
	}
	parts := splitPath(name)
	for _, p := range parts {
		if p == ".." {
			return "", invalid("name leads out of its directory")
		}
		if len(p) > maxName {
			return "", invalid("part of a name has %d bytes, more than %d", len(p), maxName)
		}
	}
	return strings.Join(parts, "/"), nil
}

func typeName(flag byte) string {
	switch flag {
	case tar.TypeDir:
		return "directory"
	case tar.TypeSymlink:
		return "symlink"
	case tar.TypeLink:
		return "hard link"
	case tar.TypeChar, tar.TypeBlock:
		return "device"
	case tar.TypeFifo:
		return "fifo"
	}
	return "file"
}
