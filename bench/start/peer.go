package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hyper-run/hyper/bench/internal/ours"
)

// peerNames are what Hyper can be measured against.
var peerNames = []string{"docker", "docker20", "podman", "runsc"}

//go:embed inside.sh
var insideScript string

// getPeer returns the directory of one of bench/peers/get's peers.
func getPeer(ctx context.Context, c config, name string) (string, error) {
	cmd := exec.CommandContext(ctx, "bench/peers/get", name)
	// Compilers and downloads end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	var stderr bytes.Buffer
	cmd.Stderr = &tee{&stderr, c}
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("get %s: %w: %s", name, err, lastLine(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// A tee shows progress and keeps it.
type tee struct {
	kept *bytes.Buffer
	c    config
}

func (t *tee) Write(p []byte) (int, error) {
	t.c.progress.Write(p) //nolint:errcheck // progress is a nicety
	return t.kept.Write(p)
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// A cell is a set of namespaces with a process in it, and all that came of it.
// The kernel ends everything in it when its first process ends.
type cell struct {
	name, dir string
	cmd       *exec.Cmd // unshare, which waits for the cell's first process
	init      int       // process ID of that
	ended     chan struct{}
}

// cellSpec is what a cell is made with.
type cellSpec struct {
	name    string
	lowers  []string // see inside.sh
	cgroups string   // see inside.sh
	cmd     func(dir string) []string
	env     []string
}

// startCell returns once the cell's first process is there; its command may
// not have been executed yet.
func startCell(ctx context.Context, spec cellSpec) (_ *cell, err error) {
	dir, err := os.MkdirTemp("", "hyper-bench-")
	if err != nil {
		return nil, err
	}
	c := &cell{name: spec.name, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := []string{"--mount-proc", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private",
		"sh", "-c", insideScript, "inside.sh", dir, spec.cgroups}
	args = append(args, spec.lowers...)
	args = append(append(args, "--"), spec.cmd(dir)...)
	c.cmd = exec.Command("unshare", args...)
	c.cmd.Stdout, c.cmd.Stderr = log, log
	c.cmd.Env = append(os.Environ(), spec.env...)
	// A group of its own: Ctrl-C is ours to act on. And should we be killed, it ends too.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.start(); err != nil {
		c.cmd = nil
		return nil, fmt.Errorf("start %s: %w", spec.name, err)
	}
	err = c.until(ctx, func() bool {
		pids := children(c.cmd.Process.Pid)
		if len(pids) > 0 {
			c.init = pids[0]
		}
		return len(pids) > 0
	})
	return c, err
}

// start starts cmd and notices its end. Pdeathsig tells of the end of a thread,
// not of a process, so one thread is kept for as long as cmd runs.
func (c *cell) start() error {
	c.ended = make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.cmd.Wait() //nolint:errcheck // its exit status says nothing new
			close(c.ended)
		}
	}()
	return <-started
}

// until waits until ok, or a minute, or until the cell's process has gone.
func (c *cell) until(ctx context.Context, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %s", c.name, ctx.Err(), c.log())
		case <-c.ended:
			return fmt.Errorf("%s did not come up: %s", c.name, c.log())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// log is the last line that the cell printed.
func (c *cell) log() string {
	text, err := os.ReadFile(filepath.Join(c.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return lastLine(string(text))
}

// cgroup is the parent of all cgroups of a cell's containers.
func (c *cell) cgroup() string { return "hyper-bench-" + c.name }

// stop ends all processes of the cell and removes its files and cgroups.
func (c *cell) stop() error {
	if c.cmd != nil {
		select {
		case <-c.ended:
		default:
			if c.init != 0 {
				syscall.Kill(c.init, syscall.SIGTERM) //nolint:errcheck // it may end by itself just now
			} else {
				c.cmd.Process.Kill() //nolint:errcheck // likewise
			}
		}
		select {
		case <-c.ended:
		case <-time.After(20 * time.Second):
			c.cmd.Process.Kill() //nolint:errcheck // likewise
			<-c.ended
		}
	}
	return errors.Join(removeCgroups(c.cgroup()), os.RemoveAll(c.dir))
}

// removeCgroups removes the empty cgroups called name and what is in them, in
// every hierarchy.
func removeCgroups(name string) error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
	if err != nil {
		return err
	}
	var all []string
	for _, root := range append(roots, filepath.Join("/sys/fs/cgroup", name)) {
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				all = append(all, path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, dir := range slices.Backward(all) {
		if err := os.Remove(dir); err != nil {
			return err
		}
	}
	return nil
}

// children are the direct children of a process.
func children(pid int) []int {
	var pids []int
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// descendants are all processes that came of a process, itself not included.
func descendants(pid int) []int {
	var all []int
	for _, child := range children(pid) {
		all = append(append(all, child), descendants(child)...)
	}
	return all
}

// succeeds says whether a command does.
func succeeds(cmd *exec.Cmd) bool {
	_, err := ours.Output(cmd)
	return err == nil
}
