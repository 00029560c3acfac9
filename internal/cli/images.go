package cli

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/image"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/format"
)

const none = "<none>"

var imageTable = format.Table{
	Columns: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
	Headers: format.Row{
		"ID": "IMAGE ID", "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT",
		"Size": "SIZE", "Containers": "CONTAINERS", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE", "VirtualSize": "SIZE",
	},
}

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
	t := imageTable
	switch {
	case f.quiet:
		f.format = "{{.ID}}"
	case f.digests && (f.format == "" || f.format == "table"):
		t.Columns = strings.Replace(t.Columns, "{{.Tag}}", "{{.Tag}}\t{{.Digest}}", 1)
	}
	var rows []format.Row
	for _, i := range res.Items {
		rows = append(rows, imageRows(i, !f.noTrunc, f.digests || imageTable.Uses(f.format, "Digest"))...)
	}
	return t.Write(a.out, f.format, rows)
}

// imageRows are the lines of an image: one per tag, and one per repository
// that it has only digests of.
func imageRows(i image.Summary, trunc, digests bool) []format.Row {
	row := func(repo, tag, digest string) format.Row {
		r := imageRow(i, trunc)
		r["Repository"], r["Tag"], r["Digest"] = repo, tag, digest
		return r
	}
	byRepo := map[string]string{}
	var repos []string
	for _, d := range i.RepoDigests {
		repo, digest, _ := strings.Cut(d, "@")
		if repo != none {
			byRepo[repo] = digest
			repos = append(repos, repo)
		}
	}
	var rows []format.Row
	tagged := map[string]bool{}
	for _, t := range i.RepoTags {
		repo, tag := splitTag(t)
		if repo == none {
			continue
		}
		digest := none
		if d := byRepo[repo]; digests && d != "" {
			digest = d
		}
		tagged[repo] = true
		rows = append(rows, row(repo, tag, digest))
	}
	for _, repo := range slices.Compact(slices.Sorted(slices.Values(repos))) {
		if !tagged[repo] {
			rows = append(rows, row(repo, none, byRepo[repo]))
		}
	}
	if rows == nil {
		rows = append(rows, row(none, none, none))
	}
	return rows
}

func imageRow(i image.Summary, trunc bool) format.Row {
	created := time.Unix(i.Created, 0)
	id := i.ID
	if trunc {
		id = format.ShortID(id)
	}
	r := format.Row{
		"ID": id, "CreatedSince": format.Ago(created), "CreatedAt": created.String(), "Size": format.Size(i.Size), "VirtualSize": format.Size(i.Size),
		"Containers": "N/A", "SharedSize": "N/A", "UniqueSize": "N/A",
	}
	if i.Containers >= 0 {
		r["Containers"] = strconv.FormatInt(i.Containers, 10)
	}
	if i.SharedSize >= 0 {
		r["SharedSize"] = units.HumanSize(float64(i.SharedSize))
		r["UniqueSize"] = units.HumanSize(float64(i.Size - i.SharedSize))
	}
	return r
}

// splitTag parts REPOSITORY:TAG; the registry may have a port.
func splitTag(s string) (repo, tag string) {
	i := strings.LastIndexByte(s, ':')
	if i < strings.LastIndexByte(s, '/') {
		return s, ""
	}
	return s[:max(i, 0)], s[i+1:]
}
