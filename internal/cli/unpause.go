package cli

import (
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newUnpause(a *app) *cobra.Command {
	c := command("unpause CONTAINER [CONTAINER...]", "Unpause all processes within one or more containers", args(1, -1),
		"hyper container unpause", "hyper unpause")
	c.ValidArgsFunction = a.completeContainers(-1, paused)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return a.each(ctx, "unpause", args, func(ctx context.Context, name string) error {
			_, err := a.api().ContainerUnpause(ctx, name, moby.ContainerUnpauseOptions{})
			return err
		})
	})
	return c
}
