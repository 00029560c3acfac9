package cli

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A fakeDaemon has one container (c1), one exec (e1) and one image, and does
// what the API says about their streams and exit codes.
type fakeDaemon struct {
	t       *testing.T
	answers map[string]string // "GET /x" → JSON, or "404 message"

	// process is what the container and the exec run.
	process func(p *fakeProcess) (code int)
	tty     bool

	mu       sync.Mutex
	requests []string // "POST /containers/c1/kill?signal=SIGINT"
	body     string   // of the last request that had one
	attached chan *fakeProcess
	exited   chan int
	code     int
}

// A fakeProcess has its client's streams.
type fakeProcess struct {
	net.Conn
	in  io.Reader
	tty bool
}

// write sends output as the API does; stream 2 is standard error.
func (p *fakeProcess) write(stream byte, data []byte) {
	if !p.tty {
		var h [8]byte
		h[0] = stream
		binary.BigEndian.PutUint32(h[4:], uint32(len(data)))
		_, _ = p.Write(h[:])
	}
	_, _ = p.Write(data)
}

func newFakeDaemon(t *testing.T) *fakeDaemon {
	return &fakeDaemon{t: t, answers: map[string]string{}, attached: make(chan *fakeProcess, 1), exited: make(chan int, 1)}
}

func (d *fakeDaemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if strings.HasPrefix(path, "/v1.") {
		path = path[strings.Index(path[1:], "/")+1:]
	}
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	d.mu.Lock()
	if len(body) > 0 {
		d.body = string(body)
	}
	d.requests = append(d.requests, r.Method+" "+path+queryText(r))
	d.mu.Unlock()
	if path == "/_ping" {
		w.Header().Set("Api-Version", "1.50")
		return
	}
	if a, ok := d.answers[r.Method+" "+path]; ok {
		answer(w, a)
		return
	}
	switch r.Method + " " + path {
	case "POST /containers/create":
		answer(w, `{"Id":"c1","Warnings":["it is a fake"]}`)
	case "POST /containers/c1/attach":
		d.attached <- d.hijack(w, r)
	case "POST /containers/c1/wait":
		w.Header().Set("Content-Type", "application/json")
		w.(http.Flusher).Flush()
		select {
		case code := <-d.exited:
			fmt.Fprintf(w, `{"StatusCode":%d}`, code)
		case <-r.Context().Done():
		}
	case "POST /containers/c1/start":
		p := <-d.attached
		go func() {
			code := d.process(p)
			p.Close()
			d.exited <- code
		}()
		w.WriteHeader(http.StatusNoContent)
	case "POST /containers/c1/exec":
		answer(w, `{"Id":"e1"}`)
	case "POST /exec/e1/start":
		p := d.hijack(w, r)
		code := d.process(p)
		d.mu.Lock()
		d.code = code
		d.mu.Unlock()
		p.Close()
	case "GET /exec/e1/json":
		d.mu.Lock()
		defer d.mu.Unlock()
		answer(w, fmt.Sprintf(`{"ID":"e1","ExitCode":%d}`, d.code))
	case "GET /containers/c1/json":
		answer(w, fmt.Sprintf(`{"Id":"c1","State":{"Running":true},"Config":{"Tty":%v,"OpenStdin":true},"HostConfig":{}}`, d.tty))
	default:
		answer(w, "404 page not found: "+path)
	}
}

func queryText(r *http.Request) string {
	if r.URL.RawQuery == "" {
		return ""
	}
	return "?" + r.URL.RawQuery
}

// answer sends JSON, or an error written as "STATUS message".
func answer(w http.ResponseWriter, a string) {
	w.Header().Set("Content-Type", "application/json")
	var status int
	if n, _ := fmt.Sscanf(a, "%d ", &status); n == 1 && status >= 200 && status < 600 {
		w.WriteHeader(status)
		if status >= 400 {
			_ = json.NewEncoder(w).Encode(map[string]string{"message": a[4:]})
		}
		return
	}
	_, _ = io.WriteString(w, a)
}

func (d *fakeDaemon) hijack(w http.ResponseWriter, r *http.Request) *fakeProcess {
	_, _ = io.Copy(io.Discard, r.Body)
	conn, buf, err := w.(http.Hijacker).Hijack()
	if err != nil {
		d.t.Error(err)
		return nil
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"); err != nil {
		d.t.Error(err)
	}
	return &fakeProcess{Conn: conn, in: buf.Reader, tty: d.tty}
}

// asked says whether a request was made; requests end with what is asked for.
func (d *fakeDaemon) asked(request string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.requests {
		if r == request {
			return true
		}
	}
	return false
}

type result struct {
	code     int
	out, err string
}

func (r result) String() string { return fmt.Sprintf("%d, out %q, err %q", r.code, r.out, r.err) }

// hyper runs a command against the daemon.
func (d *fakeDaemon) hyper(in io.Reader, args ...string) result {
	d.t.Helper()
	var out, errOut bytes.Buffer
	code := Main(context.Background(), Config{Version: "1.0"}, append([]string{"-H", listen(d.t, d)}, args...), in, &out, &errOut)
	return result{code, out.String(), errOut.String()}
}

// script writes a shell script that stands in for hyperd.
func script(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "hyperd")
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDaemonIsStarted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root's hyper starts hyperd")
	}
	sock := filepath.Join(shortDir(t), "d.sock")
	tests := []struct {
		name, script string
		code         int
		want         string // part of what is printed
	}{
		{"ends", "echo something is wrong; exit 3", 1, "starting it did not work: exit status 3: something is wrong"},
		{"ends without a word", "exit 0", 1, "it ended at once: it logged nothing"},
		{"says it is ready and isn't", "echo >&$HYPER_READY_FD", 1, "was started, but does not listen"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			cfg := Config{Host: "unix://" + sock, Daemon: script(t, test.script), DaemonLog: filepath.Join(t.TempDir(), "log", "d.log")}
			code := Main(context.Background(), cfg, []string{"ps"}, nil, &out, &out)
			if code != test.code || !strings.Contains(out.String(), test.want) {
				t.Errorf("%d: %s", code, &out)
			}
		})
	}
}

// A daemon that becomes ready is connected to; two commands start one.
func TestDaemonStarts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root's hyper starts hyperd")
	}
	dir := shortDir(t)
	sock, ask := filepath.Join(dir, "d.sock"), filepath.Join(dir, "ask")
	// The script asks this test to listen, and says that it serves when it does.
	if err := os.Mkdir(ask, 0o700); err != nil {
		t.Fatal(err)
	}
	prog := script(t, `test -t 0 && exit 9
echo $$ > `+ask+`/pid.tmp; mv `+ask+`/pid.tmp `+ask+`/pid; while ! test -e `+ask+`/up; do sleep 0.01; done; echo >&3`)
	d := newFakeDaemon(t)
	d.answers["GET /containers/json"] = "[]"
	l := make(chan net.Listener, 1)
	go func() {
		for {
			if _, err := os.Stat(ask + "/pid"); err == nil {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		ln, err := net.Listen("unix", sock)
		if err != nil {
			t.Error(err)
		} else {
			go func() { _ = http.Serve(ln, d) }()
		}
		if err := os.WriteFile(ask+"/up", nil, 0o600); err != nil {
			t.Error(err)
		}
		l <- ln
	}()
	cfg := Config{Host: "unix://" + sock, Daemon: prog, DaemonLog: filepath.Join(dir, "d.log")}
	var outs [2]bytes.Buffer
	var wg sync.WaitGroup
	for i := range outs {
		wg.Go(func() {
			if code := Main(context.Background(), cfg, []string{"ps", "-q"}, nil, &outs[i], &outs[i]); code != 0 {
				t.Errorf("%d: %s", code, &outs[i])
			}
		})
	}
	wg.Wait()
	if ln := <-l; ln != nil {
		_ = ln.Close()
	}
	both := outs[0].String() + outs[1].String()
	if strings.Count(both, "hyper: started hyperd (pid ") != 1 {
		t.Errorf("got %q", both)
	}
}

func TestNoDaemon(t *testing.T) {
	t.Setenv("HYPER_HOST", "unix:///nonexistent/d.sock")
	t.Setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
	for _, args := range [][]string{{"ps"}, {"run", "x"}, {"exec", "a", "b"}, {"version"}} {
		var out, errOut strings.Builder
		code := Main(context.Background(), Config{}, args, nil, &out, &errOut)
		want := 1
		if args[0] == "run" {
			want = 125
		}
		if code != want || !strings.Contains(errOut.String(), ": no hyperd listens on /nonexistent/d.sock\nhint: ") {
			t.Errorf("%v: %d: %s", args, code, &errOut)
		}
	}
}
