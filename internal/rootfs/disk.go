package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// minDisk is less than a container can use but all that mke2fs can format with a journal.
const minDisk = 16 << 20

// features are ext4's of today, without what serves growing a mounted file system.
const features = "none,has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize,sparse_super,large_file,filetype,dir_index,ext_attr"

// CreateDisk makes the writable disk of a container: a sparse file of
// sizeBytes, a multiple of 4096, with an empty ext4 file system whose root
// belongs to root. It must not exist yet; on error it doesn't afterwards. The
// first disk of a size is formatted, which takes a few 10 ms and needs mke2fs;
// the others are copied from it in a few ms.
func (s *Store) CreateDisk(path string, sizeBytes int64) error {
	if sizeBytes < minDisk || sizeBytes%4096 != 0 {
		return fmt.Errorf("create disk %s: size %d is not a multiple of 4096 from %d on: %w", path, sizeBytes, minDisk, errdefs.ErrInvalidArgument)
	}
	blank, err := s.once(context.Background(), fmt.Sprintf("blank-%d.ext4", sizeBytes), func(f *os.File) error {
		return format(f, sizeBytes)
	})
	if err != nil {
		return fmt.Errorf("create disk %s: %w", path, err)
	}
	if err := copySparse(path, blank); err != nil {
		return fmt.Errorf("create disk %s: %w", path, err)
	}
	return nil
}

// format makes the file system. The file is sparse and so reads as zeros:
// saying so keeps mke2fs, and later the guest, from writing the inode tables.
func format(f *os.File, size int64) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	args := []string{
		"-q", "-F", "-b", "4096", "-m", "0", "-I", "256", "-i", "16384", "-O", features,
		"-J", fmt.Sprintf("size=%d", max(4, min(16, size>>26))), // MiB
		"-E", "root_owner=0:0,nodiscard,lazy_journal_init=1,assume_storage_prezeroed=1", f.Name(),
	}
	cmd := exec.Command("mke2fs", args...)
	// The distribution's defaults are not wanted.
	cmd.Env = append(os.Environ(), "MKE2FS_CONFIG=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// copySparse copies the blocks that src has, by reference where the file system can.
func copySparse(dst, src string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := out.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			os.Remove(dst)
		}
	}()
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	return copyExtents(out, in, info.Size())
}

func copyExtents(out, in *os.File, size int64) error {
	for end := int64(0); end < size; {
		start, err := in.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		if end, err = in.Seek(start, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, start), io.NewSectionReader(in, start, end-start)); err != nil {
			return err
		}
	}
	return nil
}

// allocated is how much of the disk a file takes.
func allocated(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}
