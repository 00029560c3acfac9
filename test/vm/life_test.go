package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
)

func TestExecLeaksNothing(t *testing.T) {
	id := container(t, pulled(t, "busybox"), "sleep", "1000000")
	const n = 1000
	must(t, "exec", id, "true")
	before := guestState(t, id)
	fds := descriptors(t)
	for i := range n {
		if out := must(t, "exec", id, "echo", strconv.Itoa(i)); out != strconv.Itoa(i) {
			t.Fatalf("exec %d printed %q", i, out)
		}
	}
	// The last one may just be on its way out.
	eventually(t, func() (string, bool) {
		after := guestState(t, id)
		return fmt.Sprintf("guest after %d execs: %s, before: %s", n, after, before), after == before
	})
	if now := descriptors(t); now > fds+5 {
		t.Errorf("hyperd has %d descriptors after %d execs, %d before", now, n, fds)
	}
}

// guestState counts the container's processes and mounts.
func guestState(t *testing.T, id string) string {
	t.Helper()
	return must(t, "exec", id, "sh", "-c", "ls -d /proc/[0-9]* | wc -l; wc -l < /proc/mounts")
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.daemon.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// The daemon is killed and comes back: nothing of a running pod is lost.
func TestDaemonKilled(t *testing.T) {
	img := pulled(t, "busybox")
	id := container(t, img, "sh", "-c", "i=0; while true; do echo line $i; i=$((i+1)); usleep 2000; done")
	short := container(t, img, "sh", "-c", "sleep 1; exit 7")
	pid := must(t, "inspect", "--format", "{{.State.Pid}}", id)
	for range 3 {
		h.signal(syscall.SIGKILL)
		time.Sleep(300 * time.Millisecond)
		if err := h.start(); err != nil {
			t.Fatal(err)
		}
	}
	if ps := must(t, "ps", "-q", "--no-trunc"); !strings.Contains(ps, id) {
		t.Fatalf("ps after the restart: %q", ps)
	}
	if now := must(t, "inspect", "--format", "{{.State.Pid}}", id); now != pid {
		t.Errorf("PID %s, was %s", now, pid)
	}
	if out := must(t, "exec", id, "echo", "still here"); out != "still here" {
		t.Errorf("exec printed %q", out)
	}
	if code := must(t, "wait", short); code != "7" {
		t.Errorf("exit code %s of what ended meanwhile, want 7", code)
	}
	must(t, "stop", "-t", "0", id)
	checkLines(t, must(t, "logs", id))
}

// checkLines checks that "line N" counts up without a gap or a repeat.
func checkLines(t *testing.T, logs string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(logs), "\n")
	if len(lines) < 100 {
		t.Fatalf("only %d lines", len(lines))
	}
	for i, l := range lines {
		if want := fmt.Sprintf("line %d", i); l != want && i < len(lines)-1 {
			t.Fatalf("line %d of the log is %q", i, l)
		}
	}
}

func TestTerminal(t *testing.T) {
	img := pulled(t, "busybox")
	pty, slave, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer pty.Close()
	pty.Resize(console.WinSize{Height: 33, Width: 77})
	tty, err := os.OpenFile(slave, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := h.command(ctx, "run", "--rm", "-it", img, "sh")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	screen := readScreen(pty)
	screen.expect(t, `[#$] `)
	pty.Write([]byte("stty size\n"))
	screen.expect(t, `33 77`)
	pty.Resize(console.WinSize{Height: 20, Width: 50})
	cmd.Process.Signal(syscall.SIGWINCH)
	time.Sleep(200 * time.Millisecond)
	pty.Write([]byte("stty size\n"))
	screen.expect(t, `20 50`)
	pty.Write([]byte("sleep 1000\n"))
	time.Sleep(300 * time.Millisecond)
	pty.Write([]byte{3}) // Ctrl-C
	pty.Write([]byte("echo code=$?\n"))
	screen.expect(t, `code=130`)
	pty.Write([]byte("exit 5\n"))
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("exit code %d (%v), want 5", cmd.ProcessState.ExitCode(), err)
	}
}

type screen struct {
	data chan []byte
	seen []byte
}

func readScreen(c console.Console) *screen {
	s := &screen{data: make(chan []byte, 100)}
	go func() {
		defer close(s.data)
		for {
			buf := make([]byte, 4096)
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			s.data <- buf[:n]
		}
	}()
	return s
}

// expect waits for a pattern after what was matched before.
func (s *screen) expect(t *testing.T, pattern string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	timeout := time.After(30 * time.Second)
	for {
		if loc := re.FindIndex(s.seen); loc != nil {
			s.seen = s.seen[loc[1]:]
			return
		}
		select {
		case d, ok := <-s.data:
			if !ok {
				t.Fatalf("the terminal closed; want %q in %q", pattern, s.seen)
			}
			s.seen = append(s.seen, d...)
		case <-timeout:
			t.Fatalf("want %q in %q", pattern, s.seen)
		}
	}
}

func TestDockerClient(t *testing.T) {
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("no docker client here (make deps brings one)")
	}
	img := pulled(t, "busybox")
	run := func(args ...string) (string, int) {
		cmd := exec.CommandContext(t.Context(), docker, append([]string{"-H", "unix://" + h.run + "/hyper.sock"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	if out, code := run("run", "--rm", img, "sh", "-c", "echo via docker; exit 3"); code != 3 || !strings.Contains(out, "via docker") {
		t.Errorf("docker run: code %d, %s", code, out)
	}
	out, code := run("run", "-d", "--name", "dk", img, "sleep", "1000")
	if code != 0 {
		t.Fatalf("docker run -d: %s", out)
	}
	t.Cleanup(func() { cleanup(t, "rm", "-f", "dk") })
	for _, args := range [][]string{{"ps"}, {"inspect", "dk"}, {"exec", "dk", "true"}, {"logs", "dk"}, {"top", "dk"}, {"stats", "--no-stream"}, {"images"}, {"info"}, {"version"}, {"stop", "-t", "0", "dk"}, {"start", "dk"}, {"rm", "-f", "dk"}} {
		if out, code := run(args...); code != 0 {
			t.Errorf("docker %s: code %d\n%s", strings.Join(args, " "), code, out)
		}
	}
}

func TestReadOnly(t *testing.T) {
	img := pulled(t, "busybox")
	r := hyper(t, "run", "--rm", "--read-only", "--tmpfs", "/tmp", img, "sh", "-c", "touch /x; touch /tmp/y && echo tmp works")
	if !strings.Contains(r.err, "Read-only file system") || !strings.Contains(r.out, "tmp works") {
		t.Errorf("%+v", r)
	}
}

func TestOutOfMemory(t *testing.T) {
	img := pulled(t, "busybox")
	r := hyper(t, "run", "--name", "oom", "-m", "32m", img, "sh", "-c", "dd if=/dev/zero of=/dev/null bs=90M count=1; echo $?")
	t.Cleanup(func() { cleanup(t, "rm", "-f", "oom") })
	if oom := must(t, "inspect", "--format", "{{.State.OOMKilled}}", "oom"); oom != "true" {
		t.Errorf("OOMKilled %s, exit code %d, %s", oom, r.code, r.err)
	}
}
