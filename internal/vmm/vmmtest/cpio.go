package vmmtest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Kernel is the guest kernel for tests that boot: HYPER_TEST_KERNEL. Without
// one the test is skipped.
func Kernel(t testing.TB) string {
	t.Helper()
	path := os.Getenv("HYPER_TEST_KERNEL")
	if path == "" {
		t.Skip("HYPER_TEST_KERNEL names no guest kernel")
	}
	return path
}

// Initrd builds testguest/init and returns the path of an initrd with it.
func Initrd(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary,
		"github.com/hyper-run/hyper/internal/vmm/vmmtest/testguest/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build test guest: %v\n%s", err, out)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "initrd")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, e := range []struct {
		name string
		mode int
		data []byte
	}{{"dev", 0o40755, nil}, {"init", 0o100755, program}, {"TRAILER!!!", 0, nil}} {
		if err := writeEntry(f, e.name, e.mode, e.data); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// writeEntry writes a member of a newc archive (cpio(5)): magic and 13
// numbers of 8 hex digits, the name and the data each padded to 4 bytes.
func writeEntry(w io.Writer, name string, mode int, data []byte) error {
	links := 1
	if _, err := fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		0, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name); err != nil {
		return err
	}
	if _, err := w.Write(make([]byte, -(110+len(name)+1)&3)); err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	_, err := w.Write(make([]byte, -len(data)&3))
	return err
}
