package cli

import (
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newStop(a *app) *cobra.Command {
	c := command("stop [OPTIONS] CONTAINER [CONTAINER...]", "Stop one or more running containers", args(1, -1),
		"hyper container stop", "hyper stop")
	var signal string
	var seconds int
	c.Flags().StringVarP(&signal, "signal", "s", "", "Signal to send to the container")
	c.Flags().IntVarP(&seconds, "timeout", "t", 0, "Seconds to wait before killing the container")
	c.Flags().IntVar(&seconds, "time", 0, "Seconds to wait before killing the container")
	c.Flags().Lookup("time").Hidden = true
	c.ValidArgsFunction = a.completeContainers(-1, running)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		o := moby.ContainerStopOptions{Signal: signal}
		if cmd.Flags().Changed("timeout") || cmd.Flags().Changed("time") {
			o.Timeout = &seconds
		}
		return a.each(cmd.Context(), "stop", args, func(ctx context.Context, name string) error {
			_, err := a.api().ContainerStop(ctx, name, o)
			return err
		})
	}
	return c
}
