package cli

import (
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newKill(a *app) *cobra.Command {
	c := command("kill [OPTIONS] CONTAINER [CONTAINER...]", "Kill one or more running containers", args(1, -1),
		"hyper container kill", "hyper kill")
	var signal string
	c.Flags().StringVarP(&signal, "signal", "s", "", "Signal to send to the container")
	c.ValidArgsFunction = a.completeContainers(-1, running)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return a.each(ctx, "kill", args, func(ctx context.Context, name string) error {
			_, err := a.api().ContainerKill(ctx, name, moby.ContainerKillOptions{Signal: signal})
			return err
		})
	})
	return c
}
