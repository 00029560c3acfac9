package template

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hyper-run/hyper/internal/vmm"
)

func aManifest() manifest {
	return manifest{
		Key:     key{Format: format, Driver: "d", VMM: "v <1>", MemMiB: 64, CPUs: 1, Kernel: "k"},
		Shape:   Shape{Kernel: "/k", MemMiB: 64, CPUs: 1},
		Machine: vmm.MachineQ35, Created: time.Unix(1e9, 1).UTC(), MakeTime: 1.5,
		Memory: contents{64 << 20, 4096, "aa"}, State: contents{100, 100, "bb"},
	}
}

func TestManifest(t *testing.T) {
	m := aManifest()
	b, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseManifest(b)
	if d := cmp.Diff(m, got, cmp.AllowUnexported(manifest{})); d != "" || err != nil {
		t.Errorf("%v, %s", err, d)
	}
	for name, f := range map[string]func(*manifest){
		"format":       func(m *manifest) { m.Key.Format++ },
		"memory":       func(m *manifest) { m.Memory.Size-- },
		"huge":         func(m *manifest) { m.Key.MemMiB, m.Memory.Size = 1<<44, 0 },
		"no memory":    func(m *manifest) { m.Key.MemMiB, m.Memory.Size, m.Memory.Used = 0, 0, 0 },
		"used":         func(m *manifest) { m.Memory.Used = m.Memory.Size + 1 },
		"no state":     func(m *manifest) { m.State.Size = 0 },
		"a huge state": func(m *manifest) { m.State.Size = maxState + 1 },
	} {
		m := aManifest()
		f(&m)
		b, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseManifest(b); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	for i := range b { // any bit
		for bit := range 8 {
			c := append([]byte(nil), b...)
			c[i] ^= 1 << bit
			if got, err := parseManifest(c); err == nil && got != m {
				t.Errorf("byte %d, bit %d: taken as %+v", i, bit, got)
			}
		}
		if _, err := parseManifest(b[:i]); err == nil {
			t.Errorf("cut at %d: taken", i)
		}
	}
}

// FuzzManifest: what is taken is what encode writes, within bounds. The fuzzer
// can't guess hashes, so one is made for what it made.
func FuzzManifest(f *testing.F) {
	b, err := aManifest().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[76:])
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, fmt.Appendf(nil, `{"sha256":%q,"manifest":%s}`, sumOf(b), b)} {
			m, err := parseManifest(b)
			if err != nil {
				continue
			}
			if m.Memory.Size != int64(m.Key.MemMiB)<<20 || m.Key.MemMiB > vmm.MaxMemMiB || m.State.Size > maxState {
				t.Errorf("%+v is out of bounds", m)
			}
			again, err := m.encode()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := parseManifest(again); err != nil || got != m {
				t.Errorf("%+v, %v, not %+v", got, err, m)
			}
		}
	})
}

func TestCopyContents(t *testing.T) {
	const size = 3*chunkSize + 100
	src, err := newMemfd("src", size)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	put := func(at int64, text string) {
		t.Helper()
		if _, err := src.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
	copied := func() contents {
		t.Helper()
		dst, err := newMemfd("dst", size)
		if err != nil {
			t.Fatal(err)
		}
		defer dst.Close()
		c, err := copyContents(t.Context(), dst, source{src, src}, size)
		if err != nil {
			t.Fatal(err)
		}
		again, err := newMemfd("again", size)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if d, err := copyContents(t.Context(), again, source{dst, dst}, size); err != nil || d != c {
			t.Errorf("a copy's copy has %+v, %v, not %+v", d, err, c)
		}
		return c
	}
	empty := copied()
	put(chunkSize, string(zeroPage[:]))
	if c := copied(); c != empty || c.Used != 0 {
		t.Errorf("zeros count: %+v", c)
	}
	put(chunkSize-1, "ab") // across chunks
	put(size-1, "c")
	one := copied()
	if one.Used != 2*pageSize+100 {
		t.Errorf("%d bytes used", one.Used)
	}
	put(chunkSize-1, "\x00b")
	put(chunkSize-2, "a")
	if c := copied(); c.Used != one.Used || c.Sum == one.Sum {
		t.Errorf("where data is does not count: %+v", c)
	}
	dst, err := newMemfd("dst", size)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if _, err := copyContents(t.Context(), dst, source{src, src}, 5*chunkSize); err != nil {
		t.Logf("longer than the file: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := copyContents(ctx, dst, source{src, src}, size); err == nil {
		t.Error("copied on when told to end")
	}
}

func TestMemAvailable(t *testing.T) {
	if n, err := memAvailable(); err != nil || n < 1<<20 || n > 1<<50 {
		t.Errorf("%d, %v", n, err)
	}
}

// BenchmarkRead loads 140 MiB of 4 GiB, as large templates have.
func BenchmarkRead(b *testing.B) {
	dir := b.TempDir()
	memory, err := newMemfd("memory", 4<<30)
	if err != nil {
		b.Fatal(err)
	}
	defer memory.Close()
	buf := make([]byte, 64<<10)
	for i := range int64(140 << 4) { // every fourth 64 KiB of the first 560 MiB
		rand.Read(buf)
		if _, err := memory.WriteAt(buf, i<<18); err != nil {
			b.Fatal(err)
		}
	}
	state, err := newMemfd("state", 0)
	if err != nil {
		b.Fatal(err)
	}
	defer state.Close()
	if _, err := state.Write(buf); err != nil {
		b.Fatal(err)
	}
	m := aManifest()
	m.Key.MemMiB = 4096
	saved := vmm.Saved{Memory: memory, State: state}
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			os.RemoveAll(filepath.Join(dir, "t"))
			if _, err := write(b.Context(), filepath.Join(dir, "t"), filepath.Join(dir, "tmp"), m, saved); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, control := range map[string]string{"device": loopControl, "memfd": os.DevNull} {
		b.Run(name, func(b *testing.B) {
			s := newBench(b).open()
			s.loopControl = control
			os.RemoveAll(filepath.Join(dir, "t"))
			if _, err := write(b.Context(), filepath.Join(dir, "t"), filepath.Join(dir, "tmp"), m, saved); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				_, saved, err := s.read(b.Context(), filepath.Join(dir, "t"), m.Key)
				if err != nil {
					b.Fatal(err)
				}
				closeSaved(saved)
			}
		})
	}
}

// BenchmarkFind is on the road of every start.
func BenchmarkFind(b *testing.B) {
	bench := newBench(b)
	s := bench.open()
	bench.make(s)
	for b.Loop() {
		if _, err := s.Find(b.Context(), bench.shape); err != nil {
			b.Fatal(err)
		}
	}
}
