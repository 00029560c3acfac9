package guestinit_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// TestClones makes clones of one template, which has had its slots open.
func TestClones(t *testing.T) {
	var uptime uint64
	tpl := newTemplate(t, func(v *vm) {
		for _, empty := range []*wire.RootFS{{Layers: []string{layerSlot(0)}}, {Upper: upperSlot}} {
			_, err := v.c.CreateContainer(v.ctx(), &wire.CreateContainerRequest{Id: "empty", Spec: []byte("{}"), Rootfs: empty})
			if err == nil || !strings.Contains(err.Error(), "mount") {
				t.Fatalf("%v of an empty slot: %v", empty, err)
			}
		}
		if _, err := v.c.Settle(v.ctx(), &wire.SettleRequest{Spec: ordinarySpec(t)}); err != nil {
			t.Fatal(err)
		}
		<-v.c.Done()
		v.c.Close()
		v.connect()
		info, err := v.c.Info(v.ctx(), &wire.InfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		uptime = info.UptimeNanos
		if len(info.Containers) != 0 || info.Processes != 1 {
			t.Errorf("left by Settle: %v", info)
		}
	})
	t.Run("Identity", func(t *testing.T) { testIdentity(t, tpl, uptime) })
	t.Run("Limits", func(t *testing.T) { testPodLimits(t, tpl) })
	t.Run("Fittings", func(t *testing.T) { testFittings(t, tpl) })
	t.Run("Layers", func(t *testing.T) {
		v := cloneOf(t, tpl, built().layers)
		out := v.runClone("cat /etc/plain /etc/layer; ls /etc/layer?", func(r *wire.RunRequest, _ *specs.Spec) {
			r.Create.Rootfs.Layers = []string{layerSlot(0), layerSlot(1), layerSlot(2), layerSlot(3)}
		})
		if !strings.HasPrefix(out, "text2/etc/layer0\n/etc/layer1\n/etc/layer2\n") {
			t.Errorf("got %q", out)
		}
	})
}

// What a stage has ready is what a container would have made itself, and is
// not had by one that asks for something else.
func testFittings(t *testing.T, tpl *template) {
	const disk = "mknod /disk b 254 0 && head -c 1 /disk 2>&1 >/dev/null"
	const script = `head -1 /proc/mounts; cut -d' ' -f2- /proc/mounts | sort; stat -c '%N %A %u %g %t %T' /dev /dev/* /dev/pts/*; head -c 1 /dev/zero | wc -c; cat /proc/self/cgroup; ls /sys/fs/cgroup | wc -l; ` + disk
	run := func(script string, edit func(s *specs.Spec)) string {
		v := cloneOf(t, tpl, built().layers[:1])
		return v.runClone(script, func(_ *wire.RunRequest, s *specs.Spec) { edit(s) })
	}
	ready := run(script, func(*specs.Spec) {})
	made := run(script, func(s *specs.Spec) {
		for _, m := range s.Mounts {
			slices.Reverse(m.Options[:2]) // means the same
		}
		slices.Reverse(s.Linux.Resources.Devices[1:3])
	})
	if ready != made || !strings.Contains(ready, "Operation not permitted") {
		t.Errorf("got %s\nwant %s", ready, made)
	}
	out := run("ls /sys/class/net; ls /dev; "+disk, func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "network"})
		s.Linux.Resources.Devices = nil
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"})
	})
	check(t, "another container", strings.Join(strings.Fields(out), " "), "lo fd full null ptmx random stderr stdin stdout tty urandom zero")
}

func cloneOf(t *testing.T, tpl *template, layers []string) *vm {
	t.Helper()
	v := tpl.clone(t, layers)
	v.connect()
	return v
}

// runClone is Run of a script, to its end.
func (v *vm) runClone(script string, edit func(*wire.RunRequest, *specs.Spec)) string {
	v.t.Helper()
	r, err := v.c.Run(v.ctx(), runRequest(v.t, "c", edit, "sh", "-c", script))
	if err != nil || r.Failed != "" {
		v.t.Fatal(err, r)
	}
	return v.output("c", "", wire.StreamHeader_STDOUT) + v.output("c", "", wire.StreamHeader_STDERR)
}

// secrets prints what no two clones may have in common, a line each: the
// kernel's random numbers by all roads (the third is AT_RANDOM, 25 in
// getauxval(3), of a new process), and the boot's id.
const secrets = `cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid
set -- $(od -An -v -w16 -tu8 /proc/$$/auxv | while read k v; do [ $k = 25 ] && echo $v; done)
dd if=/proc/$$/mem bs=1 skip=$1 count=16 2>/dev/null | od -An -v -w16 -tx1
for f in urandom random; do dd if=/dev/$f bs=16 count=1 2>/dev/null | od -An -v -w16 -tx1; done
hostname; ip link show eth0 | grep -o 'ether [0-9a-f:]*'; ip addr show eth0 | grep -o 'inet6 fe80[^ ]*'
`

func testIdentity(t *testing.T, tpl *template, uptime uint64) {
	seen := map[string]bool{}
	for _, who := range []string{"1", "2"} {
		v := cloneOf(t, tpl, built().layers[:1])
		mac := "02:68:74:00:01:0" + who
		out := v.runClone(secrets, func(r *wire.RunRequest, _ *specs.Spec) {
			r.Configure.Hostname, r.Configure.Interfaces[0].Mac = "box"+who, mac
		})
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != 8 || lines[6] != "ether "+mac {
			t.Errorf("got %q", out)
		}
		for _, l := range lines {
			if seen[l] || len(l) < 4 {
				t.Errorf("two clones have %q", l)
			}
			seen[l] = true
		}
		testClock(t, v, uptime)
		// Again, and again to another address, while it is up.
		for _, to := range []string{mac, mac, "02:68:74:00:02:0" + who} {
			_, err := v.c.Configure(v.ctx(), &wire.ConfigureRequest{Interfaces: []*wire.Interface{{CurrentMac: mac, Mac: to, Name: "eth0"}}})
			if err != nil {
				t.Error(err)
			}
		}
		_, err := v.c.Configure(v.ctx(), &wire.ConfigureRequest{Interfaces: []*wire.Interface{{CurrentMac: mac, Mac: mac, Name: "eth0"}}})
		if err == nil || !strings.Contains(err.Error(), "the VM has none with address "+mac) {
			t.Errorf("address of no interface: %v", err)
		}
	}
}

// testClock compares the guest's clocks with the host's, and with the
// template's when it was settled.
func testClock(t *testing.T, v *vm, uptime uint64) {
	t.Helper()
	const slack = 5 * time.Millisecond
	var late time.Duration    // at most, because the time took so long to arrive
	now := func() time.Time { // by the guest
		before := time.Now()
		s, err := v.c.Stats(v.ctx(), &wire.StatsRequest{ContainerId: "c"})
		if err != nil {
			t.Fatal(err)
		}
		at, after := time.Unix(0, s.ReadAtNanos), time.Now()
		if at.Before(before.Add(-slack-late)) || at.After(after.Add(slack)) {
			t.Errorf("the guest says %v between %v and %v", at, before, after)
		}
		return at
	}
	sent := time.Now()
	_, err := v.c.Configure(v.ctx(), &wire.ConfigureRequest{WallClockNanos: sent.UnixNano()})
	if err != nil {
		t.Fatal(err)
	}
	late = time.Since(sent)
	now()
	time.Sleep(2 * time.Second)
	now()
	info, err := v.c.Info(v.ctx(), &wire.InfoRequest{})
	if err != nil || info.UptimeNanos < uptime || info.UptimeNanos > uptime+uint64(time.Minute) {
		t.Errorf("up for %v, was %v when it was settled; %v", time.Duration(info.UptimeNanos), time.Duration(uptime), err)
	}
}

func testPodLimits(t *testing.T, tpl *template) {
	v := cloneOf(t, tpl, built().layers[:1])
	events, err := v.c.Events(v.ctx(), &wire.EventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	const limit = 64 << 20
	out := v.runClone("nproc; cat /proc/self/status | grep Cpus_allowed_list; head -c 80m /dev/zero >/cache; echo cached; tail /dev/zero; echo $?", func(r *wire.RunRequest, _ *specs.Spec) {
		r.Configure.MemoryMaxBytes, r.Configure.Cpus = limit, 2
	})
	if !strings.HasPrefix(out, "2\nCpus_allowed_list:\t0-1\ncached\n137\n") {
		t.Errorf("got %q", out)
	}
	if e, err := events.Recv(); err != nil || e.Kind != "oom" || e.ContainerId != "c" {
		t.Errorf("got %v, %v", e, err)
	}
	if w := v.wait("c", ""); !w.OomKilled {
		t.Errorf("exit %v", w)
	}
	s, err := v.c.Stats(v.ctx(), &wire.StatsRequest{ContainerId: "c"})
	if err != nil || s.MemoryLimitBytes != limit || s.OomKills != 1 {
		t.Errorf("got %v, %v", s, err)
	}
	v.delete("c")
	half := int64(limit / 2)
	out = v.runClone("nproc", func(r *wire.RunRequest, s *specs.Spec) {
		r.Configure.MemoryMaxBytes, r.Configure.Cpus = 0, 64
		s.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "1"}, Memory: &specs.LinuxMemory{Limit: &half}}
	})
	check(t, "CPUs of a container below the pod's", out, "1\n")
	if s, err = v.c.Stats(v.ctx(), &wire.StatsRequest{ContainerId: "c"}); err != nil || s.MemoryLimitBytes != limit/2 {
		t.Errorf("got %v, %v", s, err)
	}
}
