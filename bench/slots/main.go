// Command slots measures the ways in which an image's layers can reach a clone
// without hot-plug: virtio-blk, and virtio-pmem with DAX, on the machines that
// have them. docs/adr/0007-virtio-blk-slots.md is what followed.
//
// It assembles QEMU's command lines itself and has a guest of its own (./guest),
// so it measures nothing but QEMU and Linux. It needs no root, only QEMU, Go and
// HyperKernel. VMs, files and memory are gone when it ends, also when it is
// interrupted.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "slots:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("slots", flag.ContinueOnError)
	fs.SetOutput(stderr)
	out := fs.String("o", "", "also write the tables to this `file`, such as bench/slots/results.md")
	roadList := fs.String("roads", "microvm-blk,q35-blk,q35-pmem", fmt.Sprintf("`list` of what to measure, of %v", roads))
	images := fs.String("images", "2.5,60,300", "`sizes` of images, MB")
	c := config{progress: stderr}
	fs.IntVar(&c.n, "n", 10, "how often to start a clone")
	fs.IntVar(&c.crowd, "vms", 10, "how many clones to look at at once")
	fs.IntVar(&c.memMiB, "mem", 4096, "guest memory, `MiB`")
	fs.IntVar(&c.slots, "slots", 8, "slots of a template")
	fs.IntVar(&c.slotMiB, "slot", 512, "size of a pmem slot, `MiB`")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var err error
	if c.roads, err = parseRoads(*roadList); err != nil {
		return fmt.Errorf("-roads: %w", err)
	}
	if c.images, err = parseSizes(*images); err != nil {
		return fmt.Errorf("-images: %w", err)
	}
	if c.n < 1 || c.crowd < 1 || c.memMiB < 128 || c.slots < 1 || c.slots > 16 || c.slotMiB < 2 || c.slotMiB%2 != 0 || fs.NArg() > 0 {
		return fmt.Errorf("-n and -vms must be at least 1, -mem 128, -slots 1 to 16, -slot even, and there are no arguments")
	}
	c.cpus = min(runtime.NumCPU(), 4)
	c.tscKHz = hostTSCKHz()
	rep, err := measure(ctx, c)
	if err != nil {
		return err
	}
	fmt.Fprint(stdout, rep.markdown())
	if *out == "" {
		return nil
	}
	return os.WriteFile(*out, []byte(rep.markdown()), 0o644)
}

// parseSizes reads a list of sizes in MB.
func parseSizes(list string) ([]float64, error) {
	var sizes []float64
	for word := range strings.SplitSeq(list, ",") {
		mb, err := strconv.ParseFloat(word, 64)
		if err != nil {
			return nil, err
		}
		if !(mb >= 0.1 && mb <= 10000) {
			return nil, fmt.Errorf("%g MB is not within 0.1 and 10000", mb)
		}
		sizes = append(sizes, mb)
	}
	return sizes, nil
}
