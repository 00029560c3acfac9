package template

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// unchangeable wants that nobody can write f, punch holes into it, or map it
// to do so, who opens it as a VMM does.
func (b *bench) unchangeable(f *os.File) {
	b.Helper()
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	_, werr := f.WriteAt([]byte("x"), 0)
	perr := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, pageSize)
	_, merr := unix.Mmap(int(f.Fd()), 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if werr == nil || perr == nil || merr == nil || f.Truncate(0) == nil {
		b.Errorf("%s can be changed: %v, %v, %v", f.Name(), werr, perr, merr)
	}
}

// loops are the devices on files below dir.
func loops(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, path := range paths {
		if b, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(b), dir+"/") {
			found = append(found, path)
		}
	}
	return found
}

// noLoops waits until there are none.
func noLoops(t *testing.T, dir string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); len(loops(t, dir)) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v are left", loops(t, dir))
		}
	}
}

func needLoop(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	f.Close()
}

// TestDevice: memory is a device, also of a template whose files are gone, and
// goes with the last who has it.
func TestDevice(t *testing.T) {
	needLoop(t)
	b := newBench(t)
	s := b.open()
	b.make(s)
	made := b.find(s)
	if !isDevice(made.saved.Memory) || len(loops(t, b.cfg.Dir)) != 1 {
		t.Fatalf("no device: %s", b.log)
	}
	b.unchangeable(made.saved.Memory)
	// Pages that are written first, in a hole or not, are the mapping's own.
	mem, err := unix.Mmap(int(made.saved.Memory.Fd()), 0, 64<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(mem); at += pageSize {
		mem[at] ^= 1
	}
	if err := unix.Munmap(mem); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = b.open()
	loaded := b.find(s)
	b.sameMemory(made, loaded)
	if err := s.Remove(loaded.ID); err != nil {
		t.Error(err)
	}
	s.Close()
	b.empty()
	b.clone(loaded, "clone")
	closeSaved(made.saved) // which the garbage collector does
	if n := len(loops(t, b.cfg.Dir)); n != 1 {
		t.Errorf("%d devices while one is used", n)
	}
	closeSaved(loaded.saved)
	noLoops(t, b.cfg.Dir)
	if strings.Contains(b.log.String(), "no loop device") {
		t.Error("a device was refused")
	}
}

// TestDeviceOfKilled: a device is left by nobody, however they end.
func TestDeviceOfKilled(t *testing.T) {
	needLoop(t)
	const env = "HYPER_TEST_DEVICE_OF"
	if path := os.Getenv(env); path != "" {
		src, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		dev, err := openLoop(loopControl, src)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Mmap(int(dev.Fd()), 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("ready\n")
		select {}
	}
	dir := t.TempDir()
	path := dir + "/memory"
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), env+"="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, rerr := out.Read(make([]byte, 6))
	n := len(loops(t, dir))
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	cmd.Wait() //nolint:errcheck // killed
	if rerr != nil || n != 1 {
		t.Errorf("%d devices, %v", n, rerr)
	}
	noLoops(t, dir)
}

// TestNoDevice: without them memory is a memfd, and the log says why, once.
func TestNoDevice(t *testing.T) {
	for _, control := range []string{"/nowhere", os.DevNull} {
		b := newBench(t)
		for i := range 2 {
			s := b.open()
			s.loopControl = control
			b.make(s)
			b.shape.CPUs++
			b.make(s)
			tmpl := b.find(s)
			if isDevice(tmpl.saved.Memory) {
				t.Fatal("it is a device")
			}
			b.unchangeable(tmpl.saved.Memory)
			b.clone(tmpl, "clone-"+strconv.Itoa(i))
			s.Close()
			b.shape.CPUs--
			if n := strings.Count(b.log.String(), "no loop device"); n != i+1 {
				t.Errorf("logged %d times by %d Stores", n, i+1)
			}
		}
	}
}
