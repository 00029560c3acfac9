package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// cat writes what it reads to its standard output, and notes to the other.
func cat(p *fakeProcess) int {
	p.write(2, []byte("begin\n"))
	buf := make([]byte, 20000)
	for {
		n, err := p.in.Read(buf)
		if n > 0 {
			p.write(1, buf[:n])
		}
		if err != nil {
			break
		}
	}
	p.write(2, []byte("end\n"))
	return 7
}

func TestRunStreams(t *testing.T) {
	for _, args := range [][]string{{"run", "-i", "x"}, {"exec", "-i", "c1", "cat"}, {"start", "-ai", "c1"}} {
		t.Run(args[0], func(t *testing.T) {
			d := newFakeDaemon(t)
			d.process = cat
			got := d.hyper(strings.NewReader("hello\n"), args...)
			got.err = strings.TrimPrefix(got.err, "WARNING: it is a fake\n")
			if want := (result{7, "hello\n", "begin\nend\n"}); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestAttachStreams(t *testing.T) {
	d := newFakeDaemon(t)
	go func() {
		p := <-d.attached
		code := cat(p)
		p.Close()
		d.exited <- code
	}()
	if got, want := d.hyper(strings.NewReader("hello\n"), "attach", "c1"), (result{7, "hello\n", "begin\nend\n"}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A hash writer does not keep what it is given.
type hashWriter struct {
	sum interface {
		io.Writer
		Sum([]byte) []byte
	}
	n int
}

func (h *hashWriter) Write(p []byte) (int, error) { h.n += len(p); return h.sum.Write(p) }

// 100 MB are the same on both ways.
func TestRunBulk(t *testing.T) {
	const size = 100 << 20
	src := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), size) }
	want := sha256.New()
	_, _ = io.Copy(want, src())
	d := newFakeDaemon(t)
	var in hashWriter
	d.process = func(p *fakeProcess) int {
		in.sum = sha256.New()
		_, _ = io.Copy(&in, p.in)
		buf := make([]byte, 32<<10)
		for r := src(); ; {
			n, err := io.ReadFull(r, buf)
			p.write(1, buf[:n])
			if err != nil {
				return 0
			}
		}
	}
	out := &hashWriter{sum: sha256.New()}
	code := Main(t.Context(), Config{}, []string{"-H", listen(t, d), "run", "-i", "x"}, src(), out, io.Discard)
	if code != 0 || in.n != size || out.n != size {
		t.Fatalf("code %d, %d bytes in, %d bytes out", code, in.n, out.n)
	}
	if !bytes.Equal(in.sum.Sum(nil), want.Sum(nil)) || !bytes.Equal(out.sum.Sum(nil), want.Sum(nil)) {
		t.Error("the bytes differ")
	}
}

// Input that stays open does not keep a container that has ended.
func TestRunInputStaysOpen(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	d := newFakeDaemon(t)
	d.process = func(p *fakeProcess) int { return 0 }
	if got := d.hyper(r, "run", "-i", "x"); got.code != 0 {
		t.Errorf("got %v", got)
	}
}

func TestRunExitCodes(t *testing.T) {
	tests := []struct {
		name  string
		start string // the daemon's answer
		args  string
		code  int
		err   string
	}{
		{"not found", `400 start "foo": exec: "foo": executable file not found in $PATH`, "run x foo", 127,
			"hyper: cannot run: start \"foo\": exec: \"foo\": executable file not found in $PATH\n"},
		{"no such file", `400 start "/foo": exec: "/foo": stat /foo: no such file or directory`, "run x /foo", 127,
			"hyper: cannot run: start \"/foo\": exec: \"/foo\": stat /foo: no such file or directory\n"},
		{"not executable", `400 start "/etc": exec: "/etc": permission denied`, "run x /etc", 126, "hyper: cannot run: start \"/etc\": exec: \"/etc\": permission denied\n"},
		{"a directory", `400 start "/etc": exec: "/etc": is a directory`, "run x /etc", 126, "hyper: cannot run: start \"/etc\": exec: \"/etc\": is a directory\n"},
		{"other", `500 no memory`, "run x", 125, "hyper: cannot run: no memory\n"},
		{"detached", `400 start "foo": executable file not found`, "run -d x foo", 127, "hyper: cannot run: start \"foo\": executable file not found\n"},
		{"not the program", `400 exec: "qemu": executable file not found in $PATH`, "run x foo", 125,
			"hyper: cannot run: exec: \"qemu\": executable file not found in $PATH\n"},
		{"start", `400 executable file not found`, "start c1", 1, "hyper: cannot start c1: executable file not found\n"},
		{"start attached", `400 executable file not found`, "start -a c1", 1, "hyper: cannot start c1: executable file not found\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := newFakeDaemon(t)
			d.answers["POST /containers/c1/start"] = test.start
			got := d.hyper(strings.NewReader(""), strings.Fields(test.args)...)
			got.err = strings.TrimPrefix(got.err, "WARNING: it is a fake\n")
			if want := (result{test.code, "", test.err}); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestRunDetached(t *testing.T) {
	d := newFakeDaemon(t)
	d.answers["POST /containers/c1/start"] = "204 "
	cid := filepath.Join(t.TempDir(), "cid")
	if got, want := d.hyper(nil, "run", "-d", "--cidfile", cid, "x"), (result{0, "c1\n", "WARNING: it is a fake\n"}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if id, err := os.ReadFile(cid); err != nil || string(id) != "c1" {
		t.Errorf("--cidfile: %q, %v", id, err)
	}
	got := d.hyper(nil, "run", "-d", "--cidfile", cid, "x")
	if got.code != 125 || !strings.Contains(got.err, "exists") {
		t.Errorf("second: %v", got)
	}
}

func TestCIDFileOfNothing(t *testing.T) {
	d := newFakeDaemon(t)
	d.answers["POST /containers/create"] = "500 no"
	cid := filepath.Join(t.TempDir(), "cid")
	if got := d.hyper(nil, "create", "--cidfile", cid, "x"); got.code != 125 || got.err != "hyper: cannot create: no\n" {
		t.Errorf("got %v", got)
	}
	if _, err := os.Stat(cid); err == nil {
		t.Error("the file is there")
	}
}

// A missing image is pulled once, then the container is created.
func TestRunPulls(t *testing.T) {
	d := newFakeDaemon(t)
	d.answers["POST /containers/create"] = "404 No such image: x:latest"
	var lines []string
	for _, m := range []map[string]any{
		{"status": "Pulling from library/x", "id": "latest"},
		{"status": "Pull complete", "id": "0123456789ab", "progressDetail": map[string]any{}},
		{"status": "Status: Downloaded newer image for x:latest"},
	} {
		b, _ := json.Marshal(m)
		lines = append(lines, string(b))
	}
	d.answers["POST /images/create"] = strings.Join(lines, "\n")
	got := d.hyper(nil, "run", "x")
	want := result{125, "", "Unable to find image 'x:latest' locally\n" +
		"latest: Pulling from library/x\n0123456789ab: Pull complete\nStatus: Downloaded newer image for x:latest\n" +
		"hyper: cannot run: No such image: x:latest\nhint: 'hyper images' lists the images that are here, 'hyper pull' fetches others\n"}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(result{})); d != "" {
		t.Errorf("want (-), got (+): %s", d)
	}
	if !d.asked("POST /images/create?fromImage=docker.io%2Flibrary%2Fx&tag=latest") {
		t.Errorf("requests: %q", d.requests)
	}
	for _, test := range []struct{ args, err string }{
		{"run --pull never x", "hyper: cannot run: No such image: x:latest\nhint: "},
		{"run -q x", "hyper: cannot run: No such image: x:latest\nhint: "},
		{"run --pull sometimes x", `hyper: cannot run: --pull "sometimes": must be one of`},
	} {
		if got := d.hyper(nil, strings.Fields(test.args)...); got.code != 125 || !strings.HasPrefix(got.err, test.err) {
			t.Errorf("%s: %v", test.args, got)
		}
	}
}

// What goes wrong in a pull is an error of the run.
func TestRunPullFails(t *testing.T) {
	d := newFakeDaemon(t)
	d.answers["POST /containers/create"] = "404 No such image: x:latest"
	d.answers["POST /images/create"] = `{"errorDetail":{"message":"manifest unknown"},"error":"manifest unknown"}`
	got := d.hyper(nil, "run", "x")
	if got.code != 125 || !strings.HasSuffix(got.err, "hyper: cannot run: manifest unknown\n") {
		t.Errorf("got %v", got)
	}
}

func TestNoTerminal(t *testing.T) {
	d := newFakeDaemon(t)
	for _, args := range []string{"run -it x", "exec -it c1 sh"} {
		got := d.hyper(strings.NewReader(""), strings.Fields(args)...)
		if got.code != 1 || !strings.HasSuffix(got.err, "standard input is not a terminal, which -t needs\nhint: leave out -t\n") {
			t.Errorf("%s: %v", args, got)
		}
	}
	if len(d.requests) != 0 {
		t.Errorf("requests: %q", d.requests)
	}
}

// The daemon goes away while a container runs.
func TestRunLosesDaemon(t *testing.T) {
	d := newFakeDaemon(t)
	d.process = func(p *fakeProcess) int {
		p.write(1, []byte("x"))
		_, _ = p.Conn.Write([]byte{1, 0, 0, 0, 0}) // half a header
		return 0
	}
	got := d.hyper(nil, "run", "x")
	if got.code != 125 || got.out != "x" || !strings.Contains(got.err, "hyper: cannot run: read output: unexpected EOF") {
		t.Errorf("got %v", got)
	}
}

func TestExecRefused(t *testing.T) {
	d := newFakeDaemon(t)
	d.answers["POST /exec/e1/start"] = "409 container c1 is paused"
	if got, want := d.hyper(nil, "exec", "c1", "true"), (result{1, "", "hyper: cannot exec in c1: container c1 is paused\n"}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
