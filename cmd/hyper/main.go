// Hyper runs containers, each in a virtual machine of its own. This is its
// command line; the work is done by hyperd.
package main

import (
	"context"
	"os"

	"github.com/hyper-run/hyper/internal/cli"
)

// Set by the linker.
var version, commit, buildTime = "dev", "", ""

func main() {
	cfg := cli.Config{Version: version, Commit: commit, BuildTime: buildTime}
	os.Exit(cli.Main(context.Background(), cfg, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
