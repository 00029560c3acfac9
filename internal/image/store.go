package image

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	lslog "github.com/sirupsen/logrus/hooks/slog"
	"go.etcd.io/bbolt"
)

const (
	namespace          = "hyper"
	defaultConcurrency = 3
	sessionKept        = 24 * time.Hour // what an interrupted pull has fetched

	// labelSource is on records of images that came from or went to a registry: repository@digest.
	labelSource = "run.hyper/source"
	// labelSize is on layers: bytes when unpacked.
	labelSize         = "run.hyper/size"
	labelUncompressed = "containerd.io/uncompressed"

	maxManifest = 4 << 20
	maxConfig   = 16 << 20
	maxLayers   = 512
)

// A Store keeps images. It is safe for concurrent use; what an Image it returns
// points to is shared and must not be changed. Names are held in
// records (containerd's images): one per tag or digest reference, and one
// without a name for an image that lost its last tag.
type Store struct {
	cfg     Config
	bolt    *bbolt.DB
	db      *metadata.DB
	content content.Store
	records images.Store
	leases  leases.Manager

	fetches    chan struct{}
	unpacks    chan struct{}
	retryDelay time.Duration

	// mu is held for writing to change records and to collect garbage. A
	// layer's way from the sink to a record is covered by pending.
	mu        sync.RWMutex
	pendingMu sync.Mutex
	pending   map[digest.Digest]int

	known sync.Map // by digest of the manifest: *Image without names
}

// Open opens the store in cfg.Dir, which one process can do at a time.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	bridgeLogs()
	if cfg.Concurrency == 0 {
		cfg.Concurrency = defaultConcurrency
	}
	// Garbage collection stops early where the directory of blobs is not there yet.
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "content", "blobs", "sha256"), 0o700); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	blobs, err := local.NewStore(filepath.Join(cfg.Dir, "content"))
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	bolt, err := bbolt.Open(filepath.Join(cfg.Dir, "metadata.db"), 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", cfg.Dir, err)
	}
	db := metadata.NewDB(bolt, blobs, nil)
	if err := db.Init(ctx); err != nil {
		bolt.Close()
		return nil, fmt.Errorf("open image store: %w", err)
	}
	return &Store{
		cfg: cfg, bolt: bolt, db: db,
		content: db.ContentStore(), records: metadata.NewImageStore(db), leases: metadata.NewLeaseManager(db),
		fetches: make(chan struct{}, cfg.Concurrency),
		unpacks: make(chan struct{}, max(2, runtime.GOMAXPROCS(0))),
		pending: map[digest.Digest]int{}, retryDelay: retryDelay,
	}, nil
}

// Close closes the store; no call may be under way.
func (s *Store) Close() error { return s.bolt.Close() }

// bridgeLogs hands containerd's messages to slog instead of stderr.
var bridgeLogs = sync.OnceFunc(func() {
	log.L.Logger.SetOutput(discard{})
	log.L.Logger.AddHook(lslog.NewHook(slog.New(slogDefault{}), nil))
})

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// slogDefault is whatever slog's default logger is when a message comes. A pull
// that fails says so itself, so messages are two levels less urgent than containerd has them.
type slogDefault struct{}

const levels = 2 * (slog.LevelWarn - slog.LevelInfo)

func (slogDefault) handler() slog.Handler { return slog.Default().Handler() }
func (h slogDefault) Enabled(ctx context.Context, l slog.Level) bool {
	return h.handler().Enabled(ctx, l-levels)
}
func (h slogDefault) Handle(ctx context.Context, r slog.Record) error {
	r.Level -= levels
	return h.handler().Handle(ctx, r)
}
func (h slogDefault) WithAttrs(attrs []slog.Attr) slog.Handler { return h.handler().WithAttrs(attrs) }
func (h slogDefault) WithGroup(name string) slog.Handler       { return h.handler().WithGroup(name) }

func withNamespace(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, namespace)
}

// session protects what is fetched in ctx from garbage collection until done
// is called with the outcome. After an error that a later attempt may not
// meet, it stays protected for a day.
func (s *Store) session(ctx context.Context) (_ context.Context, done func(error), err error) {
	ctx = withNamespace(ctx)
	lease, err := s.leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(sessionKept))
	if err != nil {
		return nil, nil, err
	}
	return leases.WithLease(ctx, lease.ID), func(err error) {
		if err != nil && !permanent(err) {
			return
		}
		ctx := context.WithoutCancel(ctx)
		if err := s.leases.Delete(ctx, lease); err != nil {
			slog.Warn("image: end lease", "err", err)
		}
		if err == nil {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, err := s.collect(ctx); err != nil {
			slog.Warn("image: collect garbage", "err", err)
		}
	}, nil
}

// hold keeps layers from being pruned until release.
func (s *Store) hold(layers []digest.Digest) (release func()) {
	// Wait for a collection that has already asked what to keep.
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.pendingMu.Lock()
	defer s.pendingMu.Unlock()
	for _, id := range layers {
		s.pending[id]++
	}
	return func() {
		s.pendingMu.Lock()
		defer s.pendingMu.Unlock()
		for _, id := range layers {
			if s.pending[id]--; s.pending[id] == 0 {
				delete(s.pending, id)
			}
		}
	}
}

// collect removes blobs and layers that nothing needs, mu held for writing, and returns the bytes freed.
func (s *Store) collect(ctx context.Context) (int64, error) {
	s.known.Clear()
	before, err := s.contentSize(ctx)
	if err != nil {
		return 0, err
	}
	if _, err := s.db.GarbageCollect(ctx); err != nil {
		return 0, fmt.Errorf("collect blobs: %w", err)
	}
	after, err := s.contentSize(ctx)
	if err != nil {
		return 0, err
	}
	all, err := s.list(ctx)
	if err != nil {
		return 0, err
	}
	keep := map[digest.Digest]bool{}
	for _, img := range all {
		layers := img.Layers()
		for i, id := range layers {
			keep[id] = true
			keep[identity.ChainID(layers[:i+1])] = true
		}
	}
	if s.cfg.LayersInUse != nil {
		for _, id := range s.cfg.LayersInUse() {
			keep[id] = true
		}
	}
	s.pendingMu.Lock()
	for id := range s.pending {
		keep[id] = true
	}
	s.pendingMu.Unlock()
	freed, err := s.cfg.Sink.PruneLayers(func(id digest.Digest) bool { return keep[id] })
	return before - after + freed, err
}

func (s *Store) contentSize(ctx context.Context) (int64, error) {
	size := int64(0)
	err := s.content.Walk(ctx, func(info content.Info) error { size += info.Size; return nil })
	return size, err
}

// List gives all images, newest first, those without a tag too.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.list(withNamespace(ctx))
}

func (s *Store) list(ctx context.Context) ([]Image, error) {
	records, err := s.records.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	byID := map[digest.Digest]*Image{}
	for _, r := range records {
		img, err := s.remembered(ctx, r.Target)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", r.Name, err)
		}
		if byID[img.ID] == nil {
			byID[img.ID] = &img
		}
		byID[img.ID].addNames(r)
	}
	all := make([]Image, 0, len(byID))
	for _, img := range byID {
		slices.Sort(img.RepoTags)
		slices.Sort(img.RepoDigests)
		all = append(all, *img)
	}
	slices.SortFunc(all, func(a, b Image) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return all, nil
}

// remembered is read for images that have a record, which change in nothing but names.
func (s *Store) remembered(ctx context.Context, target ocispec.Descriptor) (Image, error) {
	if known, ok := s.known.Load(target.Digest); ok {
		return *known.(*Image), nil
	}
	img, err := s.read(ctx, target)
	if err != nil {
		return Image{}, err
	}
	s.known.Store(target.Digest, img)
	return *img, nil
}

// read makes an Image, without names, from its manifest.
func (s *Store) read(ctx context.Context, target ocispec.Descriptor) (*Image, error) {
	manifest, err := s.readManifest(ctx, target)
	if err != nil {
		return nil, err
	}
	raw, err := s.readBlob(ctx, manifest.Config, maxConfig)
	if err != nil {
		return nil, err
	}
	img := &Image{ID: manifest.Config.Digest, Manifest: target, RawConfig: raw}
	if err := json.Unmarshal(raw, &img.Config); err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("config %s: %v", manifest.Config.Digest, err))
	}
	if img.Config.Created != nil {
		img.Created = *img.Config.Created
	}
	for _, layer := range manifest.Layers {
		img.Size += s.layerSize(ctx, layer)
	}
	return img, nil
}

// layerSize is the unpacked size of a layer, or the size of the blob when it is not known.
func (s *Store) layerSize(ctx context.Context, layer ocispec.Descriptor) int64 {
	info, err := s.content.Info(ctx, layer.Digest)
	if err != nil {
		return layer.Size
	}
	size, err := strconv.ParseInt(info.Labels[labelSize], 10, 64)
	if err != nil {
		return layer.Size
	}
	return size
}

func (s *Store) readManifest(ctx context.Context, desc ocispec.Descriptor) (*ocispec.Manifest, error) {
	raw, err := s.readBlob(ctx, desc, maxManifest)
	if err != nil {
		return nil, err
	}
	return parseManifest(desc, raw)
}

func (s *Store) readBlob(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if desc.Size > limit {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("blob %s has %d bytes, more than %d", desc.Digest, desc.Size, limit))
	}
	return content.ReadBlob(ctx, s.content, desc)
}

func parseManifest(desc ocispec.Descriptor, raw []byte) (*ocispec.Manifest, error) {
	var m ocispec.Manifest
	err := json.Unmarshal(raw, &m)
	switch {
	case err != nil:
	case !images.IsKnownConfig(m.Config.MediaType):
		err = fmt.Errorf("config of type %q is not an image's", m.Config.MediaType)
	case len(m.Layers) > maxLayers:
		err = fmt.Errorf("%d layers, more than %d", len(m.Layers), maxLayers)
	default:
		for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
			if err = d.Digest.Validate(); err != nil {
				break
			}
		}
	}
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("manifest %s: %v", desc.Digest, err))
	}
	// Only registries serve layers of images for Linux.
	for i := range m.Layers {
		m.Layers[i].URLs = nil
	}
	return &m, nil
}
