package vm

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// What an image holds, seen from inside its VM.
func TestSpecialFiles(t *testing.T) {
	img := pulled(t, "specials")
	out := must(t, "run", "--rm", img, "sh", "-c", `cd /specials
		stat -c '%n %F %a %u:%g %h' setuid sticky setgid hard1 hard2 fifo null owned replaced opaque
		stat -c '%n %t:%T' bigminor
		ls opaque; cat becomes-dir/inside replaced hard2
		test ! -e gone && echo gone is gone
		stat -c '%s' sparse; dd if=sparse bs=1 skip=536870912 count=13 2>/dev/null; echo
		ls | grep -c '^n\{255\}$'; cat grüße*`)
	want := []string{
		"setuid regular file 4755 0:0 1", "sticky directory 1777", "setgid directory 2755",
		"hard1 regular file 644 0:0 3", "hard2 regular file 644 0:0 1", "fifo fifo", "null character special file",
		"owned regular file 644 100000:200000", "replaced regular file", "bigminor f0:11170", "shown", "inside", "linked\nagain",
		"gone is gone", "1073741824", "in the middle", "\n1\nunicode",
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("%q is missing", w)
		}
	}
	if strings.Contains(out, "hidden") {
		t.Error("an opaque directory shows what is below it")
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestImageRoundTrips(t *testing.T) {
	img := pulled(t, "busybox")
	id := must(t, "inspect", "--type", "image", "-f", "{{.Id}}", img)
	file := filepath.Join(t.TempDir(), "img.tar")

	must(t, "tag", img, "trip:1")
	must(t, "save", "-o", file, "trip:1")
	must(t, "rmi", "trip:1")
	if out := must(t, "load", "-i", file); !strings.Contains(out, "trip:1") {
		t.Errorf("load printed %q", out)
	}
	if got := must(t, "inspect", "--type", "image", "-f", "{{.Id}}", "trip:1"); got != id {
		t.Errorf("ID %s after save and load, was %s", got, id)
	}
	ref := h.registry + "/trip:2"
	must(t, "tag", "trip:1", ref)
	must(t, "push", ref)
	must(t, "rmi", ref, "trip:1")
	must(t, "pull", ref)
	if got := must(t, "inspect", "--type", "image", "-f", "{{.Id}}", ref); got != id {
		t.Errorf("ID %s after push and pull, was %s", got, id)
	}
	digest := must(t, "inspect", "--type", "image", "-f", "{{index .RepoDigests 0}}", ref)
	must(t, "rmi", ref)
	must(t, "pull", digest)
	must(t, "rmi", digest)

	root, err := os.Open(rootTar(t))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if r := hyperIn(t, root, "import", "-c", `CMD ["/bin/sh","-c","echo imported"]`, "-", "trip:3"); r.code != 0 {
		t.Fatalf("import: %s", r.err)
	}
	defer must(t, "rmi", "trip:3")
	if out := must(t, "run", "--rm", "trip:3"); out != "imported" {
		t.Errorf("got %q", out)
	}
}

// rootTar is a root file system as a plain tar: busybox's only layer.
func rootTar(t *testing.T) string {
	t.Helper()
	layers, err := archive(t, "busybox").Layers()
	if err != nil {
		t.Fatal(err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f, err := os.Create(filepath.Join(t.TempDir(), "root.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// Debian's own kernel, with its modules from the initrd.
func TestStockKernel(t *testing.T) {
	img := pulled(t, "busybox")
	out := must(t, "run", "--rm", "--kernel", "stock", img, "sh", "-c", "uname -r; ip -o addr show eth0; touch /written && echo writable")
	if !strings.Contains(out, "cloud-amd64") || !strings.Contains(out, "inet ") || !strings.Contains(out, "writable") {
		t.Errorf("got %q", out)
	}
}

// More layers than a VM takes disks: they are merged.
func TestManyLayers(t *testing.T) {
	img := archive(t, "busybox")
	const n = 40
	for i := range n {
		l, err := fileLayer(map[string]string{"last": strconv.Itoa(i), fmt.Sprintf("layer-%d", i): "x"})
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := name.ParseReference(h.registry+"/many:latest", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	defer cleanup(t, "rmi", ref.String())
	out := must(t, "run", "--rm", ref.String(), "sh", "-c", "ls / | grep -c layer-; cat /last; wc -l < /proc/partitions")
	if !strings.HasPrefix(out, "40\n39") {
		t.Errorf("got %q", out)
	}
}

// fileLayer is a layer with these files in its root.
func fileLayer(files map[string]string) (v1.Layer, error) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for name, text := range files {
		err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))})
		if err != nil {
			return nil, err
		}
		if _, err := tw.Write([]byte(text)); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}
