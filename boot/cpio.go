package boot

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A File is one member of a cpio archive.
type File struct {
	Name string // relative, without "." and ".."
	Mode uint32 // type and permissions, as in stat(2)
	Size int64  // of Data
	Data io.Reader
	// Major and Minor are the device of a character or block device.
	Major, Minor uint32
}

// maxArchive bounds an archive: the guest holds it in memory twice.
const maxArchive = 256 << 20

// WriteCPIO writes files as a cpio archive in the "newc" format, which the
// kernel unpacks as an initramfs (Documentation/driver-api/early-userspace/
// buffer-format.rst). Parents must come before their children. Owners are
// root, times zero: equal files give equal bytes.
func WriteCPIO(w io.Writer, files []File) error {
	bw := bufio.NewWriterSize(w, 1<<16)
	var total int64
	for i, f := range files {
		if total += f.Size; f.Size < 0 || total > maxArchive {
			return fmt.Errorf("cpio: %s: archive of more than %d bytes", f.Name, maxArchive)
		}
		if f.Name == "" || len(f.Name) > 255 || strings.ContainsRune(f.Name, 0) {
			return fmt.Errorf("cpio: bad name %q", f.Name)
		}
		if err := writeMember(bw, i+1, f); err != nil {
			return fmt.Errorf("cpio: %s: %w", f.Name, err)
		}
	}
	if err := writeMember(bw, 0, File{Name: "TRAILER!!!"}); err != nil {
		return fmt.Errorf("cpio: %w", err)
	}
	return bw.Flush()
}

func writeMember(w *bufio.Writer, inode int, f File) error {
	const zeros = "\x00\x00\x00"
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		inode, f.Mode, 0, 0, 1, 0, f.Size, 0, 0, f.Major, f.Minor, len(f.Name)+1, 0, f.Name)
	if _, err := w.WriteString(header + zeros[:align4(uint64(len(header)))-uint64(len(header))]); err != nil {
		return err
	}
	if f.Data == nil {
		if f.Size != 0 {
			return errors.New("size without data")
		}
		return nil
	}
	n, err := io.Copy(w, io.LimitReader(f.Data, f.Size+1))
	if err != nil {
		return err
	}
	if n != f.Size {
		return fmt.Errorf("has changed while it was read (%d bytes expected)", f.Size)
	}
	_, err = w.WriteString(zeros[:align4(uint64(n))-uint64(n)])
	return err
}

func align4(n uint64) uint64 { return (n + 3) &^ 3 }
