package spawn

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The package reaps all children, so that its tests use nothing of os/exec.
var spawner = sync.OnceValue(func() *Spawner {
	s, err := New()
	if err != nil {
		panic(err)
	}
	return s
})

func TestOpLayout(t *testing.T) {
	var o op
	for name, got := range map[string]uintptr{
		"arg/8":      unsafe.Offsetof(o.arg) / 8,
		"skip/56":    unsafe.Offsetof(o.skip) / 56,
		"store/64":   unsafe.Offsetof(o.store) / 64,
		"errno0/72":  unsafe.Offsetof(o.tolerate) / 72,
		"size/120":   unsafe.Sizeof(o) / 120,
		"errno1/16":  unsafe.Sizeof(o.tolerate[0]) / 16,
		"skip in /8": unsafe.Offsetof(o.tolerate[0].skip) / 8,
	} {
		if got != 1 {
			t.Errorf("%s: not where clone_amd64.s looks", name)
		}
	}
	if unsafe.Sizeof(o) != 120 || unsafe.Offsetof(o.tolerate) != 72 {
		t.Error("layout differs from clone_amd64.s")
	}
}

type result struct {
	out    string
	status syscall.WaitStatus
	err    error
}

// run executes a plan that build completes, with its output in a pipe.
func run(t *testing.T, r Request, build func(*Plan)) result {
	t.Helper()
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer outR.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r.Plan = &Plan{}
	r.Plan.Stdio([3]int{int(null.Fd()), int(outW.Fd()), int(outW.Fd())})
	build(r.Plan)
	c, err := spawner().Start(r)
	outW.Close()
	if err != nil {
		return result{err: err}
	}
	out, _ := io.ReadAll(outR)
	<-c.Ended()
	return result{out: string(out), status: c.Status()}
}

var here = Request{Cgroup: -1, PIDNS: -1}

func shell(script string) func(*Plan) {
	return func(p *Plan) {
		p.CloseOthers()
		p.Exec([]string{"/bin/sh"}, []string{"sh", "-c", script}, []string{"PATH=/usr/bin:/bin"})
	}
}

func needRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

// ignored is what this process ignores, because who started it did (nohup, a
// CI runner): execve keeps that. PID 1 of a VM starts with nothing ignored.
func ignored(t *testing.T) string {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "SigIgn:\t")
	mask, _, _ := strings.Cut(rest, "\n")
	return mask
}

func TestStart(t *testing.T) {
	needRoot(t)
	tests := []struct {
		name, script, out string
		code              int
		signal            syscall.Signal
	}{
		{"output", "echo hello", "hello\n", 0, -1},
		{"exit code", "exit 42", "", 42, -1},
		{"killed", "kill -9 $$", "", -1, 9},
		{"first of its PID namespace", "echo $$", "1\n", 0, -1},
		{"no descriptor leaks", "ls /proc/self/fd | wc -l", "4\n", 0, -1}, // 0 1 2 and ls's own
		{"signals as on the first day", "cat /proc/self/status | grep -E 'Sig(Blk|Ign|Cgt)' | tr -s '\\t\\n' ' '",
			"SigBlk: 0000000000000000 SigIgn: " + ignored(t) + " SigCgt: 0000000000000000 ", 0, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := here
			if strings.Contains(tt.script, "/proc") || tt.signal > 0 {
				r.PIDNS = spawner().own
			}
			got := run(t, r, shell(tt.script))
			if got.err != nil || got.out != tt.out {
				t.Fatalf("got %+v", got)
			}
			if tt.signal > 0 && got.status.Signal() != tt.signal || tt.signal < 0 && got.status.ExitStatus() != tt.code {
				t.Errorf("status %v", got.status)
			}
		})
	}
}

func TestExecErrors(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	plain := dir + "/plain"
	script := dir + "/script"
	os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o644)
	os.WriteFile(script, []byte("no magic"), 0o755)
	tests := []struct {
		name  string
		paths []string
		want  syscall.Errno
	}{
		{"nothing there", []string{dir + "/a", plain + "/b"}, syscall.ENOENT},
		{"not executable", []string{plain}, syscall.EACCES},
		{"not executable wins over not found", []string{dir + "/a", plain, dir + "/b"}, syscall.EACCES},
		{"directory", []string{dir}, syscall.EACCES},
		{"no format", []string{dir + "/a", script, "/bin/true"}, syscall.ENOEXEC},
		{"found after not executable", []string{plain, "/bin/true"}, 0},
		{"found after not found", []string{dir + "/a", "/bin/true"}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := run(t, here, func(p *Plan) { p.Exec(tt.paths, []string{"x"}, nil) })
			if tt.want == 0 {
				if got.err != nil || got.status.ExitStatus() != 0 {
					t.Errorf("got %+v", got)
				}
				return
			}
			var ee *ExecError
			if !errors.As(got.err, &ee) || ee.Errno != tt.want || !ee.Program() {
				t.Errorf("got %v, want %v", got.err, tt.want)
			}
		})
	}
	got := run(t, here, func(p *Plan) { p.Chdir("/nonexistent"); p.Exec([]string{"/bin/true"}, []string{"x"}, nil) })
	var ee *ExecError
	if !errors.As(got.err, &ee) || ee.Program() || ee.Step != "change to working directory /nonexistent" {
		t.Errorf("got %v", got.err)
	}
}

func TestIdentity(t *testing.T) {
	needRoot(t)
	got := run(t, Request{Cgroup: -1, PIDNS: spawner().own}, func(p *Plan) {
		p.NewSession()
		p.Limit(unix.RLIMIT_NOFILE, 100, 200, "RLIMIT_NOFILE")
		p.Umask(0o27)
		p.DropBounding(unix.CAP_SYS_ADMIN)
		p.User(1234, 2345, []uint32{7, 8})
		netBind := uint64(1) << unix.CAP_NET_BIND_SERVICE
		p.Capabilities(netBind, netBind, netBind)
		p.RaiseAmbient(unix.CAP_NET_BIND_SERVICE)
		p.NoNewPrivileges()
		p.Chdir("/usr")
		p.CloseOthers()
		p.Exec([]string{"/bin/sh"}, []string{"sh", "-c",
			`id -u; id -G; ulimit -n; ulimit -Hn; umask; pwd; grep -E 'CapEff|CapAmb|NoNewPrivs' /proc/self/status`},
			[]string{"PATH=/bin:/usr/bin"})
	})
	want := "1234\n2345 7 8\n100\n200\n0027\n/usr\nCapEff:\t0000000000000400\nCapAmb:\t0000000000000400\nNoNewPrivs:\t1\n"
	if got.err != nil || got.out != want {
		t.Errorf("got %q, %v", got.out, got.err)
	}
}

func TestMaskAndReadOnly(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	os.Mkdir(dir+"/d", 0o755)
	os.WriteFile(dir+"/d/x", nil, 0o644)
	os.WriteFile(dir+"/f", []byte("secret"), 0o644)
	os.Mkdir(dir+"/ro", 0o755)
	got := run(t, here, func(p *Plan) {
		p.Unshare(unix.CLONE_NEWNS)
		p.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		for _, path := range []string{"/d", "/f", "/none"} {
			p.Mask(dir + path)
		}
		p.ReadOnly(dir + "/ro")
		p.ReadOnly(dir + "/none")
		p.Exec([]string{"/bin/sh"}, []string{"sh", "-c", fmt.Sprintf("cd %s; ls d; cat f; touch ro/x 2>&1 || echo ro", dir)}, []string{"PATH=/bin"})
	})
	if got.err != nil || !strings.HasSuffix(got.out, "Read-only file system\nro\n") || strings.Contains(got.out, "secret") {
		t.Errorf("got %q, %v", got.out, got.err)
	}
}

func TestSignalAndJoin(t *testing.T) {
	needRoot(t)
	outR, outW, _ := os.Pipe()
	defer outR.Close()
	p := &Plan{}
	p.Stdio([3]int{int(outW.Fd()), int(outW.Fd()), int(outW.Fd())})
	shell("echo up; exec sleep 100")(p)
	init, err := spawner().Start(Request{Plan: p, Cgroup: -1, PIDNS: -1})
	outW.Close()
	if err != nil {
		t.Fatal(err)
	}
	bufio.NewReader(outR).ReadString('\n')
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", init.PID))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	got := run(t, Request{Cgroup: -1, PIDNS: int(ns.Fd())}, shell("echo $$"))
	if got.out != "2\n" {
		t.Errorf("joined: %+v", got)
	}
	if err := init.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-init.Ended()
	if err := init.Signal(syscall.SIGKILL); err != syscall.ESRCH {
		t.Errorf("signal to the dead: %v", err)
	}
	if got := run(t, Request{Cgroup: -1, PIDNS: int(ns.Fd())}, shell("true")); !errors.Is(got.err, syscall.ENOMEM) {
		t.Errorf("join the dead: %+v", got)
	}
}

// Many children at once, while the collector runs and signals come.
func TestStress(t *testing.T) {
	needRoot(t)
	sigs := make(chan os.Signal, 100)
	signal.Notify(sigs, syscall.SIGUSR1)
	defer signal.Stop(sigs)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = make([]byte, 1<<20)
				runtime.GC()
				syscall.Kill(os.Getpid(), syscall.SIGUSR1)
			}
		}
	}()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 40 {
				p := &Plan{}
				p.NewSession()
				code := i % 7
				p.Exec([]string{"/nonexistent", "/bin/sh"}, []string{"sh", "-c", fmt.Sprintf("exit %d", code)}, nil)
				c, err := spawner().Start(Request{Plan: p, Cgroup: -1, PIDNS: spawner().own})
				if err != nil {
					t.Error(err)
					return
				}
				<-c.Ended()
				if c.Status().ExitStatus() != code {
					t.Errorf("status %v, want %d", c.Status(), code)
				}
			}
		})
	}
	wg.Wait()
	spawner().mu.Lock()
	defer spawner().mu.Unlock()
	if n := len(spawner().children); n != 0 {
		t.Errorf("%d children left", n)
	}
}

func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		p := &Plan{}
		p.Exec([]string{"/bin/true"}, []string{"true"}, nil)
		c, err := spawner().Start(Request{Plan: p, Cgroup: -1, PIDNS: spawner().own})
		if err != nil {
			b.Fatal(err)
		}
		<-c.Ended()
	}
}

// A child that asks to be traced stops at its execve and at each signal; that
// is no end, and it must not stay stopped.
func TestTracedChildRunsOn(t *testing.T) {
	needRoot(t)
	r := run(t, Request{Cgroup: -1, PIDNS: spawner().own}, func(p *Plan) {
		p.do("ask to be traced", unix.SYS_PTRACE, unix.PTRACE_TRACEME)
		shell("echo on; kill -TERM $$; echo not here")(p)
	})
	if r.err != nil || r.out != "on\n" || r.status.Signal() != syscall.SIGTERM {
		t.Errorf("%q, %v, %v", r.out, r.status, r.err)
	}
}
