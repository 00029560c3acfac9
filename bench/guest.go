package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hyper-run/hyper/bench/internal/ours"
	"github.com/hyper-run/hyper/bench/internal/stats"
	"github.com/hyper-run/hyper/boot"
	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu"
)

// coldBoot boots VMs of 128 MB without a hyperd, which would give them more,
// and asks hyperstart what it occupies.
func coldBoot(ctx context.Context, c config, d *ours.Daemon, _ string) ([]row, error) {
	k, err := boot.DefaultKernels().Select(boot.HyperKernel)
	if err != nil {
		return nil, err
	}
	initrd, err := boot.Initrd(d.Dir, filepath.Join(c.bin, "hyperstart"), k)
	if err != nil {
		return nil, err
	}
	driver := qemu.New(qemu.Options{})
	defer driver.Close()
	if _, err := driver.Probe(ctx); err != nil {
		return nil, err
	}
	boots := row{what: "cold boot: exec of QEMU to hyperstart answering, HyperKernel, 128 MB", unit: "ms", limit: 1000}
	anon := row{what: "hyperstart's resident anonymous memory, idle", unit: "MB", limit: 4}
	for i := range c.n {
		dir, err := os.MkdirTemp("", "hyper-bench-vm-") // short: sockets are in it
		if err != nil {
			return nil, err
		}
		cfg := vmm.Config{ID: fmt.Sprintf("bench-%d", i), Dir: dir, Kernel: k.Path, Initrd: initrd, CPUs: 1, MemMiB: 128}
		took, bytes, err := bootOnce(ctx, driver, cfg)
		if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
			return nil, err
		}
		boots.values = append(boots.values, stats.Milliseconds(took))
		anon.values = append(anon.values, stats.Megabytes(bytes))
	}
	return []row{boots, anon}, nil
}

// bootOnce starts a VM, waits for its guest, lets it idle, and ends it.
func bootOnce(ctx context.Context, driver vmm.Driver, cfg vmm.Config) (took time.Duration, anon int64, err error) {
	start := time.Now()
	vm, err := driver.Start(ctx, cfg)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, vm.Kill(context.WithoutCancel(ctx))) }()
	conn, err := vm.Dial(ctx)
	if err != nil {
		return 0, 0, err
	}
	g, err := guest.Dial(ctx, conn)
	if err != nil {
		return 0, 0, err
	}
	defer g.Close()
	took = time.Since(start)
	select {
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	case <-time.After(time.Second):
	}
	info, err := g.Info(ctx, &wire.InfoRequest{})
	if err != nil {
		return 0, 0, err
	}
	return took, int64(info.GetAnonBytes()), nil
}
