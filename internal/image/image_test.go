package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

func TestPull(t *testing.T) {
	srv := startServer(t)
	one, two := layerData(t, "one", 100_000), layerData(t, "two", 3_000_000)
	img := makeImage(t, "amd64", one, two, one)
	ref := srv.push(t, "team/app:v1", img)
	s, k := openStore(t)
	var seen recorder
	got, err := s.Pull(t.Context(), ref, PullOptions{Progress: seen.add})
	if err != nil {
		t.Fatal(err)
	}
	manifest, _ := img.Digest()
	id, _ := img.ConfigName()
	if got.ID.String() != id.String() || !slices.Equal(got.RepoTags, []string{ref}) || !slices.Equal(got.RepoDigests, []string{srv.host + "/team/app@" + manifest.String()}) {
		t.Errorf("Pull = %+v", got)
	}
	if want := int64(2*len(one) + len(two)); got.Size != want {
		t.Errorf("Size = %d, want %d", got.Size, want)
	}
	if len(k.layers) != 2 {
		t.Errorf("%d layers in the sink", len(k.layers))
	}
	want := []string{"Pulling fs layer", "Downloading", "Verifying Checksum", "Download complete", "Extracting", "Pull complete"}
	if diff := cmp.Diff(want, seen.actions(layerID(t, img, 1))); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	want = []string{"Digest: " + manifest.String(), "Status: Downloaded newer image for " + ref}
	if diff := cmp.Diff(want, seen.actions("")); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}

	// Again: nothing is fetched.
	srv.setHook(nil)
	seen = recorder{}
	if _, err := s.Pull(t.Context(), ref, PullOptions{Progress: seen.add}); err != nil {
		t.Fatal(err)
	}
	if got := srv.requests("/blobs/"); len(got) > 0 {
		t.Errorf("second pull fetched %v", got)
	}
	if got := seen.actions(layerID(t, img, 0)); !slices.Contains(got, "Already exists") {
		t.Errorf("second pull: %v", got)
	}
	if got := seen.actions(""); got[len(got)-1] != "Status: Image is up to date for "+ref {
		t.Errorf("second pull: %v", got)
	}
	readLayers(t, s, &got, one, two, one)

	// By digest, without a tag.
	s2, _ := openStore(t)
	byDigest, err := s2.Pull(t.Context(), srv.host+"/team/app@"+manifest.String(), PullOptions{})
	if err != nil || len(byDigest.RepoTags) != 0 || len(byDigest.RepoDigests) != 1 {
		t.Errorf("pull by digest = %+v, %v", byDigest, err)
	}
	if _, err := s2.Resolve(t.Context(), srv.host+"/team/app@"+manifest.String()); err != nil {
		t.Error(err)
	}
}

func readLayers(t *testing.T, s *Store, img *Image, want ...[]byte) {
	t.Helper()
	for i, id := range img.Layers() {
		r, err := s.LayerTar(t.Context(), img, id)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(data, want[i]) {
			t.Errorf("layer %d: %d bytes, %v", i, len(data), err)
		}
		r.Close()
	}
}

// TestResume breaks the connection in the middle of a layer: the same pull
// goes on by a Range, and so does a store opened anew when the registry is gone for longer.
func TestResume(t *testing.T) {
	srv := startServer(t)
	img := makeImage(t, "amd64", layerData(t, "big", 8_000_000))
	ref := srv.push(t, "app:v1", img)
	layers, _ := img.Layers()
	blob, _ := layers[0].Digest()
	compressed, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(compressed)
	if err != nil {
		t.Fatal(err)
	}
	half := func(w http.ResponseWriter, from int) {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
		w.Write(data[from : from+2_000_000])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	broken := func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, blob.String()) && r.Header.Get("Range") == "" {
			half(w, 0)
		}
		return false
	}
	t.Run("same pull", func(t *testing.T) {
		s, k := openStore(t)
		srv.setHook(broken)
		if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := srv.requests("bytes="); len(got) != 1 || len(k.layers) != 1 {
			t.Errorf("requests %v, %d layers", got, len(k.layers))
		}
	})
	t.Run("after a restart", func(t *testing.T) {
		k := &sink{layers: map[digest.Digest][]byte{}}
		cfg := Config{Dir: t.TempDir(), Sink: k}
		s, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		down := errors.New("hyperd stops")
		srv.setHook(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, blob.String()) {
				if r.Header.Get("Range") == "" {
					half(w, 0)
				}
				cancel(down)
				panic(http.ErrAbortHandler)
			}
			return false
		})
		if _, err := s.Pull(ctx, ref, PullOptions{}); !errors.Is(err, down) && !errors.Is(err, context.Canceled) {
			t.Fatalf("Pull = %v", err)
		}
		// Garbage collection must not take what the next attempt goes on from.
		if _, _, err := s.Prune(t.Context(), true, nil, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		srv.setHook(nil)
		s = reopen(t, cfg)
		if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
			t.Fatal(err)
		}
		got := srv.requests(blob.String())
		if len(got) != 1 || !strings.Contains(got[0], "bytes=") || strings.Contains(got[0], "bytes=0-") {
			t.Errorf("requests %v", got)
		}
	})
}

func TestPullErrors(t *testing.T) {
	srv := startServer(t)
	img := makeImage(t, "amd64", layerData(t, "x", 10_000))
	ref := srv.push(t, "app:v1", img)
	srv.push(t, "arm:v1", makeImage(t, "arm64", layerData(t, "y", 1000)))
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: makeImage(t, "arm64", layerData(t, "z", 1000)), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}})
	indexRef, _ := name.ParseReference(srv.host + "/index:v1")
	if err := remote.WriteIndex(indexRef, index); err != nil {
		t.Fatal(err)
	}
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
	}
	blobs := func(body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/"+"sha256:") {
				return false
			}
			if !strings.Contains(r.URL.Path, layerID(t, img, 0)) {
				return false
			}
			io.WriteString(w, body)
			return true
		}
	}
	layers, _ := img.Layers()
	size, _ := layers[0].Size()
	for name, tc := range map[string]struct {
		ref  string
		hook func(http.ResponseWriter, *http.Request) bool
		kind func(error) bool
		text string
	}{
		"unknown image":   {srv.host + "/nope:v1", nil, errdefs.IsNotFound, "manifest for " + srv.host + "/nope:v1 not found: manifest unknown"},
		"bad reference":   {"Foo//bar", nil, errdefs.IsInvalidArgument, "invalid reference format"},
		"unauthorized":    {ref, status(http.StatusUnauthorized), errdefs.IsUnauthorized, "pull access denied for " + srv.host + "/app, repository does not exist or may require 'docker login'"},
		"forbidden":       {ref, status(http.StatusForbidden), errdefs.IsPermissionDenied, "requested access to the resource is denied"},
		"broken registry": {ref, status(http.StatusInternalServerError), errdefs.IsUnavailable, "500"},
		"no registry":     {"127.0.0.1:1/x:v1", nil, errdefs.IsUnavailable, "connection refused"},
		"architecture":    {srv.host + "/arm:v1", nil, errdefs.IsNotFound, "no matching manifest for linux/amd64: the image is for linux/arm64"},
		"index":           {srv.host + "/index:v1", nil, errdefs.IsNotFound, "no matching manifest for linux/amd64 in the manifest list entries"},
		"layer corrupted": {ref, blobs(strings.Repeat("x", int(size))), errdefs.IsDataLoss, "filesystem layer verification failed for digest sha256:"},
		"layer too short": {ref, blobs("x"), errdefs.IsDataLoss, "short read"},
		"manifest truncated": {ref, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			io.WriteString(w, `{"schemaVersion":`)
			return true
		}, errdefs.IsDataLoss, "fetch manifest sha256:"},
	} {
		t.Run(name, func(t *testing.T) {
			srv.setHook(tc.hook)
			s, k := openStore(t)
			_, err := s.Pull(t.Context(), tc.ref, PullOptions{Platform: "linux/amd64"})
			if err == nil || !tc.kind(err) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("Pull = %v", err)
			}
			if permanent(err) {
				checkEmpty(t, s, k)
			}
			srv.setHook(nil)
			if tc.hook == nil {
				return
			}
			if _, err := s.Pull(t.Context(), tc.ref, PullOptions{}); err != nil {
				t.Errorf("Pull when it is mended = %v", err)
			}
		})
	}
}

// checkEmpty checks that nothing is left in a store.
func checkEmpty(t *testing.T, s *Store, k *sink) {
	t.Helper()
	size, err := s.contentSize(withNamespace(context.Background()))
	if err != nil || size != 0 || len(k.layers) != 0 {
		t.Errorf("left: %d bytes of blobs, %d layers, %v", size, len(k.layers), err)
	}
	found, err := filepath.Glob(filepath.Join(s.cfg.Dir, "content", "ingest", "*"))
	if err != nil || len(found) > 0 {
		t.Errorf("left: %v, %v", found, err)
	}
}

func TestBadManifests(t *testing.T) {
	srv := startServer(t)
	good := makeImage(t, "amd64", layerData(t, "x", 1000))
	config, _ := good.RawConfigFile()
	for name, raw := range map[string]string{
		"not JSON":      `{"config":`,
		"not an image":  `{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"` + digest.FromBytes(config).String() + `","size":2}}`,
		"digest":        `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:../../x","size":2}}`,
		"layers differ": `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + digest.FromBytes(config).String() + fmt.Sprintf(`","size":%d},"layers":[]}`, len(config)),
	} {
		t.Run(name, func(t *testing.T) {
			srv.setHook(func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case strings.Contains(r.URL.Path, "/manifests/"):
					w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
					w.Header().Set("Docker-Content-Digest", digest.FromString(raw).String())
					w.Header().Set("Content-Length", fmt.Sprint(len(raw)))
					if r.Method == http.MethodGet {
						io.WriteString(w, raw)
					}
				default:
					w.Write(config)
				}
				return true
			})
			s, k := openStore(t)
			_, err := s.Pull(t.Context(), srv.host+"/bad:v1", PullOptions{Platform: "linux/amd64"})
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("Pull = %v", err)
			}
			checkEmpty(t, s, k)
		})
	}
}

func TestSinkFails(t *testing.T) {
	srv := startServer(t)
	ref := srv.push(t, "app:v1", makeImage(t, "amd64", layerData(t, "x", 1000)))
	s, k := openStore(t)
	k.fail = errdefs.ErrInvalidArgument.WithMessage("hostile layer")
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Pull = %v", err)
	}
	checkEmpty(t, s, k)
}

func TestIndexAndMirror(t *testing.T) {
	upstream, mirror := startServer(t), startServer(t)
	want := makeImage(t, "amd64", layerData(t, "amd", 1000))
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: makeImage(t, "arm64", layerData(t, "arm", 1000)), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: want, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	ref, _ := name.ParseReference(mirror.host + "/library/app:v1")
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	s, _ := openStore(t, func(c *Config) {
		c.Mirrors = map[string][]string{upstream.host: {"http://" + mirror.host}}
	})
	auth := func(host string) (Auth, error) {
		if host != upstream.host {
			t.Errorf("asked for credentials of %s", host)
		}
		return Auth{Username: "u", Password: "p"}, nil
	}
	img, err := s.Pull(t.Context(), upstream.host+"/library/app:v1", PullOptions{Platform: "linux/amd64", Auth: auth})
	if err != nil {
		t.Fatal(err)
	}
	id, _ := want.ConfigName()
	root, _ := index.Digest()
	if img.ID.String() != id.String() || img.RepoDigests[0] != upstream.host+"/library/app@"+root.String() {
		t.Errorf("Pull = %+v", img)
	}
	if got := upstream.requests("/"); len(got) > 0 {
		t.Errorf("asked upstream: %v", got)
	}
}

func TestHostsToml(t *testing.T) {
	srv := startServer(t)
	srv.push(t, "library/app:v1", makeImage(t, "amd64", layerData(t, "x", 1000)))
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "registry.example"), 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := fmt.Sprintf("server = \"https://registry.invalid\"\n[host.\"http://%s\"]\n", srv.host)
	if err := os.WriteFile(filepath.Join(dir, "registry.example", "hosts.toml"), []byte(hosts), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := openStore(t, func(c *Config) { c.HostsDir = dir })
	if _, err := s.Pull(t.Context(), "registry.example/library/app:v1", PullOptions{}); err != nil {
		t.Error(err)
	}
}

// TestAuth pulls from registries that want a password, and a token made with one.
func TestAuth(t *testing.T) {
	srv := startServer(t)
	ref := srv.push(t, "app:v1", makeImage(t, "amd64", layerData(t, "x", 1000)))
	basic := func(w http.ResponseWriter, r *http.Request) bool {
		if user, pass, _ := r.BasicAuth(); user == "u" && pass == "p" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	bearer := func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			r.ParseForm()
			if user, pass, _ := r.BasicAuth(); user == "u" && pass == "p" || r.PostForm.Get("password") == "p" {
				json.NewEncoder(w).Encode(map[string]string{"token": "t", "access_token": "t"})
			} else {
				w.WriteHeader(http.StatusUnauthorized)
			}
			return true
		}
		if r.Header.Get("Authorization") == "Bearer t" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+srv.host+`/token",service="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	password := func(string) (Auth, error) { return Auth{Username: "u", Password: "p"}, nil }
	wrong := func(string) (Auth, error) { return Auth{Username: "u", Password: "q"}, nil }
	token := func(string) (Auth, error) { return Auth{RegistryToken: "t"}, nil }
	config := t.TempDir()
	t.Setenv("DOCKER_CONFIG", config)
	if err := os.WriteFile(filepath.Join(config, "config.json"), []byte(`{"auths":{"`+srv.host+`":{"auth":"dTpw"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		hook func(http.ResponseWriter, *http.Request) bool
		auth func(string) (Auth, error)
		ok   bool
	}{
		"basic":        {basic, password, true},
		"basic wrong":  {basic, wrong, false},
		"basic none":   {basic, nil, false},
		"bearer":       {bearer, password, true},
		"bearer wrong": {bearer, wrong, false},
		"token":        {bearer, token, true},
	} {
		t.Run(name, func(t *testing.T) {
			srv.setHook(tc.hook)
			s, _ := openStore(t)
			_, err := s.Pull(t.Context(), ref, PullOptions{Auth: tc.auth})
			if tc.ok != (err == nil) || !tc.ok && !errdefs.IsUnauthorized(err) {
				t.Errorf("Pull = %v", err)
			}
		})
	}
	if got, err := DockerAuth()(srv.host); err != nil || got != (Auth{Username: "u", Password: "p"}) {
		t.Errorf("DockerAuth = %+v, %v", got, err)
	}
}

func TestPush(t *testing.T) {
	srv := startServer(t)
	img := makeImage(t, "amd64", layerData(t, "one", 100_000), layerData(t, "two", 1000))
	ref := srv.push(t, "app:v1", img)
	s, _ := openStore(t)
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	other := startServer(t)
	copied := other.host + "/copy:v2"
	if err := s.Tag(t.Context(), ref, copied); err != nil {
		t.Fatal(err)
	}
	var seen recorder
	if err := s.Push(t.Context(), copied, PullOptions{Progress: seen.add}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"Preparing", "Pushing", "Pushed"}, seen.actions(layerID(t, img, 0))); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	seen = recorder{}
	if err := s.Push(t.Context(), copied, PullOptions{Progress: seen.add}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"Preparing", "Layer already exists"}, seen.actions(layerID(t, img, 0))); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	got, err := s.Resolve(t.Context(), copied)
	manifest, _ := img.Digest()
	if err != nil || !slices.Contains(got.RepoDigests, other.host+"/copy@"+manifest.String()) {
		t.Errorf("after Push: %+v, %v", got, err)
	}
	s2, _ := openStore(t)
	if again, err := s2.Pull(t.Context(), copied, PullOptions{}); err != nil || again.ID != got.ID {
		t.Errorf("Pull of what was pushed = %v, %v", again.ID, err)
	}
	if err := s.Push(t.Context(), other.host+"/nope:v1", PullOptions{}); !errdefs.IsNotFound(err) {
		t.Errorf("Push of nothing = %v", err)
	}
}

// TestHello runs the embedded program on this host.
func TestHello(t *testing.T) {
	s, k := openStore(t)
	if _, err := s.Resolve(t.Context(), "hello"); !errdefs.IsNotFound(err) || err.Error() != "No such image: hello:latest" {
		t.Errorf("Resolve = %v", err)
	}
	img, err := s.Pull(t.Context(), "hello", PullOptions{})
	if err != nil || !slices.Equal(img.RepoTags, []string{"hello:latest"}) || !slices.Equal(img.Config.Config.Cmd, []string{"/hello"}) {
		t.Fatalf("Pull = %+v, %v", img, err)
	}
	r := tar.NewReader(bytes.NewReader(k.layers[img.Layers()[0]]))
	if h, err := r.Next(); err != nil || h.Name != "hello" {
		t.Fatal(h, err)
	}
	program, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "hello")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path).Output()
	if err != nil || string(out) != helloText {
		t.Errorf("hello: %v, %q", err, out)
	}
	closed := exec.Command("sh", "-c", path+" >&-")
	if err := closed.Run(); closed.ProcessState.ExitCode() != 1 {
		t.Errorf("hello without stdout: %v", err)
	}
}

// TestConcurrentPulls pulls an image several times at once: each layer is fetched once.
func TestConcurrentPulls(t *testing.T) {
	srv := startServer(t)
	img := makeImage(t, "amd64", layerData(t, "one", 2_000_000), layerData(t, "two", 1_000_000))
	ref := srv.push(t, "app:v1", img)
	srv.setHook(nil)
	s, k := openStore(t)
	var group errgroup.Group
	for range 4 {
		group.Go(func() error { _, err := s.Pull(t.Context(), ref, PullOptions{}); return err })
		group.Go(func() error { _, _, err := s.Prune(t.Context(), false, nil, nil); return err })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := srv.requests("GET /v2/app/blobs/"); len(got) != 3 || len(k.layers) != 2 {
		t.Errorf("fetched %v, %d layers", got, len(k.layers))
	}
}

func TestBomb(t *testing.T) {
	in := &counter{r: strings.NewReader("")}
	in.n.Store(1 << 20)
	r := &ratioReader{ReadCloser: io.NopCloser(zeroReader{}), in: in, out: ratioAllowed - 1<<20}
	if _, err := io.Copy(io.Discard, r); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bomb: %v", err)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { return len(p), nil }
