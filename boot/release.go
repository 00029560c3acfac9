package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"

	"github.com/containerd/errdefs"
)

// maxKernel bounds how much of a kernel file is looked at.
const maxKernel = 512 << 20

// releaseRE is what a kernel's release may look like. It becomes part of a
// path and of messages.
var releaseRE = regexp.MustCompile(`^[0-9]+\.[0-9]+[A-Za-z0-9._+~-]{0,100}$`)

// Release reads the release (uname -r) out of the kernel file at path, and
// checks that QEMU can boot that file as an x86-64 guest.
//
// Errors are errdefs.ErrNotFound and ErrInvalidArgument.
func Release(path string) (string, error) {
	release, err := readRelease(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", errdefs.ErrNotFound.WithMessage(fmt.Sprintf("read kernel %s: no such file", path))
	case err != nil:
		return "", fmt.Errorf("read kernel %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	case !releaseRE.MatchString(release):
		return "", fmt.Errorf("read kernel %s: odd release %q: %w", path, release, errdefs.ErrInvalidArgument)
	}
	return release, nil
}

func readRelease(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	// Asked before opening: opening a FIFO would wait for a writer.
	if !st.Mode().IsRegular() {
		return "", errors.New("not a regular file")
	}
	if st.Size() > maxKernel {
		return "", fmt.Errorf("%d bytes, more than any kernel", st.Size())
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return parse(f)
}

// parse returns the release of the kernel whose bytes f holds.
func parse(f io.ReaderAt) (string, error) {
	var head [0x240]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && err != io.EOF {
		return "", err
	}
	switch {
	case bytes.HasPrefix(head[:], []byte(elf.ELFMAG)):
		return vmlinuxRelease(f)
	case n == len(head) && string(head[0x202:0x206]) == "HdrS":
		return bzImageRelease(f, head[:])
	case string(head[56:60]) == "ARM\x64":
		return "", errors.New("a kernel for arm64; this host needs x86-64")
	case bytes.HasPrefix(head[:], []byte{0x1f, 0x8b}):
		return "", errors.New("compressed by gzip; unpack it first")
	}
	return "", errors.New("neither a bzImage nor an ELF vmlinux")
}

// bzImageRelease follows the header of Documentation/arch/x86/boot.rst.
func bzImageRelease(f io.ReaderAt, head []byte) (string, error) {
	const xlfKernel64 = 1 << 0
	if v := binary.LittleEndian.Uint16(head[0x206:]); v < 0x20c {
		return "", fmt.Errorf("boot protocol %d.%d is too old; 2.12 (Linux 3.8) is needed", v>>8, v&0xff)
	}
	if binary.LittleEndian.Uint16(head[0x236:])&xlfKernel64 == 0 {
		return "", errors.New("a 32-bit kernel; x86-64 is needed")
	}
	version := binary.LittleEndian.Uint16(head[0x20e:])
	if version == 0 {
		return "", errors.New("its header has no version")
	}
	text := make([]byte, 128)
	n, err := f.ReadAt(text, int64(version)+0x200)
	if err != nil && err != io.EOF {
		return "", err
	}
	return word(text[:n]), nil
}

// vmlinuxRelease wants what QEMU's ELF loader wants: 64 bits and the note that
// names the PVH entry (CONFIG_PVH).
func vmlinuxRelease(f io.ReaderAt) (string, error) {
	e, err := elf.NewFile(f)
	if err != nil {
		return "", err
	}
	if e.Class != elf.ELFCLASS64 || e.Machine != elf.EM_X86_64 || e.Type != elf.ET_EXEC && e.Type != elf.ET_DYN {
		return "", fmt.Errorf("an ELF file for %v (%v, %v); a vmlinux for x86-64 is needed", e.Machine, e.Class, e.Type)
	}
	if !hasPVH(e) {
		return "", errors.New("an ELF file without a PVH entry: not a vmlinux, or built without CONFIG_PVH")
	}
	return findBanner(io.NewSectionReader(f, 0, maxKernel))
}

// hasPVH looks for the ELF note XEN_ELFNOTE_PHYS32_ENTRY.
func hasPVH(e *elf.File) bool {
	const physEntry, maxSegments, maxBytes = 18, 16, 1 << 20
	for _, p := range e.Progs[:min(len(e.Progs), maxSegments)] {
		if p.Type != elf.PT_NOTE || p.Filesz > maxBytes {
			continue
		}
		b, err := io.ReadAll(p.Open())
		for err == nil && len(b) >= 12 {
			name, desc := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
			size := 12 + align4(uint64(name)) + align4(uint64(desc))
			if size > uint64(len(b)) {
				break
			}
			if binary.LittleEndian.Uint32(b[8:]) == physEntry && bytes.HasPrefix(b[12:], []byte("Xen\x00")) {
				return true
			}
			b = b[size:]
		}
	}
	return false
}

// findBanner scans for the kernel's banner, "Linux version RELEASE (…".
func findBanner(r io.Reader) (string, error) {
	const longest = 256
	banner := []byte("Linux version ")
	buf := make([]byte, 0, 1<<20)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		for b := buf; ; {
			i := bytes.Index(b, banner)
			if i < 0 || len(b)-i < longest && err == nil {
				break
			}
			b = b[i+len(banner):]
			if release := word(b); releaseRE.MatchString(release) {
				return release, nil
			}
		}
		if err != nil {
			return "", errors.New(`no "Linux version" in it`)
		}
		keep := copy(buf, buf[len(buf)-longest:])
		buf = buf[:keep]
	}
}

// word is the text before the first blank or NUL, at most 128 bytes.
func word(b []byte) string {
	b = b[:min(len(b), 128)]
	if i := bytes.IndexAny(b, " \x00\n"); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
