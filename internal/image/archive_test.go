package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	imagespec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// loaded gives a store with an image named app:v1 of two layers, loaded from a docker-archive.
func loaded(t *testing.T) (*Store, *sink, Image) {
	t.Helper()
	s, k := openStore(t)
	images, err := s.Load(t.Context(), bytes.NewReader(dockerArchive(t)), nil)
	if err != nil || len(images) != 1 {
		t.Fatalf("Load = %v, %v", images, err)
	}
	return s, k, images[0]
}

func dockerArchive(t *testing.T) []byte {
	t.Helper()
	img := makeImage(t, "amd64", layerData(t, "one", 50_000), layerData(t, "two", 5000))
	tag, err := name.NewTag("app:v1")
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := tarball.Write(tag, img, &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestLoadSave(t *testing.T) {
	plain := dockerArchive(t)
	var gz, zs bytes.Buffer
	zip := gzip.NewWriter(&gz)
	zip.Write(plain)
	zip.Close()
	zst, _ := zstd.NewWriter(&zs)
	zst.Write(plain)
	zst.Close()
	for name, archive := range map[string][]byte{"plain": plain, "gzip": gz.Bytes(), "zstd": zs.Bytes()} {
		t.Run(name, func(t *testing.T) {
			s, k := openStore(t)
			var seen recorder
			images, err := s.Load(t.Context(), bytes.NewReader(archive), seen.add)
			if err != nil {
				t.Fatal(err)
			}
			if len(images) != 1 || !slices.Equal(images[0].RepoTags, []string{"app:v1"}) || len(images[0].RepoDigests) != 0 || len(k.layers) != 2 {
				t.Errorf("Load = %+v", images)
			}
			if got := seen.actions(""); !slices.Equal(got, []string{"Loaded image: app:v1"}) {
				t.Errorf("progress %v", got)
			}
			var saved bytes.Buffer
			if err := s.Save(t.Context(), []string{"app:v1"}, &saved); err != nil {
				t.Fatal(err)
			}
			checkArchive(t, saved.Bytes(), "app:v1")
			s2, _ := openStore(t)
			again, err := s2.Load(t.Context(), &saved, nil)
			if err != nil || len(again) != 1 || again[0].ID != images[0].ID || !slices.Equal(again[0].RepoTags, []string{"app:v1"}) {
				t.Errorf("Load of what was saved = %+v, %v", again, err)
			}
		})
	}
}

// checkArchive looks for what docker load and OCI tools need.
func checkArchive(t *testing.T, archive []byte, tag string) {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name], _ = io.ReadAll(r)
	}
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil || len(manifest) != 1 || !slices.Equal(manifest[0].RepoTags, []string{tag}) {
		t.Errorf("manifest.json: %v, %+v", err, manifest)
		return
	}
	for _, file := range append(manifest[0].Layers, manifest[0].Config, "index.json", "oci-layout") {
		if files[file] == nil {
			t.Errorf("archive has no %s", file)
		}
	}
}

func TestSaveSeveral(t *testing.T) {
	s, _, img := loaded(t)
	for _, tag := range []string{"app:v2", "other:v1"} {
		if err := s.Tag(t.Context(), "app:v1", tag); err != nil {
			t.Fatal(err)
		}
	}
	for ref, want := range map[string][]string{"app": {"app:v1", "app:v2"}, "app:v2": {"app:v2"}, img.ID.String(): nil, img.ID.Encoded()[:12]: nil} {
		var saved bytes.Buffer
		if err := s.Save(t.Context(), []string{ref}, &saved); err != nil {
			t.Fatal(err)
		}
		s2, _ := openStore(t)
		got, err := s2.Load(t.Context(), &saved, nil)
		if err != nil || len(got) != 1 || !slices.Equal(got[0].RepoTags, want) {
			t.Errorf("saved %s: %+v, %v", ref, got, err)
		}
	}
	if err := s.Save(t.Context(), []string{"none"}, io.Discard); !errdefs.IsNotFound(err) {
		t.Errorf("Save of nothing = %v", err)
	}
}

func TestLoadErrors(t *testing.T) {
	whole := dockerArchive(t)
	for name, archive := range map[string][]byte{
		"empty":     nil,
		"not a tar": []byte(strings.Repeat("hello", 1000)),
		"truncated": whole[:len(whole)/2],
		"gzip":      {0x1f, 0x8b, 8, 0, 1},
		"empty tar": make([]byte, 1024),
	} {
		t.Run(name, func(t *testing.T) {
			s, k := openStore(t)
			if _, err := s.Load(t.Context(), bytes.NewReader(archive), nil); err == nil {
				t.Error("Load gave no error")
			} else {
				t.Log(err)
			}
			checkEmpty(t, s, k)
		})
	}
}

func TestRealArchives(t *testing.T) {
	dir := os.Getenv("HYPER_CACHE")
	if dir == "" {
		home, _ := os.UserHomeDir()
		dir = filepath.Join(home, ".cache", "hyper")
	}
	for _, name := range []string{"busybox", "python3"} {
		f, err := os.Open(filepath.Join(dir, "images", name+".tar"))
		if err != nil {
			t.Skip("test/images/make has not been run")
		}
		defer f.Close()
		s, _ := openStore(t)
		images, err := s.Load(t.Context(), f, nil)
		if err != nil || len(images) != 1 || !slices.Equal(images[0].RepoTags, []string{name + ":latest"}) {
			t.Errorf("Load %s = %+v, %v", name, images, err)
		}
	}
}

func TestImport(t *testing.T) {
	s, k := openStore(t)
	root := layerData(t, "etc", 1000)
	var gz bytes.Buffer
	zip := gzip.NewWriter(&gz)
	zip.Write(root)
	zip.Close()
	changes := []string{`CMD ["a","b"]`, "ENTRYPOINT run it", `ENV A=1 B="two words"`, "env C three words", "LABEL x=y", "EXPOSE 80 53/udp", "USER 7:8", "WORKDIR srv", "VOLUME /data", "STOPSIGNAL SIGQUIT", "HEALTHCHECK --interval=5s --retries=2 CMD ok"}
	for _, data := range [][]byte{root, gz.Bytes()} {
		img, err := s.Import(t.Context(), bytes.NewReader(data), "mine:v1", changes, "hi")
		if err != nil {
			t.Fatal(err)
		}
		if k.layers[digest.FromBytes(root)] == nil || !slices.Equal(img.RepoTags, []string{"mine:v1"}) {
			t.Errorf("Import = %+v", img)
		}
		var config imagespec.DockerOCIImage
		if err := json.Unmarshal(img.RawConfig, &config); err != nil {
			t.Fatal(err)
		}
		c := config.Config
		got := []string{strings.Join(c.Cmd, ","), strings.Join(c.Entrypoint, ","), strings.Join(c.Env, ","), c.Labels["x"], c.User, c.WorkingDir, c.StopSignal, strings.Join(c.Healthcheck.Test, ","), c.Healthcheck.Interval.String(), config.History[0].Comment}
		want := []string{"a,b", "/bin/sh,-c,run it", "A=1,B=two words,C=three words", "y", "7:8", "/srv", "SIGQUIT", "CMD-SHELL,ok", "5s", "hi"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if _, ok := c.ExposedPorts["53/udp"]; !ok || len(c.ExposedPorts) != 2 || len(c.Volumes) != 1 {
			t.Errorf("ports %v, volumes %v", c.ExposedPorts, c.Volumes)
		}
		readLayers(t, s, &img, root)
		var saved bytes.Buffer
		if err := s.Save(t.Context(), []string{"mine:v1"}, &saved); err != nil {
			t.Error(err)
		}
	}
	for _, change := range []string{"RUN x", "CMD", "EXPOSE http", "ENV x", "HEALTHCHECK maybe", `ENV A="x`} {
		if _, err := s.Import(t.Context(), bytes.NewReader(root), "bad:v1", []string{change}, ""); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", change, err)
		}
	}
	if _, err := s.Import(t.Context(), strings.NewReader(""), "bad:v1", nil, ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("empty: %v", err)
	}
	nameless, err := s.Import(t.Context(), bytes.NewReader(layerData(t, "z", 10)), "", nil, "")
	if err != nil || len(nameless.RepoTags) != 0 {
		t.Errorf("Import without a name = %+v, %v", nameless, err)
	}
}

func TestResolve(t *testing.T) {
	s, _, img := loaded(t)
	if err := s.Tag(t.Context(), "app:v1", "app"); err != nil {
		t.Fatal(err)
	}
	hex := img.ID.Encoded()
	for _, name := range []string{"app", "app:v1", "docker.io/library/app", img.ID.String(), hex, hex[:12], "sha256:" + hex[:5]} {
		got, err := s.Resolve(t.Context(), name)
		if err != nil || got.ID != img.ID || !slices.Equal(got.RepoTags, []string{"app:latest", "app:v1"}) {
			t.Errorf("Resolve(%s) = %v, %v", name, got.RepoTags, err)
		}
	}
	for name, want := range map[string]string{"nope": "No such image: nope:latest", "app:v9": "No such image: app:v9", "x/y": "No such image: x/y:latest"} {
		if _, err := s.Resolve(t.Context(), name); !errdefs.IsNotFound(err) || err.Error() != want {
			t.Errorf("Resolve(%s) = %v", name, err)
		}
	}
	for _, name := range []string{"", "UPPER", "a b", "-x"} {
		if _, err := s.Resolve(t.Context(), name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Resolve(%q) = %v", name, err)
		}
	}
	for ref, kind := range map[string]func(error) bool{"a@" + img.ID.String(): errdefs.IsInvalidArgument, "Bad": errdefs.IsInvalidArgument} {
		if err := s.Tag(t.Context(), "app", ref); !kind(err) {
			t.Errorf("Tag(%s) = %v", ref, err)
		}
	}
	if err := s.Tag(t.Context(), "nope", "x"); !errdefs.IsNotFound(err) {
		t.Errorf("Tag of nothing = %v", err)
	}
}

func TestRemove(t *testing.T) {
	running := func(digest.Digest) []Use { return []Use{{Container: "0123456789abcdef", Running: true}} }
	stopped := func(digest.Digest) []Use { return []Use{{Container: "0123456789abcdef"}} }
	const gone = "gone" // instead of the image's ID
	for name, tc := range map[string]struct {
		tags  []string // besides app:v1
		arg   string   // "" for the image's ID
		force bool
		inUse InUse
		want  []string
		text  string // of the conflict
	}{
		"name":                     {nil, "app:v1", false, nil, []string{"app:v1", gone}, ""},
		"one of two names":         {[]string{"app:v2"}, "app:v2", false, stopped, []string{"app:v2"}, ""},
		"ID":                       {nil, "", false, nil, []string{"app:v1", gone}, ""},
		"ID, two tags":             {[]string{"app:v2"}, "", false, nil, []string{"app:v1", "app:v2", gone}, ""},
		"ID, two repositories":     {[]string{"b:v2"}, "", false, nil, nil, "(must be forced) - image is referenced in multiple repositories"},
		"ID, two repositories, -f": {[]string{"b:v2"}, "", true, nil, []string{"app:v1", "b:v2", gone}, ""},
		"name, stopped":            {nil, "app:v1", false, stopped, nil, `conflict: unable to remove repository reference "app:v1" (must force) - container 0123456789ab is using its referenced image`},
		"name, stopped, -f":        {nil, "app:v1", true, stopped, []string{"app:v1", gone}, ""},
		"name, running":            {nil, "app:v1", false, running, nil, "(must force) - container 0123456789ab is using"},
		"name, running, -f":        {nil, "app:v1", true, running, []string{"app:v1"}, ""},
		"ID, stopped":              {nil, "", false, stopped, nil, "(must be forced) - image is being used by stopped container 0123456789ab"},
		"ID, stopped, -f":          {nil, "", true, stopped, []string{"app:v1", gone}, ""},
		"ID, running, -f":          {nil, "", true, running, nil, "(cannot be forced) - image is being used by running container 0123456789ab"},
	} {
		t.Run(name, func(t *testing.T) {
			s, k, img := loaded(t)
			for _, tag := range tc.tags {
				if err := s.Tag(t.Context(), "app:v1", tag); err != nil {
					t.Fatal(err)
				}
			}
			arg := tc.arg
			if arg == "" {
				arg = img.ID.Encoded()[:12]
			}
			removed, err := s.Remove(t.Context(), arg, tc.force, tc.inUse)
			if tc.text != "" {
				if !errdefs.IsConflict(err) || !strings.Contains(err.Error(), tc.text) {
					t.Errorf("Remove = %v", err)
				}
				return
			}
			var got []string
			for _, r := range removed {
				if r.Deleted == img.ID.String() {
					r.Deleted = gone
				}
				got = append(got, r.Untagged+r.Deleted)
			}
			if err != nil || !slices.Equal(got, tc.want) {
				t.Errorf("Remove = %v, %v", got, err)
			}
			if slices.Contains(tc.want, gone) {
				checkEmpty(t, s, k)
			} else if _, err := s.Resolve(t.Context(), img.ID.String()); err != nil || len(k.layers) != 2 {
				t.Errorf("the image should have stayed: %v", err)
			}
		})
	}
}

func TestRemoveSharedLayers(t *testing.T) {
	s, k, img := loaded(t)
	other := makeImage(t, "amd64", layerData(t, "one", 50_000), layerData(t, "three", 700))
	tag, _ := name.NewTag("other:v1")
	var buf bytes.Buffer
	if err := tarball.Write(tag, other, &buf); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(t.Context(), &buf, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), "other:v1", false, nil); err != nil {
		t.Fatal(err)
	}
	if len(k.layers) != 2 {
		t.Errorf("%d layers left, want the 2 of %s", len(k.layers), img.ID)
	}
	readLayers(t, s, &img, layerData(t, "one", 50_000), layerData(t, "two", 5000))
	if _, err := s.Remove(t.Context(), "other:v1", false, nil); !errdefs.IsNotFound(err) {
		t.Errorf("Remove again = %v", err)
	}
}

func TestLayersInUse(t *testing.T) {
	var needed []digest.Digest
	s, k := openStore(t, func(c *Config) { c.LayersInUse = func() []digest.Digest { return needed } })
	images, err := s.Load(t.Context(), bytes.NewReader(dockerArchive(t)), nil)
	if err != nil {
		t.Fatal(err)
	}
	needed = images[0].Layers()[:1]
	if _, err := s.Remove(t.Context(), "app:v1", true, nil); err != nil || len(k.layers) != 1 {
		t.Errorf("%d layers left, %v", len(k.layers), err)
	}
}

func TestDanglingAndPrune(t *testing.T) {
	s, k, img := loaded(t)
	if _, err := s.Import(t.Context(), bytes.NewReader(layerData(t, "new", 100)), "app:v1", nil, ""); err != nil {
		t.Fatal(err)
	}
	old, err := s.Resolve(t.Context(), img.ID.String())
	if err != nil || len(old.RepoTags) != 0 {
		t.Errorf("image that lost its tag: %+v, %v", old, err)
	}
	used := func(id digest.Digest) []Use { return []Use{{Container: "c"}} }
	if removed, _, err := s.Prune(t.Context(), false, nil, used); err != nil || len(removed) != 0 {
		t.Errorf("Prune of what is used = %v, %v", removed, err)
	}
	removed, freed, err := s.Prune(t.Context(), false, nil, nil)
	if err != nil || len(removed) != 1 || removed[0].Deleted != img.ID.String() || freed < 50_000 {
		t.Errorf("Prune = %v, %d, %v", removed, freed, err)
	}
	if all, err := s.List(t.Context()); err != nil || len(all) != 1 || !slices.Equal(all[0].RepoTags, []string{"app:v1"}) {
		t.Errorf("List = %+v, %v", all, err)
	}
	if _, _, err := s.Prune(t.Context(), true, func(*Image) bool { return false }, nil); err != nil || len(k.layers) != 1 {
		t.Errorf("Prune that wants none: %v", err)
	}
	if _, _, err := s.Prune(t.Context(), true, nil, nil); err != nil {
		t.Error(err)
	}
	checkEmpty(t, s, k)
}

func TestHistory(t *testing.T) {
	s, _, img := loaded(t)
	h, err := s.History(t.Context(), &img)
	if err != nil || len(h) != 2 || h[0].CreatedBy != "test" || h[0].Size != int64(len(layerData(t, "two", 5000))) {
		t.Errorf("History = %+v, %v", h, err)
	}
}

// TestSilent checks that nothing of what containerd logs gets to stderr past slog.
func TestSilent(t *testing.T) {
	if os.Getenv("IMAGE_TEST_SILENT") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSilent$")
		cmd.Env = append(os.Environ(), "IMAGE_TEST_SILENT=1")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Run(); err != nil || stderr.Len() > 0 {
			t.Errorf("%v: %s", err, &stderr)
		}
		return
	}
	s, _ := openStore(t)
	if _, err := s.Pull(context.Background(), "127.0.0.1:1/x", PullOptions{}); err == nil {
		t.Error("Pull gave no error")
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte("hello"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, _ := openStore(t)
		s.Load(t.Context(), bytes.NewReader(data), nil)
	})
}

func FuzzChange(f *testing.F) {
	for _, change := range []string{`ENV a=b "c d"=e`, "HEALTHCHECK --interval=1s CMD x", `CMD ["a"]`, "EXPOSE 1/tcp", `LABEL a\`} {
		f.Add(change)
	}
	f.Fuzz(func(t *testing.T, change string) {
		var c imagespec.DockerOCIImageConfig
		if err := applyChange(&c, change); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	})
}
