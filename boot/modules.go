package boot

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
)

// needed are the modules that a guest cannot do without, in the order to load
// them; wanted are those that serve it when the kernel has them.
var (
	needed = []string{"virtio_pci", "virtio_blk", "virtio_console", "erofs", "overlay", "ext4"}
	wanted = []string{
		"crc32c_generic", // by name at run time, so nothing depends on it: ext4's checksums
		"virtio_mmio", "virtio_scsi", "sd_mod", "virtio_net", "virtio_rng", "virtio_balloon",
	}
)

// maxModule bounds one module, unpacked; maxModuleFiles how many a tree has.
const (
	maxModule      = 32 << 20
	maxModuleFiles = 50000
)

// A module is one kernel module, unpacked and ready to be loaded.
type module struct {
	name  string // with _ for every -
	image []byte
}

// modules returns what a guest of that kernel needs to load, each module after
// those it depends on. dir is the kernel's lib/modules/RELEASE. What is built
// in is left out; a kernel without what is needed is an ErrInvalidArgument.
//
// The dependencies come from the modules themselves and not from modules.dep,
// which is there only after depmod has run.
func modules(dir string) ([]module, error) {
	t, err := scanModules(dir)
	if err != nil {
		return nil, fmt.Errorf("kernel modules in %s: %w", dir, err)
	}
	for _, name := range wanted {
		if t.files[name] != "" {
			if err := t.load(name, 0); err != nil {
				return nil, fmt.Errorf("kernel modules in %s: %w", dir, err)
			}
		}
	}
	for _, name := range needed {
		if err := t.load(name, 0); err != nil {
			return nil, fmt.Errorf("kernel modules in %s: %w", dir, err)
		}
	}
	return t.order, nil
}

// moduleTree is a lib/modules/RELEASE while modules are picked from it.
type moduleTree struct {
	files   map[string]string // name → path
	builtin map[string]bool
	done    map[string]bool
	order   []module
}

func scanModules(dir string) (*moduleTree, error) {
	t := &moduleTree{files: map[string]string{}, builtin: map[string]bool{}, done: map[string]bool{}}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, line := range strings.Fields(string(list)) {
		t.builtin[moduleName(line)] = true
	}
	err = filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := moduleName(path); d.Type().IsRegular() && name != "" {
			if len(t.files) == maxModuleFiles {
				return fmt.Errorf("more than %d modules", maxModuleFiles)
			}
			t.files[name] = path
		}
		return nil
	})
	return t, err
}

// moduleName is the module's name out of its file's, "" for another file.
func moduleName(path string) string {
	name, _, ok := strings.Cut(filepath.Base(path), ".ko")
	if !ok {
		return ""
	}
	return strings.ReplaceAll(name, "-", "_")
}

// load appends name to t.order, what it depends on first.
func (t *moduleTree) load(name string, depth int) error {
	const maxDepth = 16
	switch {
	case t.done[name] || t.builtin[name]:
		return nil
	case depth == maxDepth:
		return fmt.Errorf("module %s: dependencies go in a circle: %w", name, errdefs.ErrInvalidArgument)
	case t.files[name] == "":
		return fmt.Errorf("the kernel has no %s, neither built in nor as a module: %w", name, errdefs.ErrInvalidArgument)
	}
	image, err := readModule(t.files[name])
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	depends, err := moduleDepends(image)
	if err != nil {
		return fmt.Errorf("module %s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	for _, d := range depends {
		if err := t.load(d, depth+1); err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	t.done[name] = true
	t.order = append(t.order, module{name, image})
	return nil
}

// readModule returns the module at path unpacked: the guest has no unpacker.
func readModule(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	switch filepath.Ext(path) {
	case ".ko":
		return readBounded(f)
	case ".gz":
		r, err := gzip.NewReader(f)
		if err != nil {
			return nil, err
		}
		return readBounded(r)
	case ".zst":
		r, err := zstd.NewReader(f, zstd.WithDecoderMaxMemory(maxModule))
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return readBounded(r)
	case ".xz":
		return unxz(f)
	}
	return nil, fmt.Errorf("%s: unknown compression", filepath.Base(path))
}

// unxz uses the command: Debian has xz always, and Go's libraries do not.
func unxz(f *os.File) ([]byte, error) {
	cmd := exec.Command("xz", "--decompress", "--stdout", "--memlimit=256MiB")
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = f, &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	image, readErr := readBounded(out)
	out.Close() // xz ends by SIGPIPE if there was more
	if err := cmd.Wait(); err != nil && readErr == nil {
		return nil, fmt.Errorf("xz: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return image, readErr
}

func readBounded(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(b) > maxModule {
		err = fmt.Errorf("more than %d bytes", maxModule)
	}
	return b, err
}

// moduleDepends reads the names after "depends=" in the module's .modinfo.
func moduleDepends(image []byte) ([]string, error) {
	e, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	s := e.Section(".modinfo")
	if s == nil || s.Size > uint64(len(image)) {
		return nil, errors.New("not a kernel module: no .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(info), "\x00") {
		if list, ok := strings.CutPrefix(line, "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
