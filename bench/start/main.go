// Command start measures how fast containers start, what they cost while they
// idle, and how others fare on the same machine at the same time: make
// bench-start. It writes a table and a plot.
//
// Runs of different products alternate, so that what else the machine does
// falls on all of them. Each peer runs in namespaces of its own and in a
// temporary directory; nothing is installed and nothing is left. A peer that
// is not to be had is left out of the table, and the table says why.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench-start:", err)
		os.Exit(1)
	}
}

type config struct {
	bin, image string
	n          int
	peers      []string
	progress   io.Writer
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("bench-start", flag.ContinueOnError)
	fs.SetOutput(stderr)
	bin := fs.String("bin", "bin", "`directory` of hyper, hyperd and hyperstart")
	out := fs.String("o", "", "`directory` for results.md and start.svg (default: only print the table)")
	image := fs.String("image", "", "OCI `archive` of an image with sh, true and sleep (default: test/images/make busybox)")
	n := fs.Int("n", 30, "how often to measure a start; other counts follow from it")
	rows := fs.String("rows", strings.Join(rowNames(), ","), "what to measure, a `list`")
	peers := fs.String("peers", strings.Join(peerNames, ","), "against what, a `list`, may be empty")
	if err := fs.Parse(args); err != nil {
		return err
	}
	chosen, err := list(*rows, rowNames())
	if err != nil {
		return fmt.Errorf("-rows: %w", err)
	}
	c := config{bin: *bin, image: *image, n: *n, progress: stderr}
	if c.peers, err = list(*peers, peerNames); err != nil {
		return fmt.Errorf("-peers: %w", err)
	}
	if *n < 1 || fs.NArg() > 0 {
		return fmt.Errorf("-n must be at least 1, and there are no arguments")
	}
	r, err := measure(ctx, c, chosen)
	if err != nil {
		return err
	}
	fmt.Fprint(stdout, r.markdown())
	if *out == "" {
		return nil
	}
	if err := os.WriteFile(filepath.Join(*out, "results.md"), []byte(r.markdown()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(*out, "start.svg"), []byte(r.svg()), 0o644)
}

// list splits a list of words that are all known.
func list(text string, known []string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	words := strings.Split(text, ",")
	for _, w := range words {
		if !slices.Contains(known, w) {
			return nil, fmt.Errorf("%q is none of %s", w, strings.Join(known, ", "))
		}
	}
	return words, nil
}
