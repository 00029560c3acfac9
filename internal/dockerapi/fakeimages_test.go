package dockerapi

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hyper-run/hyper/internal/image"
)

// fakeImages is an image store in memory.
type fakeImages struct {
	mu     sync.Mutex
	images []image.Image
	auth   image.Auth // what the last pull or push was given for its registry
}

func testImage(tag string) image.Image {
	raw := `{"architecture":"amd64","os":"linux","created":"2024-01-02T03:04:05Z","config":{"Env":["PATH=/bin","LANG=C"],` +
		`"Cmd":["echo","from image"],"Labels":{"maker":"us"},"ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGQUIT","WorkingDir":"/srv",` +
		`"Volumes":{"/data":{}}},"rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("1", 64) + `"]},` +
		`"history":[{"created":"2024-01-02T03:04:05Z","created_by":"ADD / # ` + tag + `","comment":"c"}]}`
	created := time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)
	return image.Image{
		ID: digest.FromString(raw), RepoTags: []string{tag}, RepoDigests: []string{repository(tag) + "@" + digest.FromString(tag).String()},
		Manifest: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(tag), Size: 527},
		Config: ocispec.Image{
			Created: &created, Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"},
			Config: ocispec.ImageConfig{
				Env: []string{"PATH=/bin", "LANG=C"}, Cmd: []string{"echo", "from image"}, Labels: map[string]string{"maker": "us"}, StopSignal: "SIGQUIT",
				ExposedPorts: map[string]struct{}{"80/tcp": {}}, WorkingDir: "/srv", Volumes: map[string]struct{}{"/data": {}},
			},
			RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.Digest("sha256:" + strings.Repeat("1", 64))}},
			History: []ocispec.History{{Created: &created, CreatedBy: "ADD / # " + tag, Comment: "c"}},
		},
		RawConfig: []byte(raw), Size: 3 << 20, Created: created,
	}
}

func (f *fakeImages) Resolve(_ context.Context, name string) (image.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, img := range f.images {
		if slices.Contains(img.RepoTags, familiar(name)) || strings.HasPrefix(img.ID.String(), name) || strings.HasPrefix(img.ID.Encoded(), name) {
			return img, nil
		}
	}
	return image.Image{}, notFound("No such image: %s", familiar(name))
}

func (f *fakeImages) Pull(_ context.Context, ref string, o image.PullOptions) (image.Image, error) {
	if strings.Contains(ref, "absent") {
		return image.Image{}, notFound("manifest for %s not found", ref)
	}
	if o.Auth != nil {
		f.auth, _ = o.Auth("registry.test")
	}
	o.Progress(image.Progress{ID: "1", Action: "Pulling from x"})
	o.Progress(image.Progress{ID: "0123456789ab", Action: "Pulling fs layer"})
	o.Progress(image.Progress{ID: "0123456789ab", Action: "Downloading", Current: 10, Total: 100})
	o.Progress(image.Progress{ID: "0123456789ab", Action: "Downloading", Current: 20, Total: 100})
	if strings.Contains(ref, "broken") {
		return image.Image{}, errdefs.ErrUnavailable.WithMessage("connection reset")
	}
	o.Progress(image.Progress{ID: "0123456789ab", Action: "Pull complete"})
	o.Progress(image.Progress{Action: "Status: Downloaded newer image for " + familiar(ref)})
	f.mu.Lock()
	defer f.mu.Unlock()
	img := testImage(familiar(ref))
	f.images = append(f.images, img)
	return img, nil
}

func (f *fakeImages) Push(_ context.Context, _ string, o image.PullOptions) error {
	o.Progress(image.Progress{ID: "0123456789ab", Action: "Pushing", Current: 1, Total: 2})
	o.Progress(image.Progress{ID: "0123456789ab", Action: "Pushed"})
	return nil
}

func (f *fakeImages) Load(_ context.Context, r io.Reader, report func(image.Progress)) ([]image.Image, error) {
	tag, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images = append(f.images, testImage(string(tag)))
	report(image.Progress{ID: "0123456789ab", Action: "Extracting"})
	report(image.Progress{Action: "Loaded image: " + string(tag)})
	return f.images[len(f.images)-1:], nil
}

func (f *fakeImages) Save(_ context.Context, refs []string, w io.Writer) error {
	_, err := io.WriteString(w, strings.Join(refs, "+"))
	return err
}

func (f *fakeImages) Import(ctx context.Context, r io.Reader, ref string, _ []string, _ string) (image.Image, error) {
	images, err := f.Load(ctx, io.MultiReader(strings.NewReader(ref), io.LimitReader(r, 0)), func(image.Progress) {})
	if err != nil {
		return image.Image{}, err
	}
	return images[0], nil
}

func (f *fakeImages) List(context.Context) ([]image.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.images), nil
}

func (f *fakeImages) Tag(_ context.Context, src, ref string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.images {
		if f.images[i].ID.String() == src {
			f.images[i].RepoTags = append(f.images[i].RepoTags, ref)
		}
	}
	return nil
}

func (f *fakeImages) Remove(ctx context.Context, name string, _ bool, inUse image.InUse) ([]image.Removed, error) {
	img, err := f.Resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(inUse(img.ID)) > 0 {
		return nil, conflict("conflict: unable to remove repository reference %q", name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images = slices.DeleteFunc(f.images, func(x image.Image) bool { return x.ID == img.ID })
	return []image.Removed{{Untagged: name}, {Deleted: img.ID.String()}}, nil
}

func (f *fakeImages) Prune(ctx context.Context, all bool, want func(*image.Image) bool, inUse image.InUse) ([]image.Removed, int64, error) {
	images, _ := f.List(ctx)
	var out []image.Removed
	for _, img := range images {
		if want(&img) && len(inUse(img.ID)) == 0 && (all || len(img.RepoTags) == 0) {
			r, err := f.Remove(ctx, img.ID.String(), true, inUse)
			if err != nil {
				return nil, 0, err
			}
			out = append(out, r...)
		}
	}
	return out, int64(len(out)), nil
}

func (f *fakeImages) History(_ context.Context, img *image.Image) ([]image.HistoryEntry, error) {
	h := img.Config.History[0]
	return []image.HistoryEntry{{Created: *h.Created, CreatedBy: h.CreatedBy, Comment: h.Comment, Size: 3 << 20}}, nil
}
