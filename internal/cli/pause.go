package cli

import (
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newPause(a *app) *cobra.Command {
	c := command("pause CONTAINER [CONTAINER...]", "Pause all processes within one or more containers", args(1, -1),
		"hyper container pause", "hyper pause")
	c.ValidArgsFunction = a.completeContainers(-1, running)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return a.each(ctx, "pause", args, func(ctx context.Context, name string) error {
			_, err := a.api().ContainerPause(ctx, name, moby.ContainerPauseOptions{})
			return err
		})
	})
	return c
}
