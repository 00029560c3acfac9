package cli

import (
	"context"
	"strings"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newRm(a *app) *cobra.Command {
	c := command("rm [OPTIONS] CONTAINER [CONTAINER...]", "Remove one or more containers", args(1, -1),
		"hyper container rm, hyper container remove", "hyper rm")
	var o moby.ContainerRemoveOptions
	c.Flags().BoolVarP(&o.Force, "force", "f", false, "Force the removal of a running container (uses SIGKILL)")
	c.Flags().BoolVarP(&o.RemoveLinks, "link", "l", false, "Remove the specified link")
	c.Flags().BoolVarP(&o.RemoveVolumes, "volumes", "v", false, "Remove anonymous volumes associated with the container")
	c.ValidArgsFunction = a.completeContainers(-1, anyState)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return a.each(ctx, "remove", args, func(ctx context.Context, name string) error {
			_, err := a.api().ContainerRemove(ctx, strings.Trim(name, "/"), o)
			if o.Force && errdefs.IsNotFound(err) {
				return errSkip
			}
			return err
		})
	})
	return c
}
