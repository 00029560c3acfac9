// Package cli is the hyper command: Docker's verbs, flags, output and exit
// codes, spoken to hyperd through package client. One file per command.
//
// It decides nothing about containers: what the daemon refuses is passed on,
// in one line and with a hint where the user can do something about it.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/client"
	"github.com/hyper-run/hyper/internal/cli/dial"
	"github.com/hyper-run/hyper/internal/cli/stdio"
)

// Config is what main knows and this package doesn't.
type Config struct {
	Version, Commit, BuildTime string

	// Host is the daemon's when neither -H nor HYPER_HOST says otherwise; ""
	// means client.DefaultHost.
	Host string
	// Daemon is the program that is started when nothing listens on Host; ""
	// means hyperd next to this executable, or in PATH.
	Daemon string
	// DaemonLog is where its output goes; "" means /var/log/hyper/hyperd.log.
	DaemonLog string
}

// app is what the commands work with.
type app struct {
	Config
	in       io.Reader
	out, err io.Writer

	host   string         // of -H, HYPER_HOST or Config
	client *client.Client // of host
	dialer dial.Dialer    // of client
}

// Main runs the command that args (without the program's name) stand for and
// returns its exit code.
func Main(ctx context.Context, cfg Config, args []string, in io.Reader, out, errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	a := &app{Config: cfg, in: in, out: out, err: errOut}
	err := a.root(args).ExecuteContext(ctx)
	if ctx.Err() != nil && exitCode(err) == exitFailed {
		return exitInterrupted
	}
	report(errOut, err)
	return exitCode(err)
}

// api is the client of the daemon; it connects (and starts the daemon, where
// it may) when it is first used.
func (a *app) api() *client.Client { return a.client }

// setHost settles which daemon is meant, and makes its client.
func (a *app) setHost(flag string) error {
	a.host = a.Host
	if a.host == "" {
		a.host = client.DefaultHost
	}
	if env := os.Getenv("HYPER_HOST"); env != "" {
		a.host = env
	}
	if flag != "" {
		a.host = flag
	}
	own := a.host == client.DefaultHost || a.host == a.Host // where a daemon that hyper starts would listen
	a.dialer = dial.Dialer{Start: own, Program: a.Daemon, Log: a.DaemonLog, Say: a.err}
	var err error
	a.client, err = client.New(client.Options{Host: a.host, UserAgent: "hyper/" + a.Version, Dial: a.dialer.Dial})
	return err
}

// run adapts a command's function to cobra's.
func run(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error { return f(cmd.Context(), args) }
}

// println writes one line of output.
func (a *app) println(v ...any) { fmt.Fprintln(a.out, v...) }

// checkTTY refuses a terminal for the container when input is to come from
// something else.
func (a *app) checkTTY(stdin, tty bool) error {
	if _, ok := stdio.Terminal(a.in); stdin && tty && !ok {
		return hinted{errNotTTY, "leave out -t"}
	}
	return nil
}
