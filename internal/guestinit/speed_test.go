package guestinit_test

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/pod"
)

// ordinarySpec is what hyperd makes of a container without any wishes.
func ordinarySpec(t testing.TB) []byte {
	t.Helper()
	b, err := pod.OrdinarySpec()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// runRequest is what hyperd asks of a clone for `run IMAGE sh -c "echo hello"`.
func runRequest(t testing.TB, id string, edit func(*wire.RunRequest, *specs.Spec), args ...string) *wire.RunRequest {
	spec := new(specs.Spec)
	json.Unmarshal(ordinarySpec(t), spec)
	spec.Process.Args = args
	filter := defaultFilter(t, spec)
	r := &wire.RunRequest{
		Configure: &wire.ConfigureRequest{Hostname: "box", WallClockNanos: time.Now().UnixNano(), Entropy: randomBytes(64),
			Interfaces: []*wire.Interface{{CurrentMac: cloneMAC, Mac: "02:68:74:aa:bb:cc", Name: "eth0", Mtu: 1500,
				Addresses: []string{"172.30.0.2/16", "fd00::2/64"}}},
			Routes:         []*wire.Route{{Gateway: "172.30.0.1", Interface: "eth0"}},
			MemoryMaxBytes: 512 << 20, Cpus: 1},
		Create: &wire.CreateContainerRequest{Id: id, SeccompFilter: filter.Program, SeccompFlags: filter.Flags, Rootfs: &wire.RootFS{Layers: []string{layerSlot(0)}, Upper: upperSlot},
			Files: []*wire.File{{Path: "/etc/hosts", Mode: 0o644, Content: []byte("127.0.0.1 localhost\n")}, {Path: "/etc/hostname", Mode: 0o644}, {Path: "/etc/resolv.conf", Mode: 0o644}}},
		Start: &wire.StartProcessRequest{ContainerId: id},
	}
	if edit != nil {
		edit(r, spec)
	}
	r.Create.Spec, _ = json.Marshal(spec)
	return r
}

var tbCount = regexp.MustCompile(`TB count\s+(\d+)`)

// translated is how many blocks QEMU has translated so far.
func (q *qmpConn) translated() int {
	var s struct {
		Text string `json:"human-readable-text"`
	}
	json.Unmarshal(q.do("x-query-jit", nil), &s)
	m := tbCount.FindStringSubmatch(s.Text)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// cpu is how many ms of it QEMU has used.
func (v *vm) cpu() int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.cmd.Process.Pid))
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return 10 * (user + system)
}

// madeOwn is the guest memory that the VM made its own, in KiB. Pages of
// the template that only this VM reads count as private and dirty too, but not
// as anonymous.
func (v *vm) madeOwn() int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", v.cmd.Process.Pid))
	inMemory := false
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if strings.Contains(f[0], "-") {
			inMemory = strings.Contains(line, "memfd:memory")
		}
		if inMemory && f[0] == "Anonymous:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	return -1
}

// TestCloneSpeed logs what a start costs the guest. HYPER_TEST_CLONES is how
// often, it is skipped without; HYPER_TEST_TRACE is where QEMU then writes what it translated.
func TestCloneSpeed(t *testing.T) {
	clones, _ := strconv.Atoi(os.Getenv("HYPER_TEST_CLONES"))
	if clones < 1 {
		t.Skip("a measurement: HYPER_TEST_CLONES is not set")
	}
	tpl := newTemplate(t, nil)
	layer := built().layers[0]
	var contact, ran, exited []time.Duration
	var tb, cpu []int
	for i := range clones {
		t.Run("", func(t *testing.T) {
			v := tpl.clone(t, []string{layer})
			start := v.started
			v.connect()
			contact = append(contact, time.Since(start))
			start = time.Now()
			r, err := v.c.Run(v.ctx(), runRequest(t, "c", nil, "true"))
			if err != nil || r.Failed != "" {
				t.Fatal(err, r)
			}
			ran = append(ran, time.Since(start))
			if i == 0 {
				t.Log(r)
			}
			v.wait("c", "")
			exited = append(exited, time.Since(v.started))
			tb = append(tb, v.q.translated())
			cpu = append(cpu, v.cpu())
		})
	}
	log := func(what string, d []time.Duration) {
		slices.Sort(d)
		t.Logf("%-12s min %6.1f median %6.1f ms", what, d[0].Seconds()*1e3, d[len(d)/2].Seconds()*1e3)
	}
	log("contact", contact)
	log("run", ran)
	log("exited", exited)
	slices.Sort(tb)
	slices.Sort(cpu)
	t.Logf("blocks       min %d median %d, CPU min %d median %d ms", tb[0], tb[len(tb)/2], cpu[0], cpu[len(cpu)/2])
	t.Run("parts", func(t *testing.T) { logParts(t, tpl) })
	t.Run("idle", func(t *testing.T) { logIdle(t, tpl) })
	if f := os.Getenv("HYPER_TEST_TRACE"); f != "" {
		t.Run("trace", func(t *testing.T) { logTrace(t, tpl, f) })
	}
}

// logParts logs how much each part of a start translates.
func logParts(t *testing.T, tpl *template) {
	v := tpl.clone(t, built().layers[:1])
	v.connect()
	time.Sleep(300 * time.Millisecond)
	last := v.q.translated()
	step := func(what string, err error) {
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond) // what goes on in the background is part of it
		n := v.q.translated()
		t.Logf("%-10s %5d blocks", what, n-last)
		last = n
	}
	r := runRequest(t, "c", nil, "true")
	_, err := v.c.Info(v.ctx(), &wire.InfoRequest{})
	step("info", err)
	_, err = v.c.Configure(v.ctx(), r.Configure)
	step("configure", err)
	_, err = v.c.CreateContainer(v.ctx(), r.Create)
	step("create", err)
	_, err = v.c.StartProcess(v.ctx(), r.Start)
	step("start", err)
	_, err = v.c.Wait(v.ctx(), &wire.WaitRequest{ContainerId: "c"})
	step("wait", err)
}

// logIdle logs how much a clone that does nothing translates and writes to.
func logIdle(t *testing.T, tpl *template) {
	v := tpl.clone(t, built().layers[:1])
	time.Sleep(500 * time.Millisecond)
	q := v.q
	t.Logf("resumed: %d blocks, %d KiB", q.translated(), v.madeOwn())
	v.connect()
	t.Logf("connected: %d blocks, %d KiB", q.translated(), v.madeOwn())
	time.Sleep(5 * time.Second)
	t.Logf("idle: %d blocks, %d KiB", q.translated(), v.madeOwn())
	r, err := v.c.Run(v.ctx(), runRequest(t, "c", nil, "sleep", "1000"))
	if err != nil || r.Failed != "" {
		t.Fatal(err, r)
	}
	t.Logf("running: %d blocks, %d KiB", q.translated(), v.madeOwn())
	for range 2 {
		time.Sleep(5 * time.Second)
		t.Logf("idle: %d blocks, %d KiB", q.translated(), v.madeOwn())
	}
}

// logTrace has QEMU write what it translates to file f, and logs where in it
// the steps of a start are.
func logTrace(t *testing.T, tpl *template, f string) {
	v := tpl.clone(t, built().layers[:1], "-d", "in_asm", "-D", f)
	time.Sleep(500 * time.Millisecond)
	mark := func(what string) {
		if fi, err := os.Stat(f); err == nil {
			t.Logf("%s at byte %d of the trace", what, fi.Size())
		}
	}
	mark("resumed")
	v.connect()
	time.Sleep(300 * time.Millisecond)
	mark("connected")
	v.c.Run(v.ctx(), runRequest(t, "c", nil, "true"))
	mark("run")
	v.wait("c", "")
}
