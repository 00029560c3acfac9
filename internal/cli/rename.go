package cli

import (
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newRename(a *app) *cobra.Command {
	c := command("rename CONTAINER NEW_NAME", "Rename a container", args(2, 2),
		"hyper container rename", "hyper rename")
	c.ValidArgsFunction = a.completeContainers(1, anyState)
	c.RunE = run(func(ctx context.Context, args []string) error {
		_, err := a.api().ContainerRename(ctx, args[0], moby.ContainerRenameOptions{NewName: args[1]})
		return cannot(err, "rename %s", args[0])
	})
	return c
}
