package cli

import (
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/format"
	"github.com/hyper-run/hyper/internal/cli/show"
)

type psFlags struct {
	all, latest, noTrunc, quiet, size bool
	last                              int
	format                            string
	filters                           moby.Filters
}

func newPs(a *app) *cobra.Command {
	c := command("ps [OPTIONS]", "List containers", args(0, 0),
		"hyper container ls, hyper container list, hyper container ps", "hyper ps")
	f := psFlags{filters: moby.Filters{}}
	fs := c.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "Show all containers (default shows just running)")
	addFilter(fs, f.filters)
	addFormat(fs, &f.format)
	fs.IntVarP(&f.last, "last", "n", -1, "Show n last created containers (includes all states)")
	fs.BoolVarP(&f.latest, "latest", "l", false, "Show the latest created container (includes all states)")
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Only display container IDs")
	fs.BoolVarP(&f.size, "size", "s", false, "Display total file sizes")
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if !cmd.Flags().Changed("size") && !f.quiet {
			f.size = show.Containers.Uses(f.format, "Size") && f.format != "json"
		}
		return cannot(a.ps(cmd.Context(), f), "list containers")
	}
	return c
}

func (a *app) ps(ctx context.Context, f psFlags) error {
	o := moby.ContainerListOptions{All: f.all, Limit: f.last, Size: f.size, Filters: f.filters}
	if f.latest && f.last == -1 {
		o.Limit = 1
	}
	res, err := a.api().ContainerList(ctx, o)
	if err != nil {
		return err
	}
	t := show.Containers
	switch {
	case f.quiet:
		f.format = "{{.ID}}"
	case f.size && (f.format == "" || f.format == "table"):
		t.Columns += "\t{{.Size}}"
	}
	rows := make([]format.Row, len(res.Items))
	for i, c := range res.Items {
		rows[i] = show.Container(c, !f.noTrunc)
	}
	return t.Write(a.out, f.format, rows)
}
