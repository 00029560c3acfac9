package template

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/vmm"
)

// TestDamage: whatever happened to the files, the next Store makes a good template.
func TestDamage(t *testing.T) {
	flip := func(at int64) func(string) error {
		return func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			var c [1]byte
			if _, err := f.ReadAt(c[:], at); err != nil {
				return err
			}
			c[0] ^= 4
			_, err = f.WriteAt(c[:], at)
			return err
		}
	}
	cut := func(path string) error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		return os.Truncate(path, info.Size()-1)
	}
	replace := func(old, with string) func(string) error {
		return func(path string) error {
			data, err := os.ReadFile(path)
			if err != nil || !bytes.Contains(data, []byte(old)) {
				return errors.Join(err, fmt.Errorf("no %s in %s", old, data))
			}
			return os.WriteFile(path, bytes.Replace(data, []byte(old), []byte(with), 1), 0o600)
		}
	}
	fifo := func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) }
	for _, c := range []struct {
		name, file string
		damage     func(path string) error
		log        string // at loading; "": found when the Store opens
	}{
		{"memory flipped", memoryName, flip(5<<20 - 4096), "its hash is another one"},
		{"memory flipped in a hole", memoryName, flip(20 << 20), "its hash is another one"},
		{"memory cut", memoryName, cut, "67108863 bytes, not 67108864"},
		{"memory gone", memoryName, os.Remove, "no such file"},
		{"memory a fifo", memoryName, fifo, "is no file"},
		{"memory a hole", memoryName, func(p string) error { return errors.Join(os.Truncate(p, 0), os.Truncate(p, 64<<20)) }, "its hash is another one"},
		{"state flipped", stateName, flip(3), "its hash is another one"},
		{"state cut", stateName, cut, "bytes, not"},
		{"state gone", stateName, os.Remove, "no such file"},
		{"manifest flipped", manifestName, flip(200), ""},
		{"manifest cut", manifestName, cut, ""},
		{"manifest gone", manifestName, os.Remove, ""},
		{"manifest a fifo", manifestName, fifo, ""},
		{"manifest with more", manifestName, replace(`{"sha256"`, `{"x":1,"sha256"`), ""},
		{"manifest of another format", manifestName, replace(`"format":1`, `"format":2`), ""},
		{"all gone", "", os.RemoveAll, ""},
	} {
		for _, open := range []bool{false, true} { // damaged before, or while the Store is open
			t.Run(fmt.Sprintf("%s open=%t", c.name, open), func(t *testing.T) {
				b := newBench(t)
				s := b.open()
				id := b.make(s).ID
				s.Close()
				path := filepath.Join(b.cfg.Dir, id, c.file)
				if open {
					s = b.open()
				}
				if err := c.damage(path); err != nil {
					t.Fatal(err)
				}
				if !open {
					s = b.open()
					if n := len(s.List()); n != 0 && c.log == "" {
						t.Errorf("%d templates in the next Store", n)
					}
				}
				b.notReady(s, "it is being made")
				b.make(s)
				b.clone(b.find(s), "clone")
				if n := b.driver.made(); n != 2 {
					t.Errorf("made %d times", n)
				}
				if c.log != "" && !strings.Contains(b.log.String(), c.log) {
					t.Errorf("the log does not say %q", c.log)
				}
				s.Close()
				if _, err := readManifest(filepath.Join(b.cfg.Dir, id)); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestStale: a template is not used by what it was not made for, and goes.
func TestStale(t *testing.T) {
	other := func(f func(*Shape)) func(*bench) { return func(b *bench) { f(&b.shape) } }
	for _, c := range []struct {
		name   string
		change func(*bench)
		left   int // templates with the new one
	}{
		{"VMM", func(b *bench) { b.driver.identity = " 2" }, 1},
		{"kernel", func(b *bench) { b.file(b.shape.Kernel, "kernel 2") }, 1},
		{"initrd", func(b *bench) { b.shape.Initrd += "2"; b.file(b.shape.Initrd, "initrd") }, 1},
		{"size of initrd", func(b *bench) { b.file(b.shape.Initrd, "initrd more") }, 1},
		{"memory", other(func(s *Shape) { s.MemMiB++ }), 2},
		{"CPUs", other(func(s *Shape) { s.CPUs++ }), 2},
		{"layers", other(func(s *Shape) { s.Layers++ }), 2},
		{"disks", other(func(s *Shape) { s.Disks++ }), 2},
		{"network", other(func(s *Shape) { s.NIC = false }), 2},
		{"plugging", other(func(s *Shape) { s.Plug = true }), 2},
		{"command line", other(func(s *Shape) { s.Cmdline += " x" }), 2},
		{"machine", other(func(s *Shape) { s.Machine = vmm.MachineQ35 }), 2},
		{"accelerator", func(b *bench) { b.cfg.Accel = vmm.AccelKVM }, 1},
	} {
		for _, running := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s running=%t", c.name, running), func(t *testing.T) {
				b := newBench(t)
				s := b.open()
				old := b.make(s).ID
				if !running {
					s.Close()
				}
				c.change(b)
				if !running {
					s = b.open()
				} else {
					s.cfg = b.cfg
				}
				b.notReady(s, "it is being made")
				if i := b.make(s); i.ID == old {
					t.Errorf("%s is used", old)
				}
				if got := s.List(); len(got) != c.left {
					t.Errorf("templates: %+v", got)
				}
				s.Close()
				if left, _ := os.ReadDir(b.cfg.Dir); len(left) != c.left {
					t.Errorf("left in Dir: %v", left)
				}
			})
		}
	}
}

func TestKeep(t *testing.T) {
	b := newBench(t)
	s := b.open()
	b.make(s)
	s.Close()
	b.cfg.Keep = func(shape Shape) bool { return shape != b.shape }
	if s = b.open(); len(s.List()) != 0 {
		t.Errorf("kept %+v", s.List())
	}
	b.empty()
}
