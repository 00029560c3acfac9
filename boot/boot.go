// Package boot finds what a VM boots from: a guest kernel, and an initrd with
// hyperstart as its /init.
//
// There are three kinds of kernel. HyperKernel is ours: kernel.config over
// tinyconfig, everything built in, made by the build-kernel recipe of this
// directory. Stock is Debian's cloud kernel as it comes, which serves until
// HyperKernel has been built; its modules travel in the initrd. Custom is any
// bzImage or vmlinux that the user names.
//
// A recipe leaves a kernel in a directory of its own, under a cache that this
// package only reads:
//
//	CACHE/kernel/hyperkernel → the newest build's directory
//	CACHE/kernel/stock       → the newest Debian kernel's directory
//
// and each holds a file named kernel and, for a kernel with modules,
// lib/modules/RELEASE.
//
// The package never builds, downloads or runs a kernel, and starts no
// goroutines. Kernels and modules are the host administrator's, not a guest's;
// they are still read with bounds, because a wrong path may name anything.
package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// The kinds of kernel, as Kernel.Name.
const (
	HyperKernel = "hyperkernel"
	Stock       = "stock"
	Custom      = "custom"
)

// A Kernel is a guest kernel that was looked at and can be booted.
type Kernel struct {
	Name    string // HyperKernel, Stock or Custom
	Path    string // absolute; an ELF vmlinux with a PVH entry, or a bzImage
	Release string // as uname -r in the guest
	// ModulesDir is the kernel's lib/modules/RELEASE; "" when everything that
	// a guest needs is built in, or assumed to be.
	ModulesDir string
}

// String is how a kernel is shown to people: "hyperkernel 6.12.117".
func (k Kernel) String() string { return k.Name + " " + k.Release }

// Kernels are the directories to look for kernels in, first one first.
type Kernels []string

// DefaultKernels are the cache of the build recipe (HYPER_CACHE, or
// ~/.cache/hyper) and the directories of an installation.
func DefaultKernels() Kernels {
	cache := os.Getenv("HYPER_CACHE")
	if cache == "" {
		if home, err := os.UserHomeDir(); err == nil {
			cache = filepath.Join(home, ".cache", "hyper")
		}
	}
	dirs := Kernels{"/usr/local/lib/hyper/kernel", "/usr/lib/hyper/kernel"}
	if cache == "" {
		return dirs
	}
	return append(Kernels{filepath.Join(cache, "kernel")}, dirs...)
}

// Select returns the kernel to boot. name is a path, or HyperKernel or Stock,
// or "": HyperKernel if there is one, else Stock.
//
// Errors are errdefs.ErrNotFound (nothing there) and ErrInvalidArgument (not a
// kernel that can be booted here).
func (ks Kernels) Select(name string) (Kernel, error) {
	switch name {
	case "":
		for _, name := range []string{HyperKernel, Stock} {
			if k, err := ks.find(name); !errdefs.IsNotFound(err) {
				return k, err
			}
		}
		return Kernel{}, fmt.Errorf("find a guest kernel in %s: %w (make kernel builds one, make deps fetches Debian's)",
			strings.Join(ks, ", "), errdefs.ErrNotFound)
	case HyperKernel, Stock:
		return ks.find(name)
	}
	return open(Custom, name)
}

func (ks Kernels) find(name string) (Kernel, error) {
	for _, dir := range ks {
		// The link is resolved now: a new build must not change the kernel
		// that a record on disk speaks of.
		dir, err := filepath.EvalSymlinks(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		return open(name, filepath.Join(dir, "kernel"))
	}
	return Kernel{}, fmt.Errorf("find kernel %s in %s: %w", name, strings.Join(ks, ", "), errdefs.ErrNotFound)
}

func open(name, path string) (Kernel, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return Kernel{}, fmt.Errorf("kernel %s: %w", path, err)
	}
	release, err := Release(path)
	if err != nil {
		return Kernel{}, err
	}
	return Kernel{Name: name, Path: path, Release: release, ModulesDir: modulesDir(path, release)}, nil
}

// modulesDir finds lib/modules/RELEASE beside the kernel, or beside the
// directory it lies in (/boot/vmlinuz-R and /lib/modules/R).
func modulesDir(kernel, release string) string {
	dir := filepath.Dir(kernel)
	for _, root := range []string{dir, filepath.Dir(dir)} {
		m := filepath.Join(root, "lib", "modules", release)
		if st, err := os.Stat(m); err == nil && st.IsDir() {
			return m
		}
	}
	return ""
}
