package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hyper-run/hyper/bench/internal/ours"
	"github.com/hyper-run/hyper/bench/internal/stats"
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
		if c.image, err = ours.MakeImage(ctx, c.progress); err != nil {
			return r, err
		}
	}
	d, err := ours.Start(ctx, ours.Options{Bin: c.bin, NetPrefix: "bch"})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()

	idle, err := settledRSS(ctx, d.Pid())
	if err != nil {
		return r, err
	}
	if r.host, err = ours.HostLines(ctx, d); err != nil {
		return r, err
	}
	image, err := ours.Load(d.Command(ctx, "load", "-i", c.image))
	if err != nil {
		return r, err
	}
	steps := []func(context.Context, config, *ours.Daemon, string) ([]row, error){coldBoot, runTrue, execTrue, conversion}
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
		row{"hyperstart binary", "MB", 10, []float64{stats.Megabytes(size.Size())}},
		row{"idle hyperd, resident (just started)", "MB", 40, []float64{idle}})
	after, err := settledRSS(ctx, d.Pid())
	r.rows = append(r.rows, row{"idle hyperd, resident (after all of the above)", "MB", 40, []float64{after}})
	return r, err
}

// runTrue is about VMs that boot, with a hyperd that clones none; bench/start has the others.
func runTrue(ctx context.Context, c config, _ *ours.Daemon, _ string) (_ []row, err error) {
	d, err := ours.Start(ctx, ours.Options{Bin: c.bin, NetPrefix: "bcb", Args: []string{"--templates=false"}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	image, err := ours.Load(d.Command(ctx, "load", "-i", c.image))
	if err != nil {
		return nil, err
	}
	r := row{what: "`hyper run --rm IMG true`, image present, cold boot", unit: "ms", limit: 1600}
	for range c.n {
		t, err := ours.Timed(d.Command(ctx, "run", "--rm", image, "true"))
		if err != nil {
			return nil, err
		}
		r.values = append(r.values, t)
	}
	return []row{r}, nil
}

func execTrue(ctx context.Context, c config, d *ours.Daemon, image string) ([]row, error) {
	const warmUp = 3 // the guest's page cache and translated code fill in the first ones
	id, err := d.Hyper(ctx, "run", "-d", image, "sleep", "1000")
	if err != nil {
		return nil, err
	}
	r := row{what: "`hyper exec C true`", unit: "ms", limit: 60}
	for i := range warmUp + 3*c.n {
		t, err := ours.Timed(d.Command(ctx, "exec", id, "true"))
		if err != nil {
			return nil, err
		}
		if i >= warmUp {
			r.values = append(r.values, t)
		}
	}
	_, err = d.Hyper(ctx, "rm", "-f", id)
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
