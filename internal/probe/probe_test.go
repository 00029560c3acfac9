package probe_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/hyper-run/hyper/internal/probe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// local is the host itself as a container. It counts the connections that are open.
type local struct {
	open atomic.Int32
}

func (l *local) Exec(ctx context.Context, args []string) (int, []byte, error) {
	var out probe.Tail
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && ctx.Err() == nil {
		return exit.ExitCode(), out.Bytes(), nil
	}
	return 0, out.Bytes(), err
}

func (l *local) Dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	l.open.Add(1)
	return &counted{Conn: conn, open: &l.open}, nil
}

type counted struct {
	net.Conn
	open   *atomic.Int32
	closed atomic.Bool
}

func (c *counted) Close() error {
	if !c.closed.Swap(true) {
		c.open.Add(-1)
	}
	return c.Conn.Close()
}

// run makes a check that has to take less than its time, and leave no connection.
func run(t *testing.T, h probe.Handler, timeout time.Duration) probe.Result {
	t.Helper()
	var l local
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	at := time.Now()
	r := h.Run(ctx, &l)
	if took := time.Since(at); took > timeout+5*time.Second {
		t.Errorf("it took %v", took)
	}
	if len(r.Message) > probe.MaxOutput || !utf8.ValidString(r.Message) {
		t.Errorf("message of %d bytes: %.100q", len(r.Message), r.Message)
	}
	if n := l.open.Load(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
	return r
}

func want(t *testing.T, got probe.Result, outcome probe.Outcome, message string) {
	t.Helper()
	if got.Outcome != outcome || !strings.Contains(got.Message, message) {
		t.Errorf("got %s %.300q, want %s with %q", got.Outcome, got.Message, outcome, message)
	}
}

const soon, plenty = 200 * time.Millisecond, 20 * time.Second

func TestExec(t *testing.T) {
	sh := func(script string) probe.Handler { return probe.Handler{Exec: []string{"sh", "-c", script}} }
	want(t, run(t, sh("echo fine"), plenty), probe.Success, "fine")
	want(t, run(t, sh("echo worse >&2; exit 3"), plenty), probe.Failure, "sh exited with code 3: worse")
	want(t, run(t, sh("exit 1"), plenty), probe.Failure, "sh exited with code 1")
	want(t, run(t, sh("exec sleep 60"), soon), probe.Failure, "timed out")
	want(t, run(t, probe.Handler{Exec: []string{"/no/such/program"}}, plenty), probe.Failure, "run /no/such/program: ")
	want(t, run(t, sh(`head -c 100000 /dev/zero | tr '\0' '\377'; echo; echo the end; exit 1`), plenty), probe.Failure, "the end")
	want(t, run(t, sh(`head -c 5000 /dev/zero | tr '\0' x; echo the end; exit 1`), plenty), probe.Failure, "the end")
}

func TestOutcome(t *testing.T) {
	h := probe.Handler{Exec: []string{"x"}}
	want(t, h.Run(t.Context(), newProgram(runs{"x": unreachable})), probe.Unknown, "lost")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	want(t, h.Run(ctx, newProgram(runs{"x": hangs})), probe.Unknown, "canceled")

	unreachable := dialer(func(context.Context, string) (net.Conn, error) {
		return nil, fmt.Errorf("dial guest: %w", errdefs.ErrUnavailable)
	})
	for _, h := range []probe.Handler{
		{TCP: &probe.TCPSocket{Port: 1}}, {HTTP: &probe.HTTPGet{Port: 1}}, {GRPC: &probe.GRPCCheck{Port: 1}},
	} {
		want(t, h.Run(t.Context(), unreachable), probe.Unknown, "dial guest")
	}
}

// A dialer is a container that nothing can be run in.
type dialer func(ctx context.Context, address string) (net.Conn, error)

func (dialer) Exec(context.Context, []string) (int, []byte, error) {
	return 0, nil, errors.New("nothing can be run")
}
func (d dialer) Dial(ctx context.Context, address string) (net.Conn, error) { return d(ctx, address) }

func TestSleep(t *testing.T) {
	at := time.Now()
	want(t, run(t, probe.Handler{Sleep: 50 * time.Millisecond}, plenty), probe.Success, "")
	if took := time.Since(at); took < 50*time.Millisecond {
		t.Errorf("slept %v", took)
	}
	want(t, run(t, probe.Handler{Sleep: time.Hour}, soon), probe.Failure, "timed out: sleep 1h")
	want(t, run(t, probe.Handler{}, plenty), probe.Success, "")
}

func TestTCP(t *testing.T) {
	port := listen(t, func(conn net.Conn) {})
	want(t, run(t, probe.Handler{TCP: &probe.TCPSocket{Port: port}}, plenty), probe.Success, "")
	want(t, run(t, probe.Handler{TCP: &probe.TCPSocket{Port: port, Host: "localhost"}}, plenty), probe.Success, "")
	want(t, run(t, probe.Handler{TCP: &probe.TCPSocket{Port: closedPort(t)}}, plenty), probe.Failure, "refused")
	var asked string
	probe.Handler{TCP: &probe.TCPSocket{Host: "fd00::1", Port: 80}}.Run(t.Context(), dialer(func(_ context.Context, a string) (net.Conn, error) {
		asked = a
		return nil, io.EOF
	}))
	if asked != "[fd00::1]:80" {
		t.Errorf("dialled %q", asked)
	}
}

// listen serves each connection to a port with a goroutine that closes it.
func listen(t *testing.T, serve func(net.Conn)) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func closedPort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func portOf(t *testing.T, rawURL string) int {
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// web is a server with pages that behave in one way each.
func web(t *testing.T) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/status/{code}", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.PathValue("code"))
		w.WriteHeader(code)
		fmt.Fprintf(w, "code %d", code)
	})
	mux.HandleFunc("/to", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.URL.Query().Get("u"))
		w.WriteHeader(http.StatusFound)
	})
	mux.HandleFunc("/echo/", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"host": r.Host, "uri": r.RequestURI, "ua": r.UserAgent(), "h": r.Header})
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) {
		for range 1000 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
		t.Error("all of a big body was read")
	})
	mux.HandleFunc("/headers", func(w http.ResponseWriter, _ *http.Request) {
		for i := range 2000 {
			w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 100))
		}
	})
	hang := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang/body" {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
	}
	mux.HandleFunc("/hang/header", hang)
	mux.HandleFunc("/hang/body", hang)
	return mux
}

func TestHTTP(t *testing.T) {
	plain, secure := httptest.NewServer(web(t)), httptest.NewUnstartedServer(web(t))
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	secure.StartTLS()
	defer plain.Close()
	defer secure.Close()
	plainPort, securePort := portOf(t, plain.URL), portOf(t, secure.URL)
	to := func(u string) string { return "/to?u=" + url.QueryEscape(u) }
	tests := []struct {
		path    string
		timeout time.Duration
		outcome probe.Outcome
		message string
	}{
		{"/status/200", plenty, probe.Success, "code 200"},
		{"status/299", plenty, probe.Success, "code 299"},
		{"/status/304", plenty, probe.Success, ""},
		{"/status/399", plenty, probe.Success, ""},
		{"/status/400", plenty, probe.Failure, "400 Bad Request: code 400"},
		{"/status/503", plenty, probe.Failure, "code 503"},
		{"/status/600", plenty, probe.Failure, "600"},
		{"", plenty, probe.Failure, "404"},
		{to("/status/200"), plenty, probe.Success, "code 200"},
		{to("/status/503"), plenty, probe.Failure, "code 503"},
		{to(fmt.Sprintf("http://127.0.0.1:%d/status/418", plainPort)), plenty, probe.Failure, "418"},
		{to(fmt.Sprintf("https://127.0.0.1:%d/status/200", securePort)), plenty, probe.Success, "code 200"},
		{to("http://192.0.2.1/"), plenty, probe.Success, "a redirect to http://192.0.2.1/"},
		{to("file:///etc/passwd"), plenty, probe.Success, "a redirect to file:"},
		{to("gopher://127.0.0.1/"), plenty, probe.Failure, "unsupported protocol"},
		{to("/to?u=/to"), plenty, probe.Success, "a redirect to "},
		{"/big", plenty, probe.Success, "\x00"},
		{"/headers", plenty, probe.Failure, "headers are too long"},
		{"/hang/header", soon, probe.Failure, "timed out"},
		{"/hang/body", soon, probe.Failure, "timed out"},
	}
	for _, tt := range tests {
		for _, https := range []bool{false, true} {
			get := &probe.HTTPGet{Path: tt.path, Port: plainPort}
			if https {
				get = &probe.HTTPGet{Path: tt.path, Port: securePort, HTTPS: true}
			}
			t.Run(fmt.Sprintf("%s %v", tt.path, https), func(t *testing.T) {
				want(t, run(t, probe.Handler{HTTP: get}, tt.timeout), tt.outcome, tt.message)
			})
		}
	}
	get := func(g probe.HTTPGet) probe.Result { return run(t, probe.Handler{HTTP: &g}, plenty) }
	want(t, get(probe.HTTPGet{Port: plainPort, Path: "/", HTTPS: true}), probe.Failure, "HTTP response to HTTPS client")
	want(t, get(probe.HTTPGet{Port: securePort, Path: "/"}), probe.Failure, "400")
	want(t, get(probe.HTTPGet{Port: closedPort(t), Path: "/"}), probe.Failure, "refused")
	want(t, get(probe.HTTPGet{Port: plainPort, Path: "/echo/", Headers: [][2]string{{"X", "a\r\nY: b"}}}), probe.Success, `"X":["a  Y: b"]`)
}

// TestRedirects: one that leads to itself is not followed for ever.
func TestRedirects(t *testing.T) {
	var n atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		http.Redirect(w, r, r.URL.Path, http.StatusFound)
	}))
	defer srv.Close()
	want(t, run(t, probe.Handler{HTTP: &probe.HTTPGet{Port: portOf(t, srv.URL), Path: "/"}}, plenty), probe.Failure, "too many redirects")
	if n.Load() != 11 {
		t.Errorf("%d requests", n.Load())
	}
}

func TestRequest(t *testing.T) {
	srv := httptest.NewServer(web(t))
	defer srv.Close()
	port := portOf(t, srv.URL)
	tests := []struct {
		get  probe.HTTPGet
		want string
	}{
		{probe.HTTPGet{Path: "/echo/"},
			fmt.Sprintf(`{"h":{"Accept":["*/*"],"Connection":["close"],"User-Agent":["hyper-probe/1"]},"host":"127.0.0.1:%d","ua":"hyper-probe/1","uri":"/echo/"}`, port)},
		{probe.HTTPGet{Path: "/echo/a%2Fb%20c?x=1&y=%zz#f", Host: "localhost"},
			fmt.Sprintf(`{"h":{"Accept":["*/*"],"Connection":["close"],"User-Agent":["hyper-probe/1"]},"host":"localhost:%d","ua":"hyper-probe/1","uri":"/echo/a%%2Fb%%20c?x=1\u0026y=%%zz"}`, port)},
		{probe.HTTPGet{Path: "//192.0.2.1:99/echo/", Headers: [][2]string{{"host", "web.example"}, {"user-agent", "me"}, {"x", "1"}, {"X", "2"}, {"accept", "text/html"}}},
			`{"h":{"Accept":["text/html"],"Connection":["close"],"User-Agent":["me"],"X":["1","2"]},"host":"web.example","ua":"me","uri":"/echo/"}`},
		{probe.HTTPGet{Path: "/echo/%", Headers: [][2]string{{"User-Agent", ""}}},
			fmt.Sprintf(`{"h":{"Accept":["*/*"],"Connection":["close"]},"host":"127.0.0.1:%d","ua":"","uri":"/echo/%%25"}`, port)},
	}
	for _, tt := range tests {
		tt.get.Port = port
		if got := run(t, probe.Handler{HTTP: &tt.get}, plenty); got != (probe.Result{Outcome: probe.Success, Message: tt.want}) {
			t.Errorf("%+v:\ngot  %s %s\nwant %s", tt.get, got.Outcome, got.Message, tt.want)
		}
	}
}

// hostile are servers that nobody should wait for, or listen to.
var hostile = map[string]func(net.Conn){
	"silent": func(conn net.Conn) { io.Copy(io.Discard, conn) },
	"closes": func(net.Conn) {},
	"garbage": func(conn net.Conn) {
		for i := 0; ; i++ {
			if _, err := conn.Write(fmt.Appendf(nil, "%d garbage \x00\xff\x1b[31m", i)); err != nil {
				return
			}
		}
	},
	"header without end": func(conn net.Conn) {
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nX: ")
		for {
			if _, err := conn.Write([]byte(strings.Repeat("x", 4096))); err != nil {
				return
			}
		}
	},
	"continue for ever": func(conn net.Conn) {
		for {
			if _, err := io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n"); err != nil {
				return
			}
		}
	},
	"HTTP/2 settings for ever": func(conn net.Conn) {
		for {
			if _, err := conn.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}); err != nil {
				return
			}
		}
	},
	"HTTP/2, then silent": func(conn net.Conn) {
		conn.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0})
		io.Copy(io.Discard, conn)
	},
}

func TestHostile(t *testing.T) {
	for name, serve := range hostile {
		t.Run(name, func(t *testing.T) {
			port := listen(t, serve)
			for kind, h := range map[string]probe.Handler{
				"http":  {HTTP: &probe.HTTPGet{Port: port, Path: "/"}},
				"https": {HTTP: &probe.HTTPGet{Port: port, Path: "/", HTTPS: true}},
				"grpc":  {GRPC: &probe.GRPCCheck{Port: port}},
			} {
				t.Run(kind, func(t *testing.T) { want(t, run(t, h, soon), probe.Failure, "") })
			}
		})
	}
}

func TestGRPC(t *testing.T) {
	serve := func(register func(*grpc.Server)) int {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		register(s)
		go s.Serve(l)
		t.Cleanup(s.Stop)
		return l.Addr().(*net.TCPAddr).Port
	}
	hs := health.NewServer()
	hs.SetServingStatus("db", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	port := serve(func(s *grpc.Server) { grpc_health_v1.RegisterHealthServer(s, hs) })
	slow := serve(func(s *grpc.Server) { grpc_health_v1.RegisterHealthServer(s, &slowHealth{}) })
	bare := serve(func(*grpc.Server) {})
	tests := []struct {
		check   probe.GRPCCheck
		timeout time.Duration
		outcome probe.Outcome
		message string
	}{
		{probe.GRPCCheck{Port: port}, plenty, probe.Success, ""},
		{probe.GRPCCheck{Port: port, Service: "db"}, plenty, probe.Failure, "it is NOT_SERVING"},
		{probe.GRPCCheck{Port: port, Service: "other"}, plenty, probe.Failure, `the server knows no service "other"`},
		{probe.GRPCCheck{Port: bare}, plenty, probe.Failure, "has no grpc.health.v1"},
		{probe.GRPCCheck{Port: slow}, soon, probe.Failure, "timed out"},
		{probe.GRPCCheck{Port: closedPort(t)}, plenty, probe.Failure, "refused"},
	}
	for _, tt := range tests {
		want(t, run(t, probe.Handler{GRPC: &tt.check}, tt.timeout), tt.outcome, tt.message)
	}
}

type slowHealth struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (*slowHealth) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestTail(t *testing.T) {
	for _, sizes := range [][]int{{0}, {1, 2, 3}, {4095, 1}, {4096}, {4095, 2}, {5000, 10}, {3000, 3000, 3000}, {10, 100000}} {
		var tail probe.Tail
		var all []byte
		for i, n := range sizes {
			p := []byte(strings.Repeat(string(rune('a'+i)), n))
			all = append(all, p...)
			if w, err := tail.Write(p); w != n || err != nil {
				t.Fatalf("%v: write: %d, %v", sizes, w, err)
			}
		}
		if got := string(tail.Bytes()); got != string(all[max(0, len(all)-probe.MaxOutput):]) {
			t.Errorf("%v: kept %d bytes, or wrong ones", sizes, len(got))
		}
	}
	var tail probe.Tail
	p := make([]byte, 100)
	for range 10000 {
		tail.Write(p)
	}
	if c := cap(tail.Bytes()); c > 4*probe.MaxOutput {
		t.Errorf("it holds %d bytes", c)
	}
}
