package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	imagespec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Import makes an image of one layer from the tar of a root file system,
// plain or compressed with gzip or zstd. changes are instructions of a
// Dockerfile that set its configuration (CMD, ENV, …). ref may be "".
func (s *Store) Import(ctx context.Context, r io.Reader, ref string, changes []string, message string) (_ Image, err error) {
	name := ""
	if ref != "" {
		named, err := parseName(ref)
		if err != nil {
			return Image{}, err
		}
		if _, ok := named.(reference.Tagged); !ok {
			return Image{}, errdefs.ErrInvalidArgument.WithMessage("cannot import digest reference")
		}
		name = named.String()
	}
	now := time.Now().UTC()
	config := imagespec.DockerOCIImage{Image: ocispec.Image{Created: &now, Platform: platforms.DefaultSpec()}}
	for _, change := range changes {
		if err := applyChange(&config.Config, change); err != nil {
			return Image{}, err
		}
	}
	if message == "" {
		message = "Imported from -"
	}
	config.History = []ocispec.History{{Created: &now, Comment: message}}
	ctx, done, err := s.session(ctx)
	if err != nil {
		return Image{}, err
	}
	defer func() {
		if err != nil {
			done(kind(err, errdefs.ErrInvalidArgument)) // nothing to go on with
			return
		}
		done(nil)
	}()
	layer, diffID, err := s.importLayer(ctx, r)
	if err != nil {
		return Image{}, fmt.Errorf("import image: %w", err)
	}
	return s.create(ctx, name, &config, []ocispec.Descriptor{layer}, []digest.Digest{diffID})
}

// importLayer stores a layer as it comes and computes the digest of what is in it.
func (s *Store) importLayer(ctx context.Context, r io.Reader) (ocispec.Descriptor, digest.Digest, error) {
	w, err := content.OpenWriter(ctx, s.content, content.WithRef(fmt.Sprintf("import-%d", time.Now().UnixNano())))
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	defer w.Close()
	stored := &counter{r: io.TeeReader(r, w)}
	head := make([]byte, 4)
	n, err := io.ReadFull(stored, head)
	if err == io.EOF {
		return ocispec.Descriptor{}, "", errdefs.ErrInvalidArgument.WithMessage("the tar is empty")
	}
	tar, err := decompress(io.MultiReader(bytes.NewReader(head[:n]), stored))
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	defer tar.Close()
	diffID, err := digest.FromReader(tar)
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	if _, err := io.Copy(io.Discard, stored); err != nil { // what a decompressor leaves unread
		return ocispec.Descriptor{}, "", err
	}
	desc := ocispec.Descriptor{MediaType: layerType(head[:n]), Digest: w.Digest(), Size: stored.n.Load()}
	if err := w.Commit(ctx, desc.Size, desc.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return ocispec.Descriptor{}, "", err
	}
	return desc, diffID, nil
}

func layerType(head []byte) string {
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		return ocispec.MediaTypeImageLayerGzip
	case bytes.HasPrefix(head, zstdMagic):
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayer
}

// create makes an image of layers that are here.
func (s *Store) create(ctx context.Context, name string, config *imagespec.DockerOCIImage, layers []ocispec.Descriptor, diffIDs []digest.Digest) (Image, error) {
	config.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: diffIDs}
	configDesc, err := s.writeJSON(ctx, ocispec.MediaTypeImageConfig, config)
	if err != nil {
		return Image{}, err
	}
	target, err := s.writeJSON(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: configDesc, Layers: layers,
	})
	if err != nil {
		return Image{}, err
	}
	return s.complete(ctx, target, platforms.DefaultSpec(), completion{name: name, report: report(nil)})
}

func (s *Store) writeJSON(ctx context.Context, mediaType string, v any) (ocispec.Descriptor, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return desc, s.writeBlob(ctx, desc, raw)
}

func (s *Store) writeBlob(ctx context.Context, desc ocispec.Descriptor, raw []byte) error {
	if err := content.WriteBlob(ctx, s.content, "blob-"+desc.Digest.String(), bytes.NewReader(raw), desc); err != nil {
		return fmt.Errorf("write blob %s: %w", desc.Digest, err)
	}
	return nil
}
