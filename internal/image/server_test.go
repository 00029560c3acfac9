package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A sink keeps layers as they come.
type sink struct {
	mu     sync.Mutex
	layers map[digest.Digest][]byte
	fail   error
}

func (s *sink) HasLayer(id digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.layers[id] != nil
}

func (s *sink) AddLayer(_ context.Context, id digest.Digest, r io.Reader) error {
	if s.HasLayer(id) {
		return nil
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if digest.FromBytes(data) != id {
		return fmt.Errorf("digest mismatch: %w", errdefs.ErrDataLoss)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.layers[id] = data
	return nil
}

func (s *sink) PruneLayers(keep func(digest.Digest) bool) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	freed := int64(0)
	for id, data := range s.layers {
		if !keep(id) {
			freed += int64(len(data))
			delete(s.layers, id)
		}
	}
	return freed, nil
}

func openStore(t *testing.T, change ...func(*Config)) (*Store, *sink) {
	t.Helper()
	k := &sink{layers: map[digest.Digest][]byte{}}
	cfg := Config{Dir: t.TempDir(), Sink: k}
	for _, f := range change {
		f(&cfg)
	}
	return reopen(t, cfg), k
}

func reopen(t *testing.T, cfg Config) *Store {
	t.Helper()
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.retryDelay = 10 * time.Millisecond
	t.Cleanup(func() { s.Close() })
	return s
}

// A server is a registry whose answers a test can change.
type server struct {
	http.Handler
	host string
	mu   sync.Mutex
	hook func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	log  []string
}

func startServer(t *testing.T) *server {
	s := &server{}
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.log = append(s.log, r.Method+" "+r.URL.Path+" "+r.Header.Get("Range"))
		hook := s.hook
		s.mu.Unlock()
		if hook != nil && hook(w, r) {
			return
		}
		// The registry can't do "bytes=N-": take all it has and cut.
		if r.Header.Get("Range") != "" && r.Method == http.MethodGet {
			whole := httptest.NewRecorder()
			plain := r.Clone(r.Context())
			plain.Header.Del("Range")
			inner.ServeHTTP(whole, plain)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(whole.Body.Bytes()))
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	s.host = u.Host
	return s
}

func (s *server) setHook(f func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook, s.log = f, nil
}

func (s *server) requests(part string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []string
	for _, line := range s.log {
		if strings.Contains(line, part) {
			found = append(found, line)
		}
	}
	return found
}

// layerData is a tar with one file of random bytes.
func layerData(t testing.TB, name string, size int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	data := make([]byte, size)
	rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(data)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(size)}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func makeImage(t testing.TB, arch string, layers ...[]byte) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, data := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{CreatedBy: "test"}}); err != nil {
			t.Fatal(err)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config.Cmd = "linux", arch, []string{"sh"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

func (s *server) push(t testing.TB, repo string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(s.host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

// A recorder collects progress.
type recorder struct {
	mu    sync.Mutex
	lines []Progress
}

func (r *recorder) add(p Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, p)
}

func (r *recorder) actions(id string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, p := range r.lines {
		if p.ID == id && (len(all) == 0 || all[len(all)-1] != p.Action) {
			all = append(all, p.Action)
		}
	}
	return all
}

func layerID(t *testing.T, img v1.Image, i int) string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	h, err := layers[i].Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.Hex[:12]
}
