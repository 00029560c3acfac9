package hyperd

import (
	"os"
	"sync"
	"time"

	"github.com/hyper-run/hyper/boot"
	"github.com/hyper-run/hyper/internal/pod"
)

// A bootCache keeps what looking at kernels and making initrds found out, so
// that a start only looks whether the files are still the same ones.
type bootCache struct {
	cfg     *Config
	kernels boot.Kernels
	dir     string // of initrds

	mu    sync.Mutex
	known map[string]bootEntry // by what was asked for
}

type bootEntry struct {
	files pod.BootFiles
	stamp [2]stamp // of the kernel and of hyperstart
	at    time.Time
}

type stamp struct {
	size int64
	mod  time.Time
}

func stampOf(path string) (stamp, error) {
	st, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	return stamp{st.Size(), st.ModTime()}, nil
}

// recheck is how often a newly built HyperKernel is looked for while the
// stock kernel serves.
const recheck = 10 * time.Second

// files returns what to boot for the kernel asked for; "" is the default.
func (b *bootCache) files(kernel string) (pod.BootFiles, error) {
	if kernel == "" {
		kernel = b.cfg.Kernel
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	hyperstart, err := b.cfg.findHyperstart()
	if err != nil {
		return pod.BootFiles{}, err
	}
	if e, ok := b.known[kernel]; ok && b.fresh(e, hyperstart) {
		return e.files, nil
	}
	k, err := b.kernels.Select(kernel)
	if err != nil {
		return pod.BootFiles{}, err
	}
	initrd, err := boot.Initrd(b.dir, hyperstart, k)
	if err != nil {
		return pod.BootFiles{}, err
	}
	e := bootEntry{at: time.Now(), files: pod.BootFiles{
		Name: k.String(), Kernel: k.Path, Initrd: initrd, Stock: k.Name != boot.HyperKernel,
	}}
	for i, p := range []string{k.Path, hyperstart} {
		if e.stamp[i], err = stampOf(p); err != nil {
			return pod.BootFiles{}, err
		}
	}
	b.known[kernel] = e
	return e.files, nil
}

func (b *bootCache) fresh(e bootEntry, hyperstart string) bool {
	if e.files.Stock && time.Since(e.at) > recheck {
		return false
	}
	if _, err := os.Stat(e.files.Initrd); err != nil {
		return false
	}
	for i, p := range []string{e.files.Kernel, hyperstart} {
		if s, err := stampOf(p); err != nil || s != e.stamp[i] {
			return false
		}
	}
	return true
}
