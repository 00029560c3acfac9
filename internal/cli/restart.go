package cli

import (
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newRestart(a *app) *cobra.Command {
	c := command("restart [OPTIONS] CONTAINER [CONTAINER...]", "Restart one or more containers", args(1, -1),
		"hyper container restart", "hyper restart")
	stopping := addStopFlags(c)
	c.ValidArgsFunction = a.completeContainers(-1, anyState)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		signal, timeout := stopping()
		o := moby.ContainerRestartOptions{Signal: signal, Timeout: timeout}
		return a.each(cmd.Context(), "restart", args, func(ctx context.Context, name string) error {
			_, err := a.api().ContainerRestart(ctx, name, o)
			return err
		})
	}
	return c
}
