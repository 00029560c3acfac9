package cli

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newTop(a *app) *cobra.Command {
	c := command("top CONTAINER [ps OPTIONS]", "Display the running processes of a container", args(1, -1),
		"hyper container top", "hyper top")
	c.Flags().SetInterspersed(false)
	c.ValidArgsFunction = a.completeContainers(1, running)
	c.RunE = run(func(ctx context.Context, args []string) error {
		res, err := a.api().ContainerTop(ctx, args[0], moby.ContainerTopOptions{Arguments: args[1:]})
		if err != nil {
			return cannot(err, "list the processes of %s", args[0])
		}
		w := tabwriter.NewWriter(a.out, 20, 1, 3, ' ', 0)
		fmt.Fprintln(w, strings.Join(res.Titles, "\t"))
		for _, p := range res.Processes {
			fmt.Fprintln(w, strings.Join(p, "\t"))
		}
		return w.Flush()
	})
	return c
}
