package cli

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A recorder is a daemon that only takes down what it is asked to create.
type recorder struct {
	mu    sync.Mutex
	query string
	body  map[string]any
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Api-Version", "1.50")
	w.Header().Set("Ostype", "linux")
	switch {
	case strings.HasSuffix(req.URL.Path, "/_ping"):
		io.WriteString(w, "OK")
	case strings.HasSuffix(req.URL.Path, "/create"):
		r.mu.Lock()
		defer r.mu.Unlock()
		r.query, r.body = req.URL.RawQuery, nil
		json.NewDecoder(req.Body).Decode(&r.body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"Id":"4a5b","Warnings":[]}`)
	default:
		http.Error(w, `{"message":"not here"}`, http.StatusNotFound)
	}
}

// listen serves a handler on a unix socket until the test ends.
func listen(t *testing.T, h http.Handler) (host string) {
	t.Helper()
	path := filepath.Join(shortDir(t), "d.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return "unix://" + path
}

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Docker's own command and hyper send the same for the same flags.
func TestCreateAsDocker(t *testing.T) {
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("needs docker in PATH")
	}
	dir := t.TempDir()
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	env := file("env", "\uFEFF# comment\n\n  A=1\nB= two words \nHOME\nNOT_SET_ANYWHERE\n#C=3\nD==\nE=\n")
	labels := file("labels", "# c\nx=1\n y = no\n"[:8])
	seccomp := file("seccomp.json", "{\n \"defaultAction\": \"SCMP_ACT_ALLOW\"\n}\n")
	tests := []string{
		"busybox",
		"busybox echo -n --foo -- x",
		"-i busybox", "-t busybox", "-it busybox sh", "-d busybox", "--rm busybox", "--name web busybox",
		"-e A=1 -e B= -e HOME -e NOT_SET_ANYWHERE busybox",
		"--env-file " + env + " -e A=2 busybox",
		"-w /tmp -u 1000:users --entrypoint /bin/sh busybox -c true", "--entrypoint= busybox",
		"-m 64m --memory-swap -1 --memory-reservation 32m busybox", "-m 1g --memory-swap 2g busybox", "--memory 123456k busybox",
		"--cpus 1.5 --cpu-shares 512 --cpuset-cpus 0-1 --pids-limit 100 busybox", "--cpus .25 busybox",
		"--cpu-period 50000 --cpu-quota 25000 busybox", "--pids-limit -1 busybox",
		"--read-only --tmpfs /run --tmpfs /tmp:rw,size=64m busybox",
		"--hostname web --domainname example.org busybox", "-h web busybox",
		"--init busybox", "--init=false busybox",
		"-l a=1 --label b --label-file " + labels + " busybox",
		"--cap-add net_admin --cap-add CAP_SYS_TIME --cap-drop all busybox", "--privileged busybox",
		"--ulimit nofile=100:200 --ulimit core=0 busybox", "--sysctl net.ipv4.ip_forward=1 busybox",
		"--stop-signal SIGINT --stop-timeout 3 busybox", "--stop-timeout 0 busybox",
		"--network none busybox", "--network bridge busybox", "--net none busybox", "--network mine busybox",
		"--add-host a:1.2.3.4 --add-host b=::1 --add-host c:[::1] --add-host d:host-gateway busybox",
		"--dns 1.1.1.1 --dns 2606::1 --dns-search example.org --dns-search . --dns-option ndots:2 busybox",
		"--group-add wheel --group-add 7 busybox",
		"--security-opt no-new-privileges --security-opt seccomp=unconfined busybox", "--security-opt seccomp=" + seccomp + " busybox",
		"--security-opt systempaths=unconfined --security-opt label:disable busybox",
		"--shm-size 128m busybox", "--log-driver none busybox", "--log-opt max-size=1m --log-opt max-file=2 busybox",
		"--annotation a=b --annotation c busybox", "--platform linux/amd64 busybox", "--platform linux/arm/v7 busybox",
		"--storage-opt size=20G busybox", "--oom-score-adj 500 busybox", "--expose 80 --expose 90-92/udp busybox",
		"-a stdout busybox", "-a STDIN -a stderr -i busybox", "--no-healthcheck busybox", "--pull never busybox",
		"--restart no busybox", "-itw /x --rm=true busybox",
	}
	for _, test := range tests {
		t.Run(test, func(t *testing.T) {
			want, wantQuery := recorded(t, func(host string) {
				cmd := exec.Command(docker, append([]string{"-H", host, "create"}, createArgs(test)...)...)
				cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+dir)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("docker: %v: %s", err, out)
				}
			})
			got, gotQuery := recorded(t, func(host string) {
				var out strings.Builder
				args := append([]string{"-H", host, "create"}, createArgs(test)...)
				if code := Main(context.Background(), Config{}, args, strings.NewReader(""), &out, &out); code != 0 {
					t.Fatalf("hyper: %d: %s", code, &out)
				}
			})
			if d := cmp.Diff(normal(want), normal(got)); d != "" || wantQuery != gotQuery {
				t.Errorf("docker (-) and hyper (+): %s\nqueries: docker %q, hyper %q", d, wantQuery, gotQuery)
			}
		})
	}
}

// createArgs are the arguments of a test; -d is run's alone.
func createArgs(test string) []string {
	return strings.Fields(strings.TrimPrefix(test, "-d "))
}

func recorded(t *testing.T, do func(host string)) (body map[string]any, query string) {
	t.Helper()
	r := &recorder{}
	do(listen(t, r))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.body == nil {
		t.Fatal("nothing was created")
	}
	return r.body, r.query
}

// normal leaves out what is empty either way: clients of different API
// versions differ in whether they say so.
func normal(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if env, ok := e.([]any); ok && k == "Env" { // docker's order is that of a map
				slices.SortFunc(env, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
			}
			if n := normal(e); n != nil {
				out[k] = n
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case []any:
		if len(v) == 0 {
			return nil
		}
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = normal(e)
		}
		return out
	case string:
		if v == "" {
			return nil
		}
	}
	return v
}
