package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/boot"
	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

// guestInitrd is an initrd with testdata/guest as /init.
func guestInitrd(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./testdata/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build guest: %v\n%s", err, out)
	}
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	err = boot.WriteCPIO(&archive, []boot.File{
		{Name: "dev", Mode: unix.S_IFDIR | 0o755},
		{Name: "init", Mode: unix.S_IFREG | 0o755, Size: int64(len(b)), Data: bytes.NewReader(b)},
	})
	path := filepath.Join(dir, "initrd")
	if err == nil {
		err = os.WriteFile(path, archive.Bytes(), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// saved makes a template of cfg and returns the configuration of its clones,
// which lack ID and Dir.
func saved(t testing.TB, d *Driver, cfg vmm.Config) vmm.Config {
	t.Helper()
	cfg.ID, cfg.Dir = "template", shortDir(t)
	cfg.Memory = vmmtest.Memfd(t, "memory", int64(cfg.MemMiB)<<20)
	state := vmmtest.Memfd(t, "state", 0)
	v, ask := bootVM(t, d, cfg)
	ask("echo here")
	if err := v.(vmm.Saver).Save(t.Context(), state); err != nil {
		t.Fatal(err)
	}
	if err := v.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	vmmtest.Seal(t, cfg.Memory)
	vmmtest.Seal(t, state)
	cfg.Restore = &vmm.Saved{Memory: cfg.Memory, State: state}
	cfg.Memory, cfg.Kernel, cfg.Initrd, cfg.Machine = nil, "", "", v.Handle().Machine
	return cfg
}

// clone starts a VM of what saved returned, with files in some slots.
func clone(t testing.TB, d *Driver, cfg vmm.Config, files ...vmm.Disk) (*vm, func(string) string) {
	t.Helper()
	cfg.ID, cfg.Dir = fmt.Sprintf("clone-%d", rand.Int64()), shortDir(t)
	cfg.Disks = append([]vmm.Disk(nil), cfg.Disks...)
	for _, f := range files {
		for i := range cfg.Disks {
			if cfg.Disks[i].ID == f.ID {
				cfg.Disks[i] = f
			}
		}
	}
	v, ask := bootVM(t, d, cfg)
	return v.(*vm), ask
}

func fileOf(t testing.TB, id string, content []byte, readOnly bool) vmm.Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), id)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return vmm.Disk{ID: id, Path: path, ReadOnly: readOnly}
}

func hashOf(t *testing.T, f *os.File) string {
	t.Helper()
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, 1<<40)); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

// privateMiB is what a VM's guest has made its own of its memory.
func privateMiB(t testing.TB, v *vm) int {
	t.Helper()
	return smaps(t, v.handle.PID)["memory"] >> 10
}

// smaps sums the private memory of a QEMU by kind, in KiB.
func smaps(t testing.TB, pid int) map[string]int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	sums, kind := map[string]int{}, ""
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if !strings.HasSuffix(f[0], ":") {
			name, perms := "", f[1]
			if len(f) > 5 {
				name = f[5]
			}
			switch {
			case strings.Contains(name, "memfd:memory"), strings.HasPrefix(name, "/dev/loop"):
				kind = "memory"
			case strings.Contains(name, "[heap]"):
				kind = "heap"
			case strings.HasPrefix(name, "/"):
				kind = "libs"
			case strings.Contains(perms, "x"):
				kind = "tcg"
			default:
				kind = "anon"
			}
			continue
		}
		var kib int
		if n, _ := fmt.Sscanf(line, "Private_Dirty: %d kB", &kib); n == 1 {
			sums[kind] += kib
		}
	}
	return sums
}

// loopOf is a read-only device with the contents of memory.
func loopOf(t *testing.T, memory *os.File) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "memory")
	if out, err := exec.Command("cp", "--sparse=always", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), memory.Fd()), path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	name, err := exec.Command("losetup", "--read-only", "--direct-io=on", "--find", "--show", path).Output()
	if err != nil {
		t.Skipf("no loop device: %v", err)
	}
	dev := strings.TrimSpace(string(name))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestMemoryGoesBack: what a clone's guest frees the host gets back, and the
// template stays as it is, whatever its clones do.
func TestMemoryGoesBack(t *testing.T) {
	const mostLeft = 100 // MiB; what is free in pieces of less than 2 MiB is not reported
	kernel, initrd := vmmtest.Kernel(t), guestInitrd(t)
	for _, c := range []struct {
		machine vmm.Machine
		device  bool
	}{{vmm.MachineMicroVM, false}, {vmm.MachineQ35, false}, {vmm.MachineMicroVM, true}} {
		t.Run(fmt.Sprintf("%s device=%t", c.machine, c.device), func(t *testing.T) {
			d := New(Options{})
			t.Cleanup(d.Close)
			cfg := saved(t, d, vmm.Config{
				Machine: c.machine, Kernel: kernel, Initrd: initrd, CPUs: 1, MemMiB: 1024,
				Disks: []vmm.Disk{{ID: "l0", ReadOnly: true}, {ID: "w0"}},
			})
			if c.device {
				cfg.Restore.Memory = loopOf(t, cfg.Restore.Memory)
			}
			before := hashOf(t, cfg.Restore.Memory)
			var vms []*vm
			for i := range 3 {
				var files []vmm.Disk
				for _, id := range []string{"l0", "w0"}[:i] {
					files = append(files, fileOf(t, id, make([]byte, 1<<20), id == "l0"))
				}
				v, ask := clone(t, d, cfg, files...)
				if got := ask("fact use 400"); got != "ok" {
					t.Errorf("use: %s", got)
				}
				t.Logf("%d files: %d MiB at once", i, privateMiB(t, v))
				vms = append(vms, v)
			}
			start := time.Now()
			for i, v := range vms {
				for time.Since(start) < 30*time.Second && privateMiB(t, v) > mostLeft {
					time.Sleep(100 * time.Millisecond)
				}
				left := privateMiB(t, v)
				t.Logf("%d files: %d MiB after %v", i, left, time.Since(start))
				if left > mostLeft {
					t.Errorf("%d MiB are not given back: %s", left, readLog(v.handle.Dir))
				}
				v.Kill(t.Context())
			}
			if hashOf(t, cfg.Restore.Memory) != before {
				t.Error("the template has changed")
			}
		})
	}
}

// TestWrongFilter: a clone whose descriptor is not the one that the filter is
// for would do as if it discarded something else. It is started again.
func TestWrongFilter(t *testing.T) {
	d := New(Options{})
	t.Cleanup(d.Close)
	cfg := saved(t, d, vmm.Config{
		Kernel: vmmtest.Kernel(t), Initrd: guestInitrd(t), CPUs: 1, MemMiB: 128, Disks: []vmm.Disk{{ID: "w0"}},
	})
	clone(t, d, cfg)
	for layout, fd := range d.memory.known {
		d.memory.known[layout] = fd + 1
		v, ask := clone(t, d, cfg)
		ask("echo here")
		if v.misfiltered || d.memory.known[layout] != fd {
			t.Errorf("descriptor %d, known as %d", fd, d.memory.known[layout])
		}
	}
}

// TestHolesAreFiltered: only on the one descriptor, and only for children.
func TestHolesAreFiltered(t *testing.T) {
	f := vmmtest.Memfd(t, "holes", 8192)
	other := vmmtest.Memfd(t, "other", 8192)
	for _, g := range []*os.File{f, other} {
		if _, err := g.WriteAt(bytes.Repeat([]byte{1}, 8192), 0); err != nil {
			t.Fatal(err)
		}
	}
	child := func() error {
		cmd := exec.Command("sh", "-c", "fallocate -p -o 0 -l 4096 /dev/fd/3 && fallocate -p -o 0 -l 4096 /dev/fd/4")
		cmd.ExtraFiles = []*os.File{f, other}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		return err
	}
	holes := func(g *os.File) bool {
		b := make([]byte, 1)
		if _, err := g.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		return b[0] == 0
	}
	// fallocate(1) inherits 3 and 4, and opens its file as 5.
	if err := confined(5, child); err != nil {
		t.Fatal(err)
	}
	if holes(f) || holes(other) {
		t.Error("a hole was made")
	}
	if err := confined(6, child); err != nil {
		t.Fatal(err)
	}
	if !holes(f) || !holes(other) {
		t.Error("holes on another descriptor were not made")
	}
}

// TestLoopsAreFiltered: nobody confined controls loop devices, or makes a
// device writable; other ioctls work.
func TestLoopsAreFiltered(t *testing.T) {
	const changeFD = 0x4c06 // LOOP_CHANGE_FD
	f := vmmtest.Memfd(t, "x", 0)
	err := confined(0, func() error {
		for _, req := range []uint{changeFD, unix.LOOP_CLR_FD, unix.LOOP_SET_STATUS64, unix.LOOP_SET_FD, unix.LOOP_CONFIGURE, unix.BLKROSET} {
			if err := unix.IoctlSetInt(int(f.Fd()), req, 0); !errors.Is(err, unix.EPERM) {
				t.Errorf("ioctl %#x: %v", req, err)
			}
		}
		for _, req := range []uint{unix.BLKROGET, unix.BLKGETSIZE64} {
			if err := unix.IoctlSetInt(int(f.Fd()), req, 0); !errors.Is(err, unix.ENOTTY) {
				t.Errorf("ioctl %#x: %v", req, err)
			}
		}
		const x32 = 0x40000000
		if _, _, errno := unix.RawSyscall(x32|unix.SYS_IOCTL, f.Fd(), unix.LOOP_CLR_FD, 0); errno != unix.EPERM {
			t.Errorf("by the way of x32: %v", errno)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestDiskInUse: a clone that can't have its disk ends, and says why.
func TestDiskInUse(t *testing.T) {
	d := New(Options{})
	t.Cleanup(d.Close)
	cfg := saved(t, d, vmm.Config{
		Kernel: vmmtest.Kernel(t), Initrd: guestInitrd(t), CPUs: 1, MemMiB: 128, Disks: []vmm.Disk{{ID: "w0"}},
	})
	disk := fileOf(t, "w0", make([]byte, 1<<20), false)
	_, ask := clone(t, d, cfg, disk)
	ask("echo here")
	cfg.ID, cfg.Dir, cfg.Disks = "second", shortDir(t), []vmm.Disk{disk}
	v, err := d.Start(t.Context(), cfg)
	if err == nil {
		t.Cleanup(func() { v.Kill(context.Background()) })
		select {
		case <-v.Done():
		case <-time.After(patience):
			t.Fatal("it goes on")
		}
		err = fmt.Errorf("%+v", v.Exit())
	}
	if !strings.Contains(err.Error(), "lock") {
		t.Errorf("got %v", err)
	}
}

// TestFilledDisk: discards and flushes reach the file, and a second VM can't
// have it.
func TestFilledDisk(t *testing.T) {
	d := New(Options{})
	t.Cleanup(d.Close)
	cfg := saved(t, d, vmm.Config{
		Kernel: vmmtest.Kernel(t), Initrd: guestInitrd(t), CPUs: 1, MemMiB: 128, Disks: []vmm.Disk{{ID: "w0"}, {ID: "w1"}},
	})
	v, ask := clone(t, d, cfg)
	ask("echo here")
	disk := fileOf(t, "w0", bytes.Repeat([]byte{'x'}, 4<<20), false)
	if err := v.Fill(t.Context(), []vmm.Disk{disk}); err != nil {
		t.Fatal(err)
	}
	// testguest's write is followed by fsync.
	if got := ask("write w0 text"); got != "ok" {
		t.Errorf("write: %s", got)
	}
	if got := ask("fact discard w0 1048576 2097152"); got != "ok" {
		t.Errorf("discard: %s", got)
	}
	b, err := os.ReadFile(disk.Path)
	if err != nil || !bytes.HasPrefix(b, []byte("text\n")) || b[1<<20] != 0 || b[3<<20-1] != 0 || b[3<<20] != 'x' {
		t.Errorf("file: %q at 0, %d at 1 MiB, %d at 3 MiB, %v", b[:5], b[1<<20], b[3<<20], err)
	}
	var stat unix.Stat_t
	if err := unix.Stat(disk.Path, &stat); err != nil || stat.Blocks*512 > 3<<20 {
		t.Errorf("the file has %d bytes on the host, %v", stat.Blocks*512, err)
	}
	second, ask2 := clone(t, d, cfg)
	ask2("echo here")
	other := fileOf(t, "w1", make([]byte, 4096), false)
	if err := second.Fill(t.Context(), []vmm.Disk{other, disk}); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("second VM: %v", err)
	}
	if err := second.Fill(t.Context(), []vmm.Disk{other}); err != nil {
		t.Errorf("after that: %v", err)
	}
	if got := ask2("write w1 text"); got != "ok" {
		t.Errorf("write: %s", got)
	}
}

// TestDescriptorIsPredicted: after the first clone of a layout none is started
// twice.
func TestDescriptorIsPredicted(t *testing.T) {
	d := New(Options{})
	t.Cleanup(d.Close)
	cfg := saved(t, d, vmm.Config{
		Kernel: vmmtest.Kernel(t), Initrd: guestInitrd(t), CPUs: 2, MemMiB: 128,
		Disks: []vmm.Disk{{ID: "l0", ReadOnly: true}, {ID: "l1", ReadOnly: true}, {ID: "w0"}},
	})
	for i := range 12 {
		files := []vmm.Disk{fileOf(t, "l1", make([]byte, 4096), true), fileOf(t, "w0", make([]byte, 4096), false)}[:i%3]
		v, ask := clone(t, d, cfg, files...)
		ask("echo here")
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", v.handle.PID))
		if err != nil {
			t.Fatal(err)
		}
		_, path, _ := strings.Cut(string(args), "mem-path=/proc/self/fd/")
		var inherited int
		fmt.Sscanf(path, "%d", &inherited)
		fd := memoryFD(v.handle.PID, inherited, 0)
		t.Logf("%d files: descriptor %d, misfiltered %t", len(files), fd, v.misfiltered)
		if v.misfiltered || fd == 0 {
			t.Errorf("clone %d has descriptor %d", i, fd)
		}
		v.Kill(t.Context())
	}
	if n := len(d.memory.known); n != 3 {
		t.Errorf("%d layouts are known, not 3: %v", n, d.memory.known)
	}
}
