package guestinit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/hyper-run/hyper/internal/guest"
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
	out := v.sh(`echo $$; ls /dev | tr '\n' ' '; echo; stat -c '%F %t,%T %a' /dev/null; readlink /dev/fd; readlink /dev/ptmx; ls /proc | grep -c '^[0-9]'
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
3
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
	withProfile := func(nnp bool) func(*specs.Spec) {
		return func(s *specs.Spec) {
			p, err := seccomp.GetDefaultProfile(s)
			if err != nil {
				t.Fatal(err)
			}
			s.Linux.Seccomp, s.Process.NoNewPrivileges = p, nnp
		}
	}
	for _, nnp := range []bool{false, true} {
		out := v.sh("grep -E 'Seccomp:|CapEff' /proc/self/status | tr -s '\\t\\n' ' '; unshare -m true 2>&1; unshare -U true 2>&1; chroot / true && echo fine", config{spec: withProfile(nnp)})
		check(t, "seccomp", out, "CapEff: 00000000a80425fb Seccomp: 2 unshare: unshare(0x20000): Operation not permitted\nunshare: unshare(0x10000000): Operation not permitted\nfine\n")
	}
	check(t, "seccomp and user", v.sh("id -u; grep Seccomp: /proc/self/status | tr -s '\\t\\n' ' '", config{user: "alice", spec: withProfile(false)}), "1000\nSeccomp: 2 ")
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

func random(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{7}), n)
}

func testStdio(t *testing.T, v *vm) {
	const size = 20 << 20
	v.start("io", config{args: []string{"cat"}, stdin: true})
	defer v.delete("io")
	in, err := v.c.Stdin(v.ctx(), "io", "")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	want := sha256.New()
	go func() {
		io.Copy(io.MultiWriter(in, want), random(size))
		in.Close()
		v.c.CloseStdin(context.Background(), &wire.CloseStdinRequest{ContainerId: "io"})
	}()
	o, err := v.c.Output(v.ctx(), "io", "", wire.StreamHeader_STDOUT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	got := sha256.New()
	n, err := copyAcking(got, o, 0)
	if err != nil || n != size || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Errorf("%d bytes, %v", n, err)
	}
	d := time.Since(start)
	t.Logf("20 MiB in and out: %v, %.1f MB/s each way", d.Round(time.Millisecond), size/1e6/d.Seconds())
	if w := v.wait("io", ""); w.ExitCode != 0 {
		t.Errorf("exit %v", w)
	}
	check(t, "no stdin", v.sh("cat; echo end; readlink /proc/self/fd/0", config{}), "end\n/dev/null\n")
}

func testTerminal(t *testing.T, v *vm) {
	c := config{tty: true, stdin: true, args: []string{"sh", "-c", `tty; stty size; ls -l /dev/console | cut -c1; trap 'stty size' WINCH; read x; echo got $x; sleep 1000 & wait`},
		spec: func(s *specs.Spec) { s.Process.ConsoleSize = &specs.Box{Height: 11, Width: 22} }}
	v.start("tty", c)
	defer v.delete("tty")
	o, err := v.c.Output(v.ctx(), "tty", "", wire.StreamHeader_STDOUT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	expect := func(want string) {
		t.Helper()
		b := make([]byte, len(want))
		n, err := io.ReadFull(o, b)
		if string(b[:n]) != want {
			t.Fatalf("got %q, %v, want %q", b[:n], err, want)
		}
	}
	expect("/dev/pts/0\r\n11 22\r\nc\r\n")
	in, err := v.c.Stdin(v.ctx(), "tty", "")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	io.WriteString(in, "line\n")
	expect("line\r\ngot line\r\n")
	if _, err := v.c.Resize(v.ctx(), &wire.ResizeRequest{ContainerId: "tty", Height: 33, Width: 44}); err != nil {
		t.Fatal(err)
	}
	expect("33 44\r\n")
	io.WriteString(in, "\x03")
	expect("^C")
	if w := v.wait("tty", ""); w.ExitCode != 130 {
		t.Errorf("after Ctrl-C: %v", w)
	}
	if b, err := io.ReadAll(o); err != nil {
		t.Errorf("end of output: %q, %v", b, err)
	}
}

func testSignals(t *testing.T, v *vm) {
	v.start("sig", config{args: []string{"sh", "-c", "trap 'echo term; exit 7' TERM; echo ready; while :; do sleep 1; done"}})
	o, err := v.c.Output(v.ctx(), "sig", "", wire.StreamHeader_STDOUT, 0)
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(o, make([]byte, 6))
	o.Close()
	if _, err := v.c.Signal(v.ctx(), &wire.SignalRequest{ContainerId: "sig", Signal: 15}); err != nil {
		t.Fatal(err)
	}
	if w := v.wait("sig", ""); w.ExitCode != 7 || w.Signal != 0 {
		t.Errorf("TERM: %v", w)
	}
	if _, err := v.c.Signal(v.ctx(), &wire.SignalRequest{ContainerId: "sig", Signal: 15}); !errdefs.IsNotFound(err) {
		t.Errorf("signal to the dead: %v", err)
	}
	check(t, "output of the dead", v.output("sig", "", wire.StreamHeader_STDOUT), "ready\nterm\n")
	v.delete("sig")
	for _, all := range []bool{false, true} {
		v.start("sig", config{args: []string{"sleep", "1000"}})
		if _, err := v.c.Signal(v.ctx(), &wire.SignalRequest{ContainerId: "sig", Signal: 9, All: all}); err != nil {
			t.Fatal(err)
		}
		if w := v.wait("sig", ""); w.ExitCode != 137 || w.Signal != 9 || w.OomKilled {
			t.Errorf("KILL, all %v: %v", all, w)
		}
		v.delete("sig")
	}
	if _, err := v.c.Signal(v.ctx(), &wire.SignalRequest{ContainerId: "none", Signal: 9, All: true}); !errdefs.IsNotFound(err) {
		t.Errorf("no container: %v", err)
	}
}

func testExec(t *testing.T, v *vm) {
	v.start("c", config{args: []string{"sleep", "1000"}})
	defer v.delete("c")
	out, w, err := v.exec("c", process("sh", "-c", "id -u; cat /proc/self/cgroup; ls /proc | grep -c ^1$; exit 3"), "alice")
	if err != nil || w.ExitCode != 3 || out != "1000\n0::/\n1\n" {
		t.Errorf("got %q, %v, %v", out, w, err)
	}
	if _, _, err := v.exec("c", process("nonsense"), ""); !errdefs.IsNotFound(err) {
		t.Errorf("unknown: %v", err)
	}
	p := process("true")
	p.Cwd = "/not/there"
	if _, _, err := v.exec("c", p, ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no directory: %v", err)
	}
	start := time.Now()
	out, _, err = v.exec("c", process("sh", "-c", "sleep 500 & echo started"), "")
	if err != nil || out != "started\n" {
		t.Errorf("orphan: %q, %v", out, err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("an orphan held the exec for %v", d)
	}
	tty := process("sh", "-c", "tty; test -t 0 -a -t 1 -a -t 2 && echo yes")
	tty.Terminal = true
	b, _ := json.Marshal(tty)
	if _, err := v.c.StartProcess(v.ctx(), &wire.StartProcessRequest{ContainerId: "c", ExecId: "tty", Process: b}); err != nil {
		t.Fatal(err)
	}
	check(t, "terminal", v.output("c", "tty", wire.StreamHeader_STDOUT), "/dev/pts/0\r\nyes\r\n")
	// When the container's own process ends, all others do.
	b, _ = json.Marshal(process("sleep", "1000"))
	if _, err := v.c.StartProcess(v.ctx(), &wire.StartProcessRequest{ContainerId: "c", ExecId: "late", Process: b}); err != nil {
		t.Fatal(err)
	}
	v.c.Signal(v.ctx(), &wire.SignalRequest{ContainerId: "c", Signal: 9})
	if w := v.wait("c", "late"); w.ExitCode != 137 {
		t.Errorf("outlived its container: %v", w)
	}
	if _, _, err := v.exec("c", process("true"), ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in the dead: %v", err)
	}
}

func testLimits(t *testing.T, v *vm) {
	limit, pids, quota, shares := int64(32<<20), int64(5), int64(50000), uint64(512)
	resources := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}, Pids: &specs.LinuxPids{Limit: &pids},
		CPU: &specs.LinuxCPU{Quota: &quota, Shares: &shares}, Unified: map[string]string{"memory.high": "31457280"}}
	v.start("c", config{args: []string{"sleep", "1000"}, spec: func(s *specs.Spec) { s.Linux.Resources = resources }})
	defer v.delete("c")
	out, _, err := v.exec("c", process("sh", "-c", "cd /sys/fs/cgroup; cat memory.max memory.swap.max memory.high pids.max cpu.max cpu.weight; for i in 1 2 3 4 5 6; do sleep 1 & done 2>&1; wait"), "")
	if err != nil || !strings.HasPrefix(out, "33554432\n0\n31457280\n5\n50000 100000\n20\n") || !strings.Contains(out, "can't fork") {
		t.Errorf("got %q, %v", out, err)
	}
	more := int64(64 << 20)
	b, _ := json.Marshal(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &more}})
	if _, err := v.c.Update(v.ctx(), &wire.UpdateRequest{ContainerId: "c", Resources: b}); err != nil {
		t.Fatal(err)
	}
	st, err := v.c.Stats(v.ctx(), &wire.StatsRequest{ContainerId: "c"})
	if err != nil {
		t.Fatal(err)
	}
	if st.MemoryLimitBytes != 64<<20 || st.PidsLimit != 5 || st.Pids == 0 || st.CpuUsageNanos == 0 || st.SystemCpuNanos < st.CpuUsageNanos ||
		st.MemoryBytes == 0 || st.MemoryStat["anon"] == 0 || st.OnlineCpus != 1 || st.OomKills != 0 {
		t.Errorf("stats %v", st)
	}
}

func testDevices(t *testing.T, v *vm) {
	n := func(i int64) *int64 { return &i }
	script := `head -c 3 /dev/zero | wc -c; echo x >/dev/null && echo null; head -c 1 /dev/full; mknod /tmp/disk b 254 0 && echo made; head -c 1 /tmp/disk; rm /tmp/disk`
	check(t, "rules", v.sh(script, config{noUpper: true, spec: func(s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
			{Access: "rwm"},
			{Allow: true, Type: "b", Access: "m"}, {Allow: true, Type: "c", Access: "m"},
			{Allow: true, Type: "c", Major: n(1), Access: "rwm"},
			{Type: "c", Major: n(1), Minor: n(7), Access: "r"},
		}}
	}}), "3\nnull\nmade\nhead: /dev/full: Operation not permitted\nhead: /tmp/disk: Operation not permitted\n")
}

func testNetwork(t *testing.T, v *vm) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "from the host\n")
			c.Close()
		}
	}()
	req := &wire.ConfigureRequest{
		Interfaces: []*wire.Interface{{Mac: "52:54:00:12:34:56", Name: "net0", Addresses: []string{"10.0.2.15/24", "fd00::15/64"}, Mtu: 1400}},
		Routes:     []*wire.Route{{Gateway: "10.0.2.2", Interface: "net0"}, {Destination: "192.0.2.0/24", Gateway: "10.0.2.3"}, {Destination: "fd01::/64", Gateway: "fd00::2"}},
	}
	for range 2 { // it can be repeated
		if _, err := v.c.Configure(v.ctx(), req); err != nil {
			t.Fatal(err)
		}
	}
	out := v.sh(fmt.Sprintf("ip -o addr show net0 scope global | tr -s ' ' | cut -d' ' -f4,6; cat /sys/class/net/net0/mtu; ip route; ip -6 route | grep fd01 | cut -d' ' -f1-5; nc 10.0.2.2 %d </dev/null", l.Addr().(*net.TCPAddr).Port), config{})
	check(t, "network", out, "10.0.2.15/24 10.0.2.255\nfd00::15/64 global\n1400\ndefault via 10.0.2.2 dev net0 \n10.0.2.0/24 dev net0 scope link  src 10.0.2.15 \n"+
		"192.0.2.0/24 via 10.0.2.3 dev net0 \nfd01::/64 via fd00::2 dev net0\nfrom the host\n")
	v.start("c", config{args: []string{"sleep", "1000"}})
	defer v.delete("c")
	st, err := v.c.Stats(v.ctx(), &wire.StatsRequest{ContainerId: "c"})
	if err != nil || len(st.Interfaces) != 1 || st.Interfaces[0].Name != "net0" || st.Interfaces[0].RxBytes == 0 || st.Interfaces[0].TxPackets == 0 {
		t.Errorf("stats %v, %v", st.GetInterfaces(), err)
	}
}

func testOOM(t *testing.T, v *vm) {
	ctx, cancel := context.WithCancel(v.ctx())
	defer cancel()
	events, err := v.c.Events(ctx, &wire.EventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	limit := int64(8 << 20)
	out, w := v.run(config{args: []string{"sh", "-c", "echo eating; exec tail -c 100m /dev/zero"}, spec: func(s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}
	}})
	if out != "eating\n" || w.ExitCode != 137 || !w.OomKilled {
		t.Errorf("got %q, %v", out, w)
	}
	e, err := events.Recv()
	if err != nil || e.Kind != "oom" || e.ContainerId != "run" {
		t.Errorf("event %v, %v", e, err)
	}
}

func testPause(t *testing.T, v *vm) {
	v.start("c", config{args: []string{"sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; usleep 10000; done"}})
	defer v.delete("c")
	o, err := v.c.Output(v.ctx(), "c", "", wire.StreamHeader_STDOUT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	io.ReadFull(o, make([]byte, 4))
	for range 2 {
		if _, err := v.c.Pause(v.ctx(), &wire.PauseRequest{ContainerId: "c"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := v.exec("c", process("true"), ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec while paused: %v", err)
	}
	read := make(chan int, 1000)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := o.Read(b)
			if err != nil {
				return
			}
			read <- n
		}
	}()
	time.Sleep(100 * time.Millisecond)
	for len(read) > 0 {
		<-read
	}
	select {
	case <-read:
		t.Error("output while paused")
	case <-time.After(300 * time.Millisecond):
	}
	if _, err := v.c.Resume(v.ctx(), &wire.ResumeRequest{ContainerId: "c"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-read:
	case <-time.After(10 * time.Second):
		t.Error("no output after resume")
	}
	if _, err := v.c.Pause(v.ctx(), &wire.PauseRequest{ContainerId: "c"}); err != nil { // delete works all the same
		t.Fatal(err)
	}
}

func testTop(t *testing.T, v *vm) {
	v.start("c", config{user: "alice", args: []string{"sh", "-c", "sleep 1000 & exec sleep 2000"}})
	defer v.delete("c")
	var ps *wire.ProcessesResponse
	for range 100 {
		var err error
		if ps, err = v.c.Processes(v.ctx(), &wire.ProcessesRequest{ContainerId: "c"}); err != nil {
			t.Fatal(err)
		}
		if len(ps.Processes) == 2 && len(ps.Processes[0].Args) == 2 && len(ps.Processes[1].Args) == 2 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(ps.Processes) != 2 {
		t.Fatalf("got %v", ps)
	}
	p, child := ps.Processes[0], ps.Processes[1]
	if p.Ppid != 1 || child.Ppid != p.Pid || p.ContainerPid != 1 || p.User != "alice" || p.Uid != 1000 || !strings.Contains("SRD", p.State) || p.Tty != "?" ||
		strings.Join(p.Args, " ") != "sleep 2000" || p.VsizeBytes == 0 || p.RssBytes == 0 {
		t.Errorf("got %v", ps)
	}
}

// The host goes away in the middle of output, without a word, and comes back.
func testReconnect(t *testing.T, v *vm) {
	v.start("c", config{args: []string{"sh", "-c", "cat"}, stdin: true})
	defer v.delete("c")
	in, err := v.c.Stdin(v.ctx(), "c", "")
	if err != nil {
		t.Fatal(err)
	}
	v.start2("gen", []string{"sh", "-c", "i=0; while [ $i -lt 60000 ]; do echo line $i of sixty thousand; i=$((i+1)); done"})
	defer v.delete("gen")
	io.WriteString(in, "before ")
	got := sha256.New()
	var at uint64
	for round := 0; ; round++ {
		o, err := v.c.Output(v.ctx(), "gen", "", wire.StreamHeader_STDOUT, at)
		if err != nil {
			t.Fatal(err)
		}
		n, err := copyUntil(got, o, at, 150000)
		at = n
		if err == io.EOF {
			o.Close()
			break
		}
		if err != nil {
			t.Fatalf("round %d at %d: %v", round, at, err)
		}
		v.c.Close() // the socket is closed under a stream in full flow
		v.connect()
	}
	want := sha256.New()
	for i := range 60000 {
		fmt.Fprintf(want, "line %d of sixty thousand\n", i)
	}
	check(t, fmt.Sprintf("%d bytes", at), hex.EncodeToString(got.Sum(nil)), hex.EncodeToString(want.Sum(nil)))
	if w := v.wait("gen", ""); w.ExitCode != 0 {
		t.Errorf("exit %v", w)
	}
	if in, err = v.c.Stdin(v.ctx(), "c", ""); err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, "after")
	if _, err := v.c.CloseStdin(v.ctx(), &wire.CloseStdinRequest{ContainerId: "c"}); err != nil {
		t.Fatal(err)
	}
	check(t, "input", v.output("c", "", wire.StreamHeader_STDOUT), "before after")
}

// The host goes away in the middle of input. What the process reads is what
// was sent, without gaps inside and without anything of the link's own.
func testReconnectInput(t *testing.T, v *vm) {
	v.start("c", config{args: []string{"sh", "-c", "tr -d 'a\n' | od -c | head"}, stdin: true})
	defer v.delete("c")
	for range 6 {
		in, err := v.c.Stdin(v.ctx(), "c", "")
		if err != nil {
			t.Fatal(err)
		}
		wrote := make(chan int64)
		go func() {
			n, _ := io.Copy(in, strings.NewReader(strings.Repeat("a", 8<<20)))
			wrote <- n
		}()
		time.Sleep(time.Duration(20+rand.IntN(100)) * time.Millisecond)
		v.c.Close()
		if n := <-wrote; n == 8<<20 {
			t.Log("all was written before the connection was closed")
		}
		v.connect()
	}
	if _, err := v.c.CloseStdin(v.ctx(), &wire.CloseStdinRequest{ContainerId: "c"}); err != nil {
		t.Fatal(err)
	}
	check(t, "what is neither of the input", v.output("c", "", wire.StreamHeader_STDOUT), "0000000\n")
}

func testParallel(t *testing.T, v *vm) {
	v.start("c", config{args: []string{"sleep", "1000"}})
	defer v.delete("c")
	var wg sync.WaitGroup
	for w := range 10 {
		wg.Go(func() {
			for i := range 10 {
				id, want := fmt.Sprintf("p%d-%d", w, i), strings.Repeat(fmt.Sprint(w, i), 5000)+"\n"
				b, _ := json.Marshal(process("echo", strings.TrimSpace(want)))
				ctx := context.Background()
				if _, err := v.c.StartProcess(ctx, &wire.StartProcessRequest{ContainerId: "c", ExecId: id, Process: b}); err != nil {
					t.Error(err)
					return
				}
				o, err := v.c.Output(ctx, "c", id, wire.StreamHeader_STDOUT, 0)
				if err != nil {
					t.Error(err)
					return
				}
				var got bytes.Buffer
				_, err = copyAcking(&got, o, 0)
				o.Close()
				if err != nil || got.String() != want {
					t.Errorf("%s: %d bytes, %v", id, got.Len(), err)
				}
				if r, err := v.c.Wait(ctx, &wire.WaitRequest{ContainerId: "c", ExecId: id}); err != nil || r.ExitCode != 0 {
					t.Errorf("%s: %v, %v", id, r, err)
				}
			}
		})
	}
	wg.Wait()
}

func copyUntil(w io.Writer, o *guest.Output, at, n uint64) (uint64, error) {
	buf := make([]byte, 10000)
	for end := at + n; at < end; {
		n, err := o.Read(buf)
		w.Write(buf[:n])
		at += uint64(n)
		o.Ack(at)
		if err != nil {
			return at, err
		}
	}
	return at, nil
}

func (v *vm) start2(id string, args []string) {
	v.t.Helper()
	v.start(id, config{args: args, noUpper: true})
}

func testInit(t *testing.T, v *vm) {
	out, w := v.run(config{init: true, args: []string{"sh", "-c", "echo $$ $(cat /proc/1/comm); (sleep 0.1 &) ; exit 9"}})
	if w.ExitCode != 9 || !strings.HasSuffix(out, " init\n") {
		t.Errorf("got %q, %v", out, w)
	}
	_, w = v.run(config{init: true, args: []string{"nonsense"}})
	if w.ExitCode != 127 {
		t.Errorf("unknown program: %v", w)
	}
	v.start("c", config{init: true, args: []string{"sleep", "1000"}})
	defer v.delete("c")
	time.Sleep(200 * time.Millisecond)
	if _, err := v.c.Signal(v.ctx(), &wire.SignalRequest{ContainerId: "c", Signal: 15}); err != nil {
		t.Fatal(err)
	}
	if w := v.wait("c", ""); w.ExitCode != 143 {
		t.Errorf("TERM through init: %v", w)
	}
}

// info asks hyperstart what it holds.
func (v *vm) info() *wire.InfoResponse {
	v.t.Helper()
	info, err := v.c.Info(v.ctx(), &wire.InfoRequest{})
	if err != nil {
		v.t.Fatal(err)
	}
	return info
}

func testLeaks(t *testing.T, v *vm) {
	v.sh("true", config{})
	before := v.info()
	for range 20 {
		v.sh("true", config{})
	}
	const n = 200
	start := time.Now()
	for range n {
		v.c.Resize(v.ctx(), &wire.ResizeRequest{ContainerId: "none"})
	}
	t.Logf("a call that does nothing: %v each", (time.Since(start) / n).Round(10*time.Microsecond))
	v.start("c", config{args: []string{"sleep", "1000"}})
	const mounts = "grep -c . /proc/mounts"
	atStart, _, _ := v.exec("c", process("sh", "-c", mounts), "")
	start = time.Now()
	for range n {
		if _, w, err := v.exec("c", process("true"), ""); err != nil || w.ExitCode != 0 {
			t.Fatalf("%v, %v", w, err)
		}
	}
	t.Logf("exec of true with its output: %v each", (time.Since(start) / n).Round(10*time.Microsecond))
	start = time.Now()
	b, _ := json.Marshal(process("true"))
	for i := range n {
		if _, err := v.c.StartProcess(v.ctx(), &wire.StartProcessRequest{ContainerId: "c", ExecId: fmt.Sprint("x", i), Process: b}); err != nil {
			t.Fatal(err)
		}
		v.wait("c", fmt.Sprint("x", i))
	}
	t.Logf("exec of true and wait: %v each", (time.Since(start) / n).Round(10*time.Microsecond))
	now, _, err := v.exec("c", process("sh", "-c", mounts), "")
	if err != nil || now != atStart {
		t.Errorf("mounts in the container: %q at the start, %q now, %v", atStart, now, err)
	}
	v.delete("c")
	time.Sleep(2500 * time.Millisecond) // the grace for orphans keeps pipes open
	after := v.info()
	t.Logf("before %v\nafter %v", before, after)
	if after.Descriptors > before.Descriptors || after.Processes != 1 {
		t.Errorf("descriptors %d before, %d after; processes %d", before.Descriptors, after.Descriptors, after.Processes)
	}
}

func testIdle(t *testing.T, v *vm) {
	time.Sleep(3 * time.Second)
	anon := v.info().AnonBytes
	t.Logf("idle: %d KiB anonymous", anon>>10)
	if anon > 4<<20 {
		t.Errorf("%d KiB, more than 4 MiB", anon>>10)
	}
}
