package image

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Push sends the image named ref to its registry: what the registry has
// already is not sent again. The platform of opts is not used, as an image here has one.
func (s *Store) Push(ctx context.Context, ref string, opts PullOptions) error {
	named, err := parseName(ref)
	if err != nil {
		return err
	}
	tagged, ok := named.(reference.Tagged)
	if !ok {
		return errdefs.ErrInvalidArgument.WithMessage("cannot push a digest reference")
	}
	familiar := reference.FamiliarString(named)
	img, err := s.Resolve(ctx, familiar)
	if errdefs.IsNotFound(err) {
		return errdefs.ErrNotFound.WithMessage("An image does not exist locally with the tag: " + reference.FamiliarName(named))
	}
	if err != nil {
		return err
	}
	ctx, done, err := s.session(ctx) // keeps the blobs when the image is removed meanwhile
	if err != nil {
		return err
	}
	defer func() { done(nil) }()
	r, err := s.registry(ctx, named, opts.Auth)
	if err != nil {
		return err
	}
	defer r.close()
	r.verb = "push"
	report := report(opts.Progress)
	report(Progress{Action: fmt.Sprintf("The push refers to repository [%s]", named.Name())})
	if err := s.pushContent(ctx, r, img.Manifest, report); err != nil {
		return r.explain(err)
	}
	report(Progress{ID: tagged.Tag(), Action: fmt.Sprintf("digest: %s size: %d", img.Manifest.Digest, img.Manifest.Size)})
	s.mu.Lock()
	defer s.mu.Unlock()
	source := named.Name() + "@" + img.Manifest.Digest.String()
	if record, err := s.records.Get(ctx, named.String()); err != nil || record.Target.Digest != img.Manifest.Digest {
		return ignoreNotFound(err) // has been removed or tagged anew
	}
	return s.setRecord(ctx, named.String(), img.Manifest, source)
}

func (s *Store) pushContent(ctx context.Context, r *registry, manifest ocispec.Descriptor, report func(Progress)) error {
	pusher, err := r.Pusher(ctx, r.named.String())
	if err != nil {
		return err
	}
	children, err := images.Children(ctx, s.content, manifest)
	if err != nil {
		return err
	}
	for _, desc := range children {
		if _, err := s.exists(ctx, desc); err != nil {
			return err
		}
		if images.IsLayerType(desc.MediaType) {
			report(Progress{ID: short(desc.Digest), Action: "Preparing"})
		}
	}
	metered := &meteredPusher{Pusher: pusher, report: report}
	return remotes.PushContent(ctx, metered, manifest, s.content, nil, platforms.All, nil)
}

// A meteredPusher reports on layers. It hides that the pusher is also an
// ingester, whose way round Push would not be seen.
type meteredPusher struct {
	remotes.Pusher
	report func(Progress)
}

func (p *meteredPusher) Push(ctx context.Context, desc ocispec.Descriptor) (content.Writer, error) {
	w, err := p.Pusher.Push(ctx, desc)
	if !images.IsLayerType(desc.MediaType) {
		return w, err
	}
	id := short(desc.Digest)
	if errdefs.IsAlreadyExists(err) {
		p.report(Progress{ID: id, Action: "Layer already exists"})
	}
	if err != nil {
		return nil, err
	}
	return &meteredWriter{Writer: w, m: newMeter(p.report, Progress{ID: id, Action: "Pushing", Total: desc.Size})}, nil
}

type meteredWriter struct {
	content.Writer
	m    *meter
	sent int64
}

func (w *meteredWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.sent += int64(n)
	w.m.at(w.sent)
	return n, err
}

func (w *meteredWriter) Truncate(size int64) error {
	w.sent = size
	return w.Writer.Truncate(size)
}

func (w *meteredWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if err == nil || errdefs.IsAlreadyExists(err) {
		w.m.report(Progress{ID: w.m.line.ID, Action: "Pushed"})
	}
	return err
}
