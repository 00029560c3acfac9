// Command mkoci puts directories and tars together to an OCI archive, and
// fills directories with the files of a large image. It is a tool of
// test/images/make.
package main

import (
	"archive/tar"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// epoch is the time of every image made, so that the same input gives the same digest.
var epoch = time.Unix(1735689600, 0).UTC()

type options struct {
	out, name, config, base string
	zstd                    bool
}

func main() {
	var o options
	flag.StringVar(&o.out, "o", "", "archive to write")
	flag.StringVar(&o.name, "name", "", "repository of the image; the tag is latest")
	flag.StringVar(&o.config, "config", "", "file with the image's config")
	flag.StringVar(&o.base, "base", "", "OCI archive whose layers come first")
	flag.BoolVar(&o.zstd, "zstd", false, "compress layers with zstd instead of gzip")
	fill := flag.String("fill", "", "only fill this directory with files")
	files := flag.Int("files", 0, "number of files to fill with")
	size := flag.Int64("bytes", 0, "size of all files together")
	flag.Parse()
	err := error(nil)
	if *fill != "" {
		err = fillDir(*fill, *files, *size)
	} else {
		err = pack(o, flag.Args())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkoci:", err)
		os.Exit(1)
	}
}

func pack(o options, layers []string) error {
	dir, err := os.MkdirTemp(filepath.Dir(o.out), "mkoci")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	img, err := baseImage(o.base, filepath.Join(dir, "base"))
	if err != nil {
		return err
	}
	for i, path := range layers {
		layer, err := openLayer(path, filepath.Join(dir, fmt.Sprintf("layer%d.tar", i)), o.zstd)
		if err != nil {
			return fmt.Errorf("layer %s: %w", path, err)
		}
		add := mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "test/images/make " + o.name}}
		if img, err = mutate.Append(img, add); err != nil {
			return err
		}
	}
	if img, err = configure(img, o.config); err != nil {
		return err
	}
	return writeArchive(img, o, filepath.Join(dir, "layout"))
}

func baseImage(archive, dir string) (v1.Image, error) {
	if archive == "" {
		return mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), nil
	}
	if err := untar(archive, dir); err != nil {
		return nil, err
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	return index.Image(manifest.Manifests[0].Digest)
}

func openLayer(path, scratch string, zstd bool) (v1.Layer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		if err := tarUpper(path, scratch); err != nil {
			return nil, err
		}
		path = scratch
	}
	if zstd {
		return tarball.LayerFromFile(path, tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd), tarball.WithCompressedCaching)
	}
	return tarball.LayerFromFile(path, tarball.WithCompressionLevel(1), tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

func configure(img v1.Image, path string) (v1.Image, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	old, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config := old.DeepCopy()
	config.Config = v1.Config{}
	if err := json.Unmarshal(raw, &config.Config); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	config.OS, config.Architecture, config.Created = "linux", "amd64", v1.Time{Time: epoch}
	return mutate.ConfigFile(img, config)
}

func writeArchive(img v1.Image, o options, dir string) error {
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	names := map[string]string{
		"io.containerd.image.name":          "docker.io/library/" + o.name + ":latest",
		"org.opencontainers.image.ref.name": "latest",
	}
	if err := path.AppendImage(img, layout.WithAnnotations(names), layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"})); err != nil {
		return err
	}
	out, err := os.Create(o.out)
	if err != nil {
		return err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Close()
}

func untar(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := extract(r, filepath.Join(dir, filepath.Clean("/"+h.Name))); err != nil {
			return err
		}
	}
}

func extract(r io.Reader, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return f.Close()
}

// fillDir writes n files with size bytes in all: one has a quarter of them, the others share the rest unevenly.
func fillDir(dir string, n int, size int64) error {
	random := newRandom()
	write := func(name string, size int64) error {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fs.FileMode(0o644))
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.CopyN(f, random, size); err != nil {
			return err
		}
		return f.Close()
	}
	if err := write("big", size/4); err != nil {
		return err
	}
	mean := (size - size/4) / int64(n)
	for i := range n {
		// 0 to twice the mean, in an order that mixes small and large.
		if err := write(fmt.Sprintf("d%03d/f%05d", i%100, i), int64(i*7919%1000)*2*mean/999); err != nil {
			return err
		}
	}
	return nil
}
