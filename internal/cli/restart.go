package cli

import (
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newRestart(a *app) *cobra.Command {
	c := command("restart [OPTIONS] CONTAINER [CONTAINER...]", "Restart one or more containers", args(1, -1),
		"hyper container restart", "hyper restart")
	var signal string
	var seconds int
	c.Flags().StringVarP(&signal, "signal", "s", "", "Signal to send to the container")
	c.Flags().IntVarP(&seconds, "timeout", "t", 0, "Seconds to wait before killing the container")
	c.Flags().IntVar(&seconds, "time", 0, "Seconds to wait before killing the container")
	c.Flags().Lookup("time").Hidden = true
	c.ValidArgsFunction = a.completeContainers(-1, anyState)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		o := moby.ContainerRestartOptions{Signal: signal}
		if cmd.Flags().Changed("timeout") || cmd.Flags().Changed("time") {
			o.Timeout = &seconds
		}
		return a.each(cmd.Context(), "restart", args, func(ctx context.Context, name string) error {
			_, err := a.api().ContainerRestart(ctx, name, o)
			return err
		})
	}
	return c
}
