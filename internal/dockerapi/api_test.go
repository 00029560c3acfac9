package dockerapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"go.uber.org/goleak"

	"github.com/hyper-run/hyper/internal/event"
	"github.com/hyper-run/hyper/internal/image"
	"github.com/hyper-run/hyper/internal/pod"
)

var (
	_ Images     = (*image.Store)(nil)
	_ Containers = (*pod.Set)(nil)
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A world is a served API over fakes, and a client of it.
type world struct {
	*client.Client
	set    *fakeSet
	images *fakeImages
	sock   string
	logged *bytes.Buffer
}

func newWorld(t *testing.T) *world {
	t.Helper()
	set := newFakeSet(t)
	w := &world{set: set, images: &fakeImages{}, sock: filepath.Join(t.TempDir(), "s"), logged: &bytes.Buffer{}}
	w.images.images = append(w.images.images, testImage("nginx:latest"))
	h := New(Config{
		Containers: set, Images: w.images, Events: set.bus, Log: slog.New(slog.NewTextHandler(w.logged, nil)),
		Info: func() Info {
			return Info{
				ID: "host-id", Name: "host", Version: "0.1", Root: "/var/lib/hyper", Started: time.Unix(1700000000, 0), CPUs: 2, MemoryBytes: 1 << 30,
				KernelVersion: "6.1", OperatingSystem: "Debian", Components: []Component{{Name: "qemu", Version: "7.2"}},
				Network: Network{Bridge: "hyper0", Subnets: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/16")}, Gateways: []netip.Addr{netip.MustParseAddr("172.30.0.1")}},
			}
		},
	})
	l, err := net.Listen("unix", w.sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	w.Client, err = client.New(client.WithHost("unix://" + w.sock))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	t.Cleanup(func() {
		for _, c := range set.List(pod.Filter{}) {
			_ = set.Stop(context.Background(), c.ID, "", nil)
		}
	})
	return w
}

func (w *world) create(t *testing.T, name string, cfg container.Config, host container.HostConfig) string {
	t.Helper()
	if cfg.Image == "" {
		cfg.Image = "nginx"
	}
	res, err := w.ContainerCreate(t.Context(), client.ContainerCreateOptions{Name: name, Config: &cfg, HostConfig: &host})
	if err != nil {
		t.Fatal(err)
	}
	return res.ID
}

func (w *world) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	id := w.create(t, name, container.Config{Entrypoint: args}, container.HostConfig{})
	if _, err := w.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	return id
}

// do sends a request as it is.
func (w *world) do(t *testing.T, method, path, body string) (*http.Response, string) {
	t.Helper()
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", w.sock) }}
	defer tr.CloseIdleConnections()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://hyper"+path, r)
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(data)
}

func TestErrorsHaveDockersStatusAndMessage(t *testing.T) {
	w := newWorld(t)
	w.run(t, "busy", "sleep")
	big := `{"Image":"` + strings.Repeat("x", maxBody) + `"}`
	for _, tt := range []struct {
		method, path, body string
		status             int
		message            string
	}{
		{"GET", "/v1.24/nope", "", 404, "page not found"},
		{"PATCH", "/containers/json", "", 404, "page not found"},
		{"GET", "/v1.57/info", "", 400, "client version 1.57 is too new. Maximum supported API version is 1.56"},
		{"GET", "/v2.0/info", "", 400, "client version 2.0 is too new. Maximum supported API version is 1.56"},
		{"GET", "/v1.23/info", "", 400, "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"GET", "/containers/none/json", "", 404, "No such container: none"},
		{"POST", "/containers/none/start", "", 404, "No such container: none"},
		{"POST", "/containers/busy/start", "", 304, ""},
		{"DELETE", "/containers/busy", "", 409, `cannot remove container "busy": container is running`},
		{"POST", "/containers/create", `{"Image":`, 400, "invalid JSON: unexpected end of JSON input"},
		{"POST", "/containers/create", `{"Image":7}`, 400, "invalid JSON: json: cannot unmarshal number into Go struct field CreateRequest.Config.Image of type string"},
		{"POST", "/containers/create", `{}`, 400, "config cannot be empty in order to create a container"},
		{"POST", "/containers/create", `{"Image":"ghost"}`, 404, "No such image: ghost:latest"},
		{"POST", "/containers/create", big, 413, "read request: http: request body too large"},
		{"POST", "/containers/busy/exec", `{}`, 400, "No exec command specified"},
		{"POST", "/exec/none/start", `{}`, 404, "No such exec instance: none"},
		{"GET", "/containers/busy/logs", "", 400, "you must choose at least one stream: must specify at least one of 'stdout' or 'stderr'"},
		{"GET", "/containers/json?filters=x", "", 400, "invalid filter"},
		{"GET", "/containers/json?filters=%7B%22zz%22:%5B%22a%22%5D%7D", "", 400, "invalid filter 'zz'"},
		{"GET", "/containers/json?limit=many", "", 400, `invalid value for "limit": "many" is not a number`},
		{"POST", "/containers/busy/resize?h=x&w=1", "", 400, `invalid resize height "x"`},
		{"POST", "/containers/busy/wait?condition=rain", "", 400, `invalid condition: "rain"`},
		{"GET", "/events?since=10&until=5", "", 400, "`since` time (10) cannot be after `until` time (5)"},
		{"POST", "/build", "", 501, "build is not supported yet"},
		{"GET", "/containers/busy/archive?path=/", "", 501, "copying from containers is not supported yet"},
		{"GET", "/services", "", 503, `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`},
		{"GET", "/networks/zz", "", 404, "network zz not found"},
		{"GET", "/volumes/zz", "", 404, "get zz: no such volume"},
		{"POST", "/images/create?fromImage=scratch&tag=latest", "", 403, "'scratch' is a reserved name"},
		{"POST", "/images/create?fromImage=absent&tag=latest", "", 404, "manifest for docker.io/library/absent:latest not found"},
		{"POST", "/images/load?platform=linux/arm64", "", 501, "the platform option of image load is not supported yet: images here have one platform"},
		{"POST", "/images/nginx/tag?repo=UPPER", "", 400, "invalid reference format: repository name (library/UPPER) must be lowercase"},
	} {
		res, body := w.do(t, tt.method, tt.path, tt.body)
		var e errorBody
		if tt.message != "" {
			if err := json.Unmarshal([]byte(body), &e); err != nil {
				t.Errorf("%s %s: %q: %v", tt.method, tt.path, body, err)
			}
		}
		if res.StatusCode != tt.status || e.Message != tt.message {
			t.Errorf("%s %s: %d %q, want %d %q", tt.method, tt.path, res.StatusCode, e.Message, tt.status, tt.message)
		}
		if v := res.Header.Get("Api-Version"); v != MaxVersion {
			t.Errorf("%s %s: Api-Version %q", tt.method, tt.path, v)
		}
	}
}

// Answers are decoded into the API's types with nothing left over.
func TestAnswersFitTheAPITypes(t *testing.T) {
	w := newWorld(t)
	w.run(t, "web", "sleep")
	for path, v := range map[string]any{
		"/containers/json?size=1":             &[]container.Summary{},
		"/containers/web/top":                 &container.TopResponse{},
		"/containers/web/stats?stream=0":      &container.StatsResponse{},
		"/networks":                           &[]network.Summary{},
		"/networks/bridge":                    &network.Inspect{},
		"/networks/" + networkID("none")[:12]: &network.Inspect{},
	} {
		_, body := w.do(t, "GET", path, "")
		dec := json.NewDecoder(strings.NewReader(body))
		dec.DisallowUnknownFields()
		if err := dec.Decode(v); err != nil {
			t.Errorf("%s: %v in %s", path, err, body)
		}
	}
	ctx := t.Context()
	if v, err := w.ServerVersion(ctx, client.ServerVersionOptions{}); err != nil || v.APIVersion != "1.56" || v.MinAPIVersion != "1.24" || len(v.Components) != 2 {
		t.Errorf("version: %+v, %v", v, err)
	}
	if in, err := w.Info(ctx, client.InfoOptions{}); err != nil || in.Info.ContainersRunning != 1 || in.Info.Images != 1 || in.Info.Driver != driverName {
		t.Errorf("info: %+v, %v", in, err)
	}
	if du, err := w.DiskUsage(ctx, client.DiskUsageOptions{Containers: true, Images: true, Volumes: true, BuildCache: true}); err != nil || du.Containers.TotalSize != 8192 || du.Images.ActiveCount != 1 {
		t.Errorf("df: %+v, %v", du, err)
	}
	if vols, err := w.VolumeList(ctx, client.VolumeListOptions{}); err != nil || len(vols.Items) != 0 {
		t.Errorf("volumes: %+v, %v", vols, err)
	}
}

func TestListFilters(t *testing.T) {
	w := newWorld(t)
	a := w.run(t, "alpha", "sleep")
	b := w.run(t, "beta", "exit", "3")
	w.waitStatus(t, "beta", pod.StatusExited)
	c := w.create(t, "gamma", container.Config{Labels: map[string]string{"k": "v"}}, container.HostConfig{NetworkMode: "none"})
	for _, tt := range []struct {
		all   bool
		limit int
		f     client.Filters
		want  []string
	}{
		{false, 0, nil, []string{a}},
		{true, 0, nil, []string{c, b, a}},
		{false, 2, nil, []string{c, b}},
		{true, 0, client.Filters{}.Add("name", "^/al"), []string{a}},
		{true, 0, client.Filters{}.Add("name", "alpha", "beta"), []string{b, a}},
		{true, 0, client.Filters{}.Add("id", c[:12]), []string{c}},
		{true, 0, client.Filters{}.Add("label", "k=v"), []string{c}},
		{true, 0, client.Filters{}.Add("label", "k=w"), nil},
		{false, 0, client.Filters{}.Add("status", "exited"), []string{b}},
		{true, 0, client.Filters{}.Add("exited", "3"), []string{b}},
		{true, 0, client.Filters{}.Add("exited", "0"), nil},
		{true, 0, client.Filters{}.Add("before", "beta"), []string{a}},
		{true, 0, client.Filters{}.Add("since", "alpha"), []string{c, b}},
		{true, 0, client.Filters{}.Add("ancestor", "nginx"), []string{c, b, a}},
		{true, 0, client.Filters{}.Add("ancestor", "ghost"), nil},
		{true, 0, client.Filters{}.Add("network", "none"), []string{c}},
		{true, 0, client.Filters{}.Add("volume", "x"), nil},
		{true, 0, client.Filters{}.Add("expose", "80"), []string{a}},
		{true, 0, client.Filters{}.Add("publish", "80"), nil},
		{true, 0, client.Filters{}.Add("health", "none"), []string{c, b, a}},
	} {
		res, err := w.ContainerList(t.Context(), client.ContainerListOptions{All: tt.all, Limit: tt.limit, Filters: tt.f})
		if err != nil {
			t.Errorf("%v: %v", tt.f, err)
			continue
		}
		var got []string
		for _, s := range res.Items {
			got = append(got, s.ID)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("all %v, limit %d, %v: got %v, want %v", tt.all, tt.limit, tt.f, got, tt.want)
		}
	}
}

func (w *world) waitStatus(t *testing.T, ref string, want pod.Status) {
	t.Helper()
	for range 1000 {
		if c, err := w.set.Get(ref); err == nil && c.Status == want {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatalf("%s is not %s", ref, want)
}

func TestMissingProgramIsABadRequest(t *testing.T) {
	w := newWorld(t)
	id := w.create(t, "web", container.Config{Entrypoint: []string{"ghost"}}, container.HostConfig{})
	_, err := w.ContainerStart(t.Context(), id, client.ContainerStartOptions{})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "executable file not found in $PATH") {
		t.Errorf("%v", err)
	}
}

func TestWaitSendsHeadersBeforeTheExit(t *testing.T) {
	w := newWorld(t)
	id := w.create(t, "web", container.Config{Entrypoint: []string{"exit", "42"}}, container.HostConfig{AutoRemove: true})
	for _, cond := range []container.WaitCondition{container.WaitConditionNextExit, container.WaitConditionRemoved} {
		res := w.ContainerWait(t.Context(), id, client.ContainerWaitOptions{Condition: cond})
		if cond == container.WaitConditionRemoved {
			if _, err := w.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
				t.Fatal(err)
			}
		} else {
			defer func() {
				if st := <-res.Result; st.StatusCode != 42 {
					t.Errorf("next-exit: %+v", st)
				}
			}()
			continue
		}
		select {
		case st := <-res.Result:
			if st.StatusCode != 42 {
				t.Errorf("%s: %+v", cond, st)
			}
		case err := <-res.Error:
			t.Errorf("%s: %v", cond, err)
		}
	}
}

func TestLogs(t *testing.T) {
	w := newWorld(t)
	id := w.run(t, "web", "both")
	w.waitStatus(t, id, pod.StatusExited)
	for _, tt := range []struct {
		o        client.ContainerLogsOptions
		out, err string
	}{
		{client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true}, "to out\n", "to err\n"},
		{client.ContainerLogsOptions{ShowStdout: true}, "to out\n", ""},
		{client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: "1"}, "", "to err\n"},
		{client.ContainerLogsOptions{ShowStderr: true, Timestamps: true, Follow: true}, "", "2023-11-14T22:13:20.000000005Z to err\n"},
	} {
		r, err := w.ContainerLogs(t.Context(), id, tt.o)
		if err != nil {
			t.Fatal(err)
		}
		var out, errOut bytes.Buffer
		if _, err := stdcopy.StdCopy(&out, &errOut, r); err != nil || out.String() != tt.out || errOut.String() != tt.err {
			t.Errorf("%+v: %q, %q, %v", tt.o, &out, &errOut, err)
		}
		r.Close()
	}
}

func TestEventsPastAndFollowed(t *testing.T) {
	w := newWorld(t)
	id := w.run(t, "web", "echo", "x")
	w.waitStatus(t, id, pod.StatusExited)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	res := w.Events(ctx, client.EventsListOptions{Since: "1", Filters: client.Filters{}.Add("container", "web").Add("event", "start", "die", "destroy")})
	for i, want := range []string{"start", "die", "destroy"} {
		if i == 2 {
			if _, err := w.ContainerRemove(ctx, id, client.ContainerRemoveOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case m := <-res.Messages:
			if string(m.Action) != want || m.Actor.ID != id || m.Actor.Attributes["name"] != "web" {
				t.Errorf("got %+v, want %s", m, want)
			}
		case err := <-res.Err:
			t.Fatal(err)
		}
	}
	_, body := w.do(t, "GET", fmt.Sprintf("/v1.51/events?since=1&until=%d&filters=%%7B%%22event%%22:%%7B%%22die%%22:true%%7D%%7D", time.Now().Unix()+1), "")
	var old struct{ Status, ID, From string }
	if err := json.Unmarshal([]byte(body), &old); err != nil || old.Status != "die" || old.ID != id || old.From != "nginx" {
		t.Errorf("1.51: %+v, %v in %s", old, err, body)
	}
}

func TestStatsLetClientsComputePercentages(t *testing.T) {
	w := newWorld(t)
	id := w.run(t, "web", "sleep")
	res, err := w.ContainerStats(t.Context(), id, client.ContainerStatsOptions{Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	dec := json.NewDecoder(res.Body)
	var s container.StatsResponse
	for range 2 {
		s = container.StatsResponse{}
		if err := dec.Decode(&s); err != nil {
			t.Fatal(err)
		}
	}
	// The fake uses a quarter of one of two CPUs.
	cpu := float64(s.CPUStats.CPUUsage.TotalUsage-s.PreCPUStats.CPUUsage.TotalUsage) / float64(s.CPUStats.SystemUsage-s.PreCPUStats.SystemUsage) * float64(s.CPUStats.OnlineCPUs)
	if cpu < 0.24 || cpu > 0.26 {
		t.Errorf("cpu %v, want 0.25", cpu)
	}
	if s.MemoryStats.Usage != 64<<20 || s.Networks["eth0"].TxBytes != 2000 || len(s.Networks) != 1 || len(s.BlkioStats.IoServiceBytesRecursive) != 2 {
		t.Errorf("%+v", s)
	}
	if res, body := w.do(t, "GET", "/containers/web/stats?stream=0&one-shot=1", ""); res.StatusCode != 200 || !strings.Contains(body, `"precpu_stats":{"cpu_usage":{"total_usage":0`) {
		t.Errorf("one-shot: %s", body)
	}
}

func TestTop(t *testing.T) {
	w := newWorld(t)
	w.run(t, "web", "sleep")
	for _, tt := range []struct {
		args   string
		titles string
		first  string // of the first process, without start times
	}{
		{"", "UID PID PPID C STIME TTY TIME CMD", "root 42 1 1 ? 00:01:01 /usr/sbin/nginx -g daemon off;"},
		{"-ef", "UID PID PPID C STIME TTY TIME CMD", "root 42 1 1 ? 00:01:01 /usr/sbin/nginx -g daemon off;"},
		{"aux", "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND", "root 42 1.7 0.8 4096 1024 ? S 1:01 /usr/sbin/nginx -g daemon off;"},
		{"-o pid,comm", "PID COMMAND", "42 nginx"},
		{"-eo pid,user,%mem", "PID USER %MEM", "42 root 0.8"},
		{"o pid=PID,args", "PID COMMAND", "42 /usr/sbin/nginx -g daemon off;"},
	} {
		res, err := w.ContainerTop(t.Context(), "web", client.ContainerTopOptions{Arguments: strings.Fields(tt.args)})
		if err != nil {
			t.Errorf("%q: %v", tt.args, err)
			continue
		}
		var row []string
		for i, v := range res.Processes[0] {
			if title := res.Titles[i]; title != "STIME" && title != "START" {
				row = append(row, v)
			}
		}
		if got := strings.Join(res.Titles, " "); got != tt.titles || strings.Join(row, " ") != tt.first {
			t.Errorf("%q: %q %q", tt.args, got, row)
		}
	}
	for _, bad := range []string{"--sort", "-o comm", "-o pid,nonsense"} {
		if _, err := w.ContainerTop(t.Context(), "web", client.ContainerTopOptions{Arguments: strings.Fields(bad)}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestPrune(t *testing.T) {
	w := newWorld(t)
	w.run(t, "runs", "sleep")
	gone := w.create(t, "stopped", container.Config{}, container.HostConfig{})
	w.create(t, "kept", container.Config{Labels: map[string]string{"keep": ""}}, container.HostConfig{})
	res, err := w.ContainerPrune(t.Context(), client.ContainerPruneOptions{Filters: client.Filters{}.Add("label!", "keep")})
	if err != nil || !slices.Equal(res.Report.ContainersDeleted, []string{gone}) || res.Report.SpaceReclaimed != 8192 {
		t.Errorf("%+v, %v", res, err)
	}
}

func BenchmarkListOf100(b *testing.B) {
	set := &fakeSet{dir: b.TempDir(), bus: &event.Bus{}}
	images := &fakeImages{images: []image.Image{testImage("nginx:latest")}}
	h := New(Config{Containers: set, Images: images, Events: set.bus, Info: func() Info { return Info{} }})
	for i := range 100 {
		req := httptest.NewRequest("POST", fmt.Sprintf("/containers/create?name=bench-%d", i), strings.NewReader(cliDefaults))
		req.Header.Set("Content-Type", "application/json")
		res := httptest.NewRecorder()
		if h.ServeHTTP(res, req); res.Code != 201 {
			b.Fatal(res.Body)
		}
	}
	for b.Loop() {
		res := httptest.NewRecorder()
		if h.ServeHTTP(res, httptest.NewRequest("GET", "/containers/json?all=1", nil)); res.Code != 200 {
			b.Fatal(res.Body)
		}
	}
}
