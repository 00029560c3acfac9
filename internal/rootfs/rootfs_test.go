package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// A tarball is a layer in the making; the zero value is ready.
type tarball struct {
	buf bytes.Buffer
	w   *tar.Writer
}

func (b *tarball) add(t testing.TB, h tar.Header, data string) *tarball {
	t.Helper()
	if b.w == nil {
		b.w = tar.NewWriter(&b.buf)
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	if h.Typeflag == tar.TypeReg {
		h.Size = int64(len(data))
	}
	if err := b.w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(b.w, data); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *tarball) bytes(t testing.TB) []byte {
	t.Helper()
	if b.w == nil {
		b.w = tar.NewWriter(&b.buf)
	}
	if err := b.w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.buf.Bytes()
}

func file(name, data string) func(testing.TB, *tarball) {
	return func(t testing.TB, b *tarball) { b.add(t, tar.Header{Name: name}, data) }
}

func entry(h tar.Header) func(testing.TB, *tarball) {
	return func(t testing.TB, b *tarball) { b.add(t, h, "") }
}

func dirEntry(name string) func(testing.TB, *tarball) {
	return entry(tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755})
}

func symlink(name, target string) func(testing.TB, *tarball) {
	return entry(tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target})
}

func link(name, target string) func(testing.TB, *tarball) {
	return entry(tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target})
}

func layerOf(t testing.TB, entries ...func(testing.TB, *tarball)) []byte {
	t.Helper()
	b := &tarball{}
	for _, add := range entries {
		add(t, b)
	}
	return b.bytes(t)
}

func openStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "layers"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// convert gives the path of a layer's EROFS file, which fsck.erofs has seen if it is installed.
func convert(t testing.TB, s *Store, layer []byte) string {
	t.Helper()
	id := digest.FromBytes(layer)
	if err := s.AddLayer(t.Context(), id, bytes.NewReader(layer)); err != nil {
		t.Fatal(err)
	}
	path, err := s.Path(id)
	if err != nil {
		t.Fatal(err)
	}
	fsck(t, path)
	return path
}

func fsck(t testing.TB, path string) {
	t.Helper()
	if _, err := exec.LookPath("fsck.erofs"); err != nil {
		return
	}
	if out, err := exec.Command("fsck.erofs", "--extract", path).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}

// leftovers are the files of a store that are not complete layers.
func leftovers(t testing.TB, s *Store) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(s.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestHostileLayers(t *testing.T) {
	deep := strings.Repeat("d/", 2100)
	for name, layer := range map[string][]byte{
		"path out of the root":     layerOf(t, file("../../etc/passwd", "x")),
		"path out and in again":    layerOf(t, file("a/../../b", "x")),
		"link out of the root":     layerOf(t, link("a", "../../etc/shadow")),
		"link to nothing":          layerOf(t, link("a", "b")),
		"link to a directory":      layerOf(t, dirEntry("d/"), link("a", "d")),
		"link to the root":         layerOf(t, link("a", "/")),
		"link to a whiteout":       layerOf(t, file(".wh.b", ""), link("a", "b")),
		"whiteout of the parent":   layerOf(t, file("a/.wh...", "")),
		"whiteout of nothing":      layerOf(t, file("a/.wh.", "")),
		"name of 256 bytes":        layerOf(t, file(strings.Repeat("n", 256), "x")),
		"path of 4200 bytes":       layerOf(t, file(deep+"x", "x")),
		"file as a parent":         layerOf(t, file("a", "x"), file("a/b", "y")),
		"symlinks in a circle":     layerOf(t, symlink("a", "b"), symlink("b", "a"), file("a/x", "y")),
		"device number":            layerOf(t, entry(tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 4096})),
		"owner":                    layerOf(t, entry(tar.Header{Name: "f", Uid: 1 << 33, Format: tar.FormatGNU})),
		"root that is a file":      layerOf(t, symlink(".", "x")),
		"size that is not there":   layerOf(t, file("a", strings.Repeat("x", 8192)))[:4096],
		"more than Limits.Bytes":   layerOf(t, file("a", strings.Repeat("x", 2<<20))),
		"more than Limits.Entries": layerOf(t, file(strings.Repeat("a/", 101)+"a", "x")),
		"large xattr":              layerOf(t, entry(tar.Header{Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("v", 1<<16)}})),
		"not a tar":                bytes.Repeat([]byte("hello"), 1000),
		"sparse file without end":  sparseBomb(),
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			s.Limits = Limits{Bytes: 1 << 20, Entries: 100}
			err := s.AddLayer(t.Context(), digest.FromBytes(layer), bytes.NewReader(layer))
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("AddLayer: %v", err)
			}
			t.Log(err)
			if left := leftovers(t, s); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// sparseBomb is a GNU sparse file of 8 EiB, all of it a hole.
func sparseBomb() []byte {
	block := make([]byte, 1536)
	copy(block, "bomb")
	copy(block[100:], "0000644\x000000000\x000000000\x0000000000000\x0000000000000\x00")
	block[156] = 'S'
	copy(block[257:], "ustar  \x00")
	copy(block[386:], "00000000000\x0000000000000\x00")
	copy(block[483:], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff")
	copy(block[148:], "        ")
	sum := 0
	for _, b := range block[:512] {
		sum += int(b)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	return block
}

func TestFailedLayerLeavesNothing(t *testing.T) {
	layer := layerOf(t, file("a", strings.Repeat("x", 1<<20)))
	id := digest.FromBytes(layer)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("client gone")
	for name, tc := range map[string]struct {
		ctx  context.Context
		r    io.Reader
		want error
	}{
		"digest":    {t.Context(), bytes.NewReader(layerOf(t, file("b", "y"))), errdefs.ErrDataLoss},
		"read":      {t.Context(), io.MultiReader(bytes.NewReader(layer[:1<<19]), failing{io.ErrClosedPipe}), io.ErrClosedPipe},
		"truncated": {t.Context(), io.MultiReader(bytes.NewReader(layer[:1<<19]), failing{io.ErrUnexpectedEOF}), io.ErrUnexpectedEOF},
		"cancel": {ctx, io.MultiReader(bytes.NewReader(layer[:1<<19]), readerFunc(func(p []byte) (int, error) {
			cancel(gone)
			return len(p), nil
		})), gone},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			if err := s.AddLayer(tc.ctx, id, tc.r); !errors.Is(err, tc.want) {
				t.Errorf("AddLayer: %v, want %v", err, tc.want)
			}
			if left := leftovers(t, s); len(left) > 0 || s.HasLayer(id) {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestSingleFlight(t *testing.T) {
	s := openStore(t)
	layer := layerOf(t, file("a", strings.Repeat("x", 3<<20)))
	id := digest.FromBytes(layer)
	var read sync.Map
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			r := readerFunc(nil)
			rest := bytes.NewReader(layer)
			r = func(p []byte) (int, error) { read.Store(i, true); return rest.Read(p) }
			if err := s.AddLayer(t.Context(), id, r); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	readers := 0
	read.Range(func(any, any) bool { readers++; return true })
	if readers != 1 {
		t.Errorf("%d of 8 calls read the layer", readers)
	}
}

func TestOpenRemovesLeftovers(t *testing.T) {
	s := openStore(t)
	path := convert(t, s, layerOf(t, file("a", "x")))
	if err := os.WriteFile(filepath.Join(s.dir, tmpPrefix+"1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.dir); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, s); len(left) != 1 || left[0] != path {
		t.Errorf("files after Open: %v", left)
	}
}

func TestPruneLayers(t *testing.T) {
	s := openStore(t)
	one, two := layerOf(t, file("a", "x")), layerOf(t, file("b", strings.Repeat("y", 1<<20)))
	ids := []digest.Digest{digest.FromBytes(one), digest.FromBytes(two)}
	convert(t, s, one)
	convert(t, s, two)
	flat, err := s.Flatten(t.Context(), ids, opener(one, two))
	if err != nil {
		t.Fatal(err)
	}
	freed, err := s.PruneLayers(func(id digest.Digest) bool { return id == ids[0] })
	if err != nil || freed < 2<<20 {
		t.Errorf("PruneLayers = %d, %v", freed, err)
	}
	if _, err := os.Stat(flat); !s.HasLayer(ids[0]) || s.HasLayer(ids[1]) || !os.IsNotExist(err) {
		t.Errorf("after PruneLayers: %v", leftovers(t, s))
	}
}

func opener(layers ...[]byte) func(digest.Digest) (io.ReadCloser, error) {
	return func(id digest.Digest) (io.ReadCloser, error) {
		for _, layer := range layers {
			if digest.FromBytes(layer) == id {
				return io.NopCloser(bytes.NewReader(layer)), nil
			}
		}
		return nil, errdefs.ErrNotFound
	}
}

func TestReproducible(t *testing.T) {
	var entries []func(testing.TB, *tarball)
	for i := range 200 {
		entries = append(entries, file(fmt.Sprintf("d%d/f%d", i%7, i), strings.Repeat("z", i*100)))
	}
	layer := layerOf(t, entries...)
	var images [2][]byte
	for i := range images {
		image, err := os.ReadFile(convert(t, openStore(t), layer))
		if err != nil {
			t.Fatal(err)
		}
		images[i] = image
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("two conversions of a layer differ")
	}
}

func TestCreateDisk(t *testing.T) {
	s := openStore(t)
	dir := t.TempDir()
	scratch := DiskOptions{Scratch: true}
	for i, tc := range []struct {
		size int64
		o    DiskOptions
	}{{minDisk, DiskOptions{}}, {minDisk, scratch}, {10 << 30, DiskOptions{}}, {10 << 30, DiskOptions{}}, {10 << 30, scratch}} {
		path := filepath.Join(dir, fmt.Sprint(i))
		start := time.Now()
		if err := s.CreateDisk(path, tc.size, tc.o); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d bytes, %d allocated, in %v", info.Size(), allocated(info), time.Since(start))
		if info.Size() != tc.size || allocated(info) > 2<<20 {
			t.Errorf("disk has %d bytes, %d allocated", info.Size(), allocated(info))
		}
		checkDisk(t, path, tc.o)
	}
	if err := s.CreateDisk(filepath.Join(dir, "0"), minDisk, DiskOptions{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("CreateDisk over a disk: %v", err)
	}
	if err := s.CreateDisk(filepath.Join(dir, "small"), 4096, DiskOptions{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("CreateDisk of 4096 bytes: %v", err)
	}
}

func checkDisk(t *testing.T, path string, o DiskOptions) {
	t.Helper()
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	show := func(request string) string {
		out, err := exec.Command("debugfs", "-R", request, path).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if super := show("stats -h"); strings.Contains(super, "has_journal") == o.Scratch || strings.Contains(super, "nobarrier") != o.Scratch {
		t.Errorf("superblock of a disk with %+v:\n%s", o, super)
	}
	if os.Geteuid() != 0 {
		return
	}
	for _, name := range []string{"/upper", "/work"} {
		st := strings.Join(strings.Fields(show("stat "+name)), " ")
		if !strings.Contains(st, "Type: directory Mode: 0755") || !strings.Contains(st, "User: 0 Group: 0") {
			t.Errorf("%s: %s", name, st)
		}
	}
}

// Another version's blank is not taken for this one's.
func TestBlankNames(t *testing.T) {
	names := map[string]bool{"blank-16777216.ext4": true}
	base := newFormat(minDisk, DiskOptions{})
	seeded, config, args := base, base, base
	seeded.seeded = !base.seeded
	config.config += "#"
	args.args = append(slices.Clone(base.args), "-v")
	for _, f := range []format{base, newFormat(minDisk, DiskOptions{Scratch: true}), newFormat(2*minDisk, DiskOptions{}), seeded, config, args} {
		if names[f.name()] {
			t.Errorf("%+v: %s is another's name", f, f.name())
		}
		names[f.name()] = true
	}
	if got := newFormat(minDisk, DiskOptions{}).name(); got != base.name() {
		t.Errorf("name changes from %s to %s", base.name(), got)
	}
}

// FuzzAddLayer takes any bytes for a layer.
func FuzzAddLayer(f *testing.F) {
	f.Add(layerOf(f, file("a/b", "x"), link("c", "a/b"), symlink("s", "a"), file("s/d", strings.Repeat("y", 5000))))
	f.Add(layerOf(f, dirEntry("d/"), file("d/.wh..wh..opq", ""), file(".wh.x", ""), file("x/y", "z"), file("x", "w")))
	f.Add(sparseBomb())
	f.Fuzz(func(t *testing.T, layer []byte) {
		s := openStore(t)
		s.Limits = Limits{Bytes: 1 << 20, Entries: 1000}
		id := digest.FromBytes(layer)
		err := s.AddLayer(t.Context(), id, bytes.NewReader(layer))
		if left := leftovers(t, s); (err == nil) != (len(left) == 1) {
			t.Errorf("err %v, files %v", err, left)
		}
		if err == nil {
			path, _ := s.Path(id)
			walkImage(t, path)
		}
	})
}

// largeLayer writes a tar of 20,000 files with 350 MB.
func largeLayer(t testing.TB, w io.Writer) {
	random := rand.NewChaCha8([32]byte{})
	data := make([]byte, 88<<20)
	random.Read(data)
	tw := tar.NewWriter(w)
	write := func(name string, size int64) {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(1e9, 5), Format: tar.FormatPAX}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(data[:size]); err != nil {
			t.Fatal(err)
		}
	}
	write("large/big", int64(len(data)))
	for i := range 19_999 {
		write(fmt.Sprintf("large/d%03d/f%05d", i%100, i), int64(i*7919%1000)*26)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
}
