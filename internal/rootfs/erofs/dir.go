package erofs

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

const direntSize = 12

// A dir is a directory on its way into the image.
type dir struct {
	in     *Inode
	parent *Inode
	names  []string // sorted, with . and ..
	size   int64    // of its entries
	head   []byte
}

func (d *dir) child(name string) *Inode {
	switch name {
	case ".", "..":
		return nil
	}
	return d.in.Children[name]
}

// placeDirs gives every directory its place, root first, and counts links.
func (w *Writer) placeDirs(root *Inode) ([]*dir, error) {
	dirs := []*dir{{in: root, parent: root}}
	for i := 0; i < len(dirs); i++ {
		d := dirs[i]
		d.in.links = 2
		d.names = append(make([]string, 0, len(d.in.Children)+2), ".", "..")
		for name := range d.in.Children {
			d.names = append(d.names, name)
		}
		slices.Sort(d.names)
		for _, name := range d.names {
			child := d.child(name)
			switch {
			case child == nil:
			case child.IsDir():
				d.in.links++
				dirs = append(dirs, &dir{in: child, parent: d.in})
			case child.offset == 0:
				return nil, fmt.Errorf("inode of %q was never added", name)
			default:
				child.links++
			}
		}
		if err := w.placeDir(d, i == 0); err != nil {
			return nil, err
		}
	}
	return dirs, nil
}

func (w *Writer) placeDir(d *dir, isRoot bool) error {
	var err error
	if d.head, err = w.head(d.in); err != nil {
		return err
	}
	d.size = direntsSize(d.names)
	room := blockSize
	if isRoot {
		// The superblock has 16 bits for its number.
		if room -= rootOffset; len(d.head) > room {
			return fmt.Errorf("xattrs of /: %w", unix.E2BIG)
		}
	}
	inline := len(d.head)+int(min(d.size, blockSize)) <= room
	if !inline {
		d.in.block = w.allocate(d.size)
	}
	if isRoot {
		d.in.offset = rootOffset
		return nil
	}
	if len(d.head) > blockSize {
		d.in.offset = w.allocate(int64(len(d.head))) * blockSize
		return nil
	}
	n := len(d.head)
	if inline {
		n += int(d.size)
	}
	_, err = w.place(d.in, n)
	return err
}

// writeDir writes the inode and the entries of a directory; all its children have places.
func (w *Writer) writeDir(d *dir) error {
	d.in.Size = d.size
	entries := d.entries()
	layout := uint16(layoutInline)
	if d.in.block != 0 {
		layout = layoutPlain
	}
	setInode(d.head, d.in, layout, uint32(d.in.block))
	binary.LittleEndian.PutUint32(d.head[44:], d.in.links)
	if d.in.block == 0 {
		return w.rewrite(d.in.offset, append(d.head, entries...))
	}
	if err := w.rewrite(d.in.offset, d.head); err != nil {
		return err
	}
	return w.out.write(d.in.block*blockSize, entries)
}

// rewrite writes metadata that was placed earlier: in the current chunk, or in
// the file past the buffer, which holds nothing for there any more.
func (w *Writer) rewrite(off int64, p []byte) error {
	if w.base != 0 && off >= w.base && off < w.base+chunkSize {
		copy(w.chunk[off-w.base:], p)
		return nil
	}
	_, err := w.out.f.WriteAt(p, off)
	return err
}

// direntsSize is the size of a directory: entries fill blocks without crossing from one to the next.
func direntsSize(names []string) int64 {
	full, used := int64(0), 0
	for _, name := range names {
		if used+direntSize+len(name) > blockSize {
			full, used = full+blockSize, 0
		}
		used += direntSize + len(name)
	}
	return full + int64(used)
}

// entries gives the blocks of a directory: in each first the fixed parts of
// its entries, then their names, all sorted by name.
func (d *dir) entries() []byte {
	b := make([]byte, 0, d.size)
	for rest := d.names; len(rest) > 0; {
		n, used := 0, 0
		for n < len(rest) && used+direntSize+len(rest[n]) <= blockSize {
			used += direntSize + len(rest[n])
			n++
		}
		b = append(b, make([]byte, -len(b)&(blockSize-1))...)
		nameOffset := n * direntSize
		for _, name := range rest[:n] {
			in := d.target(name)
			b = binary.LittleEndian.AppendUint64(b, uint64(in.offset/slotSize))
			b = binary.LittleEndian.AppendUint16(b, uint16(nameOffset))
			b = append(b, fileType(in.Mode), 0)
			nameOffset += len(name)
		}
		for _, name := range rest[:n] {
			b = append(b, name...)
		}
		rest = rest[n:]
	}
	return b
}

func (d *dir) target(name string) *Inode {
	switch name {
	case ".":
		return d.in
	case "..":
		return d.parent
	}
	return d.in.Children[name]
}

func fileType(mode uint16) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	case unix.S_IFLNK:
		return 7
	}
	return 0
}
