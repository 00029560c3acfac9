package main

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
)

// netPrefix keeps the names of devices and rules apart from those of a hyperd
// that serves users.
const netPrefix = "bch"

// A daemon is a hyperd of our own.
type daemon struct {
	bin, dir string
	cmd      *exec.Cmd
}

// startDaemon returns once hyperd serves.
func startDaemon(ctx context.Context, bin string) (_ *daemon, err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "hyper-bench-")
	if err != nil {
		return nil, err
	}
	d := &daemon{bin: bin, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.stop())
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
	d.cmd = exec.Command(filepath.Join(bin, "hyperd"), d.args()...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.ExtraFiles = []*os.File{w}
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

func (d *daemon) args() []string {
	return []string{"--root", filepath.Join(d.dir, "root"), "--run", filepath.Join(d.dir, "run"), "--net-prefix", netPrefix}
}

// stop ends hyperd, what it ran, and all it had.
func (d *daemon) stop() error {
	if d.cmd != nil {
		// A context of its own: also after Ctrl-C.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if ids, err := d.hyper(ctx, "ps", "-aq"); err == nil && ids != "" {
			d.hyper(ctx, append([]string{"rm", "-f"}, strings.Fields(ids)...)...) //nolint:errcheck // what is left is ended with the directory
		}
		if err := d.cmd.Process.Signal(syscall.SIGTERM); err == nil {
			d.cmd.Wait() //nolint:errcheck // its exit status says nothing new
		}
		if out, err := exec.CommandContext(ctx, filepath.Join(d.bin, "hyperd"), append(d.args(), "--remove-network")...).CombinedOutput(); err != nil {
			return fmt.Errorf("take away the network: %w: %s", err, bytes.TrimSpace(out))
		}
	}
	return os.RemoveAll(d.dir)
}

// hyper runs the CLI and returns its output.
func (d *daemon) hyper(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "hyper"), args...)
	cmd.Env = append(os.Environ(), "HYPER_HOST=unix://"+filepath.Join(d.dir, "run", "hyper.sock"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("hyper %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// timed is how long the CLI takes, from its exec to its exit.
func (d *daemon) timed(ctx context.Context, args ...string) (float64, error) {
	start := time.Now()
	_, err := d.hyper(ctx, args...)
	return milliseconds(time.Since(start)), err
}
