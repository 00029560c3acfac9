package cli

import (
	"context"

	"github.com/spf13/cobra"
)

// newDoctor is only called when there is a doctor.
func newDoctor(a *app) *cobra.Command {
	c := command("doctor", "Check this host and say how to mend what is missing", args(0, 0))
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = run(func(ctx context.Context, _ []string) error {
		ok, err := a.Doctor(ctx, a.out)
		if err != nil {
			return cannot(err, "check this host")
		}
		if !ok {
			return status(exitFailed)
		}
		return nil
	})
	return c
}
