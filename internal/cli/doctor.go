package cli

import (
	"context"
	"errors"
	"os/exec"

	"github.com/spf13/cobra"
)

// newDoctor makes the command that checks the host. hyperd does the checking,
// in a process of its own: it knows the drivers, and need not be running.
func newDoctor(a *app) *cobra.Command {
	c := command("doctor", "Check this host and say how to mend what is missing", args(0, 0))
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = run(func(ctx context.Context, _ []string) error {
		program, err := a.dialer.Find()
		if err != nil {
			return cannot(err, "check this host")
		}
		cmd := exec.CommandContext(ctx, program, "--doctor")
		cmd.Stdout, cmd.Stderr = a.out, a.err
		err = cmd.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return status(exitFailed)
		}
		if err != nil {
			return cannot(err, "check this host")
		}
		return nil
	})
	return c
}
