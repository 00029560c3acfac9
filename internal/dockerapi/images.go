package dockerapi

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	dockerimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"
	"github.com/opencontainers/go-digest"

	"github.com/hyper-run/hyper/internal/image"
)

// imageSummary is Docker's, with what it had before 1.44.
type imageSummary struct {
	dockerimage.Summary
	VirtualSize int64 `json:",omitempty"`
}

func (a *api) listImages(c *call) error {
	f, err := c.filters("before", "dangling", "label", "label!", "reference", "since", "until")
	if err != nil {
		return err
	}
	if s := c.form.Get("filter"); s != "" && c.before(25) && !f.has("reference") {
		f = filters{"reference": {s}}
	}
	images, err := a.Images.List(c.ctx())
	if err != nil {
		return err
	}
	if images, err = a.filterImages(c, images, f); err != nil {
		return err
	}
	return c.json(http.StatusOK, c.withVirtualSize(a.imageSummaries(c, images)))
}

func (c *call) withVirtualSize(summaries []dockerimage.Summary) []imageSummary {
	out := []imageSummary{}
	for _, s := range summaries {
		old := imageSummary{Summary: s}
		if c.before(44) {
			old.VirtualSize = s.Size
		}
		out = append(out, old)
	}
	return out
}

// filterImages keeps the images that f wants, newest first. Of one chosen by
// reference only the names that match are left.
func (a *api) filterImages(c *call, images []image.Image, f filters) ([]image.Image, error) {
	dangling, err := f.boolean("dangling", false)
	if err != nil {
		return nil, err
	}
	before, err := f.until(time.Now())
	if err != nil {
		return nil, err
	}
	var after time.Time
	for _, ref := range slices.Concat(f["before"], f["since"]) {
		img, err := a.Images.Resolve(c.ctx(), ref)
		if err != nil {
			return nil, err
		}
		if slices.Contains(f["before"], ref) && (before.IsZero() || img.Created.Before(before)) {
			before = img.Created
		}
		if slices.Contains(f["since"], ref) && img.Created.After(after) {
			after = img.Created
		}
	}
	var out []image.Image
	for _, img := range images {
		labels := img.Config.Config.Labels
		switch {
		case f.has("dangling") && dangling != (len(img.RepoTags) == 0),
			!before.IsZero() && !img.Created.Before(before),
			!after.IsZero() && !img.Created.After(after),
			!f.labels("label", labels), !f.notLabels("label!", labels):
			continue
		}
		if f.has("reference") {
			img.RepoTags = matching(img.RepoTags, f["reference"])
			img.RepoDigests = matching(img.RepoDigests, f["reference"])
			if len(img.RepoTags)+len(img.RepoDigests) == 0 {
				continue
			}
		}
		out = append(out, img)
	}
	slices.SortStableFunc(out, func(x, y image.Image) int { return y.Created.Compare(x.Created) })
	return out, nil
}

// matching keeps the names that one of the patterns matches.
func matching(names, patterns []string) []string {
	var out []string
	for _, name := range names {
		ref, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			continue
		}
		if slices.ContainsFunc(patterns, func(p string) bool {
			ok, err := reference.FamiliarMatch(p, ref)
			return err == nil && ok
		}) {
			out = append(out, name)
		}
	}
	return out
}

func (a *api) imageSummaries(c *call, images []image.Image) []dockerimage.Summary {
	out := []dockerimage.Summary{}
	users := a.imageUsers()
	for _, img := range images {
		s := dockerimage.Summary{
			ID: img.ID.String(), Created: img.Created.Unix(), Labels: img.Config.Config.Labels, Containers: int64(len(users[img.ID])),
			RepoTags: notNil(img.RepoTags), RepoDigests: notNil(img.RepoDigests), SharedSize: -1, Size: img.Size,
		}
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		if c.before(43) && len(s.RepoTags)+len(s.RepoDigests) == 0 {
			s.RepoTags, s.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		}
		if !c.before(48) {
			s.Descriptor = &img.Manifest
		}
		out = append(out, s)
	}
	return out
}

func notNil(s []string) []string { return append([]string{}, s...) }

func (a *api) inspectImage(c *call) error {
	if err := c.noPlatform("inspect"); err != nil {
		return err
	}
	img, err := a.Images.Resolve(c.ctx(), c.name)
	if err != nil {
		return err
	}
	var raw dockerspec.DockerOCIImage
	if err := json.Unmarshal(img.RawConfig, &raw); err != nil {
		return fmt.Errorf("decode config of image %s: %w", img.ID, err)
	}
	out := struct {
		*dockerimage.InspectResponse
		VirtualSize int64 `json:",omitempty"`
		// Before 1.52 these were there even when empty.
		Parent, DockerVersion, Container *string `json:",omitempty"`
		Author, Comment                  *string `json:",omitempty"`
	}{InspectResponse: &dockerimage.InspectResponse{
		ID: img.ID.String(), RepoTags: notNil(img.RepoTags), RepoDigests: notNil(img.RepoDigests),
		Config: &raw.Config, Architecture: img.Config.Architecture, Variant: img.Config.Variant, Os: img.Config.OS, OsVersion: img.Config.OSVersion,
		Size: img.Size, GraphDriver: &storage.DriverData{Name: driverName, Data: map[string]string{}},
		RootFS: dockerimage.RootFS{Type: img.Config.RootFS.Type},
	}}
	if !img.Created.IsZero() || c.before(44) {
		out.Created = img.Created.UTC().Format(time.RFC3339Nano)
	}
	for _, id := range img.Layers() {
		out.RootFS.Layers = append(out.RootFS.Layers, id.String())
	}
	if author := img.Config.Author; author != "" || c.before(52) {
		out.Author = &author
	}
	if comment := lastComment(img); comment != "" || c.before(52) {
		out.Comment = &comment
	}
	if c.before(52) {
		out.Parent, out.DockerVersion, out.Container = new(string), new(string), new(string)
	}
	if c.before(44) {
		out.VirtualSize = img.Size
	}
	if !c.before(48) {
		out.Descriptor = &img.Manifest
	}
	return c.json(http.StatusOK, out)
}

func lastComment(img image.Image) string {
	if h := img.Config.History; len(h) > 0 {
		return h[len(h)-1].Comment
	}
	return ""
}

func (a *api) tagImage(c *call) error {
	ref, err := repoTag(c.form.Get("repo"), c.form.Get("tag"))
	if err != nil {
		return err
	}
	if ref == nil {
		return invalid("repository name can't be empty")
	}
	if reference.FamiliarName(ref) == string(digest.Canonical) {
		return invalid("refusing to create an ambiguous tag using digest algorithm as name")
	}
	img, err := a.Images.Resolve(c.ctx(), c.name)
	if err != nil {
		return err
	}
	name := reference.FamiliarString(ref)
	if err := a.Images.Tag(c.ctx(), img.ID.String(), name); err != nil {
		return err
	}
	a.imageEvent("tag", img.ID.String(), name, img)
	c.begin("", http.StatusCreated)
	return nil
}

// repoTag joins a repository and a tag, "latest" when there is none; nil for
// no repository.
func repoTag(repo, tag string) (reference.NamedTagged, error) {
	if repo == "" {
		return nil, nil
	}
	ref, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return nil, invalid("%v", err)
	}
	if _, ok := ref.(reference.Digested); ok {
		return nil, invalid("refusing to create a tag with a digest reference")
	}
	if tag == "" {
		if tagged, ok := ref.(reference.NamedTagged); ok {
			return tagged, nil
		}
		tag = "latest"
	}
	tagged, err := reference.WithTag(reference.TrimNamed(ref), tag)
	if err != nil {
		return nil, invalid("%v", err)
	}
	return tagged, nil
}

func (a *api) removeImage(c *call) error {
	if strings.TrimSpace(c.name) == "" {
		return invalid("image name cannot be blank")
	}
	if err := c.noPlatform("remove"); err != nil {
		return err
	}
	img, err := a.Images.Resolve(c.ctx(), c.name)
	if err != nil {
		return err
	}
	removed, err := a.Images.Remove(c.ctx(), c.name, c.flag("force", false), a.inUse())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, a.removals(removed, map[string]image.Image{img.ID.String(): img}))
}

// removals reports what was removed, and tells those who listen.
func (a *api) removals(removed []image.Removed, images map[string]image.Image) []dockerimage.DeleteResponse {
	out := []dockerimage.DeleteResponse{}
	for _, r := range removed {
		out = append(out, dockerimage.DeleteResponse{Untagged: r.Untagged, Deleted: r.Deleted})
		id := cmp.Or(r.Deleted, r.Untagged)
		img := images[id]
		if r.Untagged != "" {
			a.imageEvent("untag", id, id, img)
		} else if strings.HasPrefix(r.Deleted, "sha256:") {
			a.imageEvent("delete", id, id, img)
		}
	}
	return out
}

func (a *api) pruneImages(c *call) error {
	f, err := c.filters("dangling", "label", "label!", "until")
	if err != nil {
		return err
	}
	danglingOnly, err := f.boolean("dangling", true)
	if err != nil {
		return err
	}
	images, err := a.Images.List(c.ctx())
	if err != nil {
		return err
	}
	f = maps.Clone(f)
	delete(f, "dangling")
	chosen, err := a.filterImages(c, images, f)
	if err != nil {
		return err
	}
	candidates := make(map[string]image.Image)
	for _, img := range chosen {
		candidates[img.ID.String()] = img
	}
	want := func(img *image.Image) bool {
		_, ok := candidates[img.ID.String()]
		return ok
	}
	removed, freed, err := a.Images.Prune(c.ctx(), !danglingOnly, want, a.inUse())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, dockerimage.PruneReport{ImagesDeleted: a.removals(removed, candidates), SpaceReclaimed: uint64(max(freed, 0))})
}

func (a *api) imageHistory(c *call) error {
	img, err := a.Images.Resolve(c.ctx(), c.name)
	if err != nil {
		return err
	}
	steps, err := a.Images.History(c.ctx(), &img)
	if err != nil {
		return err
	}
	out := []dockerimage.HistoryResponseItem{}
	for _, h := range steps {
		out = append(out, dockerimage.HistoryResponseItem{ID: "<missing>", Created: h.Created.Unix(), CreatedBy: h.CreatedBy, Comment: h.Comment, Size: h.Size})
	}
	if len(out) > 0 {
		out[0].ID, out[0].Tags = img.ID.String(), img.RepoTags
	}
	return c.json(http.StatusOK, out)
}
