package guestinit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/inroot"
)

func TestVolumeOf(t *testing.T) {
	for source, want := range map[string]string{
		"/run/pod/volumes/a": "a ", "/run/pod/volumes/a/": "a ", "/run/pod/volumes/a/b/../c": "a b/../c", "/run/pod/volumes/": " ",
		"/run/pod/volumes": "no", "/run/pod/shm": "no", "volumes/a": "no", "/run/pod/x/../volumes/a": "no",
	} {
		got := "no"
		if name, sub, ok := volumeOf(specs.Mount{Type: "bind", Source: source}); ok {
			got = name + " " + sub
		}
		if got != want {
			t.Errorf("%s: %q", source, got)
		}
	}
	if _, _, ok := volumeOf(specs.Mount{Type: "tmpfs", Source: volumesDir + "/a"}); ok {
		t.Error("a tmpfs is a volume")
	}
	if _, _, ok := volumeOf(specs.Mount{Source: volumesDir + "/a", Options: []string{"rbind"}}); !ok {
		t.Error("a bind mount without the type is no volume")
	}
}

func TestCheckVolume(t *testing.T) {
	for name, ok := range map[string]bool{
		"a-1": true, "": false, "a/b": false, "..": false, "A": false, strings.Repeat("a", 63): true, strings.Repeat("a", 64): false,
	} {
		if err := checkVolume(&wire.Volume{Name: name}); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
	if checkVolume(&wire.Volume{Name: "a", Mode: 0o10000}) == nil {
		t.Error("bad mode: no error")
	}
}

// Files stay in the volume, whatever is there already.
func TestPutFile(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	for _, err := range []error{
		os.WriteFile(outside, []byte("kept"), 0o644), os.Symlink(outside, dir+"/link"), os.Symlink(filepath.Dir(outside), dir+"/away"), os.Mkdir(dir+"/dir", 0o755), os.WriteFile(dir+"/plain", nil, 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := inroot.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for path, want := range map[string]string{"a": "a", "b/c/d": "b/c/d", "../../up": "up", "/abs": "abs", "link": "link", "dir": "", "..": "", "": "", "plain/x": "", "away/outside": ""} {
		err := putFile(root, &wire.File{Path: path, Content: []byte("new"), Mode: 0o4751}, os.Getgid())
		if (err == nil) != (want != "") {
			t.Errorf("%q: %v", path, err)
		}
		if want == "" {
			continue
		}
		fi, err := os.Lstat(filepath.Join(dir, want))
		if err != nil || fi.Mode() != 0o751|os.ModeSetuid || fi.Size() != 3 {
			t.Errorf("%q: %v, %v", path, fi, err)
		}
	}
	if b, err := os.ReadFile(outside); string(b) != "kept" {
		t.Errorf("outside: %q, %v", b, err)
	}
}
