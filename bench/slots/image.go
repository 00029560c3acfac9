package main

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"

	"github.com/hyper-run/hyper/internal/rootfs/erofs"
)

// smallSize is that of the file that a guest reads first.
const smallSize = 1 << 10

// smallSizes are those of most files of an image, in turn.
var smallSizes = []int64{700, 3 << 10, 9 << 10, 24 << 10, 60 << 10}

// An image is an EROFS file with a few large files and many small ones.
type image struct {
	mb    float64  // of its files, in millions of bytes
	file  *os.File // read-only, as QEMU wants it
	bytes int64    // of all its files
	files int
}

// fileSizes divides the bytes of an image: the first file is what a guest reads first,
// three large ones have 60 %, the rest is in small ones.
func fileSizes(total int64) []int64 {
	large := total / 5
	sizes := []int64{smallSize, large, large, large}
	rest := total - smallSize - 3*large
	for i := 0; rest > 0; i++ {
		size := min(smallSizes[i%len(smallSizes)], rest)
		sizes = append(sizes, size)
		rest -= size
	}
	return sizes
}

// makeImage writes an image to path, a file as long as a slot. What is in its
// files cannot be compressed; it is the same for every run.
func makeImage(path string, mb float64, slotBytes int64) (*image, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	img := &image{mb: mb}
	random := rand.NewChaCha8([32]byte{1})
	root := &erofs.Inode{Mode: 0o40755, Children: map[string]*erofs.Inode{}}
	w := erofs.NewWriter(f)
	for i, size := range fileSizes(int64(mb * 1e6)) {
		in := &erofs.Inode{Mode: 0o100644, Size: size}
		if err := w.Add(in, io.LimitReader(random, size)); err != nil {
			return nil, err
		}
		place(root, i, in)
		img.bytes += size
		img.files++
	}
	if err := w.Finish(root); err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > slotBytes {
		return nil, fmt.Errorf("image of %d bytes in a slot of %d: %w", info.Size(), slotBytes, fs.ErrInvalid)
	}
	if err := f.Truncate(slotBytes); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil { // else it is written while others are measured
		return nil, err
	}
	img.file, err = os.Open(path)
	return img, err
}

// place names the files of an image, 200 small ones to a directory.
func place(root *erofs.Inode, i int, in *erofs.Inode) {
	switch {
	case i == 0:
		root.Children["small"] = in
	case i < 4:
		root.Children[fmt.Sprintf("large%d", i)] = in
	default:
		name := fmt.Sprintf("d%d", i/200)
		if root.Children[name] == nil {
			root.Children[name] = &erofs.Inode{Mode: 0o40755, Children: map[string]*erofs.Inode{}}
		}
		root.Children[name].Children[fmt.Sprintf("f%d", i)] = in
	}
}
