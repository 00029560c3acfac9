package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

type config struct {
	bin, image string
	n          int
	progress   io.Writer
}

// measure fills the table of SPEC.md.
func measure(ctx context.Context, c config) (_ report, err error) {
	var r report
	if c.image == "" {
		if c.image, err = makeImage(ctx, c.progress); err != nil {
			return r, err
		}
	}
	d, err := startDaemon(ctx, c.bin)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()

	idle, err := settledRSS(ctx, d.cmd.Process.Pid)
	if err != nil {
		return r, err
	}
	if r.host, err = hostLines(ctx, d); err != nil {
		return r, err
	}
	image, err := loadImage(ctx, d, c.image)
	if err != nil {
		return r, err
	}
	steps := []func(context.Context, config, *daemon, string) ([]row, error){coldBoot, runTrue, execTrue, conversion}
	for _, step := range steps {
		rows, err := step(ctx, c, d, image)
		if err != nil {
			return r, err
		}
		r.rows = append(r.rows, rows...)
	}
	size, err := os.Stat(filepath.Join(c.bin, "hyperstart"))
	if err != nil {
		return r, err
	}
	r.rows = append(r.rows,
		row{"hyperstart binary", "MB", 10, []float64{megabytes(size.Size())}},
		row{"idle hyperd, resident (just started)", "MB", 40, []float64{idle}})
	after, err := settledRSS(ctx, d.cmd.Process.Pid)
	r.rows = append(r.rows, row{"idle hyperd, resident (after all of the above)", "MB", 40, []float64{after}})
	return r, err
}

func makeImage(ctx context.Context, progress io.Writer) (string, error) {
	cmd := exec.CommandContext(ctx, "test/images/make", "busybox")
	cmd.Stderr = progress
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("test/images/make busybox: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// loadImage returns the reference of the one image in the archive.
func loadImage(ctx context.Context, d *daemon, archive string) (string, error) {
	out, err := d.hyper(ctx, "load", "-i", archive)
	if err != nil {
		return "", err
	}
	// "Loaded image: NAME", or "Loaded image ID: sha256:…", as Docker says it.
	_, name, ok := strings.Cut(out, ": ")
	if !ok {
		return "", fmt.Errorf("hyper load said %q", out)
	}
	return strings.Fields(name)[0], nil
}

func runTrue(ctx context.Context, c config, d *daemon, image string) ([]row, error) {
	r := row{what: "`hyper run --rm IMG true`, image present", unit: "ms", limit: 1600}
	for range c.n {
		t, err := d.timed(ctx, "run", "--rm", image, "true")
		if err != nil {
			return nil, err
		}
		r.values = append(r.values, t)
	}
	return []row{r}, nil
}

func execTrue(ctx context.Context, c config, d *daemon, image string) ([]row, error) {
	const warmUp = 3 // the guest's page cache and translated code fill in the first ones
	id, err := d.hyper(ctx, "run", "-d", image, "sleep", "1000")
	if err != nil {
		return nil, err
	}
	r := row{what: "`hyper exec C true`", unit: "ms", limit: 60}
	for i := range warmUp + 3*c.n {
		t, err := d.timed(ctx, "exec", id, "true")
		if err != nil {
			return nil, err
		}
		if i >= warmUp {
			r.values = append(r.values, t)
		}
	}
	_, err = d.hyper(ctx, "rm", "-f", id)
	return []row{r}, err
}

// settledRSS is what pid has resident once it no longer gets smaller.
func settledRSS(ctx context.Context, pid int) (float64, error) {
	least := -1.0
	for range 5 {
		kib, err := statusField("/proc/"+strconv.Itoa(pid)+"/status", "VmRSS")
		if err != nil {
			return 0, err
		}
		if mb := float64(kib) / 1024; least < 0 || mb < least {
			least = mb
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(time.Second):
		}
	}
	return least, nil
}

// statusField reads a field of a /proc/PID/status, in KiB.
func statusField(path, name string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(text), "\n") {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strconv.ParseInt(strings.Fields(value)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}

func hostLines(ctx context.Context, d *daemon) ([]string, error) {
	info, err := d.hyper(ctx, "info")
	if err != nil {
		return nil, err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return nil, err
	}
	lines := []string{
		fmt.Sprintf("%s, %d CPUs, load average before: %s", cpuModel(), runtime.NumCPU(), strings.Fields(string(load))[0]),
		"date: " + time.Now().UTC().Format(time.DateOnly),
	}
	for _, line := range strings.Split(info, "\n") {
		line = strings.TrimSpace(line)
		for _, name := range []string{"VMM:", "Accelerator:", "Guest kernel:"} {
			if strings.HasPrefix(line, name) {
				lines = append(lines, line)
			}
		}
		if strings.HasPrefix(line, "Accelerator: tcg") {
			lines = append(lines, "**TCG**: guests are emulated in software; with KVM all times of guests are far shorter")
		}
	}
	return lines, nil
}

func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown CPU"
	}
	for _, line := range strings.Split(string(text), "\n") {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return "unknown CPU"
}
