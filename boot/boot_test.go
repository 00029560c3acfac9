package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// bzImage is the header of a bzImage as small as Release accepts.
func bzImage(release string) []byte {
	b := make([]byte, 0x1000)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint16(b[0x20e:], 0x600)
	binary.LittleEndian.PutUint16(b[0x236:], 1)
	copy(b[0x800:], release+" (someone@somewhere) #1 SMP\x00")
	return b
}

// vmlinux is an ELF file with one PT_NOTE and, behind size bytes, a banner.
func vmlinux(noteType uint32, size int, banner string) []byte {
	le := binary.LittleEndian
	b := make([]byte, 64+56)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)  // ET_EXEC
	le.PutUint16(b[18:], 62) // EM_X86_64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 1)
	le.PutUint16(b[58:], 64)
	note := le.AppendUint32(nil, 4)
	note = le.AppendUint32(note, 4)
	note = le.AppendUint32(note, noteType)
	note = append(note, "Xen\x00\x00\x00\x00\x01"...)
	le.PutUint32(b[64:], 4) // PT_NOTE
	le.PutUint64(b[72:], uint64(len(b)))
	le.PutUint64(b[96:], uint64(len(note)))
	b = append(b, note...)
	// After a decoy.
	b = append(b, "Linux version %s (%s)"...)
	b = append(b, make([]byte, size-len(b))...)
	return append(b, banner...)
}

func TestRelease(t *testing.T) {
	const edge = 1<<20 - 5 // the banner lies over the edge of the scanner's buffer
	old := bzImage("6.1.0")
	binary.LittleEndian.PutUint16(old[0x206:], 0x204)
	arm := make([]byte, 0x1000)
	copy(arm[56:], "ARM\x64")
	for _, tc := range []struct {
		name, want, wantErr string
		data                []byte
	}{
		{name: "bzImage", data: bzImage("6.12.117+deb12-cloud-amd64"), want: "6.12.117+deb12-cloud-amd64"},
		{name: "vmlinux", data: vmlinux(18, edge, "Linux version 6.12.117 (me) #1"), want: "6.12.117"},
		{name: "no PVH", data: vmlinux(1, edge, "Linux version 6.12.117 (me) #1"), wantErr: "without a PVH entry"},
		{name: "no banner", data: vmlinux(18, edge, "Lunix"), wantErr: "Linux version"},
		{name: "old protocol", data: old, wantErr: "too old"},
		{name: "odd release", data: bzImage("../../etc"), wantErr: "odd release"},
		{name: "version outside", data: bzImage("6.1")[:0x700], wantErr: "odd release"},
		{name: "arm64", data: arm, wantErr: "arm64"},
		{name: "gzip", data: []byte("\x1f\x8b\x08 and more"), wantErr: "gzip"},
		{name: "text", data: []byte("#!/bin/sh\n"), wantErr: "neither a bzImage nor"},
		{name: "empty", wantErr: "neither a bzImage nor"},
		{name: "cut ELF", data: vmlinux(18, edge, "")[:70], wantErr: "read kernel"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "kernel")
			if err := os.WriteFile(path, tc.data, 0o644); err != nil {
				t.Fatal(err)
			}
			got, err := Release(path)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) || !errdefs.IsInvalidArgument(err) {
					t.Fatalf("error %v, want an invalid argument with %q", err, tc.wantErr)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Fatalf("Release = %q, %v; want %q", got, err, tc.want)
			}
		})
	}
	if _, err := Release(t.TempDir()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("of a directory: %v", err)
	}
	if _, err := Release(filepath.Join(t.TempDir(), "none")); !errdefs.IsNotFound(err) {
		t.Errorf("of nothing: %v", err)
	}
}

func FuzzRelease(f *testing.F) {
	f.Add(bzImage("6.12.117"))
	f.Add(vmlinux(18, 400, "Linux version 6.12.117 (me)"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := parse(bytes.NewReader(data)); err == nil && len(r) > 128 {
			t.Fatalf("release %q", r)
		}
	})
}

// install writes a kernel as the recipes leave it and returns the cache.
func install(t *testing.T, cache, name, release string) {
	t.Helper()
	dir := filepath.Join(cache, "build-"+name)
	if err := os.MkdirAll(filepath.Join(dir, "lib", "modules", release, "kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kernel"), bzImage(release), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("build-"+name, filepath.Join(cache, name)); err != nil {
		t.Fatal(err)
	}
}

func TestSelect(t *testing.T) {
	cache, second := t.TempDir(), t.TempDir()
	ks := Kernels{cache, second}

	_, err := ks.Select("")
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "make kernel") {
		t.Fatalf("of an empty cache: %v", err)
	}

	install(t, second, Stock, "6.12.1+deb12-cloud-amd64")
	want := Kernel{Stock, filepath.Join(second, "build-stock", "kernel"), "6.12.1+deb12-cloud-amd64",
		filepath.Join(second, "build-stock", "lib", "modules", "6.12.1+deb12-cloud-amd64")}
	check(t, ks, "", want)

	install(t, cache, HyperKernel, "6.12.2")
	if err := os.RemoveAll(filepath.Join(cache, "build-hyperkernel", "lib")); err != nil {
		t.Fatal(err)
	}
	hyper := Kernel{HyperKernel, filepath.Join(cache, "build-hyperkernel", "kernel"), "6.12.2", ""}
	check(t, ks, "", hyper)
	check(t, ks, Stock, want)
	check(t, ks, hyper.Path, Kernel{Custom, hyper.Path, "6.12.2", ""})

	// Damaged is an error, not a reason to take another kernel quietly.
	if err := os.WriteFile(hyper.Path, []byte("oops"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ks.Select(""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("with a damaged HyperKernel: %v", err)
	}
}

func check(t *testing.T, ks Kernels, name string, want Kernel) {
	t.Helper()
	got, err := ks.Select(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("Select(%q) (-want +got):\n%s", name, d)
	}
}

func TestModulesDirOfInstalledKernel(t *testing.T) {
	root := t.TempDir()
	mods := filepath.Join(root, "lib", "modules", "6.1.0-9-amd64")
	for _, dir := range []string{mods, filepath.Join(root, "boot")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got := modulesDir(filepath.Join(root, "boot", "vmlinuz-6.1.0-9-amd64"), "6.1.0-9-amd64"); got != mods {
		t.Errorf("modulesDir = %q, want %q", got, mods)
	}
}

// TestWriteCPIO reads the archive back with cpio(1).
func TestWriteCPIO(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("no cpio on this host")
	}
	data := func(s string) File {
		return File{Name: "f" + s, Mode: modeFile | 0o755, Size: int64(len(s)), Data: strings.NewReader(s)}
	}
	files := []File{{Name: "dev", Mode: modeDir | 0o755}, {Name: "dev/console", Mode: modeChar | 0o600, Major: 5, Minor: 1},
		data(""), data("a"), data("ab"), data("abc"), data("abcd"), data(strings.Repeat("x", 200))}
	var archive bytes.Buffer
	if err := WriteCPIO(&archive, files); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(cpio, "-tv", "--numeric-uid-gid", "--quiet")
	cmd.Stdin = bytes.NewReader(archive.Bytes())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio -t: %v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != len(files) {
		t.Fatalf("cpio -t shows %d members, want %d:\n%s", len(lines), len(files), out)
	}
	for i, want := range []string{"drwxr-xr-x", "crw-------", "-rwxr-xr-x"} {
		if !strings.HasPrefix(lines[i], want) || !strings.HasSuffix(lines[i], " "+files[i].Name) {
			t.Errorf("line %d is %q, want %s … %s", i, lines[i], want, files[i].Name)
		}
	}
	if !strings.Contains(strings.ReplaceAll(lines[1], " ", ""), "5,1Jan") {
		t.Errorf("device numbers: %q", lines[1])
	}

	dir := t.TempDir()
	cmd = exec.Command(cpio, "-i", "--quiet", "f*")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(archive.Bytes())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio -i: %v\n%s", err, out)
	}
	for _, f := range files[2:] {
		got, err := os.ReadFile(filepath.Join(dir, f.Name))
		if err != nil || "f"+string(got) != f.Name {
			t.Errorf("%s holds %q, %v", f.Name, got, err)
		}
	}
}

func TestWriteCPIORefuses(t *testing.T) {
	for name, f := range map[string]File{
		"too large":    {Name: "a", Size: maxArchive + 1, Data: bytes.NewReader(nil)},
		"negative":     {Name: "a", Size: -1, Data: bytes.NewReader(nil)},
		"no name":      {Mode: modeFile},
		"NUL in name":  {Name: "a\x00b"},
		"too short":    {Name: "a", Size: 5, Data: strings.NewReader("1234")},
		"too long":     {Name: "a", Size: 3, Data: strings.NewReader("1234")},
		"without data": {Name: "a", Size: 3},
	} {
		if err := WriteCPIO(io.Discard, []File{f}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestInitrd(t *testing.T) {
	dir := t.TempDir()
	hyperstart := filepath.Join(dir, "hyperstart")
	write := func(s string) {
		if err := os.WriteFile(hyperstart, []byte(s), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	first, err := Initrd(dir, hyperstart, Kernel{})
	if err != nil {
		t.Fatal(err)
	}
	again, err := Initrd(dir, hyperstart, Kernel{})
	if err != nil || again != first {
		t.Errorf("second Initrd = %q, %v; want %q", again, err, first)
	}
	write("two")
	other, err := Initrd(dir, hyperstart, Kernel{})
	if err != nil || other == first {
		t.Errorf("Initrd of another hyperstart = %q, %v", other, err)
	}
	if _, err := Initrd(dir, filepath.Join(dir, "none"), Kernel{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without hyperstart: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestStockModules is the real thing: Debian's kernel, when it is there.
func TestStockModules(t *testing.T) {
	k, err := DefaultKernels().Select(Stock)
	if errdefs.IsNotFound(err) {
		t.Skip("no stock kernel here: make deps")
	}
	if err != nil {
		t.Fatal(err)
	}
	mods, err := modules(k.ModulesDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range mods {
		names = append(names, m.name)
	}
	for _, before := range [][2]string{{"scsi_mod", "virtio_scsi"}, {"net_failover", "virtio_net"}, {"failover", "net_failover"}} {
		a, b := slices.Index(names, before[0]), slices.Index(names, before[1])
		if b < 0 || a > b {
			t.Errorf("%s does not come before %s in %v", before[0], before[1], names)
		}
	}
	path, err := Initrd(t.TempDir(), "/proc/self/exe", k)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Size() > maxArchive {
		t.Errorf("initrd: %v, %v", st, err)
	}
	t.Logf("%s: %d modules: %v", k, len(mods), names)
}

func TestModulesMissing(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := modules(dir)
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "virtio_pci") {
		t.Errorf("without virtio: %v", err)
	}
	var list strings.Builder
	for _, name := range needed {
		list.WriteString("kernel/x/" + strings.ReplaceAll(name, "_", "-") + ".ko\n")
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(list.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if mods, err := modules(dir); err != nil || len(mods) != 0 {
		t.Errorf("all built in: %v, %v", mods, err)
	}
}
