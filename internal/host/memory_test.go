package host_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/host"
)

const mib = 1 << 20

// memory sets what the host has, in MiB.
func (h *fakeHost) memory(total, available int) {
	h.t.Helper()
	// Replaced, never half written: Watch reads it at any time.
	tmp := filepath.Join(h.proc, "meminfo.new")
	h.write(tmp, fmt.Sprintf("MemTotal:       %d kB\nMemFree:          1024 kB\nMemAvailable:   %d kB\nBuffers:  0 kB\n", total<<10, available<<10))
	must(h.t, os.Rename(tmp, filepath.Join(h.proc, "meminfo")))
}

func newMemory(t testing.TB, cfg host.MemoryConfig) *host.Memory {
	t.Helper()
	m, err := host.NewMemory(cfg)
	must(t, err)
	return m
}

func TestAdmit(t *testing.T) {
	tests := []struct {
		name             string
		total, available int   // MiB
		reserve          int64 // MiB
		mounts, files    []string
		most             int64 // MiB that are admitted
	}{
		{name: "least reserve", total: 1024, available: 600, most: 600 - 256},
		{name: "3 % of a large host", total: 100000, available: 5000, most: 2000},
		{name: "configured reserve", total: 1024, available: 600, reserve: 100, most: 500},
		{name: "own cgroup, v2", total: 8192, available: 4000, mounts: []string{mountV2}, files: []string{
			"cgroup.controllers", "memory", "system.slice/memory.max", "1073741824\n", "system.slice/memory.current", "629145600\n",
			"system.slice/memory.stat", "anon 1\ninactive_file 104857600\nactive_file 5\n", "system.slice/hyperd/memory.max", "max\n",
		}, most: 1024 - 600 + 100 - 256},
		{name: "own cgroup, v1", total: 8192, available: 4000, mounts: []string{mountMemory}, files: []string{
			"memory/system.slice/hyperd/memory.limit_in_bytes", "1073741824\n", "memory/system.slice/hyperd/memory.usage_in_bytes", "524288000\n",
			"memory/system.slice/hyperd/memory.stat", "inactive_file 7\ntotal_inactive_file 104857600\n",
			"memory/memory.limit_in_bytes", "9223372036854771712\n", "memory/memory.usage_in_bytes", "5242880000\n",
		}, most: 1024 - 500 + 100 - 256},
		{name: "a container shows its cgroup as the top", total: 8192, available: 4000,
			mounts: []string{"/docker/abc ROOT/memory ro - cgroup cgroup rw,memory"}, files: []string{
				"memory/memory.limit_in_bytes", "1073741824\n", "memory/memory.usage_in_bytes", "0\n",
			}, most: 1024 - 256},
		{name: "the host is shorter than the cgroup", total: 8192, available: 500, mounts: []string{mountV2}, files: []string{
			"cgroup.controllers", "memory", "system.slice/hyperd/memory.max", "1073741824\n", "system.slice/hyperd/memory.current", "0\n",
		}, most: 500 - 256},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newFakeHost(t, tt.mounts...)
			h.memory(tt.total, tt.available)
			h.write(filepath.Join(h.proc, "self/cgroup"), "9:name=systemd:/x\n4:memory:/system.slice/hyperd\n0::/system.slice/hyperd\n")
			h.files(tt.files...)
			m := newMemory(t, host.MemoryConfig{Proc: h.proc, Reserve: tt.reserve * mib})
			_, err := m.Admit(tt.most*mib + 1)
			var short *host.ShortError
			if !errors.As(err, &short) || !errdefs.IsResourceExhausted(err) {
				t.Fatalf("a byte too many: %v, want a ShortError", err)
			}
			release, err := m.Admit(tt.most * mib)
			must(t, err)
			if _, err := m.Admit(1); !errors.As(err, &short) || short.Pending != tt.most*mib {
				t.Errorf("after that: %v, want a ShortError", err)
			}
			for range 2 {
				release()
			}
			release, err = m.Admit(tt.most * mib)
			must(t, err)
			release()
		})
	}
}

// TestAdmitTogether: starts at the same time do not count on the same memory.
func TestAdmitTogether(t *testing.T) {
	h := newFakeHost(t)
	h.memory(8192, 256+10*64)
	m := newMemory(t, host.MemoryConfig{Proc: h.proc})
	var mu sync.Mutex
	var wg sync.WaitGroup
	admitted := 0
	for range 20 {
		wg.Go(func() {
			if _, err := m.Admit(64 * mib); err == nil {
				mu.Lock()
				defer mu.Unlock()
				admitted++
			}
		})
	}
	wg.Wait()
	if admitted != 10 {
		t.Errorf("%d of 20 were admitted, there is room for 10", admitted)
	}
}

func TestNilMemoryAdmits(t *testing.T) {
	var m *host.Memory
	release, err := m.Admit(1 << 60)
	must(t, err)
	release()
}

// TestAdmitBelowGroups: a limit of the VMs' common cgroup counts.
func TestAdmitBelowGroups(t *testing.T) {
	h := newFakeHost(t, mountMemory, mountCPU)
	h.write(filepath.Join(h.proc, "self/cgroup"), "4:memory:/small\n")
	h.files("cpu/x", "", "memory/hyper/memory.limit_in_bytes", "1073741824", "memory/hyper/memory.usage_in_bytes", "0",
		"memory/small/memory.limit_in_bytes", "1", "memory/small/memory.usage_in_bytes", "1") // hyperd's, in which no VM is
	g := host.NewGroups(host.GroupsConfig{Proc: h.proc, Log: quiet(t)})
	m := newMemory(t, host.MemoryConfig{Proc: h.proc, Groups: g})
	if _, err := m.Admit(800 * mib); !errdefs.IsResourceExhausted(err) {
		t.Errorf("%v, want short of memory", err)
	}
	if _, err := m.Admit(700 * mib); err != nil {
		t.Error(err)
	}
}

// watch runs Watch and returns what it tells.
func watch(t *testing.T, m *host.Memory) <-chan bool {
	t.Helper()
	told, done := make(chan bool, 10), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- m.Watch(ctx, func(low bool) { told <- low }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t)
	})
	return told
}

func expect(t *testing.T, told <-chan bool, want bool) {
	t.Helper()
	select {
	case low := <-told:
		if low != want {
			t.Errorf("low is %v, want %v", low, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("not told that low is %v", want)
	}
}

// TestWatchByAdmit: without the kernel's help, admission notices.
func TestWatchByAdmit(t *testing.T) {
	h := newFakeHost(t)
	h.memory(8192, 2000)
	m := newMemory(t, host.MemoryConfig{Proc: h.proc})
	told := watch(t, m)
	admit := func() {
		if release, err := m.Admit(mib); err == nil {
			release()
		}
	}
	admit()
	h.memory(8192, 500) // less than twice the reserve of 256
	admit()
	admit()
	expect(t, told, true)
	h.memory(8192, 800) // in between: stays
	admit()
	h.memory(8192, 1100)
	admit()
	expect(t, told, false)
	if len(told) != 0 {
		t.Error("told too often")
	}
}

// TestWatchRecovers: nobody starts anything any more, and memory comes back.
func TestWatchRecovers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 10 s")
	}
	t.Parallel()
	h := newFakeHost(t)
	h.memory(8192, 400)
	m := newMemory(t, host.MemoryConfig{Proc: h.proc})
	_, err := m.Admit(mib)
	must(t, err)
	told := make(chan bool, 10)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { _ = m.Watch(ctx, func(low bool) { told <- low }) }()
	defer cancel()
	expect(t, told, true)
	h.memory(8192, 4000)
	expect(t, told, false)
}

// TestWatchByPressure has a process wait for memory, on a host that seems
// to have little.
func TestWatchByPressure(t *testing.T) {
	g, _ := realGroups(t)
	h := newFakeHost(t)
	must(t, os.Symlink("/proc/pressure", filepath.Join(h.proc, "pressure")))
	if fd, err := unix.Open("/proc/pressure/memory", unix.O_RDWR, 0); err != nil {
		t.Skip(err)
	} else {
		unix.Close(fd)
	}
	dir := t.TempDir()
	var fs unix.Statfs_t
	must(t, unix.Statfs(dir, &fs))
	if fs.Type == unix.TMPFS_MAGIC {
		t.Skip("files that are memory don't make a process wait for it")
	}
	h.memory(8192, 900) // more than twice the reserve, less than four times
	m := newMemory(t, host.MemoryConfig{Proc: h.proc})
	told := watch(t, m)

	procs, err := g.Create("thrash", host.Limits{MemoryBytes: 24 * mib})
	must(t, err)
	if len(procs) == 0 {
		t.Skip("no cgroups")
	}
	cmd := enter(t, procs, fmt.Sprintf(`export HYPER_TEST_ROLE=thrash; exec /proc/%d/exe "$1"`, os.Getpid()), filepath.Join(dir, "data"))
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	expect(t, told, true)
}

// thrash reads a file again and again that does not fit into memory.
func thrash(name string) {
	f, err := os.Create(name)
	if err == nil {
		err = f.Truncate(100 * mib)
	}
	b := make([]byte, mib)
	for i := int64(0); err == nil; i++ {
		_, err = f.ReadAt(b, i%100*mib)
	}
	panic(err)
}

func BenchmarkAdmit(b *testing.B) {
	m := newMemory(b, host.MemoryConfig{})
	for b.Loop() {
		release, err := m.Admit(mib)
		must(b, err)
		release()
	}
}
