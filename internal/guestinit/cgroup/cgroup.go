// Package cgroup makes and limits control groups, version 2
// (Documentation/admin-guide/cgroup-v2.rst). It writes what it is told and
// decides nothing; one Group is used by one goroutine at a time, except Kill.
package cgroup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// controllers are those that containers use, where the kernel has them.
var controllers = []string{"cpu", "cpuset", "io", "memory", "pids", "hugetlb"}

// A Group is one control group.
type Group struct{ dir string }

// Root makes dir, a mounted cgroup2, and a group named name below it ready to
// hold groups with limits, and returns that group.
func Root(dir, name string) (*Group, error) {
	g := &Group{filepath.Join(dir, name)}
	if err := os.Mkdir(g.dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	for _, d := range []string{dir, g.dir} {
		if err := delegate(d); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func delegate(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read controllers: %w", err)
	}
	var want []string
	for _, c := range strings.Fields(string(have)) {
		if slices.Contains(controllers, c) {
			want = append(want, "+"+c)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(strings.Join(want, " ")), 0); err != nil {
		return fmt.Errorf("enable controllers: %w", err)
	}
	return nil
}

// Create makes a group below g.
func (g *Group) Create(name string) (*Group, error) {
	c := &Group{filepath.Join(g.dir, name)}
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	return c, nil
}

// Dir is the group's directory.
func (g *Group) Dir() string { return g.dir }

// Open returns a descriptor of the group to put a child into.
func (g *Group) Open() (int, error) {
	fd, err := unix.Open(g.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open cgroup: %w", err)
	}
	return fd, nil
}

// Kill kills every process of the group and of those below.
func (g *Group) Kill() error { return g.write("cgroup.kill", "1") }

// Drain returns when no process is left in the group and those below, or says
// after patience that there still are some.
func (g *Group) Drain(patience time.Duration) error {
	f, err := os.Open(filepath.Join(g.dir, "cgroup.events"))
	if err != nil {
		return fmt.Errorf("watch cgroup: %w", err)
	}
	defer f.Close()
	end := time.Now().Add(patience)
	for buf := make([]byte, 128); ; {
		n, err := f.ReadAt(buf, 0)
		if err != nil && err != io.EOF {
			return fmt.Errorf("watch cgroup: %w", err)
		}
		if strings.Contains(string(buf[:n]), "populated 0") {
			return nil
		}
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("processes are left in cgroup %s after %v", filepath.Base(g.dir), patience)
		}
		// The file is changed since it was read: kernfs_fop_poll.
		changed := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(changed, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return fmt.Errorf("watch cgroup: %w", err)
		}
	}
}

// Freeze stops or continues every process of the group. The kernel may still
// be stopping some when it returns.
func (g *Group) Freeze(on bool) error {
	v := "0"
	if on {
		v = "1"
	}
	return g.write("cgroup.freeze", v)
}

// Remove removes the group and those that its processes made below it. They
// must be empty.
func (g *Group) Remove() error {
	var dirs []string
	filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, d := range slices.Backward(dirs) {
		if err := syscall.Rmdir(d); err != nil && err != syscall.ENOENT {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

// PIDs lists the processes of the group and of those below.
func (g *Group) PIDs() ([]int, error) {
	var pids []int
	err := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids, err
}

func (g *Group) write(file, value string) error {
	f, err := os.OpenFile(filepath.Join(g.dir, file), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set %s: %w", file, err)
	}
	_, err = f.WriteString(value)
	f.Close()
	if err != nil {
		return fmt.Errorf("set %s to %q: %w", file, value, err)
	}
	return nil
}

// Uint reads a file that holds one number; "max" is 0, as is a file that is
// not there.
func (g *Group) Uint(file string) uint64 {
	b, _ := os.ReadFile(filepath.Join(g.dir, file))
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// Keyed reads a file of lines "key number".
func (g *Group) Keyed(file string) map[string]uint64 {
	b, _ := os.ReadFile(filepath.Join(g.dir, file))
	m := map[string]uint64{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			if n, err := strconv.ParseUint(v, 10, 64); err == nil {
				m[k] = n
			}
		}
	}
	return m
}

// Lines reads a file as lines.
func (g *Group) Lines(file string) []string {
	b, _ := os.ReadFile(filepath.Join(g.dir, file))
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}
