// Command hyperd is the daemon: Docker's Engine API, images, pods, networks.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/hyper-run/hyper/internal/hyperd"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	cfg, err := hyperd.ParseArgs(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(2) // ParseArgs has said why
	case cfg.ShowVersion:
		fmt.Println("hyperd", version)
		return
	}
	cfg.Version = version
	if err := hyperd.Run(ctx, cfg, hyperd.Parts{}); err != nil {
		fmt.Fprintln(os.Stderr, "hyperd: cannot run:", err)
		os.Exit(1)
	}
}
