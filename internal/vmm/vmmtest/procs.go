package vmmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// procs: a VM's process is in the cgroups it was given.
func (s *suite) procs(t *testing.T) {
	groups := cgroups(t)
	if len(groups) == 0 {
		t.Skip("no cgroup can be made here")
	}
	d := s.newDriver(t)
	t.Cleanup(d.Close)
	cfg := s.config(t)
	for _, g := range groups {
		f, err := os.OpenFile(g, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cfg.Procs = append(cfg.Procs, f)
	}
	vm := s.start(t, d, cfg)
	pid := fmt.Sprint(vm.Handle().PID)
	if _, err := os.Stat("/proc/" + pid); err != nil {
		t.Skip("a VM of this driver is no process")
	}
	for _, g := range groups {
		if b, err := os.ReadFile(g); err != nil || !slices.Contains(strings.Fields(string(b)), pid) {
			t.Errorf("%s has %q, not %s: %v", g, b, pid, err)
		}
	}
	s.expect(t, s.dial(t, vm), "echo up", "up")
	s.kill(t, vm)

	// One that takes nothing: the VM must not run without it.
	cfg = s.config(t)
	f, err := os.Open(groups[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cfg.Procs = []*os.File{f}
	s.startFails(t, d, s.ctx(t), cfg)
}

// cgroups makes a cgroup of each version that this host has, where it may,
// and returns the paths of their cgroup.procs.
func cgroups(t *testing.T) []string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	procs := make(map[string]string) // by version
	for line := range strings.Lines(string(mounts)) {
		// device, directory, kind, options: see proc_pid_mounts(5).
		m := strings.Fields(line)
		v1 := m[2] == "cgroup" && slices.Contains(strings.Split(m[3], ","), "freezer")
		if !v1 && m[2] != "cgroup2" || procs[m[2]] != "" {
			continue
		}
		dir := filepath.Join(m[1], fmt.Sprintf("hyper-suite-%d", os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Log(err)
			continue
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
		procs[m[2]] = filepath.Join(dir, "cgroup.procs")
	}
	var paths []string
	for _, p := range procs {
		paths = append(paths, p)
	}
	return paths
}
