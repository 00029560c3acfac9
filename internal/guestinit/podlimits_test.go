package guestinit_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

func testIOLimit(t *testing.T, v *vm) {
	const limit = "cd /sys/fs/cgroup; cut -d' ' -f2- io.max"
	v.idle("a", config{io: &wire.IOLimit{WriteBytes: 1 << 20, Reads: 100}})
	v.idle("b", config{disk: podDisk(1), io: &wire.IOLimit{}})
	check(t, "limit", v.do("a", limit), "rbps=max wbps=1048576 riops=100 wiops=max\n")
	check(t, "none", v.do("b", limit), "")
	write := func(id string) time.Duration {
		start := time.Now()
		v.do(id, "dd if=/dev/zero of=/file bs=64k count=48 conv=fsync 2>/dev/null; rm /file")
		return time.Since(start)
	}
	bounded, free := write("a"), write("b")
	t.Logf("3 MiB with a limit of 1 MiB/s: %v, without: %v", bounded.Round(time.Millisecond), free.Round(time.Millisecond))
	if bounded < 2*time.Second {
		t.Errorf("3 MiB were written in %v", bounded)
	}
	update := func(r *wire.UpdateRequest) error { _, err := v.c.Update(v.ctx(), r); return err }
	if err := update(&wire.UpdateRequest{ContainerId: "a", Io: &wire.IOLimit{}}); err != nil {
		t.Error(err)
	}
	if err := update(&wire.UpdateRequest{ContainerId: "b", Io: &wire.IOLimit{ReadBytes: 5000000}, Resources: []byte("{}")}); err != nil {
		t.Error(err)
	}
	check(t, "taken away", v.do("a", limit), "")
	check(t, "given", v.do("b", limit), "rbps=5000000 wbps=max riops=max wiops=max\n")
	v.delete("a")
	v.delete("b")
	err := v.tryCreate("c", config{noUpper: true, args: []string{"true"}, io: &wire.IOLimit{Reads: 1}})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "no writable disk") {
		t.Errorf("no disk: %v", err)
	}
}

func testStats(t *testing.T, v *vm) {
	v.idle("a", config{})
	v.idle("b", config{disk: podDisk(1), args: []string{"sh", "-c", "while :; do :; done"}})
	v.do("a", "dd if=/dev/zero of=/file bs=64k count=16 conv=fsync 2>/dev/null")
	time.Sleep(2 * time.Second) // averages are made every two seconds
	stats := map[string]*wire.StatsResponse{}
	for _, id := range []string{"a", "b", ""} {
		s, err := v.c.Stats(v.ctx(), &wire.StatsRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		stats[id] = s
		if len(s.Pressure) < 5 || s.Pressure[0].Resource != "cpu" || s.Pressure[0].Full || s.Pressure[0].Avg10 > 10000 {
			t.Errorf("%q: pressure %v", id, s.Pressure)
		}
	}
	a, b, pod := stats["a"], stats["b"], stats[""]
	t.Logf("pod: %v", pod)
	if pod.Pids != a.Pids+b.Pids || pod.CpuUsageNanos < a.CpuUsageNanos+b.CpuUsageNanos || pod.MemoryBytes < a.MemoryBytes+b.MemoryBytes ||
		pod.PidsLimit == 0 || pod.MemoryLimitBytes == 0 || pod.Interfaces == nil || pod.MemoryStat["anon"] == 0 {
		t.Errorf("a %v\nb %v\npod %v", a, b, pod)
	}
	var written uint64
	for _, io := range a.BlockIo {
		written += io.WriteBytes
	}
	if written < 1<<20 {
		t.Errorf("a has written %d bytes", written)
	}
	v.delete("a")
	v.delete("b")
}

func testCPUSet(t *testing.T, v *vm) {
	v.idle("a", config{spec: func(s *specs.Spec) { s.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "1"}} }})
	const allowed = "grep Cpus_allowed_list /proc/1/status /proc/self/status | cut -f2"
	check(t, "at create", v.do("a", allowed), "1\n1\n")
	b, _ := json.Marshal(specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-1"}})
	if _, err := v.c.Update(v.ctx(), &wire.UpdateRequest{ContainerId: "a", Resources: b}); err != nil {
		t.Error(err)
	}
	check(t, "at update", v.do("a", allowed), "0-1\n0-1\n")
	v.configure(&wire.ConfigureRequest{Cpus: 1})
	check(t, "of the pod", v.do("a", allowed), "0\n0\n")
	v.configure(&wire.ConfigureRequest{Cpus: podCPUs})
	v.delete("a")
}

func testBounds(t *testing.T, v *vm) {
	const limits = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max"
	v.configure(&wire.ConfigureRequest{MemoryMaxBytes: 256 << 20})
	pod, err := v.c.Stats(v.ctx(), &wire.StatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	pids := max(pod.PidsLimit-500, pod.PidsLimit/2)
	v.idle("a", config{})
	check(t, "alone", v.do("a", limits), "max\nmax\n")
	seven := int64(7)
	v.idle("b", config{disk: podDisk(1), spec: func(s *specs.Spec) {
		memoryLimit(32 << 20)(s)
		s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &seven}
	}})
	check(t, "with another", v.do("a", limits), fmt.Sprintf("%d\n%d\n", 240<<20, pids))
	check(t, "of its own", v.do("b", limits), fmt.Sprintf("%d\n7\n", 32<<20))
	v.configure(&wire.ConfigureRequest{MemoryMaxBytes: 384 << 20})
	check(t, "in a larger pod", v.do("a", limits), fmt.Sprintf("%d\n%d\n", 368<<20, pids))
	check(t, "of its own still", v.do("b", limits), fmt.Sprintf("%d\n7\n", 32<<20))
	update := func(memory, pids int64) {
		b, _ := json.Marshal(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}, Pids: &specs.LinuxPids{Limit: &pids}})
		if _, err := v.c.Update(v.ctx(), &wire.UpdateRequest{ContainerId: "b", Resources: b}); err != nil {
			t.Error(err)
		}
	}
	update(64<<20, -1)
	check(t, "with one less", v.do("b", limits), fmt.Sprintf("%d\n%d\n", 64<<20, pids))
	update(-1, 9)
	check(t, "with the other less", v.do("b", limits), fmt.Sprintf("%d\n9\n", 368<<20))
	v.delete("a")
	v.delete("b")
	v.configure(&wire.ConfigureRequest{MemoryMaxBytes: 1 << 40})
}

func memoryLimit(n int64) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &n, Swap: &n}}
	}
}

func testOOMDetail(t *testing.T, v *vm) {
	v.idle("other", config{disk: podDisk(1)})
	// A name that looks like the kernel's own words.
	out, w := v.run(config{spec: memoryLimit(16 << 20), noUpper: true, args: []string{"sh", "-c",
		`f="/tmp/a) total-vm:1,"; printf '#!/bin/sh\nx=0123456789; while :; do x=$x$x; done' >"$f"; chmod 755 "$f"; exec "$f"`}})
	_, again, err := v.exec("other", process("true"), "")
	if err != nil || again.OomDetail != "" || again.OomKilled {
		t.Errorf("of another: %v, %v", again, err)
	}
	lines := strings.Split(w.OomDetail, "\n")
	if !w.OomKilled || len(lines) != 4 || !strings.HasPrefix(lines[0], "killed a) total-vm:1, (process ") || !strings.Contains(lines[0], "the container was at its limit; it had anon-rss ") ||
		!strings.HasPrefix(lines[1], "memory limit 16384 KiB, at most 16384 KiB") || !strings.HasPrefix(lines[2], "anon ") || strings.HasPrefix(lines[2], "anon 0 ") {
		t.Errorf("output %q, exit %v", out, w)
	}
	t.Log(w.OomDetail)
	v.delete("other")
	if _, w := v.run(config{args: []string{"true"}}); w.OomDetail != "" {
		t.Errorf("without: %v", w)
	}
}

// What eats all it can get in one container leaves the others alone.
func testHogs(t *testing.T, v *vm) {
	v.configure(&wire.ConfigureRequest{MemoryMaxBytes: 256 << 20})
	v.idle("good", config{disk: podDisk(1)})
	answers := func(what string) {
		t.Helper()
		start := time.Now()
		check(t, what, v.do("good", "echo fine >/f && cat /f"), "fine\n")
		if _, err := v.c.Stats(v.ctx(), &wire.StatsRequest{}); err != nil {
			t.Error(err)
		}
		t.Logf("%s: answered after %v", what, time.Since(start).Round(time.Millisecond))
	}
	hog := func(what, script string, spec func(*specs.Spec)) {
		t.Helper()
		v.start("hog", config{spec: spec, args: []string{"sh", "-c", script}})
		defer v.delete("hog")
		time.Sleep(time.Second)
		answers(what)
	}
	limit := int64(50)
	hog("fork bomb with a limit", "bomb() { bomb | bomb & }; while :; do bomb; done 2>/dev/null", func(s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}
	})
	// Without a limit it is bounded by the pod's, of which something is left to others.
	v.start("hog", config{args: []string{"sh", "-c", "(while :; do sleep 1000 & done) 2>/dev/null & exec sleep 1000"}})
	var st *wire.StatsResponse
	for range 100 {
		var err error
		if st, err = v.c.Stats(v.ctx(), &wire.StatsRequest{ContainerId: "hog"}); err != nil {
			t.Fatal(err)
		}
		if st.Pids+1 >= st.PidsLimit { // who could not make one more has ended
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if st.Pids+1 < st.PidsLimit || st.PidsLimit > podMaxPID-200 {
		t.Errorf("%d processes, limit %d", st.Pids, st.PidsLimit)
	}
	answers("a fork bomb")
	v.delete("hog")
	answers("after a fork bomb")
	hog("memory", "while :; do tail /dev/zero; done 2>/dev/null", memoryLimit(32<<20))
	hog("disk", "cat /dev/zero >/file; sleep 1000", nil)
	hog("shared memory", "cat /dev/zero >/dev/shm/hog; sleep 1000", memoryLimit(32<<20))
	hog("inotify", "for i in $(seq 200); do inotifyd true /tmp:x & done; sleep 1000", nil)
	v.sh("rm -f /dev/shm/hog /file", config{})
	v.delete("good")
}
