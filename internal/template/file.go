package template

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/vmm"
)

// What a template's directory holds. Nothing is synced to the disk: what a
// crash of the host loses is found by the hashes.
const (
	manifestName = "manifest.json"
	memoryName   = "memory" // sparse
	stateName    = "state"
)

// maxManifest bounds a manifest, bytes.
const maxManifest = 64 << 10

// maxState bounds the state of a VM's devices, bytes; it has some 0.5 MB.
const maxState = 256 << 20

// A manifest is what a file tells of a template.
type manifest struct {
	Key      key         `json:"key"`
	Shape    Shape       `json:"shape"`
	Machine  vmm.Machine `json:"machine"` // what the driver chose
	Created  time.Time   `json:"created"`
	MakeTime float64     `json:"makeTime"` // seconds
	Memory   contents    `json:"memory"`
	State    contents    `json:"state"`
}

// envelope is the file: the manifest as it was written, with its hash.
type envelope struct {
	Sum      string          `json:"sha256"`
	Manifest json.RawMessage `json:"manifest"`
}

func (m manifest) encode() ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return json.Marshal(envelope{sumOf(b), b})
}

func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// parseManifest reads what encode wrote, and nothing else.
func parseManifest(b []byte) (manifest, error) {
	var e envelope
	if err := strictJSON(b, &e); err != nil {
		return manifest{}, err
	}
	if sumOf(e.Manifest) != e.Sum {
		return manifest{}, errors.New("its hash is another one")
	}
	var m manifest
	if err := strictJSON(e.Manifest, &m); err != nil {
		return manifest{}, err
	}
	size := int64(m.Key.MemMiB) << 20
	switch {
	case m.Key.Format != format:
		return manifest{}, fmt.Errorf("format %d, not %d", m.Key.Format, format)
	case m.Key.MemMiB < vmm.MinMemMiB || m.Key.MemMiB > vmm.MaxMemMiB || m.Memory.Size != size:
		return manifest{}, fmt.Errorf("%d bytes of memory for %d MiB", m.Memory.Size, m.Key.MemMiB)
	case m.State.Size < 1 || m.State.Size > maxState:
		return manifest{}, fmt.Errorf("%d bytes of state", m.State.Size)
	case m.Memory.Used < 0 || m.Memory.Used > m.Memory.Size:
		return manifest{}, fmt.Errorf("%d bytes used of %d", m.Memory.Used, m.Memory.Size)
	}
	return m, nil
}

func strictJSON(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more follows the end")
	}
	return nil
}

// readManifest reads that of the template in dir.
func readManifest(dir string) (manifest, error) {
	path := filepath.Join(dir, manifestName)
	f, err := openRegular(path)
	if err != nil {
		return manifest{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return manifest{}, err
	}
	if len(b) > maxManifest {
		return manifest{}, fmt.Errorf("%s: more than %d bytes", path, maxManifest)
	}
	m, err := parseManifest(b)
	if err != nil {
		return manifest{}, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// openRegular opens a file, and nothing that a reader might wait for.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s is no file", path))
	}
	return f, nil
}

// write keeps saved in dir, which it makes: first under the name tmp, so that
// dir is complete or absent. It returns m with what the files hold.
func write(ctx context.Context, dir, tmp string, m manifest, saved vmm.Saved) (_ manifest, err error) {
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return m, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if m.Memory, err = writeFile(ctx, filepath.Join(tmp, memoryName), saved.Memory); err != nil {
		return m, err
	}
	if m.State, err = writeFile(ctx, filepath.Join(tmp, stateName), saved.State); err != nil {
		return m, err
	}
	b, err := m.encode()
	if err != nil {
		return m, err
	}
	if err := os.WriteFile(filepath.Join(tmp, manifestName), b, 0o600); err != nil {
		return m, err
	}
	return m, os.Rename(tmp, dir)
}

func writeFile(ctx context.Context, path string, src *os.File) (contents, error) {
	info, err := src.Stat()
	if err != nil {
		return contents{}, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return contents{}, err
	}
	defer f.Close()
	if err := f.Truncate(info.Size()); err != nil {
		return contents{}, err
	}
	c, err := copyContents(ctx, f, source{src, src}, info.Size())
	if err != nil {
		return contents{}, err
	}
	return c, f.Close()
}

// read loads the template that dir holds and checks everything. It makes
// sure of the host's memory before.
func (s *Store) read(ctx context.Context, dir string, want key) (manifest, vmm.Saved, error) {
	m, err := readManifest(dir)
	if err != nil {
		return manifest{}, vmm.Saved{}, err
	}
	if m.Key != want {
		return manifest{}, vmm.Saved{}, fmt.Errorf("%s is of a template with another key", filepath.Join(dir, manifestName))
	}
	if err := s.enough(m.Memory.Used + m.State.Used); err != nil {
		return manifest{}, vmm.Saved{}, err
	}
	path := filepath.Join(dir, memoryName)
	memory, err := s.device(ctx, path, m.Memory)
	if memory == nil && err == nil {
		memory, err = readFile(ctx, path, m.Memory)
	}
	if err != nil {
		return manifest{}, vmm.Saved{}, err
	}
	state, err := readFile(ctx, filepath.Join(dir, stateName), m.State)
	if err != nil {
		memory.Close()
		return manifest{}, vmm.Saved{}, err
	}
	return m, vmm.Saved{Memory: memory, State: state}, nil
}

// openSized opens a file that must have that size.
func openSized(path string, size int64) (*os.File, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() != size {
		err = fmt.Errorf("%s has %d bytes, not %d", path, info.Size(), size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// readFile loads a file into sealed memory.
func readFile(ctx context.Context, path string, want contents) (_ *os.File, err error) {
	src, err := openSized(path, want.Size)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	dst, err := newMemfd("hyper-template-"+filepath.Base(path), want.Size)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			dst.Close()
		}
	}()
	got, err := copyContents(ctx, dst, source{src, src}, want.Size)
	if err != nil {
		return nil, err
	}
	if got != want {
		return nil, fmt.Errorf("%s has changed: its hash is another one", path)
	}
	return dst, seal(dst)
}
