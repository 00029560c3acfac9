package hyperd

import (
	"bytes"
	"strings"
	"testing"

	"github.com/hyper-run/hyper/internal/vmm"
)

func TestParseArgs(t *testing.T) {
	var out bytes.Buffer
	c, err := ParseArgs([]string{"--root", "/r", "--run", "/run/x", "--accel", "tcg", "--mirror", "docker.io=https://m", "--subnet", "10.9.0.0/16"}, &out)
	if err != nil {
		t.Fatal(err, out.String())
	}
	if c.Layout.Root != "/r" || c.Layout.Socket() != "/run/x/hyper.sock" || c.Accel != vmm.AccelTCG || c.Mirrors["docker.io"][0] != "https://m" || c.Subnet.String() != "10.9.0.0/16" {
		t.Errorf("got %+v", c)
	}
	for want, args := range map[string][]string{
		"want auto, kvm or tcg": {"--accel", "fast"},
		"needs at least 64 MiB": {"--default-memory", "8"},
		"this host has":         {"--default-cpus", "1000"},
		"unexpected argument":   {"serve"},
		"too long for sockets":  {"--run", "/" + strings.Repeat("x", 70)},
		"longer than 3":         {"--net-prefix", "hyper"},
		"want HOST=URL":         {"--mirror", "nope"},
		"not defined":           {"--no-such"},
		"no '/'":                {"--subnet", "10.0.0.1"},
	} {
		out.Reset()
		if _, err := ParseArgs(args, &out); err == nil || !strings.Contains(out.String(), want) {
			t.Errorf("%v: error %v, printed %q, want %q in it", args, err, out.String(), want)
		}
	}
}
