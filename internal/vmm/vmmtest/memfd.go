package vmmtest

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Memfd makes a memfd of size bytes that can be sealed; it is closed at the
// end of the test.
func Memfd(t testing.TB, name string, size int64) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatalf("make memfd %s: %v", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// Seal seals a memfd for good, as vmm.Saved wants it.
func Seal(t testing.TB, f *os.File) {
	t.Helper()
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	err := control(f, func(fd uintptr) error {
		_, err := unix.FcntlInt(fd, unix.F_ADD_SEALS, seals)
		return err
	})
	if err != nil {
		t.Fatalf("seal %s: %v", f.Name(), err)
	}
}

// control does something with the descriptor of a file.
func control(f *os.File, do func(fd uintptr) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = do(fd) }); cerr != nil {
		return cerr
	}
	return err
}
