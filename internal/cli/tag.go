package cli

import (
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newTag(a *app) *cobra.Command {
	c := command("tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE", args(2, 2),
		"hyper image tag", "hyper tag")
	c.ValidArgsFunction = a.completeImages(2)
	c.RunE = run(func(ctx context.Context, args []string) error {
		_, err := a.api().ImageTag(ctx, moby.ImageTagOptions{Source: args[0], Target: args[1]})
		return cannot(err, "tag %s", args[0])
	})
	return c
}
