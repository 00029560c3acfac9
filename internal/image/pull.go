package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	attempts      = 6 // to fetch a layer, without getting any further between them
	smallAttempts = 2
	retryDelay    = time.Second // before the second attempt; it doubles
)

// Pull fetches an image from its registry, or what is missing of it, and gives
// it the name ref. The embedded image hello comes from no registry.
func (s *Store) Pull(ctx context.Context, ref string, opts PullOptions) (_ Image, err error) {
	named, err := parseName(ref)
	if err != nil {
		return Image{}, err
	}
	if named.String() == helloName {
		return s.EnsureHello(ctx)
	}
	platform, err := parsePlatform(opts.Platform)
	if err != nil {
		return Image{}, err
	}
	ctx, done, err := s.session(ctx)
	if err != nil {
		return Image{}, err
	}
	defer func() { done(err) }()
	r, err := s.registry(ctx, named, opts.Auth)
	if err != nil {
		return Image{}, err
	}
	defer r.close()
	p := &pull{store: s, registry: r, platform: platform, report: report(opts.Progress)}
	if p.root, err = r.resolve(ctx); err != nil {
		return Image{}, err
	}
	img, err := p.run(ctx)
	return img, r.explain(err)
}

func parsePlatform(name string) (ocispec.Platform, error) {
	if name == "" {
		return platforms.DefaultSpec(), nil
	}
	p, err := platforms.Parse(name)
	if err != nil {
		return p, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	return p, nil
}

// report makes a function that can be called from any.
func report(f func(Progress)) func(Progress) {
	if f == nil {
		return func(Progress) {}
	}
	return f
}

// A pull is one call of Pull.
type pull struct {
	store    *Store
	registry *registry
	fetcher  remotes.Fetcher
	root     ocispec.Descriptor // what the reference stands for at the registry
	platform ocispec.Platform
	report   func(Progress)
}

func (p *pull) run(ctx context.Context) (Image, error) {
	named := p.registry.named
	line := Progress{Action: "Pulling from " + reference.FamiliarName(named)}
	if tagged, ok := named.(reference.Tagged); ok {
		line.ID = tagged.Tag()
	}
	p.report(line)
	var err error
	if p.fetcher, err = p.registry.Fetcher(ctx, named.String()); err != nil {
		return Image{}, err
	}
	before, err := p.store.Resolve(ctx, named.String())
	if err != nil && !errdefs.IsNotFound(err) {
		return Image{}, err
	}
	target, err := p.manifest(ctx, p.root)
	if err != nil {
		return Image{}, err
	}
	img, err := p.fetchImage(ctx, target)
	if err != nil {
		return Image{}, err
	}
	p.report(Progress{Action: "Digest: " + p.root.Digest.String()})
	status := "Downloaded newer image for "
	if before.ID == img.ID {
		status = "Image is up to date for "
	}
	p.report(Progress{Action: "Status: " + status + reference.FamiliarString(named)})
	return img, nil
}

// manifest fetches what the reference stands for and picks the platform's manifest if it is an index.
func (p *pull) manifest(ctx context.Context, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	for range 3 { // an index may hold indexes
		if desc.Size > maxManifest {
			return desc, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("manifest %s has %d bytes, more than %d", desc.Digest, desc.Size, maxManifest))
		}
		if !images.IsManifestType(desc.MediaType) && !images.IsIndexType(desc.MediaType) {
			return desc, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("the registry answers with %q, which is no manifest of an image that can be run", desc.MediaType))
		}
		if err := p.fetchBlob(ctx, desc, nil); err != nil {
			return desc, fmt.Errorf("fetch manifest %s: %w", desc.Digest, err)
		}
		if !images.IsIndexType(desc.MediaType) {
			return desc, nil
		}
		raw, err := p.store.readBlob(ctx, desc, maxManifest)
		if err != nil {
			return desc, err
		}
		if desc, err = pickPlatform(desc, raw, p.platform); err != nil {
			return desc, err
		}
	}
	return desc, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("manifest list %s: too many lists in lists", desc.Digest))
}

// pickPlatform gives the best entry of an index for a platform.
func pickPlatform(desc ocispec.Descriptor, raw []byte, platform ocispec.Platform) (ocispec.Descriptor, error) {
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return desc, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("manifest list %s: %v", desc.Digest, err))
	}
	match := platforms.Only(platform)
	var found []ocispec.Descriptor
	for _, m := range index.Manifests {
		if m.Digest.Validate() == nil && m.Platform != nil && match.Match(*m.Platform) {
			found = append(found, m)
		}
	}
	if len(found) == 0 {
		return desc, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("no matching manifest for %s in the manifest list entries", platforms.Format(platform)))
	}
	return slices.MinFunc(found, func(a, b ocispec.Descriptor) int {
		switch {
		case match.Less(*a.Platform, *b.Platform):
			return -1
		case match.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	}), nil
}

// fetchImage fetches the config and the layers of a manifest that is here, and names the image.
func (p *pull) fetchImage(ctx context.Context, target ocispec.Descriptor) (Image, error) {
	manifest, err := p.store.readManifest(ctx, target)
	if err != nil {
		return Image{}, err
	}
	if manifest.Config.Size > maxConfig {
		return Image{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("config %s has %d bytes, more than %d", manifest.Config.Digest, manifest.Config.Size, maxConfig))
	}
	if err := p.fetchBlob(ctx, manifest.Config, nil); err != nil {
		return Image{}, fmt.Errorf("fetch config %s: %w", manifest.Config.Digest, err)
	}
	return p.store.complete(ctx, target, p.platform, completion{
		name:   p.registry.named.String(),
		source: reference.TrimNamed(p.registry.named).String() + "@" + p.root.Digest.String(),
		fetch:  p.fetchLayer,
		report: p.report,
		action: "Pulling fs layer", done: "Pull complete",
	})
}

// fetchLayer brings the blob of a layer here; p.store.fetches bounds how many at once.
func (p *pull) fetchLayer(ctx context.Context, desc ocispec.Descriptor) error {
	id := short(desc.Digest)
	select {
	case p.store.fetches <- struct{}{}:
	default:
		p.report(Progress{ID: id, Action: "Waiting"})
		select {
		case p.store.fetches <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	defer func() { <-p.store.fetches }()
	meter := newMeter(p.report, Progress{ID: id, Action: "Downloading", Total: desc.Size})
	if err := p.fetchBlob(ctx, desc, meter); err != nil {
		return err
	}
	p.report(Progress{ID: id, Action: "Verifying Checksum"})
	p.report(Progress{ID: id, Action: "Download complete"})
	return nil
}

// fetchBlob fetches a blob, going on from where this or an earlier attempt stopped.
func (p *pull) fetchBlob(ctx context.Context, desc ocispec.Descriptor, m *meter) error {
	ref := remotes.MakeRefKey(ctx, desc)
	fetcher := remotes.FetcherFunc(func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		body, err := p.fetcher.Fetch(ctx, desc)
		if err != nil || m == nil {
			return body, err
		}
		return m.body(body), nil
	})
	tries, try, delay := attempts, 1, p.store.retryDelay
	if m == nil { // a manifest or a config
		tries = smallAttempts
	}
	reached, restarted := int64(0), false
	for {
		before := p.store.ingested(ctx, ref)
		err := remotes.Fetch(ctx, p.store.content, fetcher, desc)
		switch {
		case err == nil || errdefs.IsAlreadyExists(err):
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errdefs.IsFailedPrecondition(err): // what is there now is not what was asked for
			if abortErr := p.store.content.Abort(ctx, ref); ignoreNotFound(abortErr) != nil {
				return abortErr
			}
			if before > 0 && !restarted { // what was there before may have been the bad part
				restarted, reached = true, 0
				continue
			}
			return kind(fmt.Errorf("filesystem layer verification failed for digest %s: %w", desc.Digest, err), errdefs.ErrDataLoss)
		case permanent(p.registry.explain(err)):
			return err
		}
		if now := p.store.ingested(ctx, ref); now > reached {
			reached, try, delay = now, 1, p.store.retryDelay
		}
		if try++; try > tries {
			if errors.Is(err, io.ErrUnexpectedEOF) { // the registry is there and does not have all of it
				err = kind(err, errdefs.ErrDataLoss)
			}
			return err
		}
		p.report(Progress{ID: short(desc.Digest), Action: fmt.Sprintf("Retrying in %d seconds", delay/time.Second)})
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		delay *= 2
	}
}

// ingested is how much of a blob has been fetched.
func (s *Store) ingested(ctx context.Context, ref string) int64 {
	status, err := s.content.Status(ctx, ref)
	if err != nil {
		return 0
	}
	return status.Offset
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func short(d digest.Digest) string {
	if len(d.Encoded()) < 12 {
		return d.Encoded()
	}
	return d.Encoded()[:12]
}

// exists says whether a blob is here, and protects it for the session.
func (s *Store) exists(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	if id, ok := leases.FromContext(ctx); ok {
		err := s.leases.AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: desc.Digest.String(), Type: "content"})
		if err != nil {
			return false, err
		}
	}
	_, err := s.content.Info(ctx, desc.Digest)
	return err == nil, ignoreNotFound(err)
}
