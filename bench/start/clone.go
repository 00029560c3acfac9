package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/hyper-run/hyper/bench/internal/stats"
	"github.com/hyper-run/hyper/boot"
	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/template"
	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu"
)

// cloneTime is the VM's share of a start, without a hyperd: a clone of a
// template of the size that serves most containers.
func cloneTime(ctx context.Context, b *bench) ([]section, error) {
	r := result{contender: contender{label: "exec of QEMU to hyperstart answering", limit: 75}}
	values, shape, err := cloneTimes(ctx, b)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		r.missing = reason(err)
	default:
		r.values = values
	}
	title := fmt.Sprintf("a clone of a template with %d MiB, %d CPUs, %d slots and no NIC", shape.MemMiB, shape.CPUs, shape.Layers+shape.Disks)
	return []section{{title: title, unit: "ms", promise: absolute, results: []result{r}}}, nil
}

func cloneTimes(ctx context.Context, b *bench) (values []float64, shape template.Shape, err error) {
	shape = template.Shape{CPUs: min(runtime.NumCPU(), 4), MemMiB: 4096, Layers: 12, Disks: 4}
	dir, err := os.MkdirTemp("", "hyper-bench-") // short: sockets are in it
	if err != nil {
		return nil, shape, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	k, err := boot.DefaultKernels().Select(boot.HyperKernel)
	if err != nil {
		return nil, shape, err
	}
	shape.Kernel = k.Path
	if shape.Initrd, err = boot.Initrd(dir, filepath.Join(b.bin, "hyperstart"), k); err != nil {
		return nil, shape, err
	}
	driver := qemu.New(qemu.Options{})
	defer driver.Close()
	found, err := driver.Probe(ctx)
	if err != nil {
		return nil, shape, err
	}
	templates, err := template.Open(ctx, template.Config{
		Dir: filepath.Join(dir, "t"), RunDir: filepath.Join(dir, "r"), Driver: driver, Accel: found.Accel,
		Log: slog.New(slog.DiscardHandler), Timeout: time.Minute, DialGuest: guest.Dial,
	})
	if err != nil {
		return nil, shape, err
	}
	defer templates.Close()
	if _, err := templates.Make(ctx, shape); err != nil {
		return nil, shape, err
	}
	for i := range b.n {
		t, err := templates.Find(ctx, shape)
		if err != nil {
			return nil, shape, err
		}
		cfg := vmm.Config{ID: fmt.Sprintf("bench-%d", i), Dir: filepath.Join(dir, fmt.Sprint(i))}
		if err := os.Mkdir(cfg.Dir, 0o700); err != nil {
			return nil, shape, err
		}
		t.Clone(&cfg)
		took, err := startOnce(ctx, driver, cfg)
		if err != nil {
			return nil, shape, err
		}
		values = append(values, stats.Milliseconds(took))
	}
	return values, shape, nil
}

// startOnce starts a VM, waits for its guest, and ends it.
func startOnce(ctx context.Context, driver vmm.Driver, cfg vmm.Config) (took time.Duration, err error) {
	start := time.Now()
	vm, err := driver.Start(ctx, cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, vm.Kill(context.WithoutCancel(ctx))) }()
	conn, err := vm.Dial(ctx)
	if err != nil {
		return 0, err
	}
	g, err := guest.Dial(ctx, conn)
	if err != nil {
		return 0, err
	}
	defer g.Close()
	return time.Since(start), nil
}
