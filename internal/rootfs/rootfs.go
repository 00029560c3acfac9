// Package rootfs makes the disks a guest mounts: read-only layers as EROFS
// files, each converted once and shared by every VM of the host, and
// writable ext4 disks copied from a formatted blank.
//
// It never mounts anything and never runs as part of a start except to copy
// the blank. Layers are uncompressed and padded to 2 MiB so that the host's
// page cache and DAX can serve them.
//
// What a layer's tar names is only ever a key in a tree in memory: nothing in
// it can reach a file of the host. A layer that asks for something no file
// system could hold, or for more than [Limits], is refused.
//
// A file in the store is complete: it is written under another name, synced
// and then renamed.
package rootfs

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/hyper-run/hyper/internal/rootfs/erofs"
)

// Limits bound what one layer may ask for.
type Limits struct {
	Bytes   int64 // of the uncompressed tar, and of all its files with their holes
	Entries int   // names, those that are implied included
}

// DefaultLimits leave room for any honest layer: an entry needs about 250 bytes of memory while a layer is converted.
var DefaultLimits = Limits{Bytes: 256 << 30, Entries: 1 << 20}

const (
	tmpPrefix   = "tmp-"
	layerSuffix = ".erofs"
	flatPrefix  = "flat-"
)

// A Store keeps layers and blank disks in one directory. It is safe for concurrent use.
type Store struct {
	// Limits may be changed before the first layer is added.
	Limits Limits

	dir     string
	mu      sync.Mutex
	flights map[string]chan struct{} // closed when the file has been made or not
}

// Open opens the store in dir, which is made if need be, and removes what an
// interrupted conversion left. A directory has one Store at a time.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("open layer store: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open layer store: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tmpPrefix) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("open layer store: %w", err)
			}
		}
	}
	return &Store{Limits: DefaultLimits, dir: dir, flights: map[string]chan struct{}{}}, nil
}

// HasLayer says whether the layer is there, complete.
func (s *Store) HasLayer(diffID digest.Digest) bool {
	_, err := s.Path(diffID)
	return err == nil
}

// Path is the EROFS file of a layer, errdefs.ErrNotFound if it is not there.
func (s *Store) Path(diffID digest.Digest) (string, error) {
	name, err := fileName("", diffID)
	if err != nil {
		return "", err
	}
	path := filepath.Join(s.dir, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("layer %s: %w", diffID, errdefs.ErrNotFound)
	}
	return path, nil
}

// AddLayer reads an uncompressed layer tar to its end and keeps it as an EROFS
// file if its digest is diffID. A layer that is there already, or that another
// call has made meanwhile, is not read. On error nothing is kept; a layer that
// is refused for what it holds gives errdefs.ErrInvalidArgument.
func (s *Store) AddLayer(ctx context.Context, diffID digest.Digest, tar io.Reader) error {
	name, err := fileName("", diffID)
	if err != nil {
		return err
	}
	_, err = s.once(ctx, name, func(f *os.File) error {
		w := erofs.NewWriter(f)
		root, err := s.readLayer(ctx, w, diffID, tar)
		if err != nil {
			return err
		}
		return w.Finish(root)
	})
	if err != nil {
		return fmt.Errorf("convert layer %s: %w", diffID, err)
	}
	return nil
}

// Flatten merges layers, lowest first, to one EROFS file as overlayfs would
// show them, and returns its path. The file is made once and kept until
// PruneLayers is told that the chain ID of the layers is not wanted. open gives
// the uncompressed tar of a layer; layers are read one after the other.
func (s *Store) Flatten(ctx context.Context, diffIDs []digest.Digest, open func(digest.Digest) (io.ReadCloser, error)) (string, error) {
	chain := identity.ChainID(diffIDs)
	name, err := fileName(flatPrefix, chain)
	if err != nil {
		return "", err
	}
	path, err := s.once(ctx, name, func(f *os.File) error {
		w := erofs.NewWriter(f)
		merged := &erofs.Inode{}
		for _, diffID := range diffIDs {
			root, err := s.readOpened(ctx, w, diffID, open)
			if err != nil {
				return fmt.Errorf("layer %s: %w", diffID, err)
			}
			merged = erofs.Merge(merged, root)
		}
		return w.Finish(merged)
	})
	if err != nil {
		return "", fmt.Errorf("flatten %d layers: %w", len(diffIDs), err)
	}
	return path, nil
}

func (s *Store) readOpened(ctx context.Context, w *erofs.Writer, diffID digest.Digest, open func(digest.Digest) (io.ReadCloser, error)) (*erofs.Inode, error) {
	r, err := open(diffID)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return s.readLayer(ctx, w, diffID, r)
}

// PruneLayers removes every layer whose diffID keep does not want, and every
// flattened file whose chain ID keep does not want, and returns the bytes
// freed. A VM that has the file open keeps it until it ends.
func (s *Store) PruneLayers(keep func(digest.Digest) bool) (int64, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return 0, fmt.Errorf("prune layers: %w", err)
	}
	freed := int64(0)
	for _, e := range entries {
		id, ok := parseName(e.Name())
		if !ok || keep(id) {
			continue
		}
		path := filepath.Join(s.dir, e.Name())
		size := diskUsage(path)
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return freed, fmt.Errorf("prune layers: %w", err)
		}
		freed += size
	}
	return freed, nil
}

// once makes the file name with write unless it is there. Of concurrent calls
// for a name one writes; the others wait and write only if that one did not succeed.
func (s *Store) once(ctx context.Context, name string, write func(*os.File) error) (string, error) {
	path := filepath.Join(s.dir, name)
	for {
		s.mu.Lock()
		flight, busy := s.flights[name]
		if !busy {
			break
		}
		s.mu.Unlock()
		select {
		case <-flight:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
	flight := make(chan struct{})
	s.flights[name] = flight
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.flights, name)
		s.mu.Unlock()
		close(flight)
	}()
	_, err := os.Stat(path)
	if err == nil || !os.IsNotExist(err) {
		return path, err
	}
	return path, s.create(path, write)
}

// create writes a file so that it appears under its name only when it is complete and on disk.
func (s *Store) create(path string, write func(*os.File) error) error {
	f, err := os.CreateTemp(s.dir, tmpPrefix+"*")
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(f.Name()) // fails once it is renamed
	if err := write(f); err != nil {
		return err
	}
	// QEMU runs as a user of its own and is given the file open, yet the user may want to look.
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(s.dir)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// fileName is the name of a layer's file; a digest that is not one never becomes part of a path.
func fileName(prefix string, id digest.Digest) (string, error) {
	if err := id.Validate(); err != nil {
		return "", fmt.Errorf("layer %q: %w: %w", id, err, errdefs.ErrInvalidArgument)
	}
	return prefix + id.Algorithm().String() + "-" + id.Encoded() + layerSuffix, nil
}

func parseName(name string) (digest.Digest, bool) {
	base, ok := strings.CutSuffix(strings.TrimPrefix(name, flatPrefix), layerSuffix)
	if !ok {
		return "", false
	}
	algorithm, encoded, ok := strings.Cut(base, "-")
	id := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), encoded)
	return id, ok && id.Validate() == nil
}

// diskUsage is what removing a file frees, 0 if it is gone.
func diskUsage(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return allocated(info)
}
