package cli

import (
	"context"
	"errors"
	"fmt"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newWait(a *app) *cobra.Command {
	c := command("wait CONTAINER [CONTAINER...]", "Block until one or more containers stop, then print their exit codes", args(1, -1),
		"hyper container wait", "hyper wait")
	c.ValidArgsFunction = a.completeContainers(-1, running)
	c.RunE = run(func(ctx context.Context, args []string) error {
		var errs []error
		for _, name := range args {
			res := waited(a.api().ContainerWait(ctx, name, moby.ContainerWaitOptions{}))
			if res.err != nil && res.code == 0 {
				errs = append(errs, cannot(res.err, "wait for %s", name))
				continue
			}
			if res.err != nil {
				fmt.Fprintf(a.err, "hyper: %s: %v\n", name, res.err)
			}
			a.println(res.code)
		}
		return errors.Join(errs...)
	})
	return c
}
