// Package host knows what the machine that VMs run on has left, and bounds
// what each VM takes of it: [Groups] are the cgroups of VMs, [Memory] admits
// starts and says when memory gets short. It starts and ends no process,
// and knows nothing of what runs in a VM.
//
// It owns no goroutine; Memory.Watch runs on its caller's.
package host

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	mib = 1 << 20

	procDir = "/proc"
)

// A mount is where a cgroup hierarchy is mounted.
type mount struct {
	dir  string
	root string   // the cgroup that dir shows
	v2   bool     // cgroup2, else v1
	opts []string // of the superblock; on v1 they name the controllers
}

// cgroupMounts are this process's, in the order they were mounted
// (proc_pid_mountinfo(5)).
func cgroupMounts(proc string) ([]mount, error) {
	data, err := os.ReadFile(filepath.Join(proc, "self/mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	var mounts []mount
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		place, kind, ok := strings.Cut(s.Text(), " - ")
		p, k := strings.Fields(place), strings.Fields(kind)
		if !ok || len(p) < 5 || len(k) < 3 || k[0] != "cgroup" && k[0] != "cgroup2" {
			continue
		}
		mounts = append(mounts, mount{dir: p[4], root: p[3], v2: k[0] == "cgroup2", opts: strings.Split(k[2], ",")})
	}
	return mounts, nil
}

// controlled returns the mount by which a controller is used: that of v1 if
// there is one, since then v2 does not have it.
func controlled(mounts []mount, controller string) (mount, bool) {
	for _, m := range mounts {
		if !m.v2 && slices.Contains(m.opts, controller) {
			return m, true
		}
	}
	for _, m := range mounts {
		if m.v2 && listed(filepath.Join(m.dir, "cgroup.controllers"), controller) {
			return m, true
		}
	}
	return mount{}, false
}

// listed says whether a file of words has that one.
func listed(file, word string) bool {
	data, err := os.ReadFile(file)
	return err == nil && slices.Contains(strings.Fields(string(data)), word)
}

// own is this process's cgroup of a controller, as a directory.
func (m mount) own(proc, controller string) string {
	data, _ := os.ReadFile(filepath.Join(proc, "self/cgroup"))
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		if m.v2 && f[0] == "0" || !m.v2 && slices.Contains(strings.Split(f[1], ","), controller) {
			if rel, err := filepath.Rel(m.root, f[2]); err == nil && filepath.IsLocal(rel) {
				return filepath.Join(m.dir, rel)
			}
		}
	}
	return m.dir
}

// readInt reads a file that is one number; ok is false for "max" and when
// there is no such file.
func readInt(file string) (n int64, ok bool) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	n, err = strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
	return n, err == nil
}

// field finds the number behind a key in lines of keys and numbers.
func field(data []byte, key string) (int64, bool) {
	for line := range bytes.Lines(data) {
		rest, ok := bytes.CutPrefix(line, []byte(key))
		if !ok || len(rest) == 0 || rest[0] != ' ' {
			continue
		}
		f := bytes.Fields(rest)
		if len(f) == 0 {
			return 0, false
		}
		n, err := strconv.ParseInt(string(f[0]), 10, 64)
		return n, err == nil
	}
	return 0, false
}
