package template

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

func TestLife(t *testing.T) {
	b := newBench(t)
	s := b.open()
	b.notReady(s, "it is being made")
	made := b.make(s)
	if got, err := s.Get(made.ID[:5]); err != nil || got.ID != made.ID {
		t.Errorf("get by prefix: %+v, %v", got, err)
	}
	if made.Status != StatusReady || made.Error != "" || made.MakeTime <= 0 || made.Shape != b.shape || made.VMM != "fake" || made.Accel != vmm.AccelTCG {
		t.Errorf("made %+v", made)
	}
	first := b.find(s)
	// 10,000 bytes three times, one page of state; a memfd has two pages of zeros.
	want := int64(3*3+1) * pageSize
	if !isDevice(first.saved.Memory) {
		want += 2 * pageSize
	}
	if made.MemoryBytes != want {
		t.Errorf("template takes %d bytes of memory, not %d", made.MemoryBytes, want)
	}
	if made.DiskBytes < (3*3+1+1)*pageSize || made.DiskBytes > 1<<20 {
		t.Errorf("template takes %d bytes of disk", made.DiskBytes)
	}
	b.clone(first, "one")
	b.clone(first, "two")
	if i := s.List()[0]; i.Clones != 2 || time.Since(i.LastUsed) > time.Minute {
		t.Errorf("after two clones: %+v", i)
	}
	s.Close()
	b.notReady(s, "hyperd ends")
	b.clone(first, "later")

	s = b.open()
	if i := b.status(s, StatusReady); i.MemoryBytes != 0 || i.DiskBytes != made.DiskBytes || !i.Created.Equal(made.Created) {
		t.Errorf("in the next Store: %+v", i)
	}
	second := b.find(s)
	b.clone(second, "three")
	b.sameMemory(first, second)
	if n := b.driver.made(); n != 1 {
		t.Errorf("made %d times", n)
	}
	for _, f := range []*os.File{first.saved.Memory, first.saved.State, second.saved.Memory, second.saved.State} {
		b.unchangeable(f)
	}
	if err := s.Remove(made.ID); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(made.ID); !errdefs.IsNotFound(err) || len(s.List()) > 0 {
		t.Errorf("removed: %v, %v", err, s.List())
	}
	b.clone(second, "four")
	s.Close()
	b.empty()
}

// TestKilled: what a hyperd left that was killed is gone in the next one.
func TestKilled(t *testing.T) {
	b := newBench(t)
	b.driver.hold, b.driver.reached = make(chan struct{}), make(chan struct{}, 1)
	s := b.open()
	b.notReady(s, "it is being made")
	<-b.driver.reached
	// As killed: the VM runs on, its directory and half of a copy are there.
	id := s.List()[0].ID
	if n := b.driver.VMs(); n != 1 {
		t.Fatalf("%d VMs", n)
	}
	for _, dir := range []string{id + ".new", id + ".old1", "0123456789abcdef"} {
		if err := os.MkdirAll(filepath.Join(b.cfg.Dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		b.file(filepath.Join(b.cfg.Dir, dir, memoryName), "half")
	}
	next := b.open()
	if n := b.driver.VMs(); n != 0 {
		t.Errorf("%d VMs after the next Store opened", n)
	}
	b.empty()
	if left, _ := os.ReadDir(b.cfg.RunDir); len(left) > 0 {
		t.Errorf("left in RunDir: %v", left)
	}
	s.Close()
	b.driver.hold = nil
	b.make(next)
	b.clone(b.find(next), "clone")
}

func TestConcurrentMakes(t *testing.T) {
	b := newBench(t)
	s := b.open()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Make(b.Context(), b.shape); err != nil {
				t.Error(err)
			}
			if _, err := s.Find(b.Context(), b.shape); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := b.driver.made(); n != 1 {
		t.Errorf("made %d times", n)
	}
}

// TestEnd: what is being made ends with the Store, with its removal, but not
// with who asked for it.
func TestEnd(t *testing.T) {
	b := newBench(t)
	b.driver.hold, b.driver.reached = make(chan struct{}), make(chan struct{}, 1)
	s := b.open()
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan error)
	go func() {
		_, err := s.Make(ctx, b.shape)
		asked <- err
	}()
	<-b.driver.reached
	cancel()
	if err := <-asked; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	i := b.status(s, StatusMaking)
	if err := s.Remove(i.ID); err != nil || len(s.List()) != 0 || b.driver.VMs() != 0 {
		t.Errorf("remove: %v, %+v, %d VMs", err, s.List(), b.driver.VMs())
	}
	b.notReady(s, "it is being made")
	<-b.driver.reached
	s.Close()
	b.empty()
}

func TestFailure(t *testing.T) {
	b := newBench(t)
	s := b.open()
	b.driver.fail = &vmm.StartError{Err: errors.New("no luck"), Stderr: "a lot\nto see"}
	b.notReady(s, "it is being made")
	i := b.status(s, StatusFailed)
	if !strings.HasSuffix(i.Error, "no luck") {
		t.Errorf("got %q", i.Error)
	}
	b.notReady(s, "no luck")
	if n := b.driver.made(); n != 1 {
		t.Errorf("tried %d times", n)
	}
	if !strings.Contains(b.log.String(), "to see") {
		t.Error("the log lacks what there was to see")
	}
	// Make tries at once, Find after a while.
	if _, err := s.Make(t.Context(), b.shape); err == nil || !strings.Contains(err.Error(), "to see") {
		t.Errorf("got %v", err)
	}
	s.mu.Lock()
	e := s.entries[i.ID]
	if left := time.Until(e.retry); left < 2*minBackoff-5*time.Second || left > 2*minBackoff {
		t.Errorf("tried again in %v", left)
	}
	e.retry = time.Now()
	s.mu.Unlock()
	b.driver.mu.Lock()
	b.driver.fail = nil
	b.driver.mu.Unlock()
	b.notReady(s, "it is being made")
	b.make(s)
	b.find(s)
}

func TestBackoff(t *testing.T) {
	for n, want := range map[int]time.Duration{1: 30 * time.Second, 2: time.Minute, 5: 8 * time.Minute, 6: maxBackoff, 1000: maxBackoff} {
		if got := backoff(n); got != want {
			t.Errorf("after %d failures: %v, want %v", n, got, want)
		}
	}
}

// TestGuests that never come up, or die.
func TestGuests(t *testing.T) {
	for _, c := range []struct {
		name, want string
		guest      vmmtest.Guest
	}{
		{"silent", "the guest did not answer within", func(conn net.Conn, console io.Writer, _ vmm.Config) vmm.Exit {
			fmt.Fprintln(console, "I am silent")
			io.Copy(io.Discard, conn)
			return vmm.Exit{}
		}},
		{"dies", "the virtual machine has ended (panic oops)", func(net.Conn, io.Writer, vmm.Config) vmm.Exit {
			return vmm.Exit{Reason: vmm.ExitPanic, Detail: "oops"}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.driver.Guest = c.guest
			b.cfg.Timeout = 200 * time.Millisecond
			s := b.open()
			_, err := s.Make(t.Context(), b.shape)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if c.name == "silent" && !strings.Contains(err.Error(), "I am silent") {
				t.Errorf("the console is not in %v", err)
			}
			b.empty()
		})
	}
}

func TestCannotClone(t *testing.T) {
	b := newBench(t)
	s := b.open()
	b.driver.NoClones = true
	b.notReady(s, "can't clone")
	if _, err := s.Make(t.Context(), b.shape); err == nil || len(s.List()) > 0 {
		t.Errorf("got %v, %v", err, s.List())
	}
	b.driver.NoClones = false
	b.shape.Kernel += "-gone"
	b.notReady(s, "no such file")
}

func TestNoNetwork(t *testing.T) {
	b := newBench(t)
	b.cfg.Spare = nil
	s := b.open()
	if _, err := s.Make(t.Context(), b.shape); !errdefs.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}
	b.shape.NIC = false
	b.make(s)
}

func TestShortOfMemory(t *testing.T) {
	b := newBench(t)
	s := b.open()
	id := b.make(s).ID
	s.Close()
	s = b.open()
	s.available = func() (int64, error) { return spareBytes, nil }
	b.notReady(s, "256 MiB of memory available")
	if i := b.status(s, StatusFailed); i.ID != id || i.DiskBytes == 0 {
		t.Errorf("got %+v", i)
	}
	b.shape.CPUs++
	if _, err := s.Make(t.Context(), b.shape); !errdefs.IsResourceExhausted(err) {
		t.Errorf("got %v", err)
	}
	s.available = memAvailable
	b.shape.CPUs--
	b.make(s)
	if n := b.driver.made(); n != 1 {
		t.Errorf("made %d times: a lack of memory is no fault of the files", n)
	}
}

// TestFullDisk: the template works all the same.
func TestFullDisk(t *testing.T) {
	b := newBench(t)
	if err := os.Mkdir(b.cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", b.cfg.Dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(b.cfg.Dir, unix.MNT_DETACH) })
	s := b.open()
	i := b.make(s)
	if i.Status != StatusReady || !strings.Contains(i.Error, "no space left") || i.DiskBytes != 0 {
		t.Errorf("got %+v", i)
	}
	b.clone(b.find(s), "clone")
	b.empty()
	s.Close()
	if s = b.open(); len(s.List()) != 0 {
		t.Errorf("kept %+v", s.List())
	}
}

func TestUnused(t *testing.T) {
	b := newBench(t)
	b.cfg.Unused = 50 * time.Millisecond
	s := b.open()
	b.make(s)
	before := b.find(s)
	for deadline := time.Now().Add(10 * time.Second); s.List()[0].MemoryBytes != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still in memory")
		}
	}
	b.clone(before, "one")
	b.clone(b.find(s), "two") // from its files
	if n := b.driver.made(); n != 1 {
		t.Errorf("made %d times", n)
	}
}

func TestSpoiled(t *testing.T) {
	b := newBench(t)
	s := b.open()
	first := b.make(s)
	old := b.find(s)
	s.Spoiled(old, errors.New("it hangs\nconsole"))
	if i := b.status(s, StatusFailed); i.Error != "it can't be cloned: it hangs" || i.MemoryBytes != 0 || i.DiskBytes != 0 {
		t.Errorf("got %+v", i)
	}
	b.notReady(s, "it is being made") // at once
	if second := b.make(s); second.Created.Equal(first.Created) {
		t.Error("not made anew")
	}
	s.Spoiled(old, errors.New("late news"))
	s.Spoiled(b.find(s), errors.New("it hangs again"))
	b.notReady(s, "it hangs again")
	if n := b.driver.made(); n != 2 {
		t.Errorf("made %d times", n)
	}
	s.Close()
	b.empty()
}

// TestGrown: a memfd whose holes were filled is loaded anew.
func TestGrown(t *testing.T) {
	b := newBench(t)
	b.shape.MemMiB = 600
	s := b.open()
	s.loopControl = os.DevNull
	b.make(s)
	old := b.find(s)
	mem, err := unix.Mmap(int(old.saved.Memory.Fd()), 0, 600<<20, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(mem); at += pageSize {
		if mem[at] == 1 {
			t.Fatal("what is in a hole?")
		}
	}
	if err := unix.Munmap(mem); err != nil {
		t.Fatal(err)
	}
	if n := s.List()[0].MemoryBytes; n < 600<<20 {
		t.Skipf("reading holes took %d bytes only", n)
	}
	if b.find(s) != old {
		t.Error("Find waited")
	}
	s.mu.Lock()
	task := s.entries[old.ID].task
	s.mu.Unlock()
	if task != nil {
		<-task.done
	}
	if n := s.List()[0].MemoryBytes; n > 1<<20 || b.find(s) == old || b.driver.made() != 1 {
		t.Errorf("takes %d bytes, made %d times", n, b.driver.made())
	}
}

func TestGet(t *testing.T) {
	b := newBench(t)
	s := b.open()
	for _, id := range []string{"0123456789abcdef", "0123f56789abcdef"} {
		s.newEntry(id, key{}, b.shape)
	}
	for ref, want := range map[string]func(error) bool{
		"": errdefs.IsNotFound, "9": errdefs.IsNotFound, "0123": errdefs.IsInvalidArgument, "01234": func(err error) bool { return err == nil },
	} {
		if _, err := s.Get(ref); !want(err) {
			t.Errorf("get %q: %v", ref, err)
		}
	}
	if err := s.Remove("0123"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}
