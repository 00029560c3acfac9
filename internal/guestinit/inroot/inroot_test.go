package inroot

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// fixture is a root with links that try to lead out of it, and what lies beside.
func fixture(t *testing.T) (*Dir, string) {
	t.Helper()
	base := t.TempDir()
	root := filepath.Join(base, "root")
	for _, dir := range []string{"root/etc", "root/real", "outside"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(base+"/outside/secret", []byte("secret"), 0o644)
	os.WriteFile(root+"/etc/passwd", []byte("inside"), 0o644)
	for name, target := range map[string]string{
		"abs": base + "/outside", "up": "../outside", "in": "/real", "loop": "loop", "dangling": "/not/there",
		"file": "/etc/passwd", "proc": "/proc/self/root",
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	unix.Mkfifo(root+"/fifo", 0o644)
	d, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, base
}

func TestReadFile(t *testing.T) {
	d, _ := fixture(t)
	for name, want := range map[string]string{"/etc/passwd": "inside", "file": "inside", "//etc/../etc/passwd": "inside", "../../etc/passwd": "inside"} {
		if got, err := d.ReadFile(name, 100); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"abs/secret", "up/secret", "/../outside/secret", "loop", "fifo", "etc", ""} {
		if got, err := d.ReadFile(name, 100); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
	if _, err := d.ReadFile("/etc/passwd", 5); err == nil {
		t.Error("a file larger than the limit was read")
	}
}

func TestMkdirAll(t *testing.T) {
	d, base := fixture(t)
	for name, at := range map[string]string{
		"/a/b/c": "a/b/c", "in/x": "real/x", "abs/made": "", "up/made": "outside/made", "etc": "etc", "/": "",
	} {
		f, err := d.MkdirAll(name, 0o755)
		if err != nil {
			if name != "abs/made" && name != "up/made" {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		f.Close()
		if _, err := os.Stat(filepath.Join(base, "root", at)); err != nil && name != "up/made" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, _ := os.ReadDir(base + "/outside"); len(left) != 1 {
		t.Errorf("made outside: %v", left)
	}
	for _, name := range []string{"dangling/x", "loop/x", "etc/passwd/x", "fifo"} {
		if f, err := d.MkdirAll(name, 0o755); err == nil {
			f.Close()
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := d.MkdirAll("gone/../x/..", 0o755); err != nil && !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
}

func TestTouch(t *testing.T) {
	d, base := fixture(t)
	for _, name := range []string{"new", "a/b/new", "in/new", "fifo", "file"} {
		f, err := d.Touch(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		f.Close()
	}
	if f, err := d.Touch("abs/new"); err == nil {
		f.Close()
	}
	if left, _ := os.ReadDir(base + "/outside"); len(left) != 1 {
		t.Errorf("made outside: %v", left)
	}
	if b, _ := os.ReadFile(base + "/root/etc/passwd"); string(b) != "inside" {
		t.Error("an existing file was changed")
	}
}
