// Command bench measures the numbers that SPEC.md promises, on built binaries
// and a hyperd of its own in a temporary directory, and writes them as a table.
//
// It never changes anything of another hyperd, and takes away all it made.
// Times move with what else the machine does: they mean something on an idle
// machine only, so the table says how busy it was.
//
// Beside it are bench/start (starts against other products) and bench/slots
// (virtio-blk against virtio-pmem for image layers).
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	bin := fs.String("bin", "bin", "`directory` of hyper, hyperd and hyperstart")
	out := fs.String("o", "", "also write the table to this `file`")
	image := fs.String("image", "", "OCI `archive` of an image with sh, true and sleep (default: test/images/make busybox)")
	n := fs.Int("n", 15, "how often to measure a start of a VM")
	tar := fs.String("convert", "", "only convert this layer `tar` and print what it took")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *tar != "" {
		return convert(ctx, *tar, stdout)
	}
	r, err := measure(ctx, config{bin: *bin, image: *image, n: *n, progress: stderr})
	if err != nil {
		return err
	}
	fmt.Fprint(stdout, r.markdown())
	if *out == "" {
		return nil
	}
	return os.WriteFile(*out, []byte(r.markdown()), 0o644)
}
