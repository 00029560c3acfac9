package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Load takes the images of an archive as docker save or an OCI tool makes it,
// plain or compressed with gzip or zstd. Of a multi-platform image it takes
// the host's platform. On error, images that came before it in the archive stay.
func (s *Store) Load(ctx context.Context, r io.Reader, progress func(Progress)) (_ []Image, err error) {
	ctx, done, err := s.session(ctx)
	if err != nil {
		return nil, err
	}
	// Nothing could be gone on with: end the session whatever the error is.
	defer func() {
		if err != nil {
			done(kind(err, errdefs.ErrInvalidArgument))
			return
		}
		done(nil)
	}()
	tar, err := decompress(r)
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	defer tar.Close()
	desc, err := archive.ImportIndex(ctx, s.content, tar)
	var onDisk *fs.PathError
	switch {
	case err == nil:
	case ctx.Err() != nil || errors.As(err, &onDisk) || errors.Is(err, syscall.ENOSPC):
		return nil, fmt.Errorf("load images: %w", err)
	default:
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("load images: not an image archive: %v", err))
	}
	raw, err := s.readBlob(ctx, desc, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("load images: index of the archive: %v", err))
	}
	return s.loadIndex(ctx, index, report(progress))
}

func (s *Store) loadIndex(ctx context.Context, index ocispec.Index, report func(Progress)) ([]Image, error) {
	var loaded []Image
	byID := map[digest.Digest]int{}
	for _, desc := range index.Manifests {
		target, err := s.loadedManifest(ctx, desc)
		if err != nil {
			return nil, fmt.Errorf("load images: %w", err)
		}
		name, err := archivedName(desc)
		if err != nil {
			return nil, fmt.Errorf("load images: %w", err)
		}
		img, err := s.complete(ctx, target, platforms.DefaultSpec(), completion{name: name, report: report, action: "Loading layer", done: "Loaded layer"})
		if err != nil {
			return nil, fmt.Errorf("load images: %w", err)
		}
		if name == "" {
			report(Progress{Action: "Loaded image ID: " + img.ID.String()})
		} else {
			named, _ := reference.ParseNormalizedNamed(name)
			report(Progress{Action: "Loaded image: " + reference.FamiliarString(named)})
		}
		if at, ok := byID[img.ID]; ok {
			loaded[at] = img
			continue
		}
		byID[img.ID] = len(loaded)
		loaded = append(loaded, img)
	}
	if len(loaded) == 0 {
		return nil, errdefs.ErrInvalidArgument.WithMessage("load images: the archive has none")
	}
	return loaded, nil
}

// loadedManifest picks the host's manifest where the archive has an index.
func (s *Store) loadedManifest(ctx context.Context, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	for range 3 {
		if !images.IsIndexType(desc.MediaType) {
			return desc, nil
		}
		raw, err := s.readBlob(ctx, desc, maxManifest)
		if err != nil {
			return desc, err
		}
		if desc, err = pickPlatform(desc, raw, platforms.DefaultSpec()); err != nil {
			return desc, err
		}
	}
	return desc, errdefs.ErrInvalidArgument.WithMessage("too many lists in lists")
}

// archivedName is the name an archive gives a manifest, "" if none that has a repository.
func archivedName(desc ocispec.Descriptor) (string, error) {
	name := desc.Annotations[images.AnnotationImageName]
	if ref := desc.Annotations[ocispec.AnnotationRefName]; name == "" && strings.ContainsAny(ref, "/:") {
		name = ref
	}
	if name == "" {
		return "", nil
	}
	named, err := parseName(name)
	if err != nil {
		return "", err
	}
	if _, ok := named.(reference.Tagged); !ok {
		return "", nil
	}
	return named.String(), nil
}

// Save writes images to an archive that docker load and OCI tools understand.
// A name without a tag stands for all tags of the repository, an ID for an image without names.
func (s *Store) Save(ctx context.Context, refs []string, w io.Writer) error {
	ctx, done, err := s.session(ctx) // keeps the blobs when an image is removed meanwhile
	if err != nil {
		return err
	}
	defer done(nil)
	opts := []archive.ExportOpt{archive.WithPlatform(platforms.All)}
	for _, ref := range refs {
		found, err := s.saved(ctx, ref)
		if err != nil {
			return err
		}
		for _, f := range found {
			children, err := images.Children(ctx, s.content, f.img.Manifest)
			if err != nil {
				return fmt.Errorf("save %s: %w", ref, err)
			}
			for _, desc := range append(children, f.img.Manifest) {
				if _, err := s.exists(ctx, desc); err != nil {
					return fmt.Errorf("save %s: %w", ref, err)
				}
			}
			opts = append(opts, archive.WithManifest(f.img.Manifest, f.names...))
		}
	}
	if err := archive.Export(ctx, s.content, w, opts...); err != nil {
		return fmt.Errorf("save images: %w", err)
	}
	return nil
}

type savedImage struct {
	img   Image
	names []string // normalized
}

func (s *Store) saved(ctx context.Context, ref string) ([]savedImage, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err == nil && reference.IsNameOnly(named) {
		all, err := s.List(ctx)
		if err != nil {
			return nil, err
		}
		var found []savedImage
		for _, img := range all {
			var names []string
			for _, tag := range img.RepoTags {
				if t, err := reference.ParseNormalizedNamed(tag); err == nil && t.Name() == named.Name() {
					names = append(names, t.String())
				}
			}
			if len(names) > 0 {
				found = append(found, savedImage{img, names})
			}
		}
		if len(found) > 0 {
			return found, nil
		}
	}
	img, err := s.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	found := savedImage{img: img}
	for _, tag := range img.RepoTags {
		if t, err := parseName(tag); err == nil && named != nil && t.String() == reference.TagNameOnly(named).String() {
			found.names = []string{t.String()}
		}
	}
	return []savedImage{found}, nil
}
