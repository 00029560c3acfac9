package device

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDisks(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"vda/serial":          "l0", // virtio-blk: 20 bytes at most, no end
		"vdb/serial":          "w0\n",
		"vdc/size":            "8",
		"sda/device/vpd_pg80": "\x00\x80\x00\x24w-0123456789abcdef0123456789abcdef01",
		"sdb/device/vpd_pg80": "\x00\x80\x00\x08  v-db  ",
		"sdc/device/vpd_pg80": "\x00\x80",
		"sdd/device/vpd_pg80": "\x00\x80\x00\x00",
		"cciss!c0d0/serial":   "odd",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{"l0": "/dev/vda", "w0": "/dev/vdb", "w-0123456789abcdef0123456789abcdef01": "/dev/sda", "v-db": "/dev/sdb", "odd": "/dev/cciss/c0d0"}
	if d := cmp.Diff(want, disks(dir, nil)); d != "" {
		t.Error(d)
	}
	known := map[string]string{"l0": "/dev/vda", "gone": "/dev/vdb", "odd": "/dev/cciss/c0d0"}
	if d := cmp.Diff(map[string]string{"w-0123456789abcdef0123456789abcdef01": "/dev/sda", "v-db": "/dev/sdb"}, disks(dir, known)); d != "" {
		t.Error(d)
	}
	if Stays("/dev/sda") || !Stays("/dev/vda") {
		t.Error("Stays")
	}
}
