package rootfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// minDisk is less than a container can use but all that mke2fs can format with a journal.
const minDisk = 16 << 20

// features are ext4's of today, without what serves growing a mounted file system.
const features = "none,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize,sparse_super,large_file,filetype,dir_index,ext_attr"

// DiskOptions say what a disk is for.
type DiskOptions struct {
	// Scratch says that nobody uses the disk after the VM that first mounts
	// it has ended: it has no journal, and fsync reaches the host's page cache.
	Scratch bool
}

// CreateDisk makes the writable disk of a container: a sparse file of
// sizeBytes, a multiple of 4096, with an ext4 file system whose root belongs
// to root and, if this process is root, has the empty directories upper and
// work, mode 0755. It must not exist yet; on error it doesn't afterwards. The
// first disk of a size and its options is formatted, which takes a few 10 ms
// and needs mke2fs; the others are copied from it in a few ms.
func (s *Store) CreateDisk(path string, sizeBytes int64, o DiskOptions) error {
	if sizeBytes < minDisk || sizeBytes%4096 != 0 {
		return fmt.Errorf("create disk %s: size %d is not a multiple of 4096 from %d on: %w", path, sizeBytes, minDisk, errdefs.ErrInvalidArgument)
	}
	f := newFormat(sizeBytes, o)
	blank, err := s.once(context.Background(), f.name(), f.write)
	if err != nil {
		return fmt.Errorf("create disk %s: %w", path, err)
	}
	if err := copySparse(path, blank); err != nil {
		return fmt.Errorf("create disk %s: %w", path, err)
	}
	return nil
}

// A format is how mke2fs makes a blank disk.
type format struct {
	size   int64
	config string // in place of the distribution's mke2fs.conf, which is not wanted
	args   []string
	seeded bool // with upper and work
}

func newFormat(size int64, o DiskOptions) format {
	f := format{
		size: size,
		// mke2fs gives files the owner they have here; without root the guest makes these directories.
		seeded: os.Geteuid() == 0,
		// The file is sparse and so reads as zeros: saying so keeps mke2fs,
		// and later the guest, from writing the inode tables.
		args: []string{
			"-q", "-F", "-b", "4096", "-m", "0", "-I", "256", "-i", "16384",
			"-E", "root_owner=0:0,nodiscard,lazy_journal_init=1,assume_storage_prezeroed=1",
		},
	}
	if o.Scratch {
		f.config = "[defaults]\ndefault_mntopts = acl,user_xattr,nobarrier\n"
		f.args = append(f.args, "-O", features)
	} else {
		f.config = "[defaults]\ndefault_mntopts = acl,user_xattr\n"
		f.args = append(f.args, "-O", features+",has_journal", "-J", fmt.Sprintf("size=%d", max(4, min(16, size>>26)))) // MiB
	}
	return f
}

// name changes with everything that changes the blank: another version of
// Hyper does not take it for its own.
func (f format) name() string {
	h := sha256.Sum256(fmt.Append(nil, f))
	return fmt.Sprintf("blank-%d-%x.ext4", f.size, h[:8])
}

// write makes the file system.
func (f format) write(out *os.File) (err error) {
	if err := out.Truncate(f.size); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "blank-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	config := filepath.Join(dir, "mke2fs.conf")
	if err := os.WriteFile(config, []byte(f.config), 0o600); err != nil {
		return err
	}
	args := f.args
	if f.seeded {
		seed := filepath.Join(dir, "seed")
		if err := makeSeed(seed); err != nil {
			return err
		}
		args = append(slices.Clone(args), "-d", seed)
	}
	cmd := exec.Command("mke2fs", append(args, out.Name())...)
	cmd.Env = append(os.Environ(), "MKE2FS_CONFIG="+config)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, bytes.TrimSpace(text))
	}
	return nil
}

// makeSeed makes what a disk has at first. The directory upper gives a
// container's / its owner and mode.
func makeSeed(dir string) error {
	for _, name := range []string{"", "upper", "work"} {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o755); err != nil { // whatever the umask
			return err
		}
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
