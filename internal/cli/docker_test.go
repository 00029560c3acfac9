package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
		_, _ = io.WriteString(w, "OK")
	case strings.HasSuffix(req.URL.Path, "/create"), strings.HasSuffix(req.URL.Path, "/update"):
		r.mu.Lock()
		defer r.mu.Unlock()
		r.query, r.body = req.URL.RawQuery, nil
		_ = json.NewDecoder(req.Body).Decode(&r.body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"Id":"4a5b","Warnings":[]}`)
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
	_ = s.Listener.Close()
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
	docker := newDocker(t)
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
		"--restart no busybox", "--restart on-failure:3 busybox", "--restart unless-stopped busybox", "-itw /x --rm=true busybox",
		"--network container:web busybox", "--ipc container:web --pid container:web busybox", "--ipc shareable busybox",
		"--device-read-bps /dev/sda:1mb --device-write-bps /dev/sda:2 busybox", "--device-read-iops /dev/sda:10 --device-write-iops /dev/sda:20 busybox",
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

// Docker's own command and hyper send the same to change a container.
func TestUpdateAsDocker(t *testing.T) {
	docker := newDocker(t)
	for _, test := range []string{
		"-m 64m --memory-swap -1", "--memory-reservation 32m --cpus 1.5", "-c 512 --cpuset-cpus 0-1 --pids-limit 100", "--pids-limit -1",
		"--cpu-period 50000 --cpu-quota 25000", "--restart on-failure:3", "--restart no",
	} {
		t.Run(test, func(t *testing.T) {
			args := append(append([]string{"update"}, strings.Fields(test)...), "web")
			want, _ := recorded(t, func(host string) {
				cmd := exec.Command(docker, append([]string{"-H", host}, args...)...)
				cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+t.TempDir())
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("docker: %v: %s", err, out)
				}
			})
			got, _ := recorded(t, func(host string) {
				var out strings.Builder
				if code := Main(context.Background(), Config{}, append([]string{"-H", host}, args...), nil, &out, &out); code != 0 || out.String() != "web\n" {
					t.Fatalf("hyper: %d: %s", code, &out)
				}
			})
			if d := cmp.Diff(normal(want), normal(got)); d != "" {
				t.Errorf("docker (-) and hyper (+): %s", d)
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

// Docker's own command and hyper print the same for the same answers.
func TestOutputAsDocker(t *testing.T) {
	docker := newDocker(t)
	d := listsDaemon(t)
	d.process = func(p *fakeProcess) int { p.write(1, []byte("out\n")); p.write(2, []byte("err\n")); return 42 }
	addOthers(d)
	host, dir := listen(t, d), t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	tests := [][]string{
		{"ps"}, {"ps", "-a", "-s"}, {"ps", "-q"}, {"ps", "--no-trunc"}, {"ps", "--format", "{{.ID}} {{.Ports}} {{.Label \"a\"}}"},
		{"ps", "--format", "table {{.Names}}\\t{{.Label \"com.example.a-b\"}}\\t{{.Size}}\\t{{upper .State}}"}, {"ps", "--format", "{{json .}}"},
		{"ps", "--format", "json"}, {"ps", "--format", "table"},
		{"images"}, {"images", "--digests"}, {"images", "-q"}, {"images", "--no-trunc"}, {"images", "--digests", "--format", "{{.Repository}}:{{.Tag}}@{{.Digest}}"},
		{"stats", "--no-stream", "c1"}, {"stats", "--no-stream", "--format", "json", "c1"}, {"top", "c1"}, {"events", "--until", "1"},
		{"events", "--until", "1", "--format", "json"}, {"inspect", "c1"}, {"inspect", "-f", "{{.State.Running}} {{json .Config.OpenStdin}}", "c1"},
		{"logs", "c1"}, {"rmi", "hello"}, {"container", "prune", "-f"}, {"image", "prune", "-f"}, {"load", "-i", os.DevNull},
		{"save", "hello"}, {"pull", "hello"}, {"pull", "-q", "hello:1"}, {"rename", "c1", "c2"},
		{"run", "x"}, {"run", "--rm", "x"}, {"exec", "c1", "x"}, {"exec", "nope", "x"}, {"run", "--foo"}, {"ps", "--foo"}, {"stop"}, {"nonsense"},
		{"run"}, {"rm", "nope"}, {"rmi", "nope"}, {"start", "nope"}, {"inspect", "nope"}, {"ps", "--format", "{{.Nope}}"},
	}
	for _, args := range tests {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			var want, got result
			cmd := exec.Command(docker, append([]string{"-H", host}, args...)...)
			out, err := cmd.Output()
			if ee := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ee) {
				t.Fatal(err)
			}
			want = result{code: cmd.ProcessState.ExitCode(), out: string(out)}
			var gotOut, gotErr strings.Builder
			got.code = Main(t.Context(), Config{}, append([]string{"-H", host}, args...), strings.NewReader(""), &gotOut, &gotErr)
			got.out = gotOut.String()
			// Which Docker has only from 29 on, and what it prints in the order of a map.
			got.out = strings.ReplaceAll(got.out, `"HealthStatus":"",`, "")
			if args[0] == "images" {
				want.out, got.out = sortLines(want.out), sortLines(got.out)
			}
			if got.code != want.code || got.out != want.out {
				t.Errorf("docker: %v\nhyper:  %v\nerr: %s", want, got, &gotErr)
			}
		})
	}
}

func sortLines(s string) string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// newDocker is a docker client to compare with. Older ones than ours was
// written against print and send other things.
func newDocker(t *testing.T) string {
	t.Helper()
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("needs docker in PATH")
	}
	out, err := exec.Command(docker, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	var major int
	if _, err := fmt.Sscanf(string(out), "Docker version %d.", &major); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	if major < 28 {
		t.Skipf("needs docker 28, this is %s", out)
	}
	return docker
}
