package vm

import (
	"archive/tar"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// mounted gives the second hyperd a root of its own size.
func mounted(t *testing.T, size string) func(*host) {
	return func(h *host) {
		if err := os.MkdirAll(h.root, 0o711); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", h.root, "tmpfs", 0, "size="+size); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(h.root, 0); err != nil {
				t.Errorf("unmount: %v", err)
			}
		})
	}
}

func TestBadDiskFull(t *testing.T) {
	d := another(t, mounted(t, "96m"))
	reg := newBadRegistry(t)
	plain := tarOf(t, tar.Header{Name: "big", Size: 60 << 20})
	big := reg.push(t, "big:1", badImage(t, "amd64", plain, plain))
	must(t, "run", "--rm", "hello")
	t.Run("pull", func(t *testing.T) { // the blob has room, its conversion does not
		refused(t, 125, "no space left on device", "run", "--rm", big, "true")
	})
	t.Run("download", func(t *testing.T) {
		fill(t, d, 20<<20)
		refused(t, 125, "no space left on device", "run", "--rm", big, "true")
	})
	img := pulled(t, "busybox")
	t.Run("container", func(t *testing.T) { hostFull(t, d, img) })
	t.Run("create", func(t *testing.T) {
		fill(t, d, 0)
		refused(t, 125, "no space left on device", "run", "--rm", img, "true")
	})
	if out := must(t, "run", "--rm", img, "echo", "there is room again"); out != "there is room again" {
		t.Errorf("%q", out)
	}
}

// hostFull fills the host's disk under a container that writes: it gets an
// error, and what it had on disk before is there after a restart.
func hostFull(t *testing.T, d *host, img string) {
	id := container(t, img, "sleep", "1000")
	sum := must(t, "exec", id, "sh", "-c", "dd if=/dev/urandom of=/before bs=1M count=4 conv=fsync 2>&- && sha256sum /before")
	free := fill(t, d, 2<<20)
	r := hyper(t, "exec", id, "dd", "if=/dev/zero", "of=/f", "bs=1M", "count=40", "conv=fsync")
	if r.code != 1 || !strings.Contains(r.err, "Input/output error") && !strings.Contains(r.err, "No space left") {
		t.Errorf("dd: %+v", r)
	}
	d.signal(syscall.SIGKILL)
	if err := d.start(); err != nil {
		t.Fatalf("with a full disk: %v", err)
	}
	if out := must(t, "exec", id, "echo", "still here"); out != "still here" {
		t.Errorf("%q", out)
	}
	free()
	must(t, "restart", "-t", "0", id)
	if now := must(t, "exec", id, "sha256sum", "/before"); now != sum {
		t.Errorf("%s after the restart, was %s", now, sum)
	}
	must(t, "exec", id, "sh", "-c", "rm -f /f && touch /after && sync /after")
	must(t, "stop", "-t", "0", id)
	disk := must(t, "inspect", "-f", "{{.Hyper.disk}}", id)
	if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

// fill takes all the room of hyperd's root but free bytes, until the end of
// the test or the call of what it returns.
func fill(t *testing.T, d *host, free uint64) (undo func()) {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.root, &st); err != nil {
		t.Fatal(err)
	}
	room := st.Bfree * uint64(st.Bsize)
	if room < free {
		t.Fatalf("only %d bytes free", room)
	}
	f, err := os.Create(filepath.Join(d.dir, "root", "filler.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	undo = func() { os.Remove(f.Name()) }
	t.Cleanup(undo)
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(room-free)); err != nil {
		t.Fatal(err)
	}
	return undo
}
