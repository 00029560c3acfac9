package main

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hyper-run/hyper/bench/internal/ours"
	"github.com/hyper-run/hyper/bench/internal/stats"
	"github.com/hyper-run/hyper/internal/rootfs"
)

// converted is what one conversion took.
type converted struct {
	Ms    float64
	PeakM float64 // memory, MB
}

// conversion measures in processes of their own, so that each one's peak of
// memory is known.
func conversion(ctx context.Context, c config, d *ours.Daemon, _ string) ([]row, error) {
	layer := filepath.Join(d.Dir, "layer.tar")
	if err := writeLayer(layer); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	times := row{what: "conversion of a 350 MB layer with 20,000 files", unit: "ms", limit: 2000}
	peaks := row{what: "its peak memory", unit: "MB", limit: 200}
	for range 5 {
		cmd := exec.CommandContext(ctx, self, "-convert", layer)
		cmd.Stderr = c.progress
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("convert: %w", err)
		}
		var got converted
		if err := json.Unmarshal(out, &got); err != nil {
			return nil, fmt.Errorf("convert: %w", err)
		}
		times.values = append(times.values, got.Ms)
		peaks.values = append(peaks.values, got.PeakM)
	}
	return []row{times, peaks}, nil
}

// convert converts the layer tar at path into a store that it removes again.
func convert(ctx context.Context, path string, stdout io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), "layers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	store, err := rootfs.Open(dir)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := store.AddLayer(ctx, digest.NewDigest(digest.SHA256, hash), f); err != nil {
		return err
	}
	took := time.Since(start)
	peak, err := statusField("/proc/self/status", "VmHWM")
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(converted{stats.Milliseconds(took), float64(peak) / 1024})
}

// writeLayer makes the layer: 20,000 files of 2.5 KB in 200 directories, and one of 300 MB.
func writeLayer(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	bw := bufio.NewWriterSize(f, 1<<20)
	tw := tar.NewWriter(bw)
	noise := rand.NewChaCha8([32]byte{1})
	add := func(name string, size int64) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err := io.CopyN(tw, noise, size)
		return err
	}
	for i := range 20000 {
		if err := add(fmt.Sprintf("usr/share/d%03d/file%05d", i%200, i), 2500); err != nil {
			return err
		}
	}
	if err := add("usr/lib/large", 300<<20); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return bw.Flush()
}
