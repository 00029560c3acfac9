package image

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// danglingPrefix begins the record of an image that has no name; the digest of its manifest follows.
const danglingPrefix = "dangling@"

var hexPrefix = regexp.MustCompile(`^[0-9a-f]{1,64}$`)

// parseName gives a reference with a tag or a digest: docker.io/library/nginx:latest.
func parseName(name string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	return named, nil
}

// addNames adds to an image the names of one of its records.
func (i *Image) addNames(r images.Image) {
	if named, err := reference.ParseNormalizedNamed(r.Name); err == nil {
		if tagged, ok := named.(reference.Tagged); ok && tagged.Tag() != "" {
			i.RepoTags = append(i.RepoTags, reference.FamiliarString(named))
		}
	}
	source, err := reference.ParseNormalizedNamed(r.Labels[labelSource])
	if err != nil {
		return
	}
	familiar := reference.FamiliarString(source)
	for _, known := range i.RepoDigests {
		if known == familiar {
			return
		}
	}
	i.RepoDigests = append(i.RepoDigests, familiar)
}

// Resolve finds an image by name (nginx, nginx:1.27, nginx@sha256:…), ID or
// the beginning of an ID. errdefs.ErrNotFound: "No such image: nginx:latest".
func (s *Store) Resolve(ctx context.Context, nameOrID string) (Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	img, _, err := s.resolve(withNamespace(ctx), nameOrID)
	return img, err
}

// resolve also says by which name the image was found; "" when it was its ID.
func (s *Store) resolve(ctx context.Context, nameOrID string) (Image, string, error) {
	all, err := s.list(ctx)
	if err != nil {
		return Image{}, "", err
	}
	missing := nameOrID
	if named, err := parseName(nameOrID); err == nil {
		familiar := reference.FamiliarString(named)
		for _, img := range all {
			for _, name := range append(img.RepoTags, img.RepoDigests...) {
				if name == familiar {
					return img, name, nil
				}
			}
		}
		missing = familiar
	} else if id := digest.Digest(nameOrID); id.Validate() != nil && !hexPrefix.MatchString(nameOrID) {
		return Image{}, "", err
	}
	img, err := byID(all, nameOrID)
	if errdefs.IsNotFound(err) {
		return Image{}, "", errdefs.ErrNotFound.WithMessage("No such image: " + missing)
	}
	return img, "", err
}

func byID(all []Image, id string) (Image, error) {
	prefix := strings.TrimPrefix(id, "sha256:")
	if !hexPrefix.MatchString(prefix) {
		return Image{}, errdefs.ErrNotFound
	}
	var found []Image
	for _, img := range all {
		if strings.HasPrefix(img.ID.Encoded(), prefix) {
			found = append(found, img)
		}
	}
	switch len(found) {
	case 0:
		return Image{}, errdefs.ErrNotFound
	case 1:
		return found[0], nil
	}
	return Image{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("image ID %s is ambiguous: %d images begin with it", id, len(found)))
}

// Tag gives the image src another name. A tag that another image has moves to this one.
func (s *Store) Tag(ctx context.Context, src, ref string) error {
	ctx = withNamespace(ctx)
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid reference %q: %v", ref, err))
	}
	if _, ok := named.(reference.Digested); ok {
		return errdefs.ErrInvalidArgument.WithMessage("refusing to create a tag with a digest reference")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	img, _, err := s.resolve(ctx, src)
	if err != nil {
		return err
	}
	return s.setRecord(ctx, reference.TagNameOnly(named).String(), img.Manifest, "")
}

// setRecord points a name at a manifest, mu held for writing. An image that
// thereby loses its last name stays without one; one that gets its first is not nameless any more.
func (s *Store) setRecord(ctx context.Context, name string, target ocispec.Descriptor, source string) error {
	target.Annotations, target.Platform = nil, nil
	record := images.Image{Name: name, Target: target}
	if source != "" {
		record.Labels = map[string]string{labelSource: source}
	}
	old, err := s.records.Get(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
		_, err = s.records.Create(ctx, record)
	case err != nil:
	case old.Target.Digest == target.Digest && source == "":
		return nil
	default:
		if _, err = s.records.Update(ctx, record, "target", "labels"); err == nil && old.Target.Digest != target.Digest {
			err = s.keepNameless(ctx, old)
		}
	}
	if err != nil {
		return fmt.Errorf("tag %s: %w", name, err)
	}
	err = s.records.Delete(ctx, danglingPrefix+target.Digest.String())
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("tag %s: %w", name, err)
	}
	return nil
}

// keepNameless gives the image of a record that is gone a record without a name, unless it has another one.
func (s *Store) keepNameless(ctx context.Context, old images.Image) error {
	records, err := s.records.List(ctx)
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.Target.Digest == old.Target.Digest {
			return nil
		}
	}
	_, err = s.records.Create(ctx, images.Image{Name: danglingPrefix + old.Target.Digest.String(), Target: old.Target, Labels: old.Labels})
	return err
}
