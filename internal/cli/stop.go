package cli

import (
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newStop(a *app) *cobra.Command {
	c := command("stop [OPTIONS] CONTAINER [CONTAINER...]", "Stop one or more running containers", args(1, -1),
		"hyper container stop", "hyper stop")
	stopping := addStopFlags(c)
	c.ValidArgsFunction = a.completeContainers(-1, running)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		signal, timeout := stopping()
		o := moby.ContainerStopOptions{Signal: signal, Timeout: timeout}
		return a.each(cmd.Context(), "stop", args, func(ctx context.Context, name string) error {
			_, err := a.api().ContainerStop(ctx, name, o)
			return err
		})
	}
	return c
}

// addStopFlags adds the flags that say how to stop; what they say is known
// once the command line was read. A nil timeout is the container's own.
func addStopFlags(c *cobra.Command) func() (signal string, timeout *int) {
	var signal string
	var seconds int
	f := c.Flags()
	f.StringVarP(&signal, "signal", "s", "", "Signal to send to the container")
	f.IntVarP(&seconds, "timeout", "t", 0, "Seconds to wait before killing the container")
	f.IntVar(&seconds, "time", 0, "Seconds to wait before killing the container")
	f.Lookup("time").Hidden = true
	return func() (string, *int) {
		if f.Changed("timeout") || f.Changed("time") {
			return signal, &seconds
		}
		return signal, nil
	}
}
