package template

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// newMemfd makes a file in memory that can be sealed.
func newMemfd(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	return f, nil
}

// allSeals: nobody writes it, punches holes into it, makes it longer or
// shorter, or takes these seals away (fcntl(2), F_ADD_SEALS).
const allSeals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// seal fails as long as anybody has the file mapped writable.
func seal(f *os.File) error {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, allSeals); err != nil {
		return fmt.Errorf("seal %s: %w", f.Name(), err)
	}
	return nil
}

// occupied is what the files take of memory or disk; nothing for a device.
func occupied(files ...*os.File) int64 {
	n := int64(0)
	for _, f := range files {
		var st unix.Stat_t
		if unix.Fstat(int(f.Fd()), &st) == nil {
			n += st.Blocks * 512
		}
	}
	runtime.KeepAlive(files)
	return n
}

const (
	pageSize  = 4096
	chunkSize = 2 << 20 // of one goroutine at a time
	copiers   = 4       // at most
)

var zeroPage [pageSize]byte

// contents says what a file of a template holds. Pages of zeros, in a hole or
// not, are left out.
type contents struct {
	Size int64  `json:"size"`
	Used int64  `json:"used"`   // bytes, of pages that are not all zeros
	Sum  string `json:"sha256"` // of the sums of the chunks that have any, see copyChunk
}

// A source is where contents are read from. holes, the file itself or one with
// the same data, knows where its holes are; its offset moves.
type source struct{ data, holes *os.File }

// copyContents copies the first size bytes of src to dst, which reads as zeros,
// or nowhere if it is nil, and says what these were.
func copyContents(ctx context.Context, dst io.WriterAt, src source, size int64) (contents, error) {
	c := contents{Size: size}
	sums := make([][]byte, (size+chunkSize-1)/chunkSize)
	chunks := make(chan int64)
	var used atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(copiers, runtime.GOMAXPROCS(0)) {
		g.Go(func() error {
			buf := make([]byte, chunkSize)
			for i := range chunks {
				n := min(chunkSize, size-i*chunkSize)
				sum, copied, err := copyChunk(dst, src.data, i*chunkSize, buf[:n])
				if err != nil {
					return err
				}
				sums[i] = sum
				used.Add(copied)
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(chunks)
		return eachChunk(src.holes, size, func(i int64) error {
			select {
			case chunks <- i:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	if err := g.Wait(); err != nil {
		return contents{}, err
	}
	h := sha256.New()
	for _, sum := range sums {
		h.Write(sum)
	}
	c.Used, c.Sum = used.Load(), hex.EncodeToString(h.Sum(nil))
	return c, nil
}

// eachChunk calls do with the number of each chunk that has data.
func eachChunk(f *os.File, size int64, do func(int64) error) error {
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole up to the end
		}
		if err != nil {
			return fmt.Errorf("find data of %s: %w", f.Name(), err)
		}
		if data >= size {
			return nil
		}
		i := data / chunkSize
		if err := do(i); err != nil {
			return err
		}
		at = (i + 1) * chunkSize
	}
	return nil
}

// copyChunk copies what src has at off, len(buf) bytes, run by run of pages
// that are not all zeros. sum is over these runs: offset and length, 8 bytes
// each, big-endian, and the data; nil when there are none.
func copyChunk(dst io.WriterAt, src *os.File, off int64, buf []byte) (sum []byte, copied int64, err error) {
	if _, err := src.ReadAt(buf, off); errors.Is(err, io.EOF) {
		return nil, 0, fmt.Errorf("read %s at %d: %w", src.Name(), off, io.ErrUnexpectedEOF)
	} else if err != nil {
		return nil, 0, err
	}
	h := sha256.New()
	for at := 0; at < len(buf); {
		run := dataRun(buf[at:])
		if len(run) == 0 {
			at += pageSize
			continue
		}
		var head [16]byte
		binary.BigEndian.PutUint64(head[:8], uint64(off)+uint64(at))
		binary.BigEndian.PutUint64(head[8:], uint64(len(run)))
		h.Write(head[:])
		h.Write(run)
		if dst != nil {
			if _, err := dst.WriteAt(run, off+int64(at)); err != nil {
				return nil, 0, err
			}
		}
		copied += int64(len(run))
		at += len(run)
	}
	if copied == 0 {
		return nil, 0, nil
	}
	return h.Sum(nil), copied, nil
}

// dataRun is the pages at the beginning of b that are not all zeros.
func dataRun(b []byte) []byte {
	for at := 0; at < len(b); at += pageSize {
		page := b[at:min(at+pageSize, len(b))]
		if bytes.Equal(page, zeroPage[:len(page)]) {
			return b[:at]
		}
	}
	return b
}

// memAvailable is what the host can give without swapping, bytes (proc(5),
// MemAvailable of meminfo).
func memAvailable() (int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(b, []byte("\nMemAvailable:"))
	fields := bytes.Fields(rest)
	if len(fields) == 0 {
		return 0, errors.New("/proc/meminfo has no MemAvailable")
	}
	kib, err := strconv.ParseInt(string(fields[0]), 10, 64)
	return kib << 10, err
}
