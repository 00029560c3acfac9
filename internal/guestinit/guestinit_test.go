package guestinit_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

func TestBoot(t *testing.T) {
	v := startVM(t)
	up := time.Since(v.started)
	info, err := v.c.Info(v.ctx(), &wire.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("answered after %v, kernel up for %v: %v", up.Round(time.Millisecond), time.Duration(info.UptimeNanos).Round(time.Millisecond), info)
	out, w := v.run(config{args: []string{"sh", "-c", "echo hello; echo err >&2; exit 42"}})
	if out != "hello\nerr\n" || w.ExitCode != 42 {
		t.Errorf("got %q, %v", out, w)
	}
	v.start("c", config{args: []string{"sh", "-c", "echo data >/file; echo ready; sleep 1000"}})
	o, err := v.c.Output(v.ctx(), "c", "", wire.StreamHeader_STDOUT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	io.ReadFull(o, make([]byte, len("ready")))
	start := time.Now()
	if _, err := v.c.Shutdown(v.ctx(), &wire.ShutdownRequest{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-v.exited:
		t.Logf("gone %v after Shutdown", time.Since(start).Round(time.Millisecond))
	case <-time.After(10 * time.Second):
		t.Error("the VM still runs")
	}
	out2, err := exec.Command("dumpe2fs", "-h", v.disk()).CombinedOutput()
	if err != nil || bytes.Contains(out2, []byte("needs_recovery")) {
		t.Errorf("the disk was not unmounted: %v", err)
	}
	if got, err := exec.Command("debugfs", "-R", "cat /upper/file", v.disk()).Output(); string(got) != "data\n" {
		t.Errorf("on the disk: %q, %v", got, err)
	}
}

// A deleted container has let go of its disk, while the VM goes on.
func TestDeleteUnmounts(t *testing.T) {
	v := startVM(t)
	for i := range 10 {
		v.sh(fmt.Sprintf("echo %d >/file", i), config{})
		out, err := exec.Command("dumpe2fs", "-h", v.disk()).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("needs_recovery")) {
			t.Fatalf("round %d: the disk is still mounted: %v", i, err)
		}
	}
}

// A VM that hyperstart can't serve says why on its console and ends.
func TestNoPort(t *testing.T) {
	t.Parallel()
	v := prepareVM(t)
	v.launch("another.port")
	select {
	case <-v.exited:
	case <-time.After(60 * time.Second):
		t.Fatal("the VM still runs")
	}
	b, _ := os.ReadFile(v.console())
	if !bytes.Contains(b, []byte("hyperstart: wait for virtio-serial port hyper.guest: the VM has none")) {
		t.Error("the console does not say why")
	}
}

// TestGuest shares one VM between everything that leaves it as it was.
func TestGuest(t *testing.T) {
	t.Parallel()
	v := startVM(t)
	for _, tt := range []struct {
		name string
		f    func(*testing.T, *vm)
	}{
		{"Configure", testConfigure}, {"Container", testContainer}, {"Root", testRoot}, {"Errors", testErrors}, {"User", testUser},
		{"Security", testSecurity}, {"Stdio", testStdio}, {"Terminal", testTerminal}, {"Signals", testSignals},
		{"Exec", testExec}, {"Limits", testLimits}, {"Devices", testDevices}, {"Network", testNetwork}, {"OOM", testOOM}, {"Pause", testPause}, {"Top", testTop},
		{"Reconnect", testReconnect}, {"ReconnectInput", testReconnectInput}, {"Parallel", testParallel}, {"Init", testInit}, {"Leaks", testLeaks}, {"Idle", testIdle},
	} {
		t.Run(tt.name, func(t *testing.T) {
			outer := v.t
			v.t = t
			defer func() { v.t = outer }()
			tt.f(t, v)
		})
	}
}

func check(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func testConfigure(t *testing.T, v *vm) {
	now := time.Now().Add(time.Hour)
	_, err := v.c.Configure(v.ctx(), &wire.ConfigureRequest{Hostname: "box", Domainname: "example", WallClockNanos: now.UnixNano(),
		Entropy: bytes.Repeat([]byte("e"), 700), Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}, ShmBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	out := v.sh("hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; date +%s; ip -o addr show lo | head -1 | tr -s ' ' | cut -d' ' -f4", config{})
	f := strings.Fields(out)
	if len(f) != 6 {
		t.Fatalf("got %q", out)
	}
	check(t, "names, sysctl, shm", strings.Join(f[:4], " "), "box example 1 1024")
	check(t, "loopback", f[5], "127.0.0.1/8")
	var clock int64
	fmt.Sscan(f[4], &clock)
	if d := clock - now.Unix(); d < 0 || d > 60 {
		t.Errorf("clock is %d s off", d)
	}
	for _, r := range []*wire.ConfigureRequest{
		{Sysctls: map[string]string{"../../etc/passwd": "x"}},
		{Sysctls: map[string]string{"no.such.thing": "x"}},
		{Interfaces: []*wire.Interface{{Mac: "02:00:00:00:00:01", Name: "eth0"}}},
		{Routes: []*wire.Route{{Gateway: "nonsense"}}},
	} {
		if _, err := v.c.Configure(v.ctx(), r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", r, err)
		}
	}
}

func testContainer(t *testing.T, v *vm) {
	out := v.sh(`echo $$; ls /dev | tr '\n' ' '; echo; stat -c '%F %t,%T %a' /dev/null; readlink /dev/fd; readlink /dev/ptmx; ls /proc | grep -c '^1$'
		ls /sys/fs/cgroup/cgroup.procs; cat /proc/self/cgroup; cat /etc/hosts; pwd; echo $HOME; umask; cat /proc/1/oom_score_adj; grep -c . /proc/mounts
		touch /etc/hosts && echo hosts writable; ls -A /`,
		config{files: []*wire.File{{Path: "/etc/hosts", Content: []byte("127.0.0.1 localhost\n"), Mode: 0o644}},
			spec: func(s *specs.Spec) {
				adj := 321
				s.Process.OOMScoreAdj = &adj
				s.Process.Cwd = "/new/dir"
			}})
	want := `1
core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ` + `
character special file 1,3 666
/proc/self/fd
pts/ptmx
1
/sys/fs/cgroup/cgroup.procs
0::/
127.0.0.1 localhost
/new/dir
/root
0022
321
`
	want = strings.Replace(want, "core ", "", 1)
	rest, ok := strings.CutPrefix(out, want)
	if !ok {
		t.Fatalf("got %q, want it to begin %q", out, want)
	}
	if !strings.Contains(rest, "hosts writable\nbin\ndev\netc\nlost+found") && !strings.Contains(rest, "hosts writable\nbin\ndev\netc\nnew\nproc\nsys\ntmp\n") {
		t.Errorf("root: %q", rest)
	}
	out, _ = v.run(config{args: []string{"ls", "/proc/self/fd"}})
	check(t, "descriptors", out, "0\n1\n2\n3\n") // 3 is the directory
}

func testRoot(t *testing.T, v *vm) {
	layers := []string{"layer0", "layer1", "layer2", "layer3"}
	check(t, "layers", v.sh("cat /etc/layer; echo; ls /etc | tr '\\n' ' '", config{layers: layers}), "2\ngroup hosts layer layer0 layer1 layer2 passwd plain ")
	check(t, "written", v.sh("echo kept >/etc/mark; rm /etc/plain; cat /etc/mark", config{}), "kept\n")
	check(t, "written before", v.sh("cat /etc/mark; ls /etc/plain 2>/dev/null; rm /etc/mark", config{}), "kept\n")
	check(t, "restored for others", v.sh("echo text >/etc/plain", config{}), "")
	check(t, "read-only", v.sh("touch /x 2>&1; touch /dev/shm/x && echo shm; grep ' / ' /proc/mounts | cut -d' ' -f3,4 | cut -d, -f1", config{readOnly: true}),
		"touch: /x: Read-only file system\nshm\noverlay ro\n")
	check(t, "no disk", v.sh("touch /x && rm /x && echo memory", config{noUpper: true}), "memory\n")
	check(t, "no disk, read-only", v.sh("touch /x 2>&1", config{noUpper: true, readOnly: true}), "touch: /x: Read-only file system\n")
	check(t, "mounts", v.sh("mount | grep -E ' /(a|b|v) ' | sort | sed 's/^.* on/on/; s/,relatime.*//'; echo x >/v/f; stat -c %a /a", config{spec: func(s *specs.Spec) {
		s.Mounts = append(s.Mounts,
			specs.Mount{Destination: "/a", Type: "tmpfs", Source: "tmpfs", Options: []string{"noexec", "nosuid", "nodev", "size=64k", "mode=1777"}},
			specs.Mount{Destination: "/b", Type: "bind", Source: "/run/pod/vol", Options: []string{"rbind", "ro"}},
			specs.Mount{Destination: "/v", Type: "bind", Source: "/run/pod/vol", Options: []string{"rbind", "rw"}})
	}}), "on /a type tmpfs (rw,nosuid,nodev,noexec\non /b type tmpfs (ro,nosuid,nodev\non /v type tmpfs (rw,nosuid,nodev\n1777\n")
	// A link in the image leads nowhere but into the image.
	v.sh("mkdir -p /l; ln -sfn /proc /l/proc; ln -sfn ../../../../../../run/x /l/up; ln -sfn /l/target /l/file", config{})
	check(t, "links", v.sh("cat /run/x/m/f /l/target", config{
		files: []*wire.File{{Path: "/l/file", Content: []byte("2"), Mode: 0o600}, {Path: "/l/up/m/f", Content: []byte("1"), Mode: 0o600}},
		spec: func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/run/x", Type: "tmpfs", Source: "tmpfs"})
		}}), "12")
	if err := v.tryCreate("bad", config{args: []string{"true"}, spec: func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/b", Type: "bind", Source: "/run/pod/../work", Options: []string{"rbind"}})
	}}); err == nil || !strings.Contains(err.Error(), "is not below /run/pod") {
		t.Errorf("bind from elsewhere: %v", err)
	}
	if err := v.tryCreate("bad", config{args: []string{"true"}, layers: []string{"nonsense"}}); err == nil || !strings.Contains(err.Error(), "wait for disk nonsense: the VM has none") {
		t.Errorf("unknown disk: %v", err)
	}
}

func testErrors(t *testing.T, v *vm) {
	for _, tt := range []struct {
		args []string
		cwd  string
		user string
		is   func(error) bool
		want string
	}{
		{[]string{"nonsense"}, "", "", errdefs.IsNotFound, `exec: "nonsense": executable file not found in $PATH`},
		{[]string{"/bin/nonsense"}, "", "", errdefs.IsNotFound, `exec: "/bin/nonsense": stat /bin/nonsense: no such file or directory`},
		{[]string{"/etc/plain"}, "", "", errdefs.IsPermissionDenied, `exec: "/etc/plain": permission denied`},
		{[]string{"/etc"}, "", "", errdefs.IsPermissionDenied, `exec: "/etc": is a directory`},
		{[]string{"/bin/broken"}, "", "", errdefs.IsPermissionDenied, "exec /bin/broken: exec format error"},
		{[]string{"true"}, "/etc/plain", "", errdefs.IsInvalidArgument, "start process: change to working directory /etc/plain: not a directory"},
		{[]string{"true"}, "", "nobody", errdefs.IsInvalidArgument, "unable to find user nobody: no matching entries in passwd file"},
		{[]string{"true"}, "", "root:nogroup", errdefs.IsInvalidArgument, "unable to find group nogroup: no matching entries in group file"},
	} {
		v.create("bad", config{args: tt.args, spec: func(s *specs.Spec) {
			if tt.cwd != "" {
				s.Process.Cwd = tt.cwd
			}
		}, files: []*wire.File{{Path: "/bin/broken", Content: []byte("x"), Mode: 0o755}}})
		err := v.tryStart("bad", config{user: tt.user})
		if !tt.is(err) || err.Error() != tt.want {
			t.Errorf("%v: got %v, want %s", tt.args, err, tt.want)
		}
		v.delete("bad")
	}
	v.create("c", config{args: []string{"sleep", "1000"}})
	if err := v.tryCreate("c", config{args: []string{"true"}}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("created twice: %v", err)
	}
	if _, _, err := v.exec("c", process("true"), ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec before start: %v", err)
	}
	if err := v.tryStart("c", config{}); err != nil {
		t.Fatal(err)
	}
	if err := v.tryStart("c", config{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("started twice: %v", err)
	}
	if _, err := v.c.Resize(v.ctx(), &wire.ResizeRequest{ContainerId: "c", Height: 1, Width: 1}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("resize without a terminal: %v", err)
	}
	v.delete("c")
	for _, id := range []string{"", "../x", "a/b", strings.Repeat("x", 200)} {
		if err := v.tryCreate(id, config{args: []string{"true"}}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("id %q: %v", id, err)
		}
	}
}

func testUser(t *testing.T, v *vm) {
	for _, tt := range []struct{ user, want string }{
		{"", "0 0 0 /root\n"},
		{"alice", "1000 1000 100 1000 /home/alice\n"},
		{"1000", "1000 1000 100 1000 /home/alice\n"},
		{"alice:wheel", "1000 10 10 /home/alice\n"},
		{"4242", "4242 0 0 /\n"},
		{"4242:4343", "4242 4343 4343 /\n"},
	} {
		out := v.sh("echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n) $HOME; echo via stdout >/dev/stdout; echo via stderr >/dev/stderr", config{user: tt.user})
		check(t, tt.user, out, tt.want+"via stdout\nvia stderr\n")
	}
}

func testSecurity(t *testing.T, v *vm) {
	caps := "grep -E 'Cap(Prm|Eff|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status | tr -s '\\t\\n' ' '"
	check(t, "capabilities", v.sh(caps, config{}), "CapPrm: 00000000a80425fb CapEff: 00000000a80425fb CapBnd: 00000000a80425fb NoNewPrivs: 0 Seccomp: 0 ")
	check(t, "capabilities of a user", v.sh(caps, config{user: "alice"}), "CapPrm: 0000000000000000 CapEff: 0000000000000000 CapBnd: 00000000a80425fb NoNewPrivs: 0 Seccomp: 0 ")
	check(t, "none", v.sh(caps, config{spec: func(s *specs.Spec) { s.Process.Capabilities = nil; s.Process.NoNewPrivileges = true }}),
		"CapPrm: 0000000000000000 CapEff: 0000000000000000 CapBnd: 0000000000000000 NoNewPrivs: 1 Seccomp: 0 ")
	filter := defaultFilter(t, dockerSpec())
	for _, nnp := range []bool{false, true} {
		out := v.sh("grep -E 'Seccomp:|CapEff' /proc/self/status | tr -s '\\t\\n' ' '; unshare -m true 2>&1; unshare -U true 2>&1; chroot / true && echo fine", config{filter: filter, spec: func(s *specs.Spec) { s.Process.NoNewPrivileges = nnp }})
		check(t, "seccomp", out, "CapEff: 00000000a80425fb Seccomp: 2 unshare: unshare(0x20000): Operation not permitted\nunshare: unshare(0x10000000): Operation not permitted\nfine\n")
	}
	check(t, "seccomp and user", v.sh("id -u; grep Seccomp: /proc/self/status | tr -s '\\t\\n' ' '", config{user: "alice", filter: filter}), "1000\nSeccomp: 2 ")
	check(t, "masked", v.sh("cat /proc/keys; cat /proc/timer_list | wc -c; ls /sys/firmware | wc -l; (echo 1 >/proc/sys/kernel/msgmax) 2>&1; mkdir /sys/fs/cgroup/x 2>&1", config{}),
		"0\n0\nsh: can't create /proc/sys/kernel/msgmax: Read-only file system\nmkdir: can't create directory '/sys/fs/cgroup/x': Read-only file system\n")
	check(t, "rlimits", v.sh("ulimit -n; ulimit -Hn; ulimit -c", config{spec: func(s *specs.Spec) {
		s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 123, Hard: 456}, {Type: "RLIMIT_CORE"}}
	}}), "123\n456\n0\n")
	check(t, "own namespaces", v.sh("hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax; ls /sys/class/net", config{spec: func(s *specs.Spec) {
		s.Hostname = "alone"
		for _, ns := range []specs.LinuxNamespaceType{"uts", "network", "ipc"} {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: ns})
		}
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.msgmax": "1234"}
	}}), "alone\n0\n1234\nlo\n")
	check(t, "pod's name", v.sh("hostname", config{}), "box\n")
}
