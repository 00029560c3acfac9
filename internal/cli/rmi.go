package cli

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newRmi(a *app) *cobra.Command {
	c := command("rmi [OPTIONS] IMAGE [IMAGE...]", "Remove one or more images", args(1, -1),
		"hyper image rm, hyper image remove", "hyper rmi")
	var force, noPrune bool
	c.Flags().BoolVarP(&force, "force", "f", false, "Force removal of the image")
	c.Flags().BoolVar(&noPrune, "no-prune", false, "Do not delete untagged parents")
	c.ValidArgsFunction = a.completeImages(-1)
	c.RunE = run(func(ctx context.Context, args []string) error {
		var errs []error
		for _, image := range args { // one by one: what one untags, the next may delete
			res, err := a.api().ImageRemove(ctx, image, moby.ImageRemoveOptions{Force: force, PruneChildren: !noPrune})
			if force && errdefs.IsNotFound(err) {
				report(a.err, cannot(err, "remove %s", image))
				continue
			}
			errs = append(errs, cannot(err, "remove %s", image))
			for _, d := range res.Items {
				if d.Deleted != "" {
					a.println("Deleted:", d.Deleted)
				} else {
					a.println("Untagged:", d.Untagged)
				}
			}
		}
		return errors.Join(errs...)
	})
	return c
}
