package guestinit_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// TestPod shares one VM between tests of containers that share it.
func TestPod(t *testing.T) {
	t.Parallel()
	v := startPodVM(t)
	for _, tt := range []struct {
		name string
		f    func(*testing.T, *vm)
	}{
		{"Together", testTogether}, {"PIDs", testPIDs}, {"Volumes", testVolumes}, {"IOLimit", testIOLimit}, {"Stats", testStats},
		{"CPUSet", testCPUSet}, {"Bounds", testBounds}, {"OOMDetail", testOOMDetail}, {"Dial", testDial}, {"Plug", testPlug}, {"Swap", testSwap},
		{"Many", testMany}, {"Hogs", testHogs},
	} {
		t.Run(tt.name, func(t *testing.T) {
			outer, q := v.t, v.q.v
			v.t = t
			defer func() { v.t, v.q.v = outer, q }()
			tt.f(t, v)
		})
	}
	testPodShutdown(t, v)
}

// do runs a script in a running container and returns its output.
func (v *vm) do(id, script string) string {
	v.t.Helper()
	out, _, err := v.exec(id, process("sh", "-c", script), "")
	if err != nil {
		v.t.Fatal(err)
	}
	return out
}

const forever = "sleep 1000000"

// idle starts a container that does nothing.
func (v *vm) idle(id string, c config) {
	v.t.Helper()
	if c.args == nil {
		c.args = strings.Fields(forever)
	}
	v.start(id, c)
}

func bind(source, dest string, options ...string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: source, Options: append(options, "rbind")})
	}
}

func testTogether(t *testing.T, v *vm) {
	v.configure(&wire.ConfigureRequest{Hostname: "pod", Sysctls: map[string]string{"kernel.msgmax": "4321"}})
	var wg sync.WaitGroup
	var errs [podDisks]error
	for i := range podDisks {
		wg.Go(func() {
			id, c := fmt.Sprint("c", i), config{disk: podDisk(i), args: strings.Fields(forever)}
			if errs[i] = v.tryCreate(id, c); errs[i] == nil {
				errs[i] = v.tryStart(id, c)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	shared := map[string]string{}
	for i := range podDisks {
		id := fmt.Sprint("c", i)
		v.do(id, "echo "+id+" >/own; echo "+id+" >/dev/shm/"+id+"; : >/dev/mqueue/"+id)
		shared[v.do(id, "readlink /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts; hostname; cat /proc/sys/kernel/msgmax")] = id
		check(t, "processes of "+id, v.do(id, "ps -o args | grep -c '^sleep'; cat /proc/1/comm"), "1\nsleep\n")
	}
	if len(shared) != 1 {
		t.Errorf("namespaces differ: %v", shared)
	}
	for i := range podDisks {
		check(t, "seen", v.do(fmt.Sprint("c", i), "cat /own; cd /dev/shm; cat c*; ls /dev/mqueue"), fmt.Sprintf("c%d\nc0\nc1\nc2\nc0\nc1\nc2\n", i))
	}
	// One goes, the others stay, and its name is free.
	b, _ := json.Marshal(process("nc", "-l", "-p", "7000", "-e", "cat", "/own"))
	if _, err := v.c.StartProcess(v.ctx(), &wire.StartProcessRequest{ContainerId: "c0", ExecId: "nc", Process: b}); err != nil {
		t.Fatal(err)
	}
	v.delete("c1")
	check(t, "localhost", v.do("c2", "for i in 1 2 3 4 5; do nc 127.0.0.1 7000 </dev/null && break; sleep 1; done"), "c0\n")
	v.idle("c1", config{disk: podDisk(1)})
	check(t, "again", v.do("c1", "cat /own; cat /dev/shm/c1"), "c1\nc1\n")
	if info := v.info(); strings.Join(info.Containers, " ") != "c0 c1 c2" {
		t.Errorf("got %v", info)
	}
	v.delete("c1")
	v.idle("c1", config{disk: podDisk(1), spec: func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "ipc"})
	}})
	check(t, "own IPC", v.do("c1", "ls /dev/mqueue; cat /proc/sys/kernel/msgmax; hostname"), "8192\npod\n")
	for i := range podDisks {
		v.delete(fmt.Sprint("c", i))
	}
	v.sh("rm /dev/shm/*", config{})
}

func testPIDs(t *testing.T, v *vm) {
	const ns = "readlink /proc/self/ns/pid"
	v.idle("a", config{pids: "pod"})
	v.idle("b", config{pids: "pod", disk: podDisk(1), args: []string{"sh", "-c", "sleep 2000000 & " + forever}})
	check(t, "the pod's", v.do("a", ns), v.do("b", ns))
	ps := v.do("a", "ps -o pid,args")
	if !strings.Contains(ps, " 1 {memfd:pod-init} pod-init\n") || strings.Count(ps, forever) != 2 || !strings.Contains(ps, "sleep 2000000") {
		t.Errorf("a sees %s", ps)
	}
	check(t, "own root and mounts", v.do("a", "ls -A /proc/1/root/ 2>&1"), "ls: /proc/1/root/: Permission denied\n")
	// An orphan is reaped by the namespace's init.
	check(t, "orphan", v.do("a", "(sleep 0.1 & exit 0); sleep 0.5; ps -o stat,args | grep -c '^Z'"), "0\n")
	// A container's end is that of all its processes, and of no others.
	v.c.Signal(v.ctx(), &wire.SignalRequest{ContainerId: "b", Signal: 9})
	if w := v.wait("b", ""); w.ExitCode != 137 {
		t.Errorf("exit %v", w)
	}
	if ps := v.do("a", "ps -o pid,args"); strings.Contains(ps, "sleep 2000000") || !strings.Contains(ps, forever) {
		t.Errorf("after b has ended, a sees %s", ps)
	}
	if _, _, err := v.exec("b", process("true"), ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in the dead: %v", err)
	}
	if err := v.tryCreate("c", config{pids: "b", noUpper: true, args: []string{"true"}}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "container b: it is not running") {
		t.Errorf("joining the dead: %v", err)
	}
	if err := v.tryCreate("c", config{pids: "nobody", noUpper: true, args: []string{"true"}}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("joining nobody: %v", err)
	}
	v.delete("b")
	testJoinedPIDs(t, v)
	testVMPIDs(t, v)
}

func testJoinedPIDs(t *testing.T, v *vm) {
	v.idle("own", config{disk: podDisk(1)})
	v.idle("joins", config{pids: "own", disk: podDisk(2), init: true, args: []string{"sh", "-c", "sleep 3000000 & " + forever}})
	const sleeps = "ps -o args | grep -c '[s]leep .*000000'"
	check(t, "joined", v.do("joins", "for i in $(seq 50); do n=$("+sleeps+"); [ $n = 3 ] && break; usleep 100000; done; echo $n"), "3\n") // the shell may not be through yet
	check(t, "first", v.do("joins", "cat /proc/1/cmdline | tr '\\0' ' '"), forever+" ")
	// Delete kills what is in the cgroup, not the namespace.
	v.delete("joins")
	check(t, "left", v.do("own", sleeps), "1\n")
	v.idle("joins", config{pids: "own", disk: podDisk(2)})
	v.c.Signal(v.ctx(), &wire.SignalRequest{ContainerId: "own", Signal: 9})
	if w := v.wait("joins", ""); w.ExitCode != 137 {
		t.Errorf("outlived its namespace: %v", w)
	}
	v.delete("own")
	v.delete("joins")
	v.idle("own", config{disk: podDisk(1)})
	v.create("joins", config{pids: "own", disk: podDisk(2), args: []string{"true"}})
	v.delete("own")
	if err := v.tryStart("joins", config{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("started in a namespace that has gone: %v", err)
	}
	v.delete("joins")
}

func testVMPIDs(t *testing.T, v *vm) {
	v.idle("vm", config{pids: "vm", disk: podDisk(1), args: []string{"sh", "-c", "sleep 4000000 & " + forever}})
	ps := v.do("vm", "ps -o pid,args")
	if !strings.Contains(ps, "/init") || !strings.Contains(ps, "[kthreadd]") || !strings.Contains(ps, "pod-init") {
		t.Errorf("the VM's processes: %s", ps)
	}
	v.do("vm", "for s in HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STOP TSTP URG SYS 33 40 64; do kill -$s 1; done")
	check(t, "processes", fmt.Sprint(v.info().Processes), "5") // hyperstart, the pod's init, a, and two of vm's
	// Without its init the pod's namespace is no more, and is made anew.
	v.do("vm", "kill -9 $(pidof pod-init)")
	if w := v.wait("a", ""); w.ExitCode != 137 {
		t.Errorf("exit %v", w)
	}
	v.delete("a")
	v.idle("a", config{pids: "pod"})
	check(t, "init", v.do("a", "cat /proc/1/cmdline"), "pod-init\x00")
	v.delete("a")
	v.delete("vm")
}

func testVolumes(t *testing.T, v *vm) {
	files := []*wire.File{{Path: "key", Content: []byte("value"), Mode: 0o644}, {Path: "d/secret", Content: []byte("s"), Mode: 0o400}}
	volumes := []*wire.Volume{
		{Name: "disk", Disk: podVolume, Mode: 0o770, Gid: 100},
		{Name: "memory", Bytes: 1 << 20},
		{Name: "config", Files: files, Gid: 10},
	}
	for range 2 { // it can be repeated
		v.configure(&wire.ConfigureRequest{Volumes: volumes})
	}
	mounts := func(s *specs.Spec) {
		bind("/run/pod/volumes/disk", "/disk")(s)
		bind("/run/pod/volumes/memory", "/memory")(s)
		bind("/run/pod/volumes/config", "/config", "rw")(s)
		bind("/run/pod/volumes/config/key", "/etc/key")(s)
		bind("/run/pod/volumes/disk/a/b", "/sub")(s)
		bind("/run/pod/volumes/disk", "/ro", "ro")(s)
	}
	v.idle("a", config{spec: mounts})
	v.idle("b", config{spec: mounts, disk: podDisk(1)})
	check(t, "modes", v.do("a", "stat -c '%n %a %u %g %s' /memory /config /config/key /config/d/secret; stat -c '%n %a %u %g' /disk /sub"),
		"/memory 777 0 0 40\n/config 2777 0 10 80\n/config/key 644 0 10 5\n/config/d/secret 400 0 10 1\n/disk 2770 0 100\n/sub 2770 0 100\n")
	check(t, "size", v.do("a", "df -k /memory | tail -1 | tr -s ' ' | cut -d' ' -f2"), "1024\n")
	check(t, "files", v.do("a", "cat /etc/key /config/d/secret; (echo x >/config/key) 2>&1; (echo x >/config/new) 2>&1; (echo x >/etc/key) 2>&1; (: >/ro/x) 2>&1"),
		"values"+
			"sh: can't create /config/key: Read-only file system\nsh: can't create /config/new: Read-only file system\n"+
			"sh: can't create /etc/key: Read-only file system\nsh: can't create /ro/x: Read-only file system\n")
	v.do("a", "echo 1 >/disk/f; echo 2 >/memory/f; echo 3 >/sub/f")
	check(t, "shared", v.do("b", "cat /disk/f /memory/f /disk/a/b/f; stat -c %g /disk/f; ls /disk"), "1\n2\n3\n100\na\nf\n")
	testHostileVolume(t, v)
	v.delete("b")
	check(t, "while a container goes", v.do("a", "cat /disk/f"), "1\n")
	v.delete("a")
	check(t, "after the containers", v.sh("cat /disk/f /memory/f", config{spec: mounts}), "1\n2\n")
	for want, volume := range map[string]*wire.Volume{
		`volume "../x": bad name`: {Name: "../x"}, `volume "": bad name`: {}, `volume "A": bad name`: {Name: "A"},
		"volume n: mount disk layer0":                {Name: "n", Disk: "layer0"},
		"volume n: put file ../..: bad path or mode": {Name: "n", Files: []*wire.File{{Path: "../.."}}},
	} {
		_, err := v.c.Configure(v.ctx(), &wire.ConfigureRequest{Volumes: []*wire.Volume{volume}})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", volume, err)
		}
	}
	for _, source := range []string{"/run/pod/volumes/n", "/run/pod/volumes/", "/run/pod/volumes", "/run/pod/volumes/../volumes/disk", "/run/pod/x/../volumes/disk"} {
		err := v.tryCreate("c", config{noUpper: true, args: []string{"true"}, spec: bind(source, "/v")})
		if err == nil || !strings.Contains(err.Error(), "volume") {
			t.Errorf("%s: %v", source, err)
		}
	}
	if err := v.tryCreate("c", config{noUpper: true, args: []string{"true"}, spec: bind("/run/pod/volumes/nothere/x", "/v")}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `the pod has no volume "nothere"`) {
		t.Errorf("unknown volume: %v", err)
	}
}

// Links that a container puts into a volume lead nowhere else.
func testHostileVolume(t *testing.T, v *vm) {
	v.do("a", `cd /memory; mkdir real; echo in >real/f; ln -s /proc p; ln -s ../../../.. up; ln -s /real abs; ln -s /run/pod/shm shm; ln -s loop loop; mkfifo fifo; ln -s /etc/passwd file`)
	for sub, want := range map[string]string{
		"abs": "f\n", "up/real": "f\n", "up/run": "", "../../../real": "f\n", "p": "error", "shm": "error", "loop": "error", "file": "error", "file/x": "error",
		"fifo": "/v\n", "real/f": "/v\n", "real/f/x": "error", "../disk": "",
	} {
		c := config{noUpper: true, args: []string{"ls", "/v"}, spec: bind("/run/pod/volumes/memory/"+sub, "/v")}
		if err := v.tryCreate("h", c); err != nil {
			if want != "error" {
				t.Errorf("%s: %v", sub, err)
			}
			continue
		}
		if err := v.tryStart("h", c); err != nil {
			t.Errorf("%s: %v", sub, err)
		}
		check(t, sub, v.output("h", "", wire.StreamHeader_STDOUT), want)
		v.delete("h")
	}
}

// shutdown leaves clean disks.
func testPodShutdown(t *testing.T, v *vm) {
	v.idle("last", config{disk: podDisk(1), spec: bind("/run/pod/volumes/disk", "/disk")})
	v.do("last", "echo kept >/disk/kept")
	if _, err := v.c.Shutdown(v.ctx(), &wire.ShutdownRequest{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-v.exited:
	case <-time.After(10 * time.Second):
		t.Error("the VM still runs")
	}
	file := v.dir + "/" + podVolume + ".ext4"
	out, err := exec.Command("dumpe2fs", "-h", file).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("needs_recovery")) {
		t.Errorf("the volume was not unmounted: %v", err)
	}
	if got, err := exec.Command("debugfs", "-R", "cat /upper/kept", file).Output(); string(got) != "kept\n" {
		t.Errorf("in the volume: %q, %v", got, err)
	}
}

func testSwap(t *testing.T, v *vm) {
	layers := []string{"layer0", swapSlot}
	which := func(want string) {
		t.Helper()
		check(t, "content", v.sh("cat /which", config{layers: layers}), want+"\n")
	}
	which("one")
	v.idle("a", config{layers: layers})
	v.idle("b", config{layers: layers, disk: podDisk(1)})
	check(t, "in use", v.do("a", "cat /which")+v.do("b", "cat /which"), "one\none\n")
	v.delete("a")
	check(t, "still in use", v.do("b", "echo 3 2>/dev/null >/proc/sys/vm/drop_caches; cat /which"), "one\n")
	v.delete("b")
	v.q.v = v
	v.swap(v.swapFile("two"))
	which("two")
}

func testPlug(t *testing.T, v *vm) {
	const id = "w-0123456789abcdef0123456789abcdef01" // as long as may be
	v.q.v = v
	for _, name := range []string{id, "w-other"} {
		// The container is asked for first: the disk is found when it comes.
		created := make(chan error)
		go func() {
			c := config{disk: name, args: []string{"sh", "-c", "ls /; echo " + name + " >/file; cat /file"}}
			err := v.tryCreate("p", c)
			if err == nil {
				err = v.tryStart("p", c)
			}
			created <- err
		}()
		time.Sleep(200 * time.Millisecond)
		start := time.Now()
		v.plug(name, v.blank(name))
		if err := <-created; err != nil {
			t.Fatal(err)
		}
		t.Logf("from plugging to a running process: %v", time.Since(start).Round(time.Millisecond))
		if out := v.output("p", "", wire.StreamHeader_STDOUT); strings.Contains(out, "file\n") || !strings.HasSuffix(out, name+"\n") {
			t.Errorf("got %q", out)
		}
		v.delete("p")
		v.unplug(name)
	}
	// The same again and again, at once: the guest may still see the one that has gone.
	file := v.blank("w-again")
	for i := range 10 {
		v.plug("w-again", file)
		check(t, "again", v.sh(fmt.Sprintf("cat /n; echo %d >/n", i), config{disk: "w-again"}), map[bool]string{true: "cat: can't open '/n': No such file or directory\n", false: fmt.Sprintf("%d\n", i-1)}[i == 0])
		v.unplug("w-again")
	}
	if err := v.tryCreate("p", config{disk: id, args: []string{"true"}}); err == nil || !strings.Contains(err.Error(), "the VM has none") {
		t.Errorf("unplugged disk: %v", err)
	}
}

func testMany(t *testing.T, v *vm) {
	before := v.info()
	const n = 20
	start := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			c := config{noUpper: true, layers: []string{"layer0", "layer1"}, args: strings.Fields(forever)}
			id := fmt.Sprint("m", i)
			err := v.tryCreate(id, c)
			if err == nil {
				err = v.tryStart(id, c)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d containers after %v", n, time.Since(start).Round(time.Millisecond))
	if t.Failed() {
		return
	}
	check(t, "processes", fmt.Sprint(v.info().Processes-before.Processes), fmt.Sprint(n))
	st, err := v.c.Stats(v.ctx(), &wire.StatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("memory of each: %d KiB; hyperstart %d KiB, without %d KiB", st.MemoryBytes>>10/n, v.info().AnonBytes>>10, before.AnonBytes>>10)
	for i := range n {
		id := fmt.Sprint("m", i)
		if i%7 == 0 {
			check(t, id, v.do(id, "cat /etc/layer0 | wc -c"), "0\n")
		}
	}
	for i := range n {
		wg.Go(func() {
			if _, err := v.c.DeleteContainer(v.ctx(), &wire.DeleteContainerRequest{Id: fmt.Sprint("m", i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	check(t, "processes after", fmt.Sprint(v.info().Processes), fmt.Sprint(before.Processes))
	time.Sleep(2500 * time.Millisecond) // the grace for orphans keeps pipes open
	if after := v.info(); after.Descriptors > before.Descriptors {
		t.Errorf("descriptors: %d before, %d after", before.Descriptors, after.Descriptors)
	}
}

func testDial(t *testing.T, v *vm) {
	v.idle("a", config{})
	v.idle("alone", config{disk: podDisk(1), spec: func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "network"})
	}})
	defer v.delete("alone")
	defer v.delete("a")
	serve := func(id, script string) {
		v.nextExec++
		b, _ := json.Marshal(process("nc", "-l", "-p", "8000", "-e", "sh", "-c", script))
		if _, err := v.c.StartProcess(v.ctx(), &wire.StartProcessRequest{ContainerId: id, ExecId: fmt.Sprint("nc", v.nextExec), Process: b}); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if strings.Contains(v.do(id, "cat /proc/net/tcp /proc/net/tcp6"), ":1F40 ") {
				return
			}
		}
		t.Fatal("nobody listens")
	}
	for _, id := range []string{"", "a", "alone"} {
		in := id
		if id == "" {
			in = "a"
		}
		// It answers after the end of what it was sent: both directions end by themselves.
		serve(in, "wc -c; echo from "+in)
		conn, err := v.c.DialTCP(v.ctx(), id, "127.0.0.1:8000")
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.CopyN(conn, random(3<<20), 3<<20); err != nil {
			t.Error(err)
		}
		conn.(interface{ CloseWrite() error }).CloseWrite()
		out, err := io.ReadAll(conn)
		conn.Close()
		if err != nil {
			t.Error(err)
		}
		check(t, id, string(out), fmt.Sprintf("%d\nfrom %s\n", 3<<20, in))
	}
	for address, want := range map[string]string{
		"127.0.0.1:8000": "connection refused", "localhost:80": "unable to parse IP", "127.0.0.1": "not an ip:port", "[::1]:9": "connection refused",
	} {
		if _, err := v.c.DialTCP(v.ctx(), "", address); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", address, err)
		}
	}
	if _, err := v.c.DialTCP(v.ctx(), "none", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "no container none") {
		t.Errorf("no container: %v", err)
	}
	// One that is closed early is gone in the guest too.
	before := v.info().Descriptors
	serve("a", "cat /dev/zero")
	conn, err := v.c.DialTCP(v.ctx(), "", "127.0.0.1:8000")
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(conn, make([]byte, 1<<20))
	conn.Close()
	for range 100 {
		if !strings.Contains(v.do("a", "ps"), "/dev/zero") {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if now := v.info().Descriptors; now > before+6 { // pipes of what had been executed
		t.Errorf("descriptors: %d before, %d now", before, now)
	}
}
