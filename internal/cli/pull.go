package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/distribution/reference"
	moby "github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/jsonmessage"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

func newPull(a *app) *cobra.Command {
	c := command("pull [OPTIONS] NAME[:TAG|@DIGEST]", "Download an image from a registry", args(1, 1),
		"hyper image pull", "hyper pull")
	var all, quiet bool
	var platform string
	c.Flags().BoolVarP(&all, "all-tags", "a", false, "Download all tagged images in the repository")
	c.Flags().StringVar(&platform, "platform", "", "Set platform if server is multi-platform capable")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "Suppress verbose output")
	c.ValidArgsFunction = a.completeImages(1)
	c.RunE = run(func(ctx context.Context, args []string) error {
		return cannot(a.pull(ctx, args[0], platform, all, quiet), "pull %s", args[0])
	})
	return c
}

func (a *app) pull(ctx context.Context, name, platform string, all, quiet bool) error {
	ref, err := a.remoteName(name, all, quiet)
	if err != nil {
		return err
	}
	out := a.out
	if quiet {
		out = io.Discard
	}
	if err := a.fetch(ctx, ref, platform, all, out); err != nil {
		return err
	}
	a.println(ref.String())
	return nil
}

// pullMissing pulls what run and create need, with its progress on stderr.
func (a *app) pullMissing(ctx context.Context, image string, f *createFlags) error {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return err
	}
	out := a.err
	if f.quiet {
		out = io.Discard
	}
	return a.fetch(ctx, reference.TagNameOnly(ref), f.platform, false, out)
}

// fetch pulls and shows the progress on out.
func (a *app) fetch(ctx context.Context, ref reference.Named, platform string, all bool, out io.Writer) error {
	auth, err := registryAuth(ref)
	if err != nil {
		return err
	}
	o := moby.ImagePullOptions{All: all, RegistryAuth: auth}
	p, err := parsePlatform(platform)
	if err != nil {
		return err
	}
	if p != nil {
		o.Platforms = []ocispec.Platform{*p}
	}
	res, err := a.api().ImagePull(ctx, reference.FamiliarString(ref), o)
	if err != nil {
		return err
	}
	defer res.Close()
	return jsonmessage.DisplayStream(res, out)
}

// remoteName is the reference that push and pull mean by a name.
func (a *app) remoteName(name string, all, quiet bool) (reference.Named, error) {
	ref, err := reference.ParseNormalizedNamed(name)
	switch {
	case err != nil:
		return nil, err
	case all && !reference.IsNameOnly(ref):
		return nil, errors.New("tag can't be used with --all-tags/-a")
	case !all && reference.IsNameOnly(ref):
		ref = reference.TagNameOnly(ref)
		if !quiet {
			a.println("Using default tag: latest")
		}
	}
	return ref, nil
}

// familiar is the name of an image as Docker shows it, with its tag.
func familiar(image string) string {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return image
	}
	return reference.FamiliarString(reference.TagNameOnly(ref))
}

// parsePlatform reads OS/ARCH[/VARIANT]; nil for "".
func parsePlatform(s string) (*ocispec.Platform, error) {
	if s == "" {
		return nil, nil
	}
	parts := strings.Split(strings.ToLower(s), "/")
	if len(parts) == 1 {
		parts = []string{"linux", parts[0]}
	}
	if len(parts) > 3 || parts[0] != "linux" || parts[1] == "" {
		return nil, fmt.Errorf("--platform %q: must be linux/ARCH[/VARIANT]", s)
	}
	p := &ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}
