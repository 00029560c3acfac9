package vm

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// metric returns the value of the first metric of a name that has these labels.
func metric(t *testing.T, name string, labels ...string) (float64, bool) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", h.run+"/hyper.sock")
		},
	}}
	resp, err := client.Get("http://hyper/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
lines:
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		key, value, _ := strings.Cut(sc.Text(), "} ")
		if !strings.HasPrefix(key, name+"{") {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(key, l) {
				continue lines
			}
		}
		f, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		return f, true
	}
	return 0, false
}

// vmMemory is what the VM of a pod takes of the host's memory, bytes.
func vmMemory(t *testing.T, pod string) int64 {
	t.Helper()
	pss, ok := metric(t, "hyper_vm_memory_pss_bytes", fmt.Sprintf("pod=%q", pod))
	if !ok || pss < 10<<20 {
		t.Fatalf("PSS of the VM: %v %v", pss, ok)
	}
	return int64(pss)
}

// Sizes of containers and pods change while they run, up and down, and what
// they use is to be seen inside and outside.
func TestPodUpdate(t *testing.T) {
	img := pulled(t, "busybox")
	newPod(t, "grow", "--memory", "128m", "--cpus", "1")
	must(t, "run", "-d", "--pod", "grow", "--name", "busy", "--cpus", "0.3", "-m", "64m", img, "sh", "-c", "while :; do :; done")
	must(t, "run", "-d", "--pod", "grow", "--name", "idle", img, "sleep", "1000000")
	lives := life(t, "busy") + life(t, "idle")
	limits := func(want string) {
		t.Helper()
		if got := sh(t, "busy", "cat /sys/fs/cgroup/memory.max; cat /sys/fs/cgroup/cpu.max"); got != want {
			t.Errorf("limits %q, want %q", got, want)
		}
	}
	whole := func(wantMiB int) {
		t.Helper()
		const own = 16 // for each container, see internal/pod
		bytes, _ := metric(t, "hyper_pod_memory_limit_bytes", `pod="grow"`)
		if want := wantMiB + 2*own; int(bytes)>>20 != want {
			t.Errorf("the pod may use %d MiB, want %d", int(bytes)>>20, want)
		}
	}
	quota := func(want string) {
		t.Helper()
		files, _ := filepath.Glob("/sys/fs/cgroup/" + h.cgroup() + "/*/cpu.max")
		if len(files) == 0 {
			files, _ = filepath.Glob("/sys/fs/cgroup/cpu/" + h.cgroup() + "/*/cpu.cfs_quota_us")
		}
		if len(files) != 1 {
			t.Fatalf("cgroups of the VM: %q", files)
		}
		if data, err := os.ReadFile(files[0]); err != nil || strings.Fields(string(data))[0] != want {
			t.Errorf("CPU quota of the VM: %q (%v), want %s", data, err, want)
		}
	}
	quota("150000") // with half a CPU for what is not the containers'
	limits("67108864\n30000 100000")
	whole(128)
	for _, tt := range []struct {
		memory, cpus string
		limits       string
		podMiB       int
	}{{"96m", "0.9", "100663296\n90000 100000", 512}, {"48m", "0.2", "50331648\n20000 100000", 96}} {
		must(t, "update", "-m", tt.memory, "--memory-swap", tt.memory, "--cpus", tt.cpus, "busy")
		limits(tt.limits)
		must(t, "pod", "update", "--memory", fmt.Sprint(tt.podMiB, "m"), "grow")
		whole(tt.podMiB)
		if got, want := must(t, "pod", "inspect", "--format", "{{.Spec.MemoryBytes}} {{.Spec.NanoCPUs}}", "grow"), fmt.Sprint(tt.podMiB<<20, " 1000000000"); got != want {
			t.Errorf("the pod's size is %s, want %s", got, want)
		}
	}
	must(t, "pod", "update", "--cpus", "2", "grow")
	quota("250000")
	must(t, "pod", "update", "--cpus", "0.5", "grow")
	quota("100000")
	if now := life(t, "busy") + life(t, "idle"); now != lives {
		t.Errorf("now run %s, before %s", now, lives)
	}
	if r := hyper(t, "pod", "update", "--memory", "100g", "grow"); r.code == 0 || !strings.Contains(r.err, "its running VM has room for") {
		t.Errorf("a pod larger than its VM: %+v", r)
	}
	whole(96)
	checkFigures(t)
}

// checkFigures looks at what is said of the pod of TestPodUpdate: its busy container, of 0.2
// CPUs, is held back, which is counted; the idle one is not.
func checkFigures(t *testing.T) {
	t.Helper()
	waited := func(name string) float64 {
		v, ok := metric(t, "hyper_container_pressure_seconds_total", fmt.Sprintf("container=%q", name), `kind="some"`, `resource="cpu"`)
		if !ok {
			t.Errorf("no pressure of %s", name)
		}
		return v
	}
	before := waited("busy")
	eventually(t, func() (string, bool) {
		now := waited("busy")
		return fmt.Sprintf("pressure %v, was %v", now, before), now > before+0.5
	})
	if idle := waited("idle"); idle > waited("busy")/2 {
		t.Errorf("the idle one waited %v s for the CPU", idle)
	}
	if v, ok := metric(t, "hyper_pod_pressure_seconds_total", `pod="grow"`, `kind="some"`, `resource="memory"`); !ok || v < 0 {
		t.Errorf("memory pressure of the pod: %v, %v", v, ok)
	}
	if v, _ := metric(t, "hyper_vm_cpu_seconds_total", `pod="grow"`); v < 0.1 {
		t.Errorf("the VM used %v s of CPU", v)
	}
	stats := strings.Fields(must(t, "stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.PIDs}}", "busy"))
	if cpu, err := strconv.ParseFloat(strings.TrimSuffix(stats[1], "%"), 64); err != nil || cpu < 2 || cpu > 60 || stats[0] != "busy" || stats[4] != "48MiB" || stats[5] != "1" {
		t.Errorf("stats %q, want busy, about 20%% of a CPU, of 48 MiB, 1 process", stats)
	}
	if got := strings.Fields(must(t, "pod", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}} {{.HostMem}}", "grow")); got[0] != "grow" || got[3] != "128MiB" || got[4] != "2" || !strings.HasSuffix(got[5], "MiB") {
		t.Errorf("pod stats %q", got)
	}
}

// What can be said of a whole VM, and tools to look into one.
func TestPodVM(t *testing.T) {
	img := pulled(t, "busybox")
	pulled(t, "nginx")
	newPod(t, "own", "--kernel-arg", "hypertest.color=blue", "--kernel-arg", "loglevel=7", "--hostname", "own-host", "--sysctl", "net.core.somaxconn=123", "--shm-size", "8m", "--share-pid")
	must(t, "run", "-d", "--pod", "own", "--name", "one", img, "sleep", "111111")
	must(t, "run", "-d", "--pod", "own", "--name", "two", "nginx", "sleep", "222222")
	if args := sh(t, "one", "cat /proc/cmdline"); !strings.Contains(args, " hypertest.color=blue loglevel=7") {
		t.Errorf("the kernel's parameters are %q", args)
	}
	checks(t, [][3]string{
		{"two", "hostname; cat /proc/sys/net/core/somaxconn", "own-host\n123"},
		{"two", "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2", "8192"},
		{"one", "pgrep -f '^sleep' | wc -l", "2"}, // they share their PIDs
	})
	if got := must(t, "pod", "inspect", "--format", "{{.VM.Road}}: {{.VM.ColdBoot}}", "own"); got != "boot: it has kernel parameters of its own" {
		t.Errorf("the VM came by %q", got)
	}
	// In the VM are all processes, its init and both images.
	ps := must(t, "pod", "exec", "--vm", "own", "sh", "-c", "cat /proc/1/comm; pgrep -f '^sleep [12]*$'|wc -l; cat /proc/cmdline")
	if !strings.HasPrefix(ps, "init\n2\n") || !strings.Contains(ps, "hypertest.color=blue") {
		t.Errorf("in the VM: %q", ps)
	}
	if out := must(t, "pod", "exec", "-c", "two", "own", "nginx", "-V"); out != "" {
		t.Errorf("in a container: %q", out) // it writes to stderr
	}
	if r := hyper(t, "pod", "exec", "--vm", "own", "sh", "-c", "exit 7"); r.code != 7 {
		t.Errorf("exit code %d, want 7: %s", r.code, r.err)
	}
	if n := len(strings.Fields(must(t, "pod", "ps", "-aq", "own"))); n != 2 {
		t.Errorf("%d containers after the tools have ended, want 2", n)
	}
	must(t, "pod", "exec", "--vm", "own", "sh", "-c", "echo said by a test > /proc/1/root/dev/kmsg")
	if out := must(t, "pod", "console", "own"); !strings.Contains(out, "said by a test") {
		t.Errorf("the console: %q", out)
	}
	for _, arg := range []string{"init=/bin/sh", "hyper.log=debug", "a b", "console=tty0"} {
		refused(t, 125, "kernel parameter", "pod", "create", "--kernel-arg", arg)
	}

	// A container without a shell, with one beside it.
	id := container(t, "--hostname", "bare", "nginx", "sleep", "333333")
	r := hyper(t, "debug", id, "sh", "-c", "hostname; tr '\\0' ' ' < /proc/1/cmdline; ls /proc/1/root/usr/sbin/nginx; which nginx")
	if want := "bare\nsleep 333333 /proc/1/root/usr/sbin/nginx\n"; r.out != want || r.code != 1 {
		t.Errorf("debug: %+v, want %q and that nothing is found", r, want)
	}
	if n := len(strings.Fields(must(t, "ps", "-aq"))); n != 3 {
		t.Errorf("%d containers after the debugger has ended, want 3", n)
	}
}
