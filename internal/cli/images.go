package cli

import (
	"context"
	"strings"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/format"
	"github.com/hyper-run/hyper/internal/cli/show"
)

type imagesFlags struct {
	all, digests, noTrunc, quiet bool
	format                       string
	filters                      moby.Filters
}

func newImages(a *app) *cobra.Command {
	c := command("images [OPTIONS] [REPOSITORY[:TAG]]", "List images", args(0, 1),
		"hyper image ls, hyper image list", "hyper images")
	f := imagesFlags{filters: moby.Filters{}}
	fs := c.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "Show all images (default hides intermediate images)")
	fs.BoolVar(&f.digests, "digests", false, "Show digests")
	addFilter(fs, f.filters)
	addFormat(fs, &f.format)
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Only show image IDs")
	c.ValidArgsFunction = a.completeImages(1)
	c.RunE = run(func(ctx context.Context, args []string) error {
		if len(args) > 0 {
			f.filters.Add("reference", args[0])
		}
		return cannot(a.images(ctx, f), "list images")
	})
	return c
}

func (a *app) images(ctx context.Context, f imagesFlags) error {
	res, err := a.api().ImageList(ctx, moby.ImageListOptions{All: f.all, Filters: f.filters})
	if err != nil {
		return err
	}
	t := show.Images
	switch {
	case f.quiet:
		f.format = "{{.ID}}"
	case f.digests && (f.format == "" || f.format == "table"):
		t.Columns = strings.Replace(t.Columns, "{{.Tag}}", "{{.Tag}}\t{{.Digest}}", 1)
	}
	var rows []format.Row
	for _, i := range res.Items {
		rows = append(rows, show.Image(i, !f.noTrunc, f.digests || show.Images.Uses(f.format, "Digest"))...)
	}
	return t.Write(a.out, f.format, rows)
}
