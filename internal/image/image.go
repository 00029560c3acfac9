// Package image owns OCI images: references, registries, the content store
// and its garbage collection. It is built on containerd's libraries and needs
// no daemon of theirs.
//
// Layers become root file systems elsewhere: an image is complete here once
// every layer has been handed to the [LayerSink] (rootfs, wired in hyperd).
//
// Of a multi-platform image only the manifest of one platform is kept, with
// its config and compressed layers, which push and save need. What a pull has
// fetched when the connection breaks, or hyperd, stays a day for the next
// attempt to go on from.
//
// containerd logs through logrus; here that goes to log/slog.
package image

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A LayerSink takes layers as they arrive. rootfs.Store is one.
type LayerSink interface {
	// HasLayer says whether the layer is there already, complete.
	HasLayer(diffID digest.Digest) bool
	// AddLayer reads an uncompressed layer tar to its end, checks that its
	// digest is diffID and keeps it. Safe to call concurrently, also for the
	// same layer; on error nothing of it is kept.
	AddLayer(ctx context.Context, diffID digest.Digest, tar io.Reader) error
	// PruneLayers removes every layer that keep does not want and returns
	// the bytes freed.
	PruneLayers(keep func(digest.Digest) bool) (int64, error)
}

// An Image is one image in the store, for one platform.
type Image struct {
	ID          digest.Digest // digest of the config, Docker's image ID
	RepoTags    []string      // familiar form: nginx:latest
	RepoDigests []string      // nginx@sha256:…
	Manifest    ocispec.Descriptor
	Config      ocispec.Image
	RawConfig   []byte // the config blob, with Docker's own fields (Healthcheck, …)
	Size        int64  // of the unpacked layers, bytes
	Created     time.Time
}

// Layers are the diffIDs of the image's layers, lowest first.
func (i *Image) Layers() []digest.Digest { return i.Config.RootFS.DiffIDs }

// Config says how to open a Store.
type Config struct {
	Dir  string // content and metadata
	Sink LayerSink
	// HostsDir holds containerd-style registry settings (certs.d: HOST/hosts.toml), may be "".
	HostsDir string
	// Mirrors maps a registry host to the bases of mirrors tried before it:
	// "docker.io" → ["https://mirror.example"].
	Mirrors map[string][]string
	// LayersInUse gives the diffIDs of layers, and the chain IDs of flattened ones, that
	// containers need although no image may name them any more; nil: none.
	LayersInUse func() []digest.Digest
	// Concurrency is how many layers are fetched at once, 0: 3 as Docker.
	Concurrency int
}

// Auth are credentials for a registry.
type Auth struct{ Username, Password, IdentityToken, RegistryToken string }

// Progress reports one step of a pull, push or load, in Docker's terms.
type Progress struct {
	ID             string // short digest of the layer; "" for a line about the whole
	Action         string // Pulling fs layer, Downloading, Download complete, Extracting, Pull complete, Already exists, Verifying Checksum, Pushing, …
	Current, Total int64  // bytes, 0 when they do not apply
}

// PullOptions are optional; the zero value pulls for the host's platform,
// anonymously.
type PullOptions struct {
	Platform string                          // os/arch[/variant]
	Auth     func(host string) (Auth, error) // nil: anonymous
	Progress func(Progress)                  // nil: silent; called from several goroutines
}

// A Use is one container that was made from an image.
type Use struct {
	Container string // its ID
	Running   bool
}

// InUse gives the containers made from an image.
type InUse func(id digest.Digest) []Use

// Removed is one line of the report of a removal; one of the two is set.
type Removed struct {
	Untagged string // nginx:latest or nginx@sha256:…
	Deleted  string // the digest of an image
}

// A HistoryEntry is one step that made an image.
type HistoryEntry struct {
	Created    time.Time
	CreatedBy  string
	Comment    string
	Size       int64 // of its layer, unpacked
	EmptyLayer bool
}
