package image

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// Remove takes a name from an image, or all of them when it is given by its
// ID, and deletes the image with what only it needs when no name is left.
// What stands against it, in Docker's words, is errdefs.ErrConflict: containers made from the
// image and, by ID, names in several repositories. force overrules that, but
// for a running container. inUse may be nil.
func (s *Store) Remove(ctx context.Context, nameOrID string, force bool, inUse InUse) ([]Removed, error) {
	ctx = withNamespace(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	img, name, err := s.resolve(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	last := name == "" || slices.Equal(img.RepoTags, []string{name}) || len(img.RepoTags) == 0 && len(img.RepoDigests) < 2
	if !last {
		return s.untag(ctx, &img, name)
	}
	var uses []Use
	if inUse != nil {
		uses = inUse(img.ID)
	}
	if err := conflict(&img, name, nameOrID, force, uses); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(uses, func(u Use) bool { return u.Running }) { // forced, by name: only that goes
		removed, err := s.untag(ctx, &img, name)
		if err != nil {
			return removed, err
		}
		return removed, s.keepNameless(ctx, images.Image{Target: img.Manifest})
	}
	removed, err := s.delete(ctx, &img)
	if err != nil {
		return removed, err
	}
	_, err = s.collect(ctx)
	return removed, err
}

// conflict says what stands against deleting an image, given by name or, if that is "", by its ID.
func conflict(img *Image, name, given string, force bool, uses []Use) error {
	id := short(img.ID)
	for _, use := range uses {
		container := use.Container[:min(12, len(use.Container))]
		switch {
		case name == "" && use.Running:
			return conflictf("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", id, container)
		case force:
		case name == "":
			return conflictf("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", id, container)
		default:
			return conflictf("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", given, container, id)
		}
	}
	if name == "" && !force && repositories(img) > 1 {
		return conflictf("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", id)
	}
	return nil
}

func conflictf(format string, args ...any) error {
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf(format, args...))
}

// repositories is how many repositories an image has tags in.
func repositories(img *Image) int {
	seen := map[string]bool{}
	for _, tag := range img.RepoTags {
		if named, err := reference.ParseNormalizedNamed(tag); err == nil {
			seen[named.Name()] = true
		}
	}
	return len(seen)
}

// recordsOf are the records of an image.
func (s *Store) recordsOf(ctx context.Context, img *Image) ([]images.Image, error) {
	records, err := s.records.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", img.ID, err)
	}
	var mine []images.Image
	for _, r := range records {
		of, err := s.remembered(ctx, r.Target)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", r.Name, err)
		}
		if of.ID == img.ID {
			mine = append(mine, r)
		}
	}
	return mine, nil
}

// untag takes one of its names, a tag or a digest reference, from an image, mu held for writing.
func (s *Store) untag(ctx context.Context, img *Image, name string) ([]Removed, error) {
	records, err := s.recordsOf(ctx, img)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		has := Image{}
		has.addNames(r)
		switch {
		case slices.Contains(has.RepoTags, name) || len(has.RepoTags) == 0 && slices.Contains(has.RepoDigests, name):
			err = s.records.Delete(ctx, r.Name)
		case slices.Contains(has.RepoDigests, name):
			delete(r.Labels, labelSource)
			_, err = s.records.Update(ctx, r, "labels")
		}
		if err != nil {
			return nil, fmt.Errorf("untag %s: %w", name, err)
		}
	}
	return []Removed{{Untagged: name}}, nil
}

// delete removes all records of an image, mu held for writing; collect then removes the image.
func (s *Store) delete(ctx context.Context, img *Image) ([]Removed, error) {
	records, err := s.recordsOf(ctx, img)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		if err := s.records.Delete(ctx, r.Name); err != nil {
			return nil, fmt.Errorf("untag %s: %w", r.Name, err)
		}
	}
	var removed []Removed
	for _, name := range slices.Concat(img.RepoTags, img.RepoDigests) {
		removed = append(removed, Removed{Untagged: name})
	}
	return append(removed, Removed{Deleted: img.ID.String()}), nil
}

// Prune removes images that no container was made from: those without a tag,
// or with all every one. want, which may be nil, narrows that down further. It returns the bytes freed.
func (s *Store) Prune(ctx context.Context, all bool, want func(*Image) bool, inUse InUse) ([]Removed, int64, error) {
	ctx = withNamespace(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	found, err := s.list(ctx)
	if err != nil {
		return nil, 0, err
	}
	var removed []Removed
	for _, img := range found {
		if len(img.RepoTags) > 0 && !all || inUse != nil && len(inUse(img.ID)) > 0 || want != nil && !want(&img) {
			continue
		}
		gone, err := s.delete(ctx, &img)
		removed = append(removed, gone...)
		if err != nil {
			return removed, 0, err
		}
	}
	freed, err := s.collect(ctx)
	return removed, freed, err
}

// History gives the steps that made an image, the latest first.
func (s *Store) History(ctx context.Context, img *Image) ([]HistoryEntry, error) {
	ctx = withNamespace(ctx)
	manifest, err := s.readManifest(ctx, img.Manifest)
	if err != nil {
		return nil, fmt.Errorf("history of image %s: %w", img.ID, err)
	}
	layers := manifest.Layers
	var steps []HistoryEntry
	for _, h := range img.Config.History {
		step := HistoryEntry{CreatedBy: h.CreatedBy, Comment: h.Comment, EmptyLayer: h.EmptyLayer}
		if h.Created != nil {
			step.Created = *h.Created
		}
		if !h.EmptyLayer && len(layers) > 0 {
			step.Size = s.layerSize(ctx, layers[0])
			layers = layers[1:]
		}
		steps = append(steps, step)
	}
	for _, layer := range layers { // more than the history tells of
		steps = append(steps, HistoryEntry{Created: img.Created, Size: s.layerSize(ctx, layer)})
	}
	slices.Reverse(steps)
	return steps, nil
}
