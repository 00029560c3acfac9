package host_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/host"
)

// TestMain is also the process that thrashes.
func TestMain(m *testing.M) {
	if os.Getenv("HYPER_TEST_ROLE") == "thrash" {
		thrash(os.Args[1])
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A fakeHost is a /proc and cgroup hierarchies that are plain files.
type fakeHost struct {
	t    *testing.T
	proc string
	root string // where hierarchies are mounted
}

func newFakeHost(t *testing.T, mountinfo ...string) *fakeHost {
	t.Helper()
	h := &fakeHost{t: t, proc: t.TempDir(), root: t.TempDir()}
	var text strings.Builder
	for i, line := range mountinfo {
		fmt.Fprintf(&text, "%d 1 0:%d %s\n", i+30, i+30, strings.ReplaceAll(line, "ROOT", h.root))
	}
	h.write(filepath.Join(h.proc, "self/mountinfo"), text.String())
	h.memory(8192, 4096)
	return h
}

func (h *fakeHost) write(file, text string) {
	h.t.Helper()
	must(h.t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(h.t, os.WriteFile(file, []byte(text), 0o644))
}

// files makes files below the root, from names and texts in turn.
func (h *fakeHost) files(namesAndTexts ...string) {
	h.t.Helper()
	for i := 0; i < len(namesAndTexts); i += 2 {
		h.write(filepath.Join(h.root, namesAndTexts[i]), namesAndTexts[i+1])
	}
}

func (h *fakeHost) read(name string) string {
	h.t.Helper()
	data, err := os.ReadFile(filepath.Join(h.root, name))
	must(h.t, err)
	return string(data)
}

const (
	mountV2     = "/ ROOT rw,relatime shared:4 - cgroup2 cgroup2 rw"
	mountMemory = "/ ROOT/memory rw,relatime - cgroup cgroup rw,memory"
	mountCPU    = "/ ROOT/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct"
	mountHybrid = "/ ROOT/unified rw,relatime - cgroup2 cgroup2 rw"
)

// TestGroupsFiles: what is written where, with the files of a cgroup that
// somebody left behind, since no kernel makes them here.
func TestGroupsFiles(t *testing.T) {
	type values map[string]string
	tests := []struct {
		name           string
		mounts         []string
		files          []string
		limit          host.Limits
		create, update values // of files after Create with limit, after Update without
	}{
		{
			name: "v2", mounts: []string{mountV2},
			files: []string{
				"cgroup.controllers", "cpuset cpu io memory pids", "cgroup.subtree_control", "memory pids",
				"hyper/cgroup.subtree_control", "", "hyper/vm/memory.max", "", "hyper/vm/cpu.max", "", "hyper/vm/cgroup.procs", "",
			},
			limit:  host.Limits{CPUs: 1.5, MemoryBytes: 512 << 20},
			create: values{"hyper/vm/memory.max": "536870912", "hyper/vm/cpu.max": "150000 100000", "cgroup.subtree_control": "+cpury pids"},
			update: values{"hyper/vm/memory.max": "max870912", "hyper/vm/cpu.max": "max 100000000"}, // no truncation, as in a kernel's file
		},
		{
			name: "v1", mounts: []string{mountMemory, mountCPU},
			files: []string{
				"memory/hyper/vm/memory.limit_in_bytes", "", "memory/hyper/vm/cgroup.procs", "",
				"cpu/hyper/vm/cpu.cfs_quota_us", "", "cpu/hyper/vm/cgroup.procs", "",
			},
			limit:  host.Limits{CPUs: 0.001, MemoryBytes: 512 << 20},
			create: values{"memory/hyper/vm/memory.limit_in_bytes": "536870912", "cpu/hyper/vm/cpu.cfs_quota_us": "1000"},
			update: values{"memory/hyper/vm/memory.limit_in_bytes": "-16870912", "cpu/hyper/vm/cpu.cfs_quota_us": "-100"},
		},
		{
			name: "hybrid", mounts: []string{mountHybrid, mountMemory},
			files: []string{
				"unified/cgroup.controllers", "cpu", "unified/cgroup.subtree_control", "cpu", "unified/hyper/cgroup.subtree_control", "cpu",
				"memory/hyper/vm/memory.limit_in_bytes", "", "memory/hyper/vm/cgroup.procs", "",
				"unified/hyper/vm/cpu.max", "", "unified/hyper/vm/cgroup.procs", "",
			},
			limit:  host.Limits{CPUs: 3},
			create: values{"memory/hyper/vm/memory.limit_in_bytes": "-1", "unified/hyper/vm/cpu.max": "300000 100000"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newFakeHost(t, tt.mounts...)
			h.files(tt.files...)
			g := host.NewGroups(host.GroupsConfig{Proc: h.proc, Log: quiet(t)})
			procs, err := g.Create("vm", tt.limit)
			must(t, err)
			if want := strings.Count(strings.Join(tt.files, " "), "cgroup.procs"); len(procs) != want {
				t.Errorf("%d cgroup.procs, want %d", len(procs), want)
			}
			for _, f := range procs {
				if _, err := f.WriteString("1"); err != nil {
					t.Error(err)
				}
				f.Close()
			}
			check := func(when string, want values) {
				for name, w := range want {
					if got := h.read(name); got != w {
						t.Errorf("%s: %s is %q, want %q", when, name, got, w)
					}
				}
			}
			check("create", tt.create)
			must(t, g.Update("vm", host.Limits{}))
			check("update", tt.update)
		})
	}
}

// quiet fails the test when something is logged.
func quiet(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(failing{t}, nil)) }

type failing struct{ t *testing.T }

func (f failing) Write(b []byte) (int, error) {
	f.t.Errorf("logged: %s", b)
	return len(b), nil
}

// TestGroupsWithoutCgroups do nothing, and say so once.
func TestGroupsWithoutCgroups(t *testing.T) {
	for name, mounts := range map[string][]string{
		"none":                {},
		"no controllers":      {mountHybrid},
		"not to be written":   {strings.ReplaceAll(mountMemory, "ROOT", "/proc/none"), strings.ReplaceAll(mountCPU, "ROOT", "/proc/none")},
		"controllers refused": {mountV2},
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHost(t, mounts...)
			if name == "controllers refused" {
				h.files("cgroup.controllers", "memory cpu") // and there is no subtree_control
			}
			var log bytes.Buffer
			g := host.NewGroups(host.GroupsConfig{Proc: h.proc, Log: slog.New(slog.NewTextHandler(&log, nil))})
			procs, err := g.Create("vm", host.Limits{CPUs: 1, MemoryBytes: 1 << 30})
			if err != nil || len(procs) != 0 {
				t.Errorf("Create: %v, %v", procs, err)
			}
			must(t, errors.Join(g.Update("vm", host.Limits{}), g.Remove("vm"), g.Sweep(nil), g.Close()))
			if n := strings.Count(log.String(), "level=WARN"); n != 1 {
				t.Errorf("%d lines in the log, want 1:\n%s", n, &log)
			}
		})
	}
	var none *host.Groups
	procs, err := none.Create("vm", host.Limits{CPUs: 1})
	if err := errors.Join(err, none.Update("vm", host.Limits{}), none.Remove("vm"), none.Sweep(nil), none.Close()); err != nil || procs != nil {
		t.Errorf("nil Groups: %v, %v", procs, err)
	}
}

func TestGroupsRefuse(t *testing.T) {
	g := host.NewGroups(host.GroupsConfig{Proc: newFakeHost(t).proc})
	for _, id := range []string{"", ".", "..", "a/b", "../x", "a\n"} {
		if _, err := g.Create(id, host.Limits{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want an invalid argument", id, err)
		}
		if err := g.Remove(id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("remove %q: %v, want an invalid argument", id, err)
		}
	}
}

// realGroups are on the kernel's own files, whichever version is there.
func realGroups(t testing.TB) (*host.Groups, string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	name := fmt.Sprintf("hypertest%d", os.Getpid())
	var log bytes.Buffer
	g := host.NewGroups(host.GroupsConfig{Name: name, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if log.Len() > 0 {
		t.Skip(log.String())
	}
	t.Cleanup(func() {
		must(t, errors.Join(g.Sweep(nil), g.Close()))
		if left := groupDirs(t, name); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
	return g, name
}

func groupDirs(t testing.TB, name string) []string {
	t.Helper()
	v1, err := filepath.Glob("/sys/fs/cgroup/*/" + name + "/*")
	must(t, err)
	v2, err := filepath.Glob("/sys/fs/cgroup/" + name + "/*")
	must(t, err)
	var dirs []string
	for _, f := range append(v1, v2...) {
		if i, err := os.Stat(f); err == nil && i.IsDir() {
			dirs = append(dirs, f)
		}
	}
	return dirs
}

// enter starts a process that is in the groups from its first instruction on.
func enter(t testing.TB, procs []*os.File, script string, args ...string) *exec.Cmd {
	t.Helper()
	enter := ""
	for i := range procs {
		enter += fmt.Sprintf("echo 0 >&%d; ", 3+i)
	}
	cmd := exec.Command("sh", append([]string{"-ec", enter + script, "sh"}, args...)...)
	cmd.ExtraFiles = procs
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	for _, f := range procs {
		f.Close()
	}
	return cmd
}

func TestGroupsReal(t *testing.T) {
	g, name := realGroups(t)
	procs, err := g.Create("a", host.Limits{CPUs: 0.5, MemoryBytes: 64 << 20})
	must(t, err)
	want := len(procs)
	cmd := enter(t, procs, "exec sleep 100")
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	in := func() int {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
		must(t, err)
		return strings.Count(string(data), "/"+name+"/a")
	}
	for deadline := time.Now().Add(5 * time.Second); in() != want && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if got := in(); got != want {
		t.Fatalf("the process is in %d of %d cgroups", got, want)
	}
	if err := g.Remove("a"); !errors.Is(err, unix.EBUSY) {
		t.Errorf("remove with a process in it: %v, want EBUSY", err)
	}
	if err := g.Sweep(map[string]bool{"a": true}); err != nil {
		t.Error(err)
	}
	must(t, g.Update("a", host.Limits{CPUs: 2}))
	must(t, g.Update("nobody", host.Limits{CPUs: 2}))
	again, err := g.Create("a", host.Limits{MemoryBytes: 128 << 20}) // left by a crash
	must(t, err)
	for _, f := range again {
		f.Close()
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	for range 2 {
		must(t, g.Remove("a"))
	}
	if _, err := g.Create("b", host.Limits{}); err != nil {
		t.Error(err)
	}
	must(t, g.Sweep(map[string]bool{"a": true}))
	if left := groupDirs(t, name); len(left) != 0 {
		t.Errorf("left by Sweep: %v", left)
	}
	must(t, g.Close())
	procs, err = g.Create("c", host.Limits{MemoryBytes: 64 << 20}) // the parent is gone
	must(t, err)
	for _, f := range procs {
		f.Close()
	}
}

// TestGroupsBound: a process gets no more than its limits.
func TestGroupsBound(t *testing.T) {
	g, _ := realGroups(t)
	procs, err := g.Create("small", host.Limits{CPUs: 0.2, MemoryBytes: 32 << 20})
	must(t, err)
	if len(procs) == 0 {
		t.Skip("no cgroups")
	}
	cmd := enter(t, procs, `head -c 200m /dev/zero | tail >/dev/null`) // tail keeps what has no lines
	if err := cmd.Wait(); err == nil {
		t.Error("a process in a cgroup of 32 MiB used 200")
	}
	must(t, g.Remove("small"))

	procs, err = g.Create("slow", host.Limits{CPUs: 0.2})
	must(t, err)
	cmd = enter(t, procs, `exec timeout 1 sh -c 'while :; do :; done'`)
	_ = cmd.Wait()
	if used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(); used > 500*time.Millisecond {
		t.Errorf("a process with 0.2 CPUs used %v of a second", used)
	}
}

// TestRemoveAfterKill: a cgroup can be removed as soon as its process is known to have ended.
func TestRemoveAfterKill(t *testing.T) {
	g, _ := realGroups(t)
	for i := range 30 {
		id := fmt.Sprint(i)
		procs, err := g.Create(id, host.Limits{MemoryBytes: 64 << 20})
		must(t, err)
		cmd := enter(t, procs, "exec sleep 100")
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		must(t, g.Remove(id))
	}
}

func BenchmarkGroups(b *testing.B) {
	g, _ := realGroups(b)
	var made time.Duration
	n := 0
	best := time.Hour
	for b.Loop() {
		start := time.Now()
		procs, err := g.Create("bench", host.Limits{CPUs: 1, MemoryBytes: 1 << 30})
		took := time.Since(start)
		made, best = made+took, min(best, took)
		must(b, err)
		for _, f := range procs {
			f.Close()
		}
		must(b, g.Remove("bench"))
		n++
	}
	b.ReportMetric(float64(made.Microseconds())/float64(n), "create-µs")
	b.ReportMetric(float64(best.Microseconds()), "create-best-µs")
}
