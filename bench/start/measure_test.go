package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestPoolStatus(t *testing.T) {
	for _, c := range []struct {
		info          string
		ready, wanted int
		ok            bool
	}{
		{"Server:\n VMM: qemu\n Warm VMs: 1 of 2\n", 1, 2, true},
		{"Warm VMs: 0 of 1 (filling)", 0, 1, true},
		{"Warm VMs: off", 0, 0, false},
		{"", 0, 0, false},
	} {
		if ready, wanted, ok := poolStatus(c.info); ready != c.ready || wanted != c.wanted || ok != c.ok {
			t.Errorf("%q: %d of %d, %t", c.info, ready, wanted, ok)
		}
	}
}

func TestList(t *testing.T) {
	known := []string{"a", "b"}
	if got, err := list("b,a", known); err != nil || !slices.Equal(got, []string{"b", "a"}) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := list("", known); err != nil || len(got) > 0 {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := list("a,c", known); err == nil || !strings.Contains(err.Error(), `"c" is none of a, b`) {
		t.Errorf("got %v", err)
	}
}

func TestReason(t *testing.T) {
	if got := reason(errors.New("one\ntwo")); got != "one" {
		t.Errorf("got %q", got)
	}
	if got := reason(errors.New(strings.Repeat("x", 1000))); len(got) > 250 {
		t.Errorf("got %d bytes", len(got))
	}
}

// testBench knows engines "a" and "b" under the names of two peers.
func testBench(t *testing.T) *bench {
	b := &bench{config: config{peers: []string{"docker", "podman"}, progress: io.Discard}}
	b.engines = engines{c: b.config, started: map[string]*engine{"docker": {}, "podman": {}}, missing: map[string]error{}}
	return b
}

func TestAlternate(t *testing.T) {
	var order []string
	once := func(_ context.Context, c contender, _ *engine) (float64, error) {
		order = append(order, c.engine)
		if c.engine == "podman" && len(order) > 3 {
			return 0, errors.New("broke")
		}
		return float64(len(order)), nil
	}
	results, err := testBench(t).alternate(t.Context(), 3, []contender{docker, docker20, podman, runsc}, once)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"docker", "podman", "docker", "podman", "docker", "docker"}; !slices.Equal(order, want) {
		t.Errorf("order %q, want %q", order, want)
	}
	if len(results) != 2 || !slices.Equal(results[0].values, []float64{3, 5, 6}) || results[1].missing != "broke" || results[1].values != nil {
		t.Errorf("got %+v", results)
	}
}

func TestAlternateEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	runs := 0
	_, err := testBench(t).alternate(ctx, 3, []contender{docker, podman}, func(context.Context, contender, *engine) (float64, error) {
		runs++
		cancel()
		return 0, ctx.Err()
	})
	if !errors.Is(err, context.Canceled) || runs != 1 {
		t.Errorf("%d runs, %v", runs, err)
	}
}

func TestFirstLine(t *testing.T) {
	for _, c := range []struct{ script, want string }{
		{"echo up; exec sleep 0", ""},
		{"echo oops; echo why >&2; exit 3", `printed "oops\n": exit status 3: why`},
		{"exit 0", `printed "": EOF`},
	} {
		up := make(chan error, 1)
		firstLine(exec.CommandContext(t.Context(), "sh", "-c", c.script), up)
		err := <-up
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.script, err, c.want)
		}
	}
}

func TestProof(t *testing.T) {
	e := &engine{command: func(ctx context.Context, args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, "sh", "-c", `echo "STAGE (clone)   AT   TOOK" >&2`)
	}}
	for _, c := range []struct {
		contender contender
		ok        bool
	}{{clone, true}, {warm, false}, {docker, true}} {
		if _, err := proof(t.Context(), c.contender, e); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.contender.label, err)
		}
	}
}

const smaps = `7f0000000000-7f0100000000 rw-p 00000000 00:01 1031 /memfd:template (deleted)
Rss:                 900 kB
Pss:                  60 kB
Pss_Dirty:            50 kB
Private_Clean:         4 kB
Private_Dirty:       700 kB
VmFlags: rd wr mr mw me
7f0200000000-7f0200001000 r--p 00000000 08:01 12 /usr/bin/qemu-system-x86_64
Pss:                   7 kB
Private_Dirty:         9 kB
7f0300000000-7f0300001000 rw-p 00000000 00:01 1032 /memfd:template (deleted)
Private_Dirty:        24 kB
`

func TestMappingField(t *testing.T) {
	for _, c := range []struct {
		mapping, field string
		want           int64
	}{
		{"memfd:", "Private_Dirty", 724 << 10},
		{"", "Pss", 67 << 10},
		{"memfd:", "Pss", 60 << 10},
		{"vdso", "Pss", 0},
	} {
		if got := mappingField(strings.NewReader(smaps), c.mapping, c.field); got != c.want {
			t.Errorf("%s of %q: %d, want %d", c.field, c.mapping, got, c.want)
		}
	}
	if self := pss([]int{os.Getpid()}); self < 1<<20 {
		t.Errorf("this process has %d bytes", self)
	}
}

func TestDescendants(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "sleep 1000 & echo $!; wait")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 20)
	n, err := stdout.Read(text)
	if err != nil {
		t.Fatal(err)
	}
	grandchild, err := strconv.Atoi(strings.TrimSpace(string(text[:n])))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		p, _ := os.FindProcess(grandchild) //nolint:errcheck // never fails on Unix
		p.Kill()                           //nolint:errcheck // it may have ended
		cmd.Wait()                         //nolint:errcheck // likewise
	}()
	if got := descendants(os.Getpid()); !slices.Contains(got, cmd.Process.Pid) || !slices.Contains(got, grandchild) {
		t.Errorf("%v has not %d and %d", got, cmd.Process.Pid, grandchild)
	}
}

// TestCell starts one with this host's own tools in it, and ends it.
func TestCell(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	lower := t.TempDir()
	for _, dir := range []string{lower + "/usr/local/bin", lower + "/etc"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// A tini that stays what it is.
	if err := os.WriteFile(lower+"/usr/local/bin/tini", []byte("#!/bin/sh\nshift\n\"$@\" &\ntrap 'exit 0' TERM\nwait\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c, err := startCell(t.Context(), cellSpec{name: "test", lowers: []string{lower}, cgroups: "as-is", cmd: func(dir string) []string {
		return []string{"sh", "-c", "mkdir /sys/fs/cgroup/*/hyper-bench-test; touch /etc/cell " + dir + "/up; exec sleep 1000"}
	}})
	if err != nil {
		t.Fatal(err)
	}
	err = c.until(t.Context(), func() bool { _, err := os.Stat(c.dir + "/up"); return err == nil })
	pids := descendants(c.init)
	start := time.Now()
	if stopErr := c.stop(); err != nil || stopErr != nil {
		t.Fatal(err, stopErr)
	}
	if took := time.Since(start); took > 10*time.Second || len(pids) == 0 {
		t.Errorf("stopped in %v, processes %v", took, pids)
	}
	for _, gone := range []string{c.dir, "/etc/cell", "/proc/" + strconv.Itoa(pids[0]), "/sys/fs/cgroup/memory/hyper-bench-test"} {
		if _, err := os.Stat(gone); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
	broken, err := startCell(t.Context(), cellSpec{name: "test", lowers: []string{lower}, cgroups: "as-is", cmd: func(string) []string {
		return []string{"sh", "-c", "echo why"}
	}})
	if err == nil { // it was there for long enough to be seen
		err = errors.Join(broken.until(t.Context(), func() bool { return false }), broken.stop())
	}
	if err == nil || !strings.HasSuffix(err.Error(), "did not come up: why") {
		t.Errorf("a cell whose command ends: %v", err)
	}
}
