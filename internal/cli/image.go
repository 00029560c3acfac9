package cli

import (
	"context"
	"strconv"

	"github.com/docker/go-units"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func newImage(a *app) *cobra.Command {
	return group("image", "Manage images",
		newImport(a), newInspectOf(a, "image", "inspect [OPTIONS] IMAGE [IMAGE...]", "Display detailed information on one or more images"),
		newLoad(a), as(newImages(a), "ls", "list"), newImagePrune(a), newPull(a), newPush(a), as(newRmi(a), "rm", "remove"), newSave(a), newTag(a),
	)
}

func newImagePrune(a *app) *cobra.Command {
	c := command("prune [OPTIONS]", "Remove unused images", args(0, 0))
	filters := moby.Filters{}
	var all, force bool
	c.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused images, not just dangling ones")
	c.Flags().Var(filterValue(filters), "filter", `Provide filter values (e.g. "until=<timestamp>")`)
	c.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	c.RunE = run(func(ctx context.Context, _ []string) error {
		what := "all dangling images"
		if all {
			what = "all images without at least one container associated to them"
		}
		if !force && !a.confirm("WARNING! This will remove "+what+".\nAre you sure you want to continue?") {
			return nil
		}
		freed, err := a.pruneImages(ctx, filters, all)
		if err != nil {
			return cannot(err, "prune images")
		}
		a.println("Total reclaimed space:", units.HumanSize(float64(freed)))
		return nil
	})
	return c
}

// pruneImages removes what is unused, prints it and returns the bytes freed.
func (a *app) pruneImages(ctx context.Context, filters moby.Filters, all bool) (uint64, error) {
	f := filters.Clone()
	f.Add("dangling", strconv.FormatBool(!all))
	res, err := a.api().ImagePrune(ctx, moby.ImagePruneOptions{Filters: f})
	if err != nil {
		return 0, err
	}
	if len(res.Report.ImagesDeleted) > 0 {
		a.println("Deleted Images:")
		for _, d := range res.Report.ImagesDeleted {
			if d.Untagged != "" {
				a.println("untagged:", d.Untagged)
			} else {
				a.println("deleted:", d.Deleted)
			}
		}
		a.println()
	}
	return res.Report.SpaceReclaimed, nil
}
