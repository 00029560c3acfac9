package guest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/guesttest"
	"github.com/hyper-run/hyper/internal/guest/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A fixture is a fake guest with one container, c.
type fixture struct {
	t *testing.T
	g *guesttest.Guest
	c *guest.Client
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, g: guesttest.New()}
	t.Cleanup(func() { f.g.Close() })
	f.connect()
	return f
}

func (f *fixture) connect() {
	f.t.Helper()
	host, inside := net.Pipe()
	served := make(chan struct{})
	go func() { f.g.Serve(inside); close(served) }()
	c, err := guest.Dial(context.Background(), host)
	if err != nil {
		f.t.Fatal(err)
	}
	f.c = c
	f.t.Cleanup(func() { c.Close(); <-served })
}

func (f *fixture) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	f.t.Cleanup(cancel)
	return ctx
}

func process(tty bool, args ...string) *specs.Process {
	return &specs.Process{Args: args, Env: []string{"PATH=/usr/bin:/bin"}, Cwd: "/", Terminal: tty}
}

func (f *fixture) start(stdin bool, p *specs.Process) {
	f.t.Helper()
	if err := f.tryStart(stdin, p); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) tryStart(stdin bool, p *specs.Process) error {
	spec, _ := json.Marshal(specs.Spec{Process: p})
	if _, err := f.c.CreateContainer(f.ctx(), &wire.CreateContainerRequest{Id: "c", Spec: spec}); err != nil {
		return err
	}
	_, err := f.c.StartProcess(f.ctx(), &wire.StartProcessRequest{ContainerId: "c", Stdin: stdin})
	return err
}

func (f *fixture) exec(id string, p *specs.Process) error {
	b, _ := json.Marshal(p)
	_, err := f.c.StartProcess(f.ctx(), &wire.StartProcessRequest{ContainerId: "c", ExecId: id, Process: b})
	return err
}

func (f *fixture) wait(exec string) *wire.WaitResponse {
	f.t.Helper()
	w, err := f.c.Wait(f.ctx(), &wire.WaitRequest{ContainerId: "c", ExecId: exec})
	if err != nil {
		f.t.Fatal(err)
	}
	return w
}

func (f *fixture) output(exec string, kind wire.StreamHeader_Kind) string {
	f.t.Helper()
	o, err := f.c.Output(f.ctx(), "c", exec, kind, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	defer o.Close()
	b, err := io.ReadAll(o)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(b)
}

func TestRun(t *testing.T) {
	f := newFixture(t)
	f.start(false, process(false, "sh", "-c", "echo out; echo err >&2; exit 42"))
	if got := f.output("", wire.StreamHeader_STDOUT); got != "out\n" {
		t.Errorf("stdout %q", got)
	}
	if got := f.output("", wire.StreamHeader_STDERR); got != "err\n" {
		t.Errorf("stderr %q", got)
	}
	if w := f.wait(""); w.ExitCode != 42 || w.Signal != 0 {
		t.Errorf("exit %v", w)
	}
	if _, err := f.c.DeleteContainer(f.ctx(), &wire.DeleteContainerRequest{Id: "c"}); err != nil {
		t.Error(err)
	}
}

func TestErrorKinds(t *testing.T) {
	f := newFixture(t)
	if _, err := f.c.Wait(f.ctx(), &wire.WaitRequest{ContainerId: "x"}); !errdefs.IsNotFound(err) {
		t.Errorf("wait for nothing: %v", err)
	}
	err := f.tryStart(false, process(false, "nonsense"))
	if !errdefs.IsNotFound(err) || err.Error() != `exec: "nonsense": executable file not found in $PATH` {
		t.Errorf("unknown program: %v", err)
	}
	if _, err := f.c.StartProcess(f.ctx(), &wire.StartProcessRequest{ContainerId: "c", Process: []byte("{")}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad JSON: %v", err)
	}
	b, _ := json.Marshal(process(false, "/etc/passwd"))
	_, err = f.c.StartProcess(f.ctx(), &wire.StartProcessRequest{ContainerId: "c", Process: b})
	if !errdefs.IsPermissionDenied(err) {
		t.Errorf("not executable: %v", err)
	}
	if err := f.exec("e", process(false, "true")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in what does not run: %v", err)
	}
	o, err := f.c.Output(f.ctx(), "c", "none", wire.StreamHeader_STDOUT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if _, err := io.ReadAll(o); err == nil || !strings.Contains(err.Error(), "no process none") {
		t.Errorf("output of nothing: %v", err)
	}
}

// 20 MB through stdin and stdout, acknowledged as it goes, with every
// connection lost a few times on the way and the output read anew from what
// was acknowledged.
func TestOutputSurvivesConnections(t *testing.T) {
	f := newFixture(t)
	const size = 20 << 20
	f.start(false, process(false, "sh", "-c", "yes 0123456789abcde | head -c 20971520"))
	want, got := sha256.New(), sha256.New()
	io.CopyN(want, repeat("0123456789abcde\n"), size)
	var at uint64
	for round := 0; ; round++ {
		o, err := f.c.Output(f.ctx(), "c", "", wire.StreamHeader_STDOUT, at)
		if err != nil {
			t.Fatal(err)
		}
		limit := int64(size)
		if round < 5 {
			limit = 2<<20 + 12345
		}
		n, err := copyAcking(got, o, at, limit)
		at += uint64(n)
		if err == nil && at == size {
			o.Close()
			break
		}
		if round >= 5 {
			t.Fatalf("round %d: %d bytes, %v", round, at, err)
		}
		f.c.Close()
		f.connect()
	}
	if !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
		t.Error("output differs")
	}
	if w := f.wait(""); w.ExitCode != 0 {
		t.Errorf("exit %v", w)
	}
}

func copyAcking(w io.Writer, o *guest.Output, at uint64, limit int64) (int64, error) {
	buf := make([]byte, 50000)
	var total int64
	for total < limit {
		n, err := o.Read(buf[:min(int64(len(buf)), limit-total)])
		w.Write(buf[:n])
		total += int64(n)
		o.Ack(at + uint64(total))
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// repeat returns a reader of s over and over.
func repeat(s string) io.Reader { return &repeater{s: s} }

type repeater struct {
	s  string
	at int
}

func (r *repeater) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = r.s[r.at]
		r.at = (r.at + 1) % len(r.s)
	}
	return len(p), nil
}

// Without acknowledgements the process stops after a window and goes on later.
func TestBackPressure(t *testing.T) {
	f := newFixture(t)
	f.start(false, process(false, "sh", "-c", "head -c 2000000 /dev/zero; echo done >&2"))
	o, err := f.c.Output(f.ctx(), "c", "", wire.StreamHeader_STDOUT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if _, err := io.ReadFull(o, make([]byte, wire.OutputWindow)); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() { o.Read(make([]byte, 1)); close(read) }()
	select {
	case <-read:
		t.Fatal("more than a window without acknowledgement")
	case <-time.After(50 * time.Millisecond):
	}
	o.Ack(wire.OutputWindow)
	<-read
	if n, err := copyAcking(io.Discard, o, wire.OutputWindow+1, 1<<30); err != nil || n != 2000000-wire.OutputWindow-1 {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

// Acknowledgements that a lost connection took with it are not missed: the
// window was full, and the next connection begins at its end.
func TestBackPressureAcrossConnections(t *testing.T) {
	f := newFixture(t)
	f.start(false, process(false, "sh", "-c", "head -c 2000000 /dev/zero"))
	var at uint64
	for range 3 {
		o, err := f.c.Output(f.ctx(), "c", "", wire.StreamHeader_STDOUT, at)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(o, make([]byte, wire.OutputWindow)); err != nil {
			t.Fatal(err)
		}
		at += wire.OutputWindow
		f.c.Close()
		f.connect()
	}
	if _, err := f.c.DeleteContainer(f.ctx(), &wire.DeleteContainerRequest{Id: "c"}); err != nil {
		t.Fatal(err)
	}
}

func TestOutputIsReplaced(t *testing.T) {
	f := newFixture(t)
	f.start(false, process(false, "sh", "-c", "echo x; sleep 100"))
	first, err := f.c.Output(f.ctx(), "c", "", wire.StreamHeader_STDOUT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := io.ReadFull(first, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	second, err := f.c.Output(f.ctx(), "c", "", wire.StreamHeader_STDOUT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if _, err := io.ReadFull(second, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("replaced stream: %v", err)
	}
	third, err := f.c.Output(f.ctx(), "c", "", wire.StreamHeader_STDOUT, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if _, err := third.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "not held") {
		t.Errorf("offset beyond the end: %v", err)
	}
}

func TestStdinBitExact(t *testing.T) {
	f := newFixture(t)
	f.start(true, process(false, "sha256sum"))
	in, err := f.c.Stdin(f.ctx(), "c", "")
	if err != nil {
		t.Fatal(err)
	}
	want := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(in, want), repeat("some input \x00\xff\r\n"), 20<<20); err != nil {
		t.Fatal(err)
	}
	in.Close() // before CloseStdin, and still everything arrives
	if _, err := f.c.CloseStdin(f.ctx(), &wire.CloseStdinRequest{ContainerId: "c"}); err != nil {
		t.Fatal(err)
	}
	if got := f.output("", wire.StreamHeader_STDOUT); !strings.HasPrefix(got, hex(want.Sum(nil))) {
		t.Errorf("got %s", got)
	}
}

func hex(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, c := range b {
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}

// Input for a process that has gone is discarded; it does not block.
func TestStdinOfTheDeparted(t *testing.T) {
	f := newFixture(t)
	f.start(true, process(false, "true"))
	f.wait("")
	in, err := f.c.Stdin(f.ctx(), "c", "")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := in.Write(make([]byte, 3<<20)); err != nil {
		t.Error(err)
	}
}

func TestTerminal(t *testing.T) {
	f := newFixture(t)
	p := process(true, "sh", "-c", "stty size; read x; stty size; echo got $x")
	p.ConsoleSize = &specs.Box{Height: 11, Width: 22}
	f.start(true, p)
	o, err := f.c.Output(f.ctx(), "c", "", wire.StreamHeader_STDOUT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	first := make([]byte, len("11 22\r\n"))
	if _, err := io.ReadFull(o, first); err != nil || string(first) != "11 22\r\n" {
		t.Fatalf("%q, %v", first, err)
	}
	if _, err := f.c.Resize(f.ctx(), &wire.ResizeRequest{ContainerId: "c", Height: 33, Width: 44}); err != nil {
		t.Fatal(err)
	}
	in, err := f.c.Stdin(f.ctx(), "c", "")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	io.WriteString(in, "line\n")
	rest, err := io.ReadAll(o)
	if err != nil || string(rest) != "line\r\n33 44\r\ngot line\r\n" {
		t.Fatalf("%q, %v", rest, err)
	}
}

func TestExecSignalProcesses(t *testing.T) {
	f := newFixture(t)
	f.start(false, process(false, "sleep", "100"))
	if err := f.exec("e", process(false, "sleep", "200")); err != nil {
		t.Fatal(err)
	}
	ps, err := f.c.Processes(f.ctx(), &wire.ProcessesRequest{ContainerId: "c"})
	if err != nil || len(ps.Processes) != 2 {
		t.Fatalf("%v, %v", ps, err)
	}
	if _, err := f.c.Stats(f.ctx(), &wire.StatsRequest{ContainerId: "c"}); err != nil {
		t.Error(err)
	}
	if _, err := f.c.DeleteProcess(f.ctx(), &wire.DeleteProcessRequest{ContainerId: "c", ExecId: "e"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete a running exec: %v", err)
	}
	if _, err := f.c.Signal(f.ctx(), &wire.SignalRequest{ContainerId: "c", Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if w := f.wait(""); w.ExitCode != 137 || w.Signal != 9 {
		t.Errorf("exit %v", w)
	}
	if w := f.wait("e"); w.ExitCode != 137 {
		t.Errorf("exec outlived its container: %v", w)
	}
	if _, err := f.c.DeleteProcess(f.ctx(), &wire.DeleteProcessRequest{ContainerId: "c", ExecId: "e"}); err != nil {
		t.Error(err)
	}
}

// An exec ends although something it left behind holds its output open.
func TestOrphanDoesNotHoldTheExec(t *testing.T) {
	f := newFixture(t)
	f.start(false, process(false, "sleep", "100"))
	if err := f.exec("e", process(false, "sh", "-c", "sleep 100 & echo started")); err != nil {
		t.Fatal(err)
	}
	if got := f.output("e", wire.StreamHeader_STDOUT); got != "started\n" {
		t.Errorf("got %q", got)
	}
}

func TestLostConnection(t *testing.T) {
	f := newFixture(t)
	f.start(false, process(false, "sleep", "100"))
	o, err := f.c.Output(f.ctx(), "c", "", wire.StreamHeader_STDOUT, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := f.c.Wait(context.Background(), &wire.WaitRequest{ContainerId: "c"})
		done <- err
	}()
	time.Sleep(20 * time.Millisecond)
	if err := f.c.Err(); err != nil {
		t.Errorf("lives: %v", err)
	}
	f.c.Close()
	<-f.c.Done()
	if err := f.c.Err(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Err: %v", err)
	}
	if err := <-done; !errdefs.IsUnavailable(err) {
		t.Errorf("call: %v", err)
	}
	if _, err := o.Read(make([]byte, 1)); !errdefs.IsUnavailable(err) {
		t.Errorf("read: %v", err)
	}
	if err := o.Ack(0); !errdefs.IsUnavailable(err) {
		t.Errorf("ack: %v", err)
	}
	o.Close()
}

func TestEventsEndWithTheirContext(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(context.Background())
	s, err := f.c.Events(ctx, &wire.EventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := s.Recv(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A guest that answers the handshake and then reads nothing blocks neither
// calls nor Close.
func TestGuestThatDoesNotRead(t *testing.T) {
	host, inside := net.Pipe()
	g := &stuck{Conn: inside, closed: make(chan struct{})}
	served := make(chan struct{})
	go func() { guesttest.New().Serve(g); close(served) }()
	c, err := guest.Dial(context.Background(), host)
	if err != nil {
		t.Fatal(err)
	}
	g.full.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	for range 3 {
		if _, err := c.Configure(ctx, &wire.ConfigureRequest{Hostname: strings.Repeat("x", 1<<20)}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("call: %v", err)
		}
	}
	if _, err := c.Output(ctx, "c", "", wire.StreamHeader_STDOUT, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("output: %v", err)
	}
	c.Close()
	g.Close()
	<-served
}

// stuck reads until it is full.
type stuck struct {
	net.Conn
	full   atomic.Bool
	once   sync.Once
	closed chan struct{}
}

func (s *stuck) Read(p []byte) (int, error) {
	if s.full.Load() {
		<-s.closed
	}
	return s.Conn.Read(p)
}

func (s *stuck) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.Conn.Close()
}

func TestShutdown(t *testing.T) {
	f := newFixture(t)
	if _, err := f.c.Shutdown(f.ctx(), &wire.ShutdownRequest{}); err != nil {
		t.Fatal(err)
	}
	<-f.g.Off()
}
