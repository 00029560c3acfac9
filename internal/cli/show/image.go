package show

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/image"

	"github.com/hyper-run/hyper/internal/cli/format"
)

const none = "<none>"

// Images is the list of images.
var Images = format.Table{
	Columns: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
	Headers: format.Row{
		"ID": "IMAGE ID", "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT",
		"Size": "SIZE", "Containers": "CONTAINERS", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE", "VirtualSize": "SIZE",
	},
}

// Image is the lines of an image: one per tag, and one per repository
// that it has only digests of.
func Image(i image.Summary, trunc, digests bool) []format.Row {
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
