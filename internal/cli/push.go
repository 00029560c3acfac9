package cli

import (
	"context"
	"io"

	"github.com/distribution/reference"
	moby "github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/jsonmessage"
	"github.com/spf13/cobra"
)

func newPush(a *app) *cobra.Command {
	c := command("push [OPTIONS] NAME[:TAG]", "Upload an image to a registry", args(1, 1),
		"hyper image push", "hyper push")
	var all, quiet bool
	var platform string
	c.Flags().BoolVarP(&all, "all-tags", "a", false, "Push all tags of an image to the repository")
	c.Flags().StringVar(&platform, "platform", "", "Push a platform-specific manifest as a single-platform image to the registry")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress verbose output")
	c.ValidArgsFunction = a.completeImages(1)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return cannot(a.push(ctx, args[0], platform, all, quiet), "push %s", args[0])
	})
	return c
}

func (a *app) push(ctx context.Context, name, platform string, all, quiet bool) error {
	ref, err := a.remoteName(name, all, quiet)
	if err != nil {
		return err
	}
	o := moby.ImagePushOptions{All: all}
	if o.RegistryAuth, err = registryAuth(ref); err != nil {
		return err
	}
	if o.Platform, err = parsePlatform(platform); err != nil {
		return err
	}
	res, err := a.api().ImagePush(ctx, reference.FamiliarString(ref), o)
	if err != nil {
		return err
	}
	defer res.Close()
	out := a.out
	if quiet {
		out = io.Discard
	}
	if err := jsonmessage.DisplayStream(res, out); err != nil {
		return err
	}
	if quiet {
		a.println(ref.String())
	}
	return nil
}
