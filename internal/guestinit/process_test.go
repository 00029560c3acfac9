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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/wire"
)

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
	// Half a MiB more than hyperstart may have that has done nothing yet (SPEC.md): use leaves
	// holes in the heap.
	if anon > 9<<19 {
		t.Errorf("%d KiB, more than 4.5 MiB", anon>>10)
	}
}
