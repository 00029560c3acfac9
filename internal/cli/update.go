package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/runflags"
)

func newUpdate(a *app) *cobra.Command {
	c := command("update [OPTIONS] CONTAINER [CONTAINER...]", "Update configuration of one or more containers", args(1, -1),
		"hyper container update", "hyper update")
	c.Long = "A running container has its new limits at once. 'hyper pod update' is for pods.\n\n  hyper update --memory 256m --cpus 0.5 web"
	flags := runflags.AddUpdate(c.Flags())
	c.ValidArgsFunction = a.completeContainers(-1, anyState)
	c.RunE = run(func(ctx context.Context, args []string) error {
		req, err := flags.Request()
		if err != nil {
			return cannot(err, "update")
		}
		return a.each(ctx, "update", args, func(ctx context.Context, name string) error {
			res, err := a.api().ContainerUpdate(ctx, name, req)
			for _, w := range res.Warnings {
				fmt.Fprintln(a.err, "WARNING:", w)
			}
			return err
		})
	})
	return c
}
