package template

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/vmm"
)

// format changes when what a template is made of, or how it is kept, does.
const format = 1

// A key is all that shapes a template: two VMs with the same key could take
// each other's place. It is comparable, and kept in the manifest.
type key struct {
	Format   int         `json:"format"`
	Driver   string      `json:"driver"`
	VMM      string      `json:"vmm"` // vmm.Capabilities.Identity
	Accel    vmm.Accel   `json:"accel"`
	Machine  vmm.Machine `json:"machine"`
	CPUs     int         `json:"cpus"`
	MemMiB   int         `json:"memMiB"`
	Layers   int         `json:"layers"`
	Disks    int         `json:"disks"`
	NIC      bool        `json:"nic"`
	Plug     bool        `json:"plug"`
	Cmdline  string      `json:"cmdline"`
	Kernel   string      `json:"kernel"` // SHA-256 of its content
	Initrd   string      `json:"initrd"` // name, which has the hash of its content, and size
	Protocol int         `json:"protocol"`
	Spec     string      `json:"spec"` // SHA-256 of Config.Spec
}

// id names the template on the host: 16 hex digits.
func (k key) id() string {
	b, err := json.Marshal(k)
	if err != nil {
		panic(err) // strings and numbers
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// key is that of a template of this shape, made now. It is on the road of
// every start: it costs two stat(2) once it has seen the kernel.
func (s *Store) key(ctx context.Context, shape Shape) (key, error) {
	caps, err := s.cfg.Driver.Probe(ctx)
	if err != nil {
		return key{}, err
	}
	if !caps.Clones {
		return key{}, fmt.Errorf("%s %s can't clone virtual machines", s.cfg.Driver.Name(), caps.Version)
	}
	kernel, err := s.kernels.sum(shape.Kernel)
	if err != nil {
		return key{}, fmt.Errorf("hash kernel: %w", err)
	}
	var initrd unix.Stat_t
	if err := unix.Stat(shape.Initrd, &initrd); err != nil {
		return key{}, &os.PathError{Op: "stat", Path: shape.Initrd, Err: err}
	}
	return key{
		Format: format, Driver: s.cfg.Driver.Name(), VMM: caps.Identity, Accel: s.accel(caps), Machine: shape.Machine,
		CPUs: shape.CPUs, MemMiB: shape.MemMiB, Layers: shape.Layers, Disks: shape.Disks, NIC: shape.NIC,
		Plug: shape.Plug, Cmdline: shape.Cmdline, Kernel: kernel, Initrd: fmt.Sprintf("%s %d", filepath.Base(shape.Initrd), initrd.Size),
		Protocol: wire.Protocol, Spec: fmt.Sprintf("%x", sha256.Sum256(s.cfg.Spec)),
	}, nil
}

func (s *Store) accel(caps vmm.Capabilities) vmm.Accel {
	if s.cfg.Accel == "" || s.cfg.Accel == vmm.AccelAuto {
		return caps.Accel
	}
	return s.cfg.Accel
}

// sums remembers the hashes of files for as long as these stay the same.
type sums struct {
	mu    sync.Mutex // held while hashing: it is done once
	known map[string]fileSum
}

type fileSum struct {
	stamp fileStamp
	sum   string
}

// A fileStamp changes whenever a file does.
type fileStamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func stampOf(st *unix.Stat_t) fileStamp {
	return fileStamp{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
}

func (s *sums) sum(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if k, ok := s.known[path]; ok && k.stamp == stampOf(&st) {
		return k.sum, nil
	}
	f, err := openRegular(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	// What is hashed changes after the stamp was taken, or not at all.
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	sum := hex.EncodeToString(h.Sum(nil))
	if s.known == nil {
		s.known = make(map[string]fileSum)
	}
	s.known[path] = fileSum{stampOf(&st), sum}
	return sum, nil
}
