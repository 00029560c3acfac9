package qemu

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

func TestWithoutHugePages(t *testing.T) {
	const off = "THP_enabled:\t0\n"
	before, err := os.ReadFile("/proc/self/status")
	if err != nil || !bytes.Contains(before, []byte("THP_enabled:")) {
		t.Skip("this kernel does not tell")
	}
	err = withoutHugePages(func() error {
		out, err := exec.Command("cat", "/proc/self/status").Output()
		if !bytes.Contains(out, []byte(off)) {
			t.Errorf("a child has huge pages:\n%s", out)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile("/proc/self/status")
	if err != nil || bytes.Contains(after, []byte(off)) != bytes.Contains(before, []byte(off)) {
		t.Errorf("we have none any more: %v\n%s", err, after)
	}
}
