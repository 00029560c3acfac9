package vm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// another runs a second hyperd with flags of its own; until the end of the
// test all helpers talk to it. prepare is called before it starts.
func another(t *testing.T, prepare func(*host), flags ...string) *host {
	t.Helper()
	first := h
	dir, err := os.MkdirTemp("", "hw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	second := &host{
		dir: dir, bin: first.bin, root: filepath.Join(dir, "root"), run: filepath.Join(dir, "run"),
		prefix: "u" + first.prefix[1:], registry: first.registry,
	}
	if prepare != nil {
		prepare(second)
	}
	second.flags = slices.Concat(first.flags, []string{"--templates=false"}, flags) // it would be made for one test
	if err := second.start(); err != nil {
		t.Fatal(err)
	}
	h = second
	t.Cleanup(func() {
		left := second.vms()
		if err := second.leave(); err != nil {
			t.Error("left behind: ", err)
		}
		if len(left) > 0 {
			t.Error("left running: ", left)
		}
		h = first
	})
	return second
}

// vms lists the QEMUs of this hyperd by what they have open: no path is on
// their command lines.
func (h *host) vms() []string {
	var found []string
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/[0-9]*")
	seen := map[string]bool{}
	for _, fd := range fds {
		proc := filepath.Dir(filepath.Dir(fd))
		if file, err := os.Readlink(fd); err != nil || !strings.HasPrefix(file, h.dir) || seen[proc] {
			continue
		}
		seen[proc] = true
		// One that is to be a template is made in the background, whenever a shape is new.
		name, _ := os.ReadFile(proc + "/cmdline")
		if exe, err := os.Readlink(proc + "/exe"); err == nil && strings.Contains(exe, "qemu") && !bytes.Contains(name, []byte("\x00hyper-template-")) {
			found = append(found, proc)
		}
	}
	return found
}

// state lists what this hyperd keeps: its files but for databases, initrds,
// templates and blank disks, its containers, images and VMs.
func (h *host) state(t *testing.T) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(h.root, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(h.root, path)
		base := filepath.Base(rel)
		switch {
		case err != nil:
			return err
		case d.IsDir() && base != "content" && !strings.HasPrefix(rel, "images/content/ingest/"):
			return nil // of a directory that is empty nobody is afraid
		case strings.HasSuffix(base, ".db"), strings.HasPrefix(rel, "boot/"), strings.HasPrefix(rel, "templates/"), strings.HasPrefix(base, "blank-"):
			return nil
		}
		all = append(all, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, h.remains()...)
	all = append(all, h.vms()...)
	return strings.Join(all, "\n") + "\n" + must(t, "ps", "-aq") + "\n" + must(t, "pod", "ls", "-aq") + "\n" + must(t, "images", "-aq")
}

// refused runs a command that has to end with code and say want, and to leave
// everything as it was.
func refused(t *testing.T, code int, want string, args ...string) result {
	t.Helper()
	before := h.settled(t)
	r := hyper(t, args...)
	if r.code != code || !strings.Contains(r.err, want) {
		t.Errorf("hyper %s: exit code %d, want %d; stderr %q, want %q in it", strings.Join(args, " "), r.code, code, r.err, want)
	}
	if n := strings.Count(r.err, "hyper: "); n != 1 {
		t.Errorf("hyper %s: %d error lines in %q", strings.Join(args, " "), n, r.err)
	}
	if after := h.settled(t); after != before {
		t.Errorf("hyper %s: left behind:\n%s\nbefore:\n%s", strings.Join(args, " "), after, before)
	}
	t.Log(r.err)
	return r
}

// settled is state once what VMs had is gone: that is given back after the
// command has returned.
func (h *host) settled(t *testing.T) string {
	t.Helper()
	running := 0
	for _, state := range strings.Fields(must(t, "pod", "ls", "-a", "--format", "{{.State}}")) {
		if state != "created" && state != "exited" {
			running++
		}
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		pods, _ := filepath.Glob(h.run + "/pods/*")
		if len(pods) == running {
			break
		}
	}
	return h.state(t)
}

// A badRegistry is a registry whose answers a test can change, and that
// counts the bytes of blobs it sends.
type badRegistry struct {
	host string
	mu   sync.Mutex
	hook func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	log  []string                                          // Range of each GET of a blob
	sent int64
}

func newBadRegistry(t *testing.T) *badRegistry {
	b := &badRegistry{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		hook := b.hook
		b.mu.Unlock()
		blob := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
		if blob {
			w = &countingWriter{w, b}
			b.mu.Lock()
			b.log = append(b.log, r.Header.Get("Range"))
			b.mu.Unlock()
		}
		if hook != nil && hook(w, r) {
			return
		}
		if !blob {
			inner.ServeHTTP(w, r)
			return
		}
		// The registry can't do "bytes=N-".
		all := whole(inner, r)
		if all.Code != http.StatusOK {
			w.WriteHeader(all.Code)
			w.Write(all.Body.Bytes()) //nolint:errcheck // the client may be gone
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(all.Body.Bytes()))
	}))
	t.Cleanup(srv.Close)
	b.host = strings.TrimPrefix(srv.URL, "http://")
	return b
}

// whole is all of what r asks a part of.
func whole(inner http.Handler, r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	plain := r.Clone(r.Context())
	plain.Header.Del("Range")
	inner.ServeHTTP(rec, plain)
	return rec
}

type countingWriter struct {
	http.ResponseWriter
	b *badRegistry
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	w.b.sent += int64(n)
	return n, err
}

// Flush lets a part be sent on its own.
func (w *countingWriter) Flush() { w.ResponseWriter.(http.Flusher).Flush() }

// set changes the answers and forgets what was counted.
func (b *badRegistry) set(hook func(http.ResponseWriter, *http.Request) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hook, b.log, b.sent = hook, nil, 0
}

func (b *badRegistry) push(t *testing.T, repo string, what remote.Taggable) string {
	t.Helper()
	ref, err := name.ParseReference(b.host+"/"+repo, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	switch what := what.(type) {
	case v1.Image:
		err = remote.Write(ref, what)
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, what)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

// tarOf makes a layer; a header's Name that ends with a slash is a directory.
func tarOf(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if e.Typeflag == 0 {
			e.Typeflag = tar.TypeReg
		}
		e.Mode = 0o755
		if err := w.WriteHeader(&e); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, rand.Reader, e.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(data) //nolint:errcheck // to memory
	w.Close()     //nolint:errcheck // to memory
	return buf.Bytes()
}

// A rawLayer is a blob as it is, with the diffID that the image claims for it.
type rawLayer struct {
	v1.Layer
	diff v1.Hash
}

func (l rawLayer) DiffID() (v1.Hash, error) { return l.diff, nil }

func hash(data []byte) v1.Hash {
	sum := sha256.Sum256(data)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// badImage makes an image of blobs whose diffIDs are those of plain.
func badImage(t *testing.T, arch string, blob, plain []byte) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, rawLayer{static.NewLayer(blob, types.OCILayer), hash(plain)})
	if err != nil {
		t.Fatal(err)
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

func layerImage(t *testing.T, entries ...tar.Header) v1.Image {
	plain := tarOf(t, entries...)
	return badImage(t, "amd64", gzipped(plain), plain)
}

// answer sends a manifest's body for GET and HEAD.
func answer(mediaType, body string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Docker-Content-Digest", hash([]byte(body)).String())
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(http.StatusOK)
		if r.Method == http.MethodGet {
			io.WriteString(w, body) //nolint:errcheck // the client may be gone
		}
		return true
	}
}

func TestBadManifests(t *testing.T) {
	reg := newBadRegistry(t)
	ok := layerImage(t, tar.Header{Name: "f", Size: 100})
	ref := reg.push(t, "ok:1", ok)
	raw, err := ok.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	oci := string(types.OCIManifestSchema1)
	arm := badImage(t, "arm64", gzipped(tarOf(t)), tarOf(t))
	reg.push(t, "arm:1", arm)
	reg.push(t, "armlist:1", mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}},
	}))
	tests := []struct {
		name, ref, want string
		hook            func(http.ResponseWriter, *http.Request) bool
	}{
		{"unknown repository", reg.host + "/no/such:1", "not found", nil},
		{"unknown tag", reg.host + "/ok:2", "not found", nil},
		{"malformed reference", "Upper", "lowercase", nil},
		{"no registry there", "127.0.0.1:1/x:1", "connection refused", nil},
		{"garbage", ref, "invalid character", answer(oci, "}{ garbage")},
		{"not a manifest", ref, "manifest", answer(oci, "{}")},
		{"a page", ref, "manifest", answer("text/html", "<html>Please log in</html>")},
		{"schema 1", ref, "manifest", answer(string(types.DockerManifestSchema1), `{"schemaVersion":1,"fsLayers":[]}`)},
		{"truncated", ref, "unexpected end of JSON", answer(oci, string(raw[:len(raw)/2]))},
		{"not what the digest says", reg.host + "/ok@" + hash(nil).String(), "", answer(oci, string(raw))},
		{"another architecture", reg.host + "/arm:1", "no matching manifest for linux/amd64", nil},
		{"another architecture's list", reg.host + "/armlist:1", "no matching manifest for linux/amd64", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			reg.set(tt.hook)
			refused(t, 125, tt.want, "run", "--rm", tt.ref, "true")
		})
	}
	reg.set(nil)
	// It was not the image: the whole way works.
	must(t, "pull", "-q", ref)
	must(t, "rmi", ref)
}

func TestBadLayers(t *testing.T) {
	reg := newBadRegistry(t)
	plain := tarOf(t, tar.Header{Name: "f", Size: 100_000})
	good := gzipped(plain)
	zeros := make([]byte, 5000)
	var bomb bytes.Buffer // a file of 300 GiB is said to follow
	if err := tar.NewWriter(&bomb).WriteHeader(&tar.Header{Name: "f", Size: 300 << 30}); err != nil {
		t.Fatal(err)
	}
	reg.push(t, "altered:1", badImage(t, "amd64", good, plain))
	alter := func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, hash(good).String()) {
			return false
		}
		bad := bytes.Clone(good)
		bad[len(bad)/2] ^= 1
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bad))
		return true
	}
	tests := []struct {
		name, want string
		img        v1.Image
		hook       func(http.ResponseWriter, *http.Request) bool
	}{
		{"altered", "verification failed", badImage(t, "amd64", good, plain), alter},
		{"another diffID", "sha256:", badImage(t, "amd64", good, []byte("else")), nil},
		{"not a tar", "layer", badImage(t, "amd64", gzipped(zeros), []byte("else")), nil},
		{"garbage", "layer", badImage(t, "amd64", []byte("garbage garbage garbage"), []byte("garbage garbage garbage")), nil},
		{"cut gzip", "unexpected EOF", badImage(t, "amd64", good[:len(good)/2], plain), nil},
		{"cut tar", "layer", badImage(t, "amd64", gzipped(plain[:50_000]), plain[:50_000]), nil},
		{"escapes", "..", layerImage(t, tar.Header{Name: "../../../../tmp/hyper-escaped", Size: 10}), nil},
		{"link to above", "leads out of its directory", layerImage(t, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}), nil},
		{"bomb", "files of the layer have more than", badImage(t, "amd64", gzipped(bomb.Bytes()), bomb.Bytes()), nil},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ref := reg.push(t, fmt.Sprintf("bad:%d", i), tt.img)
			reg.set(tt.hook)
			refused(t, 125, tt.want, "run", "--rm", ref, "true")
			notEscaped(t)
		})
	}
	// Not refused, as such layers are made in good faith too: the link leads
	// nowhere but in the image.
	t.Run("through a link", func(t *testing.T) {
		before := h.settled(t)
		reg.set(nil)
		ref := reg.push(t, "link:1", layerImage(t, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, tar.Header{Name: "l/hyper-escaped", Size: 10}))
		must(t, "pull", "-q", ref)
		notEscaped(t)
		must(t, "rmi", ref)
		if after := h.settled(t); after != before {
			t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
		}
	})
}

func notEscaped(t *testing.T) {
	t.Helper()
	if _, err := os.Lstat("/tmp/hyper-escaped"); err == nil {
		os.Remove("/tmp/hyper-escaped")
		t.Error("a file of the layer is on the host")
	}
}

func TestBadArchives(t *testing.T) {
	dir := t.TempDir()
	archives := map[string][]byte{
		"empty":    nil,
		"garbage":  []byte("garbage garbage garbage"),
		"no tar":   gzipped([]byte("garbage")),
		"no image": tarOf(t, tar.Header{Name: "etc/passwd", Size: 10}),
		"escapes":  tarOf(t, tar.Header{Name: "../../tmp/hyper-escaped", Size: 10}),
	}
	ref, err := name.ParseReference("bad:1")
	if err != nil {
		t.Fatal(err)
	}
	var hostile bytes.Buffer
	if err := tarball.Write(ref, layerImage(t, tar.Header{Name: "../../tmp/hyper-escaped", Size: 10}), &hostile); err != nil {
		t.Fatal(err)
	}
	archives["hostile layer"] = hostile.Bytes()
	archives["cut"] = hostile.Bytes()[:hostile.Len()/2]
	for name, data := range archives {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			refused(t, 1, "load", "load", "-i", file)
			notEscaped(t)
		})
	}
	t.Run("no file", func(t *testing.T) { refused(t, 1, "no such file", "load", "-i", dir+"/none") })
	t.Run("import", func(t *testing.T) { refused(t, 1, "..", "import", filepath.Join(dir, "escapes"), "bad") })
}

// The registry goes away in the middle of a layer, and so does hyperd; when
// both are back, a pull fetches only what is missing.
func TestBadRegistryComesBack(t *testing.T) {
	reg := newBadRegistry(t)
	const size, part = 12 << 20, 5 << 20
	plain := tarOf(t, tar.Header{Name: "big", Size: size})
	ref := reg.push(t, "big:1", badImage(t, "amd64", plain, plain))
	down := make(chan struct{})
	var once sync.Once
	reg.set(func(w http.ResponseWriter, r *http.Request) bool {
		select {
		case <-down:
			panic(http.ErrAbortHandler)
		default:
		}
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, hash(plain).String()) {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(plain)))
		w.Write(plain[:part]) //nolint:errcheck // it is cut anyway
		w.(http.Flusher).Flush()
		once.Do(func() { close(down) })
		panic(http.ErrAbortHandler)
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pull := h.command(ctx, "pull", ref)
	var out bytes.Buffer
	pull.Stdout, pull.Stderr = &out, &out
	if err := pull.Start(); err != nil {
		t.Fatal(err)
	}
	<-down
	time.Sleep(300 * time.Millisecond)
	h.signal(syscall.SIGKILL)
	if err := pull.Wait(); err == nil || !strings.Contains(out.String(), "hyper: cannot pull") {
		t.Errorf("the pull whose daemon died: %v, %s", err, &out)
	}
	if err := h.start(); err != nil {
		t.Fatal(err)
	}
	reg.set(nil)
	must(t, "pull", "-q", ref)
	t.Cleanup(func() { cleanup(t, "rmi", ref) })
	reg.mu.Lock()
	defer reg.mu.Unlock()
	resumed := false
	for _, r := range reg.log {
		from, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(r, "bytes="), "-"))
		resumed = resumed || from > 0
	}
	if !resumed || reg.sent > size-part/2 {
		t.Errorf("second pull: ranges %q, %d bytes of %d", reg.log, reg.sent, size)
	}
}
