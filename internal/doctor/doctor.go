// Package doctor looks at the host and says what Hyper lacks there and how
// to mend it. It only reads: no check changes the host.
//
// What belongs to a driver is asked through functions of Options, for the
// drivers are hyperd's to know.
package doctor

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/vmm"
)

// Status is the outcome of a check.
type Status string

// The outcomes: Warn costs speed or an optional ability, Fail means that
// pods don't start or lack what they need.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// A Result is what one check found.
type Result struct {
	Name   string
	Status Status
	Detail string // one line
	Fix    string // a command for Debian, or what to do; empty when there is nothing to mend
}

// Options say what to look at. A check whose function is nil is left out.
type Options struct {
	Root     string // prefix of /proc, /sys, /dev …, for tests; "": none
	StateDir string // where hyperd keeps images and disks; "": /var/lib/hyper
	Bridge   string // of the default network; "": hyper0

	VMM        func(ctx context.Context) (vmm.Capabilities, error)
	Kernel     func() (name string, err error) // the guest kernel in use
	Hyperstart func() (path string, err error)
	Network    func() error // nil when devices and rules of pods can be made
	Blockers   func() ([]network.Blocker, error)

	// Host functions, for tests; nil means the real ones.
	LookPath func(file string) (string, error)
	DiskFree func(dir string) (bytes uint64, err error)
}

// Check runs all checks, in the order in which a start needs what they look
// at.
func Check(ctx context.Context, o Options) []Result {
	o.setDefaults()
	var all []Result
	for _, check := range []func(context.Context) []Result{
		o.vmm, o.accelerator, o.kernel, o.hyperstart, o.tools, o.memory, o.disk, o.cgroups,
		o.modules, o.tun, o.network, o.forwarding, o.firewalls,
	} {
		all = append(all, check(ctx)...)
	}
	for i := range all {
		all[i].Detail = oneLine(all[i].Detail)
		all[i].Fix = oneLine(all[i].Fix)
	}
	return all
}

func (o *Options) setDefaults() {
	if o.StateDir == "" {
		o.StateDir = "/var/lib/hyper"
	}
	if o.Bridge == "" {
		o.Bridge = "hyper0"
	}
	if o.LookPath == nil {
		o.LookPath = exec.LookPath
	}
	if o.DiskFree == nil {
		o.DiskFree = diskFree
	}
}

func diskFree(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// path is where a file of the host is.
func (o *Options) path(name string) string { return filepath.Join("/", o.Root, name) }

// read returns a file's content without space around it.
func (o *Options) read(name string) (string, error) {
	b, err := os.ReadFile(o.path(name))
	return strings.TrimSpace(string(b)), err
}

func (o *Options) exists(name string) bool {
	_, err := os.Stat(o.path(name))
	return err == nil
}

func oneLine(s string) string {
	var parts []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}

// Healthy says whether no check failed.
func Healthy(results []Result) bool {
	for _, r := range results {
		if r.Status == Fail {
			return false
		}
	}
	return true
}

// Write prints one aligned line per result, and how to mend it beneath.
func Write(w io.Writer, results []Result) error {
	name := 0
	for _, r := range results {
		name = max(name, len(r.Name))
	}
	var b strings.Builder
	for _, r := range results {
		fmt.Fprintf(&b, "%-4s  %-*s  %s\n", r.Status, name, r.Name, r.Detail)
		if r.Fix != "" {
			fmt.Fprintf(&b, "%*s  fix: %s\n", 4+2+name, "", r.Fix)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
