// Package erofs writes EROFS images in one pass: the data of a file goes to
// its final place as it arrives, only the tree of names is kept in memory.
//
// Layout of an image, 4 KiB blocks (Linux Documentation/filesystems/erofs.rst):
//
//	block 0     superblock at 1024, root inode at 1152
//	then mixed  runs of data blocks, and chunks of 64 KiB with inodes, their
//	            xattrs and the contents of small files (inline tails)
//	last        inodes and entries of directories
//
// Everything is uncompressed. Files that do not fit in one block beside their
// inode start on a block, so they can be mapped directly (DAX). A stretch of
// zeros is a hole in the image file. The same calls give the same bytes.
//
// It was preferred to a library for four things that had to be worked around
// there: hard links, POSIX ACLs, data written twice, and names given twice.
package erofs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	blockSize  = 4096
	chunkSize  = 64 << 10 // of metadata
	slotSize   = 32       // inode numbers count these
	inodeSize  = 64       // extended inode
	superblock = 1024
	rootOffset = superblock + 128

	magic           = 0xE0F5E1E2
	compatChecksum  = 0x1
	compatMtime     = 0x2
	layoutPlain     = 0
	layoutInline    = 2
	versionExtended = 1

	// Align is what the size of an image is a multiple of, so that it can be a pmem device.
	Align = 2 << 20
)

// An Inode is what names stand for. The caller fills it in and puts it into
// the Children of one directory or, hard links, of several; the mode's type
// bits are those of Linux (S_IFREG, …). Inodes other than directories must be
// given to [Writer.Add] once before the image is finished.
type Inode struct {
	Mode      uint16
	UID, GID  uint32
	Mtime     int64 // seconds
	MtimeNsec uint32
	Rdev      uint32            // see [Rdev]
	Size      int64             // of a file
	Target    string            // of a symlink
	Xattrs    map[string]string // by full name
	Children  map[string]*Inode // of a directory, nil otherwise

	offset int64 // of the inode in the image
	block  int64 // first data block, 0: none
	links  uint32
	number uint32
}

// IsDir says whether the inode is a directory.
func (in *Inode) IsDir() bool { return in.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsWhiteout says whether the inode is a character device 0:0, which hides a name of lower layers in overlayfs.
func (in *Inode) IsWhiteout() bool { return in.Mode&unix.S_IFMT == unix.S_IFCHR && in.Rdev == 0 }

// Rdev encodes a device number as the kernel does; ok is false when the numbers are out of its range.
func Rdev(major, minor int64) (dev uint32, ok bool) {
	if major < 0 || major >= 1<<12 || minor < 0 || minor >= 1<<20 {
		return 0, false
	}
	return uint32(minor&0xff | major<<8 | minor&^0xff<<12), true
}

// A Writer writes one image. It is for one goroutine.
type Writer struct {
	out    *output
	next   int64 // first block not given to anything
	chunk  []byte
	base   int64 // offset of chunk in the image
	fill   int   // of chunk
	inodes uint32
	files  []*Inode // that have data blocks
}

// NewWriter writes to f, which must be empty. The caller closes it.
func NewWriter(f *os.File) *Writer {
	return &Writer{out: &output{f: f, buf: make([]byte, 0, outputSize)}, next: 1, chunk: make([]byte, chunkSize), fill: chunkSize}
}

// Add places an inode that is no directory. For a file it reads in.Size bytes
// of r, the contents. The writer is done with in.Xattrs afterwards.
func (w *Writer) Add(in *Inode, r io.Reader) error {
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFLNK:
		in.Size, r = int64(len(in.Target)), strings.NewReader(in.Target)
	default:
		in.Size = 0
	}
	head, err := w.head(in)
	if err != nil {
		return err
	}
	if in.Size == 0 || len(head)+int(min(in.Size, blockSize)) <= blockSize {
		return w.addInline(in, head, r)
	}
	if in.Size > (math.MaxUint32-w.next)*blockSize {
		return fmt.Errorf("image would be larger than 16 TiB: %w", unix.EFBIG)
	}
	in.block = w.allocate(in.Size)
	w.files = append(w.files, in)
	setInode(head, in, layoutPlain, uint32(in.block))
	if err := w.putHead(in, head); err != nil {
		return err
	}
	return w.out.copy(in.block*blockSize, in.Size, r)
}

// addInline places an inode with its contents, which are empty or fit beside it.
func (w *Writer) addInline(in *Inode, head []byte, r io.Reader) error {
	if in.Size == 0 {
		setInode(head, in, layoutPlain, in.Rdev)
		return w.putHead(in, head)
	}
	place, err := w.place(in, len(head)+int(in.Size))
	if err != nil {
		return err
	}
	setInode(head, in, layoutInline, 0)
	copy(place, head)
	_, err = io.ReadFull(r, place[len(head):])
	return noEOF(err)
}

// Finish writes the directories under root, the numbers of links and the
// superblock, frees the blocks of inodes that no name stands for any more and
// pads the image. The Writer cannot be used after it.
func (w *Writer) Finish(root *Inode) error {
	dirs, err := w.placeDirs(root)
	if err != nil {
		return err
	}
	if err := w.out.flush(); err != nil {
		return err
	}
	for _, d := range dirs {
		if err := w.writeDir(d); err != nil {
			return err
		}
	}
	if err := w.flushChunk(); err != nil {
		return err
	}
	if err := w.out.flush(); err != nil {
		return err
	}
	size := (w.next*blockSize + Align - 1) / Align * Align
	if err := w.out.f.Truncate(size); err != nil {
		return err
	}
	if err := w.patchLinks(dirs); err != nil {
		return err
	}
	return w.writeSuperblock(size)
}

// head returns the inode's 64 bytes, still zero but for the xattrs' length, and its xattrs.
func (w *Writer) head(in *Inode) ([]byte, error) {
	xattrs, err := encodeXattrs(in.Xattrs)
	if err != nil {
		return nil, err
	}
	head := make([]byte, inodeSize, inodeSize+len(xattrs))
	if len(xattrs) > 0 {
		binary.LittleEndian.PutUint16(head[2:], uint16((len(xattrs)-xattrHeader)/4+1))
	}
	w.inodes++
	in.number = w.inodes
	return append(head, xattrs...), nil
}

func setInode(b []byte, in *Inode, layout uint16, union uint32) {
	le := binary.LittleEndian
	le.PutUint16(b[0:], versionExtended|layout<<1)
	le.PutUint16(b[4:], in.Mode)
	le.PutUint64(b[8:], uint64(in.Size))
	le.PutUint32(b[16:], union)
	le.PutUint32(b[20:], in.number)
	le.PutUint32(b[24:], in.UID)
	le.PutUint32(b[28:], in.GID)
	le.PutUint64(b[32:], uint64(in.Mtime))
	le.PutUint32(b[40:], in.MtimeNsec)
	le.PutUint32(b[44:], 1)
}

// place gives n bytes, at most a block, that lie within one block of metadata and become the inode's place.
func (w *Writer) place(in *Inode, n int) ([]byte, error) {
	start := (w.fill + slotSize - 1) &^ (slotSize - 1)
	if start%blockSize+n > blockSize {
		start = (start + blockSize - 1) &^ (blockSize - 1)
	}
	if start+n > chunkSize {
		if err := w.flushChunk(); err != nil {
			return nil, err
		}
		w.base, start = w.allocate(chunkSize)*blockSize, 0
		clear(w.chunk)
	}
	w.fill = start + n
	in.offset = w.base + int64(start)
	return w.chunk[start:w.fill:w.fill], nil
}

// putHead writes an inode without inline data: among others if it fits in a block, in blocks of its own if not.
func (w *Writer) putHead(in *Inode, head []byte) error {
	if len(head) > blockSize {
		in.offset = w.allocate(int64(len(head))) * blockSize
		return w.out.write(in.offset, head)
	}
	place, err := w.place(in, len(head))
	copy(place, head)
	return err
}

func (w *Writer) flushChunk() error {
	if w.base == 0 {
		return nil
	}
	return w.out.write(w.base, w.chunk[:(w.fill+blockSize-1)&^(blockSize-1)])
}

// allocate gives as many blocks as size bytes need.
func (w *Writer) allocate(size int64) (block int64) {
	block = w.next
	w.next += (size + blockSize - 1) / blockSize
	return block
}

// patchLinks sets the number of links where it is not 1 and frees what has none.
func (w *Writer) patchLinks(dirs []*dir) error {
	seen := map[*Inode]bool{}
	for _, d := range dirs {
		for _, name := range d.names {
			in := d.child(name)
			if in == nil || in.IsDir() || in.links == 1 || seen[in] {
				continue
			}
			seen[in] = true
			if _, err := w.out.f.WriteAt(binary.LittleEndian.AppendUint32(nil, in.links), in.offset+44); err != nil {
				return err
			}
		}
	}
	for _, in := range w.files {
		if in.links > 0 {
			continue
		}
		// Not every filesystem has holes; the bytes are then only wasted.
		_ = unix.Fallocate(int(w.out.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, in.block*blockSize, in.Size)
	}
	return nil
}

func (w *Writer) writeSuperblock(size int64) error {
	block := make([]byte, blockSize)
	if _, err := w.out.f.ReadAt(block, 0); err != nil {
		return err
	}
	b, le := block[superblock:], binary.LittleEndian
	le.PutUint32(b[0:], magic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = 12 // log2(blockSize)
	le.PutUint16(b[14:], rootOffset/slotSize)
	le.PutUint64(b[16:], uint64(w.inodes))
	le.PutUint32(b[36:], uint32(size/blockSize))
	// The kernel's crc32c is not inverted at the end.
	le.PutUint32(b[4:], ^crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	_, err := w.out.f.WriteAt(block, 0)
	return err
}

// Merge lays the tree upper over lower as overlayfs would and returns the
// result, which shares the inodes of both: a whiteout removes a name, an
// opaque directory replaces one. What is left has neither.
func Merge(lower, upper *Inode) *Inode {
	if opaque(upper) {
		lower = &Inode{}
	}
	children := make(map[string]*Inode, len(lower.Children)+len(upper.Children))
	for name, in := range lower.Children {
		children[name] = in
	}
	for name, in := range upper.Children {
		old := children[name]
		switch {
		case in.IsWhiteout():
			delete(children, name)
		case !in.IsDir():
			children[name] = in
		case old != nil && old.IsDir():
			children[name] = Merge(old, in)
		default:
			children[name] = Merge(&Inode{}, in)
		}
	}
	merged := *upper
	merged.Children = children
	merged.Xattrs = withoutOpaque(upper.Xattrs)
	return &merged
}

// OpaqueXattr marks a directory that hides those of lower layers; its value is "y".
const OpaqueXattr = "trusted.overlay.opaque"

func opaque(in *Inode) bool { return in.Xattrs[OpaqueXattr] == "y" }

func withoutOpaque(xattrs map[string]string) map[string]string {
	if _, ok := xattrs[OpaqueXattr]; !ok {
		return xattrs
	}
	rest := map[string]string{}
	for name, value := range xattrs {
		if name != OpaqueXattr {
			rest[name] = value
		}
	}
	return rest
}

// Indexes of name prefixes, include/linux/… fs/erofs/erofs_fs.h; the longest comes first.
var prefixes = []struct {
	name  string
	index byte
	exact bool
}{
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false},
	{"user.", 1, false},
}

const xattrHeader = 12

// XattrSupported says whether EROFS can keep an xattr of this name.
func XattrSupported(name string) bool {
	_, _, ok := splitXattr(name)
	return ok
}

func splitXattr(name string) (index byte, rest string, ok bool) {
	for _, p := range prefixes {
		rest, found := strings.CutPrefix(name, p.name)
		if found && p.exact == (rest == "") {
			return p.index, rest, true
		}
	}
	return 0, "", false
}

// encodeXattrs gives the area between an inode and its inline data.
func encodeXattrs(xattrs map[string]string) ([]byte, error) {
	if len(xattrs) == 0 {
		return nil, nil
	}
	names := make([]string, 0, len(xattrs))
	for name := range xattrs {
		names = append(names, name)
	}
	slices.Sort(names)
	b := make([]byte, xattrHeader)
	for _, name := range names {
		value := xattrs[name]
		index, rest, ok := splitXattr(name)
		if !ok || len(rest) > math.MaxUint8 || len(value) > math.MaxUint16 {
			return nil, fmt.Errorf("xattr %.64q of %d bytes: %w", name, len(value), unix.E2BIG)
		}
		b = append(b, byte(len(rest)), index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
		b = append(append(b, rest...), value...)
		b = append(b, make([]byte, -len(b)&3)...)
	}
	if (len(b)-xattrHeader)/4+1 > math.MaxUint16 {
		return nil, fmt.Errorf("xattrs of %d bytes: %w", len(b), unix.E2BIG)
	}
	return b, nil
}
