// Package ours runs a hyperd for a benchmark: one of its own, in a temporary
// directory, with a network of its own, that is taken away with all it ran.
//
// It never touches another hyperd. It owns no goroutines.
package ours

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hyper-run/hyper/bench/internal/stats"
)

// Options of a hyperd.
type Options struct {
	Bin string // directory of hyper, hyperd and hyperstart
	// NetPrefix keeps the names of devices and rules apart from those of any
	// other hyperd; at most 3 characters.
	NetPrefix string
	Args      []string // of hyperd, besides its directories
}

// A Daemon is a hyperd of our own.
type Daemon struct {
	Dir  string // everything of it; others may put files there
	opts Options
	cmd  *exec.Cmd
}

// Start returns once hyperd serves.
func Start(ctx context.Context, opts Options) (_ *Daemon, err error) {
	opts.Bin, err = filepath.Abs(opts.Bin)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "hyper-bench-")
	if err != nil {
		return nil, err
	}
	d := &Daemon{Dir: dir, opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Stop())
		}
	}()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	d.cmd = exec.Command(filepath.Join(opts.Bin, "hyperd"), append(d.args(), opts.Args...)...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.ExtraFiles = []*os.File{w}
	// A group of its own: Ctrl-C is ours to act on.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.cmd.Env = append(os.Environ(), "HYPER_READY_FD=3")
	err = d.cmd.Start()
	w.Close()
	if err != nil {
		d.cmd = nil
		return nil, fmt.Errorf("start hyperd: %w", err)
	}
	defer context.AfterFunc(ctx, func() { r.Close() })()
	if n, _ := r.Read(make([]byte, 1)); n == 0 {
		text, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("hyperd did not come up: %s", bytes.TrimSpace(text))
	}
	return d, nil
}

func (d *Daemon) args() []string {
	return []string{"--root", filepath.Join(d.Dir, "root"), "--run", filepath.Join(d.Dir, "run"), "--net-prefix", d.opts.NetPrefix}
}

// Pid is that of hyperd.
func (d *Daemon) Pid() int { return d.cmd.Process.Pid }

// Stop ends hyperd, what it ran, and all it had.
func (d *Daemon) Stop() error {
	if d.cmd != nil {
		// A context of its own: also after Ctrl-C.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if ids, err := d.Hyper(ctx, "ps", "-aq"); err == nil && ids != "" {
			d.Hyper(ctx, append([]string{"rm", "-f"}, strings.Fields(ids)...)...) //nolint:errcheck // what is left is ended with the directory
		}
		if ids, err := d.Hyper(ctx, "pod", "ls", "-q"); err == nil && ids != "" {
			d.Hyper(ctx, append([]string{"pod", "rm", "-f"}, strings.Fields(ids)...)...) //nolint:errcheck // likewise
		}
		if err := d.cmd.Process.Signal(syscall.SIGTERM); err == nil {
			d.cmd.Wait() //nolint:errcheck // its exit status says nothing new
		}
		if out, err := exec.CommandContext(ctx, filepath.Join(d.opts.Bin, "hyperd"), append(d.args(), "--remove-network")...).CombinedOutput(); err != nil {
			return fmt.Errorf("take away the network: %w: %s", err, bytes.TrimSpace(out))
		}
	}
	return os.RemoveAll(d.Dir)
}

// Command is a run of the CLI, not started yet.
func (d *Daemon) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(d.opts.Bin, "hyper"), args...)
	cmd.Env = append(os.Environ(), "HYPER_HOST=unix://"+filepath.Join(d.Dir, "run", "hyper.sock"))
	return cmd
}

// Hyper runs the CLI and returns its output.
func (d *Daemon) Hyper(ctx context.Context, args ...string) (string, error) {
	return Output(d.Command(ctx, args...))
}

// Output runs cmd and returns what it printed, without white space around it.
// The error says what it complained of.
func Output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		args := append([]string{filepath.Base(cmd.Path)}, cmd.Args[1:]...)
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// Timed is how long cmd takes, in ms, from its exec to its exit.
func Timed(cmd *exec.Cmd) (float64, error) {
	start := time.Now()
	_, err := Output(cmd)
	return stats.Milliseconds(time.Since(start)), err
}
