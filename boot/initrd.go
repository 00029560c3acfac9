package boot

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
)

// Types of File.Mode.
const (
	modeDir  = 0o040000
	modeChar = 0o020000
	modeFile = 0o100000
)

// Initrd makes the initrd for k in dir, or finds it there, and returns its
// path. It holds hyperstart (the path of a static executable) as /init,
// /dev/console for init's first words, and for a kernel with modules
// /modules/NAME.ko and /modules/order: file names, one a line, in the order in
// which hyperstart loads them.
//
// The name in dir has the hash of what went in, so a running VM's initrd is
// never replaced. It is not compressed: unpacking costs an emulated guest more
// than QEMU's copying does. Safe for concurrent use, also by two processes.
func Initrd(dir, hyperstart string, k Kernel) (string, error) {
	init, err := os.ReadFile(hyperstart)
	if err != nil {
		return "", fmt.Errorf("make initrd: read hyperstart: %w", err)
	}
	key, err := initrdKey(init, k)
	if err != nil {
		return "", fmt.Errorf("make initrd: %w", err)
	}
	path := filepath.Join(dir, "initrd-"+key)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	files, err := initrdFiles(init, k)
	if err != nil {
		return "", fmt.Errorf("make initrd: %w", err)
	}
	out, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o644))
	if err != nil {
		return "", fmt.Errorf("make initrd: %w", err)
	}
	defer out.Cleanup()
	if err := WriteCPIO(out, files); err != nil {
		return "", fmt.Errorf("make initrd: %w", err)
	}
	if err := out.CloseAtomicallyReplace(); err != nil {
		return "", fmt.Errorf("make initrd: %w", err)
	}
	return path, nil
}

// initrdKey hashes what decides an initrd's content. The modules of one tree
// are named by the tree and its list: unpacking them to hash them would cost
// a tenth of a second at each start of the daemon.
func initrdKey(init []byte, k Kernel) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "1 %d\n", len(init))
	h.Write(init)
	if k.ModulesDir != "" {
		fmt.Fprintf(h, "%q %q %q\n", k.ModulesDir, needed, wanted)
		for _, name := range []string{"modules.builtin", "modules.order"} {
			if st, err := os.Stat(filepath.Join(k.ModulesDir, name)); err == nil {
				fmt.Fprintf(h, "%s %d %d\n", name, st.Size(), st.ModTime().UnixNano())
			} else if !os.IsNotExist(err) {
				return "", err
			}
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:12]), nil
}

func initrdFiles(init []byte, k Kernel) ([]File, error) {
	files := []File{
		{Name: "dev", Mode: modeDir | 0o755},
		{Name: "dev/console", Mode: modeChar | 0o600, Major: 5, Minor: 1},
		regular("init", 0o755, init),
	}
	if k.ModulesDir == "" {
		return files, nil
	}
	mods, err := modules(k.ModulesDir)
	if err != nil {
		return nil, err
	}
	var order strings.Builder
	files = append(files, File{Name: "modules", Mode: modeDir | 0o755})
	for _, m := range mods {
		files = append(files, regular("modules/"+m.name+".ko", 0o644, m.image))
		order.WriteString(m.name + ".ko\n")
	}
	return append(files, regular("modules/order", 0o644, []byte(order.String()))), nil
}

func regular(name string, mode uint32, data []byte) File {
	return File{Name: name, Mode: modeFile | mode, Size: int64(len(data)), Data: io.Reader(bytes.NewReader(data))}
}
