package guest_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/wire"
)

func runRequest(stdin bool, p *specs.Process) *wire.RunRequest {
	spec, _ := json.Marshal(specs.Spec{Process: p})
	return &wire.RunRequest{
		Configure: &wire.ConfigureRequest{Hostname: "h"},
		Create:    &wire.CreateContainerRequest{Id: "c", Spec: spec},
		Start:     &wire.StartProcessRequest{ContainerId: "c", Stdin: stdin},
	}
}

func readAll(t *testing.T, o *guest.Output) string {
	t.Helper()
	b, err := io.ReadAll(o)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func checkExit(t *testing.T, p *guest.Process, want uint32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if st, err := p.Wait(ctx); err != nil || st.ExitCode != want {
		t.Errorf("exit %v, %v, want %d", st, err, want)
	}
}

// A short process costs the host one write, from SYN to its exit status.
func TestLaunchIsOneWrite(t *testing.T) {
	f, host, inside := newFresh(t)
	resp, p, err := f.c.Launch(f.ctx(), runRequest(false, process(false, "sh", "-c", "echo out; echo err >&2; exit 42")), false)
	if err != nil || p == nil {
		t.Fatalf("%v, %v", resp, err)
	}
	if out, errOut := readAll(t, p.Out), readAll(t, p.Err); out != "out\n" || errOut != "err\n" {
		t.Errorf("output %q, %q", out, errOut)
	}
	checkExit(t, p, 42)
	if s := host.take(); len(s) != 1 {
		t.Errorf("writes of %v bytes, want one", s)
	} else {
		t.Logf("one write, %d bytes", s[0])
	}
	s := inside.take()
	t.Logf("the guest wrote %d times, %v bytes", len(s), s)
	p.Close()
}

// Whatever the guest sees first, of the process there is nothing missing.
func TestLaunchExecOften(t *testing.T) {
	f, host, _ := newFresh(t)
	_, c, err := f.c.Launch(f.ctx(), runRequest(false, process(false, "sleep", "100")), false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 50 {
		host.take()
		b, _ := json.Marshal(process(false, "cat"))
		_, p, err := f.c.LaunchExec(f.ctx(), &wire.StartProcessRequest{ContainerId: "c", ExecId: "e", Process: b, Stdin: true}, false)
		if err != nil {
			t.Fatal(err)
		}
		s := slices.DeleteFunc(host.take(), func(n int) bool { return n < 100 }) // ends of earlier streams
		if len(s) != 1 {
			t.Errorf("writes of %v bytes, want one", s)
		}
		if _, err := io.WriteString(p.In, "text"); err != nil {
			t.Fatal(err)
		}
		if _, err := f.c.CloseStdin(f.ctx(), &wire.CloseStdinRequest{ContainerId: "c", ExecId: "e"}); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, p.Out); got != "text" {
			t.Fatalf("output %q", got)
		}
		checkExit(t, p, 0)
		p.Close()
		if _, err := f.c.DeleteProcess(f.ctx(), &wire.DeleteProcessRequest{ContainerId: "c", ExecId: "e"}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLaunchTerminal(t *testing.T) {
	f, _, _ := newFresh(t)
	_, p, err := f.c.Launch(f.ctx(), runRequest(true, process(true, "sh", "-c", "read x; echo got $x")), true)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Err != nil {
		t.Error("a terminal has a standard error")
	}
	if _, err := io.WriteString(p.In, "line\n"); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, p.Out); got != "line\r\ngot line\r\n" {
		t.Errorf("output %q", got)
	}
	checkExit(t, p, 0)
}

// What can't be started leaves nothing behind that waits on the host.
func TestLaunchThatFails(t *testing.T) {
	f, _, _ := newFresh(t)
	bad := runRequest(true, process(false, "true"))
	bad.Create.Spec = []byte("{")
	if resp, p, err := f.c.Launch(f.ctx(), bad, false); err != nil || p != nil || resp.Failed != "create" {
		t.Errorf("bad spec: %v, %v, %v", resp, p, err)
	}
	if resp, p, err := f.c.Launch(f.ctx(), runRequest(true, process(false, "nonsense")), false); err != nil || p != nil || resp.Failed != "start" {
		t.Errorf("no program: %v, %v, %v", resp, p, err)
	}
	_, p, err := f.c.LaunchExec(f.ctx(), &wire.StartProcessRequest{ContainerId: "c", ExecId: "e", Process: []byte("{")}, false)
	if p != nil || !errdefs.IsInvalidArgument(err) {
		t.Errorf("exec: %v, %v", p, err)
	}
}

func TestLaunchWithoutAnswer(t *testing.T) {
	host, inside := net.Pipe()
	go io.Copy(io.Discard, inside) //nolint:errcheck // until the pipe closes
	c, err := guest.Open(host, guest.Options{Fresh: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, p, err := c.Launch(ctx, runRequest(true, process(false, "true")), false)
	if p != nil || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "guest Run: it has not answered yet") {
		t.Errorf("%v, %v", p, err)
	}
}
