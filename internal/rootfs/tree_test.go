package rootfs

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	reader "github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// mountImage mounts an EROFS file until the test ends.
func mountImage(t testing.TB, image string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	return mountAt(t, dir, "-t", "erofs", "-o", "loop,ro", image)
}

func mountAt(t testing.TB, dir string, args ...string) string {
	t.Helper()
	if out, err := exec.Command("mount", append(args, dir)...).CombinedOutput(); err != nil {
		t.Fatalf("mount %v: %v\n%s", args, err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return dir
}

// A stat is all that can be seen of a file.
type stat struct {
	Mode, Nlink, UID, GID uint32
	Rdev                  uint64
	Size                  int64
	Mtime                 time.Time
	Target, Hash          string
	Xattrs                map[string]string
	SameAs                string // first name of the same inode
}

// scan describes a tree of a mounted file system.
func scan(t testing.TB, dir string) map[string]stat {
	t.Helper()
	tree, inodes := map[string]stat{}, map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name := strings.TrimPrefix(path, dir)
		s := stat{Mode: st.Mode, Nlink: uint32(st.Nlink), UID: st.Uid, GID: st.Gid, Rdev: st.Rdev, Size: st.Size, Mtime: time.Unix(st.Mtim.Unix()).UTC(), Xattrs: xattrs(t, path)}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			s.Hash = hashFile(t, path)
		case unix.S_IFLNK:
			if s.Target, err = os.Readlink(path); err != nil {
				return err
			}
		case unix.S_IFDIR:
			s.Size = 0
		}
		if !d.IsDir() && st.Nlink > 1 {
			if inodes[st.Ino] == "" {
				inodes[st.Ino] = name
			}
			s.SameAs = inodes[st.Ino]
		}
		tree[name] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func hashFile(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func xattrs(t testing.TB, path string) map[string]string {
	t.Helper()
	names := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatalf("xattr %s of %s: %v", name, path, err)
		}
		found[name] = string(value[:n])
	}
	return found
}

// walkImage reads every file of an image with another implementation, which needs no root.
func walkImage(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	image, err := reader.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	err = fs.WalkDir(image, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := image.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(io.Discard, f)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// makeSpecials fills dir with one of everything a layer can hold.
func makeSpecials(t testing.TB, dir string) {
	t.Helper()
	script := `set -e; cd "$1"
mkdir sticky setgid acl many "$(printf 'd%.0s' {1..255})"; chmod 1777 sticky; chmod 2755 setgid; chmod 0700 .
for i in {1..500}; do echo $i >many/file-with-a-name-$i; done
echo x >setuid; chmod 6755 setuid
cp /bin/true capable; setcap cap_net_raw+ep capable
echo x >xattr; setfattr -n user.hyper -v value xattr; setfattr -n user.big -v "$(printf 'v%.0s' {1..2500})" xattr
echo x >trusted; setfattr -n trusted.x -v y trusted; setfattr -n user.onroot -v z .
echo x >acl/file; setfacl -m u:1234:rw acl/file; setfacl -d -m g:4321:rx acl
echo linked >hard1; ln hard1 hard2; ln hard1 many/hard3; ln -s hard1 sym; ln sym symlinked
mkfifo fifo; mknod null c 1 3; mknod block b 7 300; mknod bigminor c 240 70000
truncate -s 200M sparse; printf middle | dd of=sparse bs=1 seek=104857600 conv=notrunc status=none
for n in 0 1 4031 4032 4033 4095 4096 4097 8192 65535 65536 65537 1048576 3000001; do head -c $n /dev/urandom >size$n; done
echo x >"$(printf 'n%.0s' {1..255})"; echo x >"grüße-世界-🚀"; echo x >$'new\nline'; echo x >'!first'
ln -s "/$(printf 'x/%.0s' {1..2040})" longlink; ln -s nowhere dangling
echo x >owned; chown 100000:4294967290 owned; touch -d '2001-02-03T04:05:06.123456789Z' owned; touch -d '1960-01-01T00:00:00Z' old
`
	if out, err := exec.Command("bash", "-c", script, "bash", dir).CombinedOutput(); err != nil {
		t.Skipf("can't make the files: %v\n%s", err, out)
	}
}

func TestExactTree(t *testing.T) {
	src := t.TempDir()
	makeSpecials(t, src)
	want := scan(t, src)
	for _, format := range []string{"posix", "gnu"} {
		t.Run(format, func(t *testing.T) {
			args := []string{"--format=" + format, "--sparse", "-C", src, "-c", "."}
			if format == "posix" {
				args = append(args, "--xattrs", "--xattrs-include=*")
			}
			layer, err := exec.Command("tar", args...).Output()
			if err != nil {
				t.Fatal(err)
			}
			s := openStore(t)
			image := convert(t, s, layer)
			walkImage(t, image)
			info, err := os.Stat(image)
			if err != nil {
				t.Fatal(err)
			}
			if info.Size()%(2<<20) != 0 || allocated(info) > 16<<20 {
				t.Errorf("image has %d bytes, %d allocated", info.Size(), allocated(info))
			}
			got := scan(t, mountImage(t, image))
			if format == "gnu" { // has neither xattrs nor fractions of seconds
				want = simplify(want)
				got = simplify(got)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("mounted tree differs (-source +image):\n%s", diff)
			}
		})
	}
}

func simplify(tree map[string]stat) map[string]stat {
	simple := map[string]stat{}
	for name, s := range tree {
		s.Xattrs, s.Mtime = nil, s.Mtime.Truncate(time.Second)
		simple[name] = s
	}
	return simple
}

// names gives each name with its content, for short comparisons.
func names(tree map[string]stat) []string {
	var all []string
	for name, s := range tree {
		switch {
		case s.Mode&unix.S_IFMT == unix.S_IFDIR:
			name += "/"
		case s.Mode&unix.S_IFMT == unix.S_IFCHR && s.Rdev == 0:
			name += " whiteout"
		case s.Target != "":
			name += " -> " + s.Target
		default:
			name = fmt.Sprintf("%s %d", name, s.Size)
		}
		if s.Xattrs["trusted.overlay.opaque"] == "y" {
			name += " opaque"
		}
		if s.SameAs != "" && s.Rdev == 0 && s.Size > 0 {
			name += " = " + s.SameAs
		}
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func TestTarSemantics(t *testing.T) {
	for name, tc := range map[string]struct {
		layer []byte
		want  []string
	}{
		"empty":               {layerOf(t), []string{"/"}},
		"last wins":           {layerOf(t, file("a", "1"), file("a", "22")), []string{"/", "/a 2"}},
		"large one replaced":  {layerOf(t, file("a", strings.Repeat("x", 1<<20)), file("a", "22")), []string{"/", "/a 2"}},
		"file to directory":   {layerOf(t, file("a", "1"), dirEntry("a/"), file("a/b", "22")), []string{"/", "/a/", "/a/b 2"}},
		"directory to file":   {layerOf(t, dirEntry("a/"), file("a/b", "22"), file("a", "1")), []string{"/", "/a 1"}},
		"directory twice":     {layerOf(t, dirEntry("a/"), file("a/b", "22"), dirEntry("a/")), []string{"/", "/a/", "/a/b 2"}},
		"missing parents":     {layerOf(t, file("a/b/c", "1")), []string{"/", "/a/", "/a/b/", "/a/b/c 1"}},
		"absolute, dots":      {layerOf(t, file("/a/./b//c", "1")), []string{"/", "/a/", "/a/b/", "/a/b/c 1"}},
		"hard links":          {layerOf(t, file("a", "1"), link("b", "./a"), link("/c", "b")), []string{"/", "/a 1 = /a", "/b 1 = /a", "/c 1 = /a"}},
		"target replaced":     {layerOf(t, file("a", "1"), link("b", "a"), file("a", "22")), []string{"/", "/a 2", "/b 1"}},
		"link to itself":      {layerOf(t, file("a", "1"), link("a", "a")), []string{"/", "/a 1"}},
		"parent is a symlink": {layerOf(t, dirEntry("usr/lib/"), symlink("lib", "usr/lib"), file("lib/x", "1")), []string{"/", "/lib -> usr/lib", "/usr/", "/usr/lib/", "/usr/lib/x 1"}},
		"symlink to outside":  {layerOf(t, symlink("e", "../../../etc"), file("e/passwd", "1")), []string{"/", "/e -> ../../../etc", "/etc/", "/etc/passwd 1"}},
		"absolute symlink":    {layerOf(t, symlink("d/e", "/etc"), file("d/e/passwd", "1")), []string{"/", "/d/", "/d/e -> /etc", "/etc/", "/etc/passwd 1"}},
		"symlink to dir":      {layerOf(t, symlink("l", "x"), dirEntry("l/"), file("l/a", "1")), []string{"/", "/l/", "/l/a 1"}},
		"whiteout":            {layerOf(t, file("d/.wh.a", ""), file(".wh.b", "")), []string{"/", "/b whiteout", "/d/", "/d/a whiteout"}},
		"opaque":              {layerOf(t, file("d/a", "1"), file("d/.wh..wh..opq", ""), dirEntry("d/")), []string{"/", "/d/ opaque", "/d/a 1"}},
		"whiteout, then dir":  {layerOf(t, file(".wh.d", ""), file("d/a", "1")), []string{"/", "/d/ opaque", "/d/a 1"}},
		"dir, then whiteout":  {layerOf(t, file("d/a", "1"), file(".wh.d", "")), []string{"/", "/d/ opaque", "/d/a 1"}},
		"whiteout, then file": {layerOf(t, file(".wh.a", ""), file("a", "1")), []string{"/", "/a 1"}},
		"metadata of AUFS":    {layerOf(t, file(".wh..wh.plnk", "1"), file("a", "1")), []string{"/", "/a 1"}},
		"forged overlay mark": {layerOf(t, entry(tar.Header{Name: "d", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/etc"}})), []string{"/", "/d/"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			tree := scan(t, mountImage(t, convert(t, s, tc.layer)))
			if diff := cmp.Diff(tc.want, names(tree)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			for name, st := range tree {
				for attr := range st.Xattrs {
					if attr != "trusted.overlay.opaque" {
						t.Errorf("%s has %s", name, attr)
					}
				}
			}
		})
	}
}

// TestFlatten compares a flattened image with what overlayfs makes of its layers.
func TestFlatten(t *testing.T) {
	layers := [][]byte{
		layerOf(t, file("keep", "1"), file("gone", "2"), file("dir/a", "3"), file("dir/b", "44"), file("opq/hidden", "5"), file("f2d", "6"), file("d2f/x", "7"),
			file("h1", "88"), link("h2", "h1"), symlink("lib", "dir"), file("big", strings.Repeat("x", 3<<20)), dirEntry("meta/")),
		layerOf(t, file(".wh.gone", ""), file("dir/.wh.a", ""), file("dir/c", "3"), file("opq/.wh..wh..opq", ""), file("opq/shown", "1"), file("f2d/y", "1"), file("d2f", "1"),
			file("h1", "999"), file("big", "small"), entry(tar.Header{Name: "meta", Typeflag: tar.TypeDir, Mode: 0o1777, Uid: 7})),
		layerOf(t, file("gone", "back"), file(".wh.keep", ""), file("dir/.wh.none", ""), file(".wh.lib", ""), file("lib/own", "1")),
	}
	s := openStore(t)
	var ids []digest.Digest
	var lower []string
	for _, layer := range layers {
		ids = append(ids, digest.FromBytes(layer))
		lower = append([]string{mountImage(t, convert(t, s, layer))}, lower...)
	}
	path, err := s.Flatten(t.Context(), ids, opener(layers...))
	if err != nil {
		t.Fatal(err)
	}
	fsck(t, path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if allocated(info) > 1<<20 {
		t.Errorf("flattened image keeps %d bytes, replaced files among them", allocated(info))
	}
	overlay := scan(t, mountAt(t, t.TempDir(), "-t", "overlay", "-o", "lowerdir="+strings.Join(lower, ":"), "overlay"))
	flat := scan(t, mountImage(t, path))
	for _, tree := range []map[string]stat{overlay, flat} {
		for name, st := range tree {
			st.Nlink, st.SameAs = 0, "" // overlayfs counts links of layers on their own
			tree[name] = st
		}
	}
	if diff := cmp.Diff(overlay, flat); diff != "" {
		t.Errorf("(-overlayfs +flattened):\n%s", diff)
	}
	again, err := s.Flatten(t.Context(), ids, opener())
	if err != nil || again != path {
		t.Errorf("second Flatten = %q, %v", again, err)
	}
}

// TestDiskFull converts a layer that does not fit.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	s, err := Open(mountAt(t, t.TempDir(), "-t", "tmpfs", "-o", "size=4m", "tmpfs"))
	if err != nil {
		t.Fatal(err)
	}
	layer := layerOf(t, file("a", strings.Repeat("x", 8<<20)))
	if err := s.AddLayer(t.Context(), digest.FromBytes(layer), bytes.NewReader(layer)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("AddLayer = %v", err)
	}
	if left := leftovers(t, s); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestLargeLayer converts a layer of 350 MB with 20,000 files within SPEC.md's memory.
func TestLargeLayer(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 700 MB")
	}
	path := filepath.Join(t.TempDir(), "layer.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	id := digest.SHA256.Digester()
	largeLayer(t, io.MultiWriter(f, id.Hash()))
	debug.FreeOSMemory()
	s := openStore(t)
	peak, stop := watchMemory()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	err = s.AddLayer(t.Context(), id.Digest(), f)
	took := time.Since(start)
	stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("350 MB, 20000 files: %v, peak memory %d MB", took.Round(time.Millisecond), peak.Load()>>20)
	if peak.Load() > 200<<20 {
		t.Errorf("peak memory %d MB, more than 200", peak.Load()>>20)
	}
	layer, _ := s.Path(id.Digest())
	fsck(t, layer)
}

// watchMemory records the most memory the Go runtime had mapped and not given back.
func watchMemory() (*atomic.Uint64, func()) {
	peak, done := &atomic.Uint64{}, make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		sample := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			metrics.Read(sample)
			peak.Store(max(peak.Load(), sample[0].Value.Uint64()-sample[1].Value.Uint64()))
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	}()
	return peak, func() { close(done); <-finished }
}

func BenchmarkAddLayer(b *testing.B) {
	var layer bytes.Buffer
	largeLayer(b, &layer)
	id := digest.FromBytes(layer.Bytes())
	b.SetBytes(int64(layer.Len()))
	for b.Loop() {
		s := openStore(b)
		if err := s.AddLayer(b.Context(), id, bytes.NewReader(layer.Bytes())); err != nil {
			b.Fatal(err)
		}
		os.RemoveAll(s.dir)
	}
}
