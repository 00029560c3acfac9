package image

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// A completion says how to make an image of a manifest that is in the content store.
type completion struct {
	name   string // of the record, "" for none
	source string // for RepoDigests, "" if the image is from no registry
	// fetch brings the blob of a layer here; nil: it has to be.
	fetch        func(context.Context, ocispec.Descriptor) error
	report       func(Progress)
	action, done string // how a layer is announced, and its end
}

// complete hands the layers of an image to the sink, each as soon as its blob
// is here, and then gives the image its record. The manifest and the config are here.
func (s *Store) complete(ctx context.Context, target ocispec.Descriptor, platform ocispec.Platform, c completion) (Image, error) {
	img, err := s.read(ctx, target)
	if err != nil {
		return Image{}, err
	}
	manifest, err := s.readManifest(ctx, target)
	if err != nil {
		return Image{}, err
	}
	if err := checkConfig(img, manifest, platform); err != nil {
		return Image{}, err
	}
	defer s.hold(img.Layers())()
	if err := s.completeLayers(ctx, img, manifest, c); err != nil {
		return Image{}, err
	}
	// What a manifest needs is not collected as long as it isn't.
	if _, err := images.SetChildrenLabels(s.content, images.ChildrenHandler(s.content))(ctx, target); err != nil {
		return Image{}, fmt.Errorf("label manifest %s: %w", target.Digest, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.name == "" {
		err = s.keepNameless(ctx, images.Image{Target: target})
	} else {
		err = s.setRecord(ctx, c.name, target, c.source)
	}
	if err != nil {
		return Image{}, err
	}
	return s.byID(ctx, img.ID)
}

// checkConfig refuses what no container could be made of.
func checkConfig(img *Image, manifest *ocispec.Manifest, platform ocispec.Platform) error {
	if len(img.Layers()) != len(manifest.Layers) {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("config %s names %d layers, its manifest %d", img.ID, len(img.Layers()), len(manifest.Layers)))
	}
	for _, id := range img.Layers() {
		if err := id.Validate(); err != nil {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("config %s: layer %q: %v", img.ID, id, err))
		}
	}
	if img.Config.OS == "" && img.Config.Architecture == "" {
		return nil
	}
	if !platforms.Only(platform).Match(img.Config.Platform) {
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("no matching manifest for %s: the image is for %s", platforms.Format(platform), platforms.Format(img.Config.Platform)))
	}
	return nil
}

func (s *Store) completeLayers(ctx context.Context, img *Image, manifest *ocispec.Manifest, c completion) error {
	group, ctx := errgroup.WithContext(ctx)
	seen := map[digest.Digest]bool{}
	for i, desc := range manifest.Layers {
		if seen[desc.Digest] {
			continue
		}
		seen[desc.Digest] = true
		c.report(Progress{ID: short(desc.Digest), Action: c.action})
		group.Go(func() error {
			if err := s.completeLayer(ctx, desc, img.Layers()[i], c); err != nil {
				return fmt.Errorf("layer %s: %w", desc.Digest, err)
			}
			return nil
		})
	}
	return group.Wait()
}

func (s *Store) completeLayer(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest, c completion) error {
	here, err := s.exists(ctx, desc)
	if err != nil {
		return err
	}
	id := short(desc.Digest)
	if here && s.cfg.Sink.HasLayer(diffID) {
		c.report(Progress{ID: id, Action: "Already exists"})
		return nil
	}
	if !here {
		if c.fetch == nil {
			return errdefs.ErrInvalidArgument.WithMessage("the archive does not have it")
		}
		if err := c.fetch(ctx, desc); err != nil {
			return err
		}
	}
	select {
	case s.unpacks <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.unpacks }()
	if err := s.unpack(ctx, desc, diffID, newMeter(c.report, Progress{ID: id, Action: "Extracting", Total: desc.Size})); err != nil {
		return err
	}
	c.report(Progress{ID: id, Action: c.done})
	return nil
}

// unpack hands a layer to the sink and notes its size.
func (s *Store) unpack(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest, m *meter) error {
	blob, err := s.content.ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer blob.Close()
	tar, err := decompress(m.reader(content.NewReader(blob)))
	if err != nil {
		return err
	}
	defer tar.Close()
	counted := &counter{r: tar}
	if err := s.cfg.Sink.AddLayer(ctx, diffID, counted); err != nil {
		return err
	}
	size := counted.n.Load()
	if size == 0 {
		return nil // it was there already
	}
	info := content.Info{Digest: desc.Digest, Labels: map[string]string{labelUncompressed: diffID.String(), labelSize: strconv.FormatInt(size, 10)}}
	_, err = s.content.Update(ctx, info, "labels."+labelUncompressed, "labels."+labelSize)
	return err
}

func (s *Store) byID(ctx context.Context, id digest.Digest) (Image, error) {
	all, err := s.list(ctx)
	if err != nil {
		return Image{}, err
	}
	return byID(all, id.String())
}

// LayerTar opens the uncompressed tar of one of an image's layers. The caller closes it.
func (s *Store) LayerTar(ctx context.Context, img *Image, diffID digest.Digest) (io.ReadCloser, error) {
	ctx = withNamespace(ctx)
	manifest, err := s.readManifest(ctx, img.Manifest)
	if err != nil {
		return nil, err
	}
	for i, id := range img.Layers() {
		if id != diffID || i >= len(manifest.Layers) {
			continue
		}
		blob, err := s.content.ReaderAt(ctx, manifest.Layers[i])
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", diffID, err)
		}
		tar, err := decompress(content.NewReader(blob))
		if err != nil {
			blob.Close()
			return nil, fmt.Errorf("layer %s: %w", diffID, err)
		}
		return &layerTar{tar, blob}, nil
	}
	return nil, fmt.Errorf("layer %s of image %s: %w", diffID, img.ID, errdefs.ErrNotFound)
}

type layerTar struct {
	io.ReadCloser
	blob io.Closer
}

func (l *layerTar) Close() error {
	err := l.ReadCloser.Close()
	if blobErr := l.blob.Close(); err == nil {
		err = blobErr
	}
	return err
}
