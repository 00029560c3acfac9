package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/event"
	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/guesttest"
	"github.com/hyper-run/hyper/internal/logs"
	"github.com/hyper-run/hyper/internal/network/networktest"
	"github.com/hyper-run/hyper/internal/store"
	"github.com/hyper-run/hyper/internal/template"
	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

// A bench is what a Set stands on: it outlives hyperds.
type bench struct {
	t      *testing.T
	layout store.Layout
	driver *vmmtest.Fake
	net    *networktest.Fake
	kernel string
	stores []*store.Store
	set    *Set

	alter     func(*Config)   // what a test wants otherwise; may be nil
	templates *template.Store // nil: none
}

// newBench starts a first hyperd on fakes: VMs are goroutines, containers are
// processes of this machine.
func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{t: t, layout: store.Layout{Root: dir + "/root", Run: dir + "/run"}, net: networktest.NewFake()}
	b.driver = &vmmtest.Fake{Guest: serveFakeGuest}
	b.kernel = filepath.Join(dir, "kernel")
	for _, d := range []string{b.layout.Root, b.layout.Pods(), b.layout.Containers()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(b.kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.up()
	t.Cleanup(b.end)
	return b
}

func serveFakeGuest(conn net.Conn, _ io.Writer, _ vmm.Config) vmm.Exit {
	g := guesttest.New()
	defer g.Close()
	g.Serve(conn) //nolint:errcheck // ends with the connection
	return vmm.Exit{Reason: vmm.ExitPowerOff}
}

func (b *bench) up() {
	b.t.Helper()
	durable, err := store.Open(b.layout.DB())
	if err != nil {
		b.t.Fatal(err)
	}
	runtime, err := store.OpenRuntime(b.layout.Run)
	if err != nil {
		b.t.Fatal(err)
	}
	b.stores = []*store.Store{durable, runtime}
	cfg := Config{
		Layout: b.layout, Store: durable, Runtime: runtime, Driver: b.driver, Network: b.net, Events: new(event.Bus),
		Log:        slog.New(slog.NewTextHandler(b.t.Output(), nil)),
		Layers:     func(context.Context, Spec, int) ([]string, error) { return nil, nil },
		CreateDisk: func(path string, _ int64, _ bool) error { return os.WriteFile(path, nil, 0o600) },
		Boot: func(kernel string) (BootFiles, error) {
			if kernel != "" {
				return BootFiles{}, fmt.Errorf("kernel %s: %w", kernel, errdefs.ErrNotFound)
			}
			return BootFiles{Name: "fake 1", Kernel: b.kernel, Initrd: b.kernel}, nil
		},
		DialGuest: guest.Dial, OpenGuest: guest.Open, VM: Size{CPUs: 4, MemMiB: 1024}, MemMiB: 128, CPUs: 1, HostCPUs: 2, StartTimeout: 10 * time.Second,
	}
	if b.alter != nil {
		b.alter(&cfg)
	}
	b.templates = cfg.Templates
	b.set = New(cfg)
	if err := b.set.Adopt(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// down lets go of everything, as the end of hyperd does.
func (b *bench) down() {
	b.set.Close()
	if b.templates != nil {
		b.templates.Close()
	}
	for _, s := range b.stores {
		s.Close()
	}
}

// end removes all containers and checks that nothing is left.
func (b *bench) end() {
	for _, c := range b.set.List(Filter{All: true}) {
		if err := b.set.Remove(context.Background(), c.ID, true); err != nil {
			b.t.Errorf("remove %s: %v", c.Name, err)
		}
	}
	b.set.warm.close()
	b.set.background.Wait()
	defer b.noneLeft()
	for _, dir := range []string{b.layout.Pods(), b.layout.Containers()} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			b.t.Errorf("left in %s: %v", dir, left)
		}
	}
	for _, bucket := range []string{bucketContainers, bucketVMs, bucketExecs} {
		for i, s := range b.stores {
			if left, err := store.Load[any](s, bucket); err != nil || len(left) > 0 {
				b.t.Errorf("store %d has left in %s: %v %v", i, bucket, left, err)
			}
		}
	}
	b.down()
}

// noneLeft checks that no goroutine of the Set goes on after it was closed.
func (b *bench) noneLeft() {
	b.t.Helper()
	stacks := make([]byte, 1<<20)
	var left []string
	for range 300 {
		left = nil
		for g := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			if strings.Contains(g, "internal/pod.(") && !strings.Contains(g, "testing.") && !strings.Contains(g, "internal/pod.Test") {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.t.Errorf("goroutines left:\n%s", strings.Join(left, "\n\n"))
}

func (b *bench) create(sp Spec) string {
	b.t.Helper()
	if sp.Network == "" {
		sp.Network = "default"
	}
	sp.Env = append(sp.Env, "PATH="+os.Getenv("PATH"))
	id, _, err := b.set.Create(b.t.Context(), CreateOptions{Spec: sp})
	if err != nil {
		b.t.Fatal(err)
	}
	return id
}

func sh(script string) Spec { return Spec{Args: []string{"sh", "-c", script}} }

func (b *bench) start(sp Spec) string {
	b.t.Helper()
	id := b.create(sp)
	if err := b.set.Start(b.t.Context(), id); err != nil {
		b.t.Fatal(err)
	}
	return id
}

func (b *bench) wait(id string) ExitStatus {
	b.t.Helper()
	ch, err := b.set.Wait(b.t.Context(), id, WaitNotRunning)
	if err != nil {
		b.t.Fatal(err)
	}
	select {
	case st := <-ch:
		return st
	case <-time.After(20 * time.Second):
		b.t.Fatalf("%s does not end", id)
		return ExitStatus{}
	}
}

func (b *bench) logs(id string) string {
	b.t.Helper()
	recs, _, err := b.set.Logs(b.t.Context(), id, logs.ReadOptions{Tail: -1, Stdout: true, Stderr: true})
	if err != nil {
		b.t.Fatal(err)
	}
	var out strings.Builder
	for r, err := range recs {
		if err != nil {
			b.t.Fatal(err)
		}
		out.Write(r.Line)
	}
	return out.String()
}

// printed waits until the container has printed text.
func (b *bench) printed(id, text string) {
	b.t.Helper()
	recs, _, err := b.set.Logs(b.t.Context(), id, logs.ReadOptions{Tail: -1, Stdout: true, Follow: true})
	if err != nil {
		b.t.Fatal(err)
	}
	for r := range recs {
		if strings.Contains(string(r.Line), text) {
			return
		}
	}
	b.t.Fatalf("%s never printed %q", id, text)
}

func TestLifecycle(t *testing.T) {
	b := newBench(t)
	id := b.create(sh("echo out; exit 3"))
	for range 2 { // it can be started again
		if err := b.set.Start(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if st := b.wait(id); st.Code != 3 {
			t.Errorf("exit code %d, want 3", st.Code)
		}
	}
	c, err := b.set.Get(id[:12])
	if err != nil {
		t.Fatal(err)
	}
	if c.Status != StatusExited || c.ExitCode != 3 || c.VM != nil || c.FinishedAt.IsZero() {
		t.Errorf("container %+v", c)
	}
	if got := b.logs(id); got != "out\nout\n" {
		t.Errorf("logs %q", got)
	}
	if err := b.set.Stop(t.Context(), id, "", nil); !errdefs.IsNotModified(err) {
		t.Errorf("stop of what does not run: %v", err)
	}
}

func TestAutoRemove(t *testing.T) {
	b := newBench(t)
	sp := sh("exit 5")
	sp.AutoRemove = true
	id := b.create(sp)
	removed, err := b.set.Wait(t.Context(), id, WaitRemoved)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.set.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if st := <-removed; st.Code != 5 {
		t.Errorf("code %d, want 5", st.Code)
	}
	if _, err := b.set.Get(id); !errdefs.IsNotFound(err) {
		t.Errorf("still there: %v", err)
	}
}

func TestProgramThatIsNotThere(t *testing.T) {
	b := newBench(t)
	id := b.create(Spec{Args: []string{"no-such-program"}})
	err := b.set.Start(t.Context(), id)
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "executable file not found") {
		t.Fatalf("start: %v", err)
	}
	if c, _ := b.set.Get(id); c.Status != StatusCreated || c.ExitCode != 127 || c.Error == "" {
		t.Errorf("container %+v", c)
	}
}

func TestAttach(t *testing.T) {
	b := newBench(t)
	sp := sh("cat; echo err >&2")
	sp.Stdin, sp.StdinOnce = true, true
	id := b.create(sp)
	data := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16) // 1 MiB
	var out, errb bytes.Buffer
	attached, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- b.set.Attach(t.Context(), id, AttachOptions{
			Stdin: bytes.NewReader(data), Stdout: &out, Stderr: &errb, Stream: true, Attached: func() { close(attached) },
		})
	}()
	<-attached
	if err := b.set.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), data) || errb.String() != "err\n" {
		t.Errorf("%d bytes of %d came back, stderr %q", out.Len(), len(data), errb.String())
	}
	b.wait(id)
}

// Someone who attaches late with logs gets every line once.
func TestAttachWithLogs(t *testing.T) {
	b := newBench(t)
	id := b.start(sh("for i in $(seq 300); do echo $i; done; sleep 0.1; for i in $(seq 301 600); do echo $i; done"))
	var out bytes.Buffer
	if err := b.set.Attach(t.Context(), id, AttachOptions{Stdout: &out, Logs: true, Stream: true}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(out.String())
	for i, l := range lines {
		if l != fmt.Sprint(i+1) {
			t.Fatalf("line %d is %q", i, l)
		}
	}
	if len(lines) != 600 {
		t.Errorf("%d lines, want 600", len(lines))
	}
	b.wait(id)
}

// A client that reads nothing must not keep the container from ending.
func TestStuckClient(t *testing.T) {
	b := newBench(t)
	id := b.create(sh("echo x"))
	pr, pw := io.Pipe()
	attached, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- b.set.Attach(t.Context(), id, AttachOptions{Stdout: pw, Stream: true, Attached: func() { close(attached) }})
	}()
	<-attached
	if err := b.set.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	b.wait(id)
	buf := make([]byte, 10)
	if n, err := pr.Read(buf); err != nil || string(buf[:n]) != "x\n" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestExec(t *testing.T) {
	b := newBench(t)
	id := b.start(sh("sleep 1000"))
	eid, err := b.set.CreateExec(t.Context(), id, ExecSpec{Args: []string{"sh", "-c", "cat; echo $V; exit 9"}, Env: []string{"V=val"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = b.set.StartExec(t.Context(), eid, &AttachOptions{Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	e, err := b.set.GetExec(eid)
	if err != nil || e.ExitCode == nil || *e.ExitCode != 9 || e.Running {
		t.Errorf("exec %+v, %v", e, err)
	}
	if out.String() != "in\nval\n" {
		t.Errorf("printed %q", out.String())
	}
	if err := b.set.StartExec(t.Context(), eid, nil); !errdefs.IsConflict(err) {
		t.Errorf("second start: %v", err)
	}
	eid, _ = b.set.CreateExec(t.Context(), id, ExecSpec{Args: []string{"nope"}})
	if err := b.set.StartExec(t.Context(), eid, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("exec of what is not there: %v", err)
	}
	if e, _ := b.set.GetExec(eid); e.ExitCode == nil || *e.ExitCode != 127 {
		t.Errorf("exec %+v", e)
	}
}

func TestManyExecsAreForgotten(t *testing.T) {
	b := newBench(t)
	id := b.start(sh("sleep 1000"))
	for range execHistory + 50 {
		eid, err := b.set.CreateExec(t.Context(), id, ExecSpec{Args: []string{"true"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.set.StartExec(t.Context(), eid, &AttachOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	b.set.mu.Lock()
	n := len(b.set.execs)
	b.set.mu.Unlock()
	if n > execHistory+2 {
		t.Errorf("%d execs remembered, want at most %d", n, execHistory+2)
	}
}

// A new hyperd finds what an earlier one left running.
func TestAdopt(t *testing.T) {
	b := newBench(t)
	long := b.start(sh("i=0; while true; do echo $i; i=$((i+1)); sleep 0.002; done"))
	short := b.start(sh("sleep 0.2; echo bye; exit 7"))
	sp := sh("sleep 1000")
	sp.AutoRemove = true
	gone := b.start(sp)
	before, err := b.set.Get(long)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		b.down()
		time.Sleep(200 * time.Millisecond)
		b.up()
	}
	after, err := b.set.Get(long)
	if err != nil || after.Status != StatusRunning || after.PID != before.PID || after.Name != before.Name {
		t.Errorf("after: %+v, %v", after, err)
	}
	if st := b.wait(short); st.Code != 7 || b.logs(short) != "bye\n" {
		t.Errorf("code %d, logs %q", st.Code, b.logs(short))
	}
	if _, err := b.set.Get(gone); err != nil {
		t.Errorf("a running --rm container: %v", err)
	}
	if err := b.set.Kill(t.Context(), long, ""); err != nil {
		t.Fatal(err)
	}
	b.wait(long)
	for i, l := range strings.Fields(b.logs(long)) {
		if l != fmt.Sprint(i) {
			t.Fatalf("line %d of the log is %q", i, l)
		}
	}
}

// The VM died while no hyperd was there.
func TestAdoptWhatIsGone(t *testing.T) {
	b := newBench(t)
	id := b.start(sh("sleep 1000"))
	run, err := b.set.mustFind(t, id).running()
	if err != nil {
		t.Fatal(err)
	}
	vm := run.vm.vm
	b.down()
	if err := vm.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.up()
	c, err := b.set.Get(id)
	if err != nil || c.Status != StatusExited || c.ExitCode != 255 || c.Error == "" {
		t.Errorf("%+v, %v", c, err)
	}
	if err := b.set.Start(t.Context(), id); err != nil {
		t.Errorf("start again: %v", err)
	}
}

func (s *Set) mustFind(t *testing.T, ref string) *container {
	t.Helper()
	c, err := s.find(ref)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStopKillPause(t *testing.T) {
	b := newBench(t)
	id := b.start(sh("trap 'exit 4' TERM; echo ready; while true; do sleep 0.05; done"))
	b.printed(id, "ready")
	if err := b.set.Remove(t.Context(), id, false); !errdefs.IsConflict(err) {
		t.Errorf("remove of what runs: %v", err)
	}
	if err := b.set.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if c, _ := b.set.Get(id); c.Status != StatusPaused {
		t.Errorf("status %s", c.Status)
	}
	if _, err := b.set.CreateExec(t.Context(), id, ExecSpec{Args: []string{"true"}}); !errdefs.IsConflict(err) {
		t.Errorf("exec in what is paused: %v", err)
	}
	if err := b.set.Stop(t.Context(), id, "", nil); err != nil { // it is resumed first
		t.Fatal(err)
	}
	if c, _ := b.set.Get(id); c.ExitCode != 4 {
		t.Errorf("exit code %d, want 4", c.ExitCode)
	}
	one := 1
	id = b.start(sh("trap '' TERM; echo ready; while true; do sleep 0.05; done"))
	b.printed(id, "ready")
	if err := b.set.Stop(t.Context(), id, "", &one); err != nil {
		t.Fatal(err)
	}
	if c, _ := b.set.Get(id); c.ExitCode != 137 {
		t.Errorf("exit code %d, want 137", c.ExitCode)
	}
}

func TestNames(t *testing.T) {
	b := newBench(t)
	sp := sh("true")
	sp.Network = "none"
	create := func(name string) (string, error) {
		id, _, err := b.set.Create(t.Context(), CreateOptions{Name: name, Spec: sp})
		return id, err
	}
	id, err := create("web")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := create("web"); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "already in use") {
		t.Errorf("same name: %v", err)
	}
	if _, err := create("-bad"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad name: %v", err)
	}
	if err := b.set.Rename(t.Context(), "/web", "db"); err != nil {
		t.Fatal(err)
	}
	if c, err := b.set.Get("db"); err != nil || c.ID != id {
		t.Errorf("by the new name: %v", err)
	}
	if _, err := b.set.Get("web"); !errdefs.IsNotFound(err) {
		t.Errorf("by the old name: %v", err)
	}
}

func TestConcurrentStartsAndRemoves(t *testing.T) {
	b := newBench(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			sp := sh("sleep 0.05")
			sp.AutoRemove = true
			id := b.create(sp)
			if err := b.set.Start(t.Context(), id); err != nil {
				t.Error(err)
			}
			if err := b.set.Remove(t.Context(), id, true); err != nil && !errdefs.IsNotFound(err) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestKernelThatPanics(t *testing.T) {
	b := newBench(t)
	b.driver.Guest = func(_ net.Conn, console io.Writer, _ vmm.Config) vmm.Exit {
		fmt.Fprintln(console, "Kernel panic - not syncing: no init")
		return vmm.Exit{Reason: vmm.ExitPanic}
	}
	id := b.create(sh("true"))
	err := b.set.Start(t.Context(), id)
	var se *vmm.StartError
	if !errors.As(err, &se) || !strings.Contains(err.Error(), "no init") || !strings.Contains(err.Error(), "panicked") {
		t.Errorf("start: %v", err)
	}
	b.driver.Guest = serveFakeGuest
}

// Someone who attaches with logs and reads nothing keeps neither the container
// from ending nor others from reading.
func TestStuckClientWithLogs(t *testing.T) {
	b := newBench(t)
	id := b.start(sh("echo one; sleep 0.2; echo two"))
	b.printed(id, "one")
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- b.set.Attach(t.Context(), id, AttachOptions{Stdout: pw, Logs: true, Stream: true})
	}()
	b.wait(id)
	if got := b.logs(id); got != "one\ntwo\n" {
		t.Errorf("logs %q", got)
	}
	var out bytes.Buffer
	buf := make([]byte, 10)
	for out.Len() < 8 {
		n, err := pr.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(buf[:n])
	}
	if out.String() != "one\ntwo\n" {
		t.Errorf("read %q", out.String())
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A start that outlasts hyperd's end is let go of, and found by the next one.
func TestStartDuringClose(t *testing.T) {
	b := newBench(t)
	b.driver.Guest = func(conn net.Conn, console io.Writer, cfg vmm.Config) vmm.Exit {
		time.Sleep(100 * time.Millisecond)
		return serveFakeGuest(conn, console, cfg)
	}
	id := b.create(sh("sleep 1000"))
	started := make(chan error, 1)
	go func() { started <- b.set.Start(t.Context(), id) }()
	time.Sleep(30 * time.Millisecond)
	b.set.Close()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	b.down()
	b.up()
	if c, err := b.set.Get(id); err != nil || c.Status != StatusRunning {
		t.Errorf("%+v, %v", c, err)
	}
}

// The records of this boot are lost, the VMs are not: they belong to nobody.
func TestSweepOfVMsWithoutRecord(t *testing.T) {
	b := newBench(t)
	id := b.start(sh("sleep 1000"))
	run, err := b.set.mustFind(t, id).running()
	if err != nil {
		t.Fatal(err)
	}
	b.down()
	dbs, _ := filepath.Glob(b.layout.Run + "/runtime-*.db")
	for _, db := range dbs {
		if err := os.Remove(db); err != nil {
			t.Fatal(err)
		}
	}
	b.up()
	select {
	case <-run.vm.vm.Done():
	case <-time.After(5 * time.Second):
		t.Error("the VM still runs")
	}
	if c, err := b.set.Get(id); err != nil || c.Status == StatusRunning {
		t.Errorf("%+v, %v", c, err)
	}
}
