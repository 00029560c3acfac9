package rest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/hyper-run/hyper/api"
	"github.com/hyper-run/hyper/client"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/pod"
	"github.com/hyper-run/hyper/internal/template"
	"github.com/hyper-run/hyper/internal/vmm"
)

// A fakePods has the pod web, writes down what is done to it, and fails with err.
type fakePods struct {
	info pod.PodInfo
	made pod.PodOptions
	did  string
	err  error
}

func (f *fakePods) do(what string, args ...any) error {
	f.did = strings.TrimSpace(what + " " + fmt.Sprintln(args...))
	return f.err
}

func (f *fakePods) Trace(string) (pod.Trace, error) { return pod.Trace{}, f.err }
func (f *fakePods) Warm() (ready, wanted int)       { return 1, 2 }
func (f *fakePods) Shape(int, int, bool) (template.Shape, error) {
	return template.Shape{}, f.err
}

func (f *fakePods) CreatePod(_ context.Context, o pod.PodOptions) (string, error) {
	f.made = o
	return "web", f.do("create")
}

func (f *fakePods) StartPod(_ context.Context, ref string, wait bool) error {
	return f.do("start", ref, wait)
}

func (f *fakePods) StopPod(_ context.Context, ref string, t *int) error {
	if t == nil {
		return f.do("stop", ref)
	}
	return f.do("stop", ref, *t)
}

func (f *fakePods) RestartPod(_ context.Context, ref string, t *int) error {
	return f.do("restart", ref, *t)
}
func (f *fakePods) KillPod(_ context.Context, ref, sig string) error { return f.do("kill", ref, sig) }
func (f *fakePods) PausePod(_ context.Context, ref string) error     { return f.do("pause", ref) }
func (f *fakePods) ResumePod(_ context.Context, ref string) error    { return f.do("resume", ref) }
func (f *fakePods) RemovePod(_ context.Context, ref string, force bool) error {
	return f.do("remove", ref, force)
}

func (f *fakePods) UpdatePod(_ context.Context, ref string, r pod.PodResources) error {
	return f.do("update", ref, r.MemoryBytes, r.NanoCPUs)
}

func (f *fakePods) GetPod(ref string) (pod.PodInfo, error) {
	if ref != "web" && ref != f.info.ID {
		return pod.PodInfo{}, errdefs.ErrNotFound.WithMessage("No such pod: " + ref)
	}
	return f.info, nil
}

func (f *fakePods) ListPods() []pod.PodInfo { return []pod.PodInfo{f.info} }

func (f *fakePods) PodStats(context.Context, string) (*pod.PodStats, error) {
	return &pod.PodStats{
		Host: vmm.HostUsage{CPU: time.Second, PSSBytes: 7},
		Guest: &wire.StatsResponse{
			ReadAtNanos: 5, MemoryBytes: 100, MemoryStat: map[string]uint64{"inactive_file": 30},
			Interfaces: []*wire.InterfaceStats{{Name: "lo", RxBytes: 9}, {Name: "eth0", RxBytes: 3, TxBytes: 4}},
			BlockIo:    []*wire.BlockIO{{ReadBytes: 1, Writes: 2}, {ReadBytes: 10}},
			Pressure:   []*wire.Pressure{{Resource: "cpu", Avg10: 150}},
		},
		Containers: map[string]*wire.StatsResponse{"c1": {Pids: 1}, "gone": {Pids: 2}},
	}, f.err
}

func (f *fakePods) PodConsole(context.Context, string) ([]byte, error) {
	return []byte("Linux\n"), f.err
}

func (f *fakePods) Why(_ context.Context, ref string) (pod.Why, error) {
	return pod.Why{What: "pod", ID: "1", Name: ref, Cause: pod.CauseOOM, Log: []string{"a"}}, f.err
}

// serve serves f, and a client of it.
func serve(t *testing.T, f *fakePods) (*client.Client, string) {
	t.Helper()
	h := New(Config{
		Pods: f, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Play: func(_ context.Context, data []byte, o api.PlayOptions) ([]pod.PodInfo, []string, error) {
			return []pod.PodInfo{f.info}, []string{"line 3"}, f.do("play", len(data), o)
		},
		Generate: func(p pod.PodInfo) ([]byte, error) { return []byte("name: " + p.Name + "\n"), f.err },
	})
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	c, err := client.New(client.Options{Host: "tcp://" + s.Listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, s.URL
}

func webPod() pod.PodInfo {
	return pod.PodInfo{
		ID: "0123", Name: "web", Created: time.Unix(1700000000, 0).UTC(), Status: pod.PodDegraded, Error: "e", StartedAt: time.Unix(1700000001, 0).UTC(),
		Spec: pod.PodSpec{
			Network: "default", SharePID: true, Resources: pod.PodResources{MemoryBytes: 1 << 28, NanoCPUs: 5e8},
			Volumes: []pod.Volume{{Name: "v", Memory: true, Files: []pod.VolumeFile{{Path: "secret", Content: []byte("x")}}}},
		},
		Containers: []pod.Container{{ID: "c1", Name: "main", Status: pod.StatusRunning, Ready: true, Spec: pod.Spec{Image: "nginx"}},
			{ID: "c2", Name: "first", Status: pod.StatusExited, ExitCode: 3, Spec: pod.Spec{Image: "sh", Role: pod.RoleInit}}},
		Net: &pod.NetworkInfo{Network: "default", Address: "172.30.0.2", PrefixLen: 16},
		VM:  &pod.VMInfo{HostPID: 7, Accel: "tcg", Road: "clone", CPUs: 4, BootTime: time.Millisecond},
	}
}

func TestPodsAreServed(t *testing.T) {
	f := &fakePods{info: webPod()}
	c, _ := serve(t, f)
	list, err := c.Pods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []api.Pod{{
		ID: "0123", Name: "web", Created: f.info.Created, Status: "degraded", Error: "e", StartedAt: f.info.StartedAt,
		Spec: api.PodSpec{Network: "default", SharePID: true, MemoryBytes: 1 << 28, NanoCPUs: 5e8},
		Containers: []api.PodContainer{
			{ID: "c1", Name: "main", Image: "nginx", Role: "main", Status: "running", Ready: true},
			{ID: "c2", Name: "first", Image: "sh", Role: "init", Status: "exited", ExitCode: 3},
		},
		Volumes: []api.PodVolume{{Name: "v", Memory: true, Files: 1}},
		Network: &api.PodNetwork{Name: "default", Address: "172.30.0.2", PrefixLen: 16},
		VM:      &api.PodVM{HostPID: 7, Accel: "tcg", Road: "clone", CPUs: 4, BootTime: time.Millisecond},
	}}
	if diff := cmp.Diff(want, list); diff != "" {
		t.Error(diff)
	}
	stats, err := c.PodStats(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	wantStats := api.PodStats{
		ID: "0123", Name: "web", Host: api.HostUsage{CPUNanos: 1e9, PSSBytes: 7},
		Guest: api.Usage{
			ReadAt: time.Unix(0, 5).UTC(), MemoryBytes: 100, MemoryWorkingBytes: 70, NetworkReceiveBytes: 3, NetworkSendBytes: 4,
			BlockReadBytes: 11, BlockWrites: 2, Pressure: []api.Pressure{{Resource: "cpu", Avg10: 1.5}},
		},
		Containers: []api.ContainerUsage{
			{ID: "c1", Name: "main", Usage: api.Usage{ReadAt: time.Unix(0, 0).UTC(), PIDs: 1}},
			{ID: "gone", Usage: api.Usage{ReadAt: time.Unix(0, 0).UTC(), PIDs: 2}},
		},
	}
	if diff := cmp.Diff(wantStats, stats); diff != "" {
		t.Error(diff)
	}
	console, err := c.PodConsole(t.Context(), "web")
	if err != nil || string(console) != "Linux\n" {
		t.Errorf("console: %q, %v", console, err)
	}
	yaml, err := c.GeneratePod(t.Context(), "web")
	if err != nil || string(yaml) != "name: web\n" {
		t.Errorf("generate: %q, %v", yaml, err)
	}
	why, err := c.Why(t.Context(), "web")
	if want := (api.Why{What: "pod", ID: "1", Name: "web", Cause: "oom", Log: []string{"a"}}); err != nil || !cmp.Equal(why, want) {
		t.Errorf("why: %+v, %v", why, err)
	}
}

func TestPodVerbs(t *testing.T) {
	f := &fakePods{info: webPod()}
	c, _ := serve(t, f)
	ctx, three := t.Context(), 3
	play := func(o api.PlayOptions) error {
		p, err := c.PlayPods(ctx, []byte("kind: Pod"), o)
		if len(p.Pods) != 1 || !slices.Equal(p.Warnings, []string{"line 3"}) {
			t.Errorf("played %+v", p)
		}
		return err
	}
	for _, tt := range []struct {
		do   func() error
		want string
	}{
		{func() error { return c.StartPod(ctx, "web", false, 0) }, "start web false"},
		{func() error { return c.StartPod(ctx, "web", true, 60) }, "start web true"},
		{func() error { return c.StopPod(ctx, "web", nil) }, "stop web"},
		{func() error { return c.StopPod(ctx, "web", &three) }, "stop web 3"},
		{func() error { return c.RestartPod(ctx, "web", &three) }, "restart web 3"},
		{func() error { return c.KillPod(ctx, "web", "HUP") }, "kill web HUP"},
		{func() error { return c.PausePod(ctx, "web") }, "pause web"},
		{func() error { return c.UnpausePod(ctx, "web") }, "resume web"},
		{func() error { return c.RemovePod(ctx, "web", true) }, "remove web true"},
		{func() error { return c.UpdatePod(ctx, "web", api.PodUpdate{NanoCPUs: 1e9}) }, "update 0123 268435456 1000000000"},
		{func() error { return play(api.PlayOptions{}) }, "play 9 { false false false 0}"},
		{func() error { return play(api.PlayOptions{Create: true, Replace: true}) }, "play 9 { true true false 0}"},
		{func() error { return play(api.PlayOptions{Wait: true, File: "a.yaml"}) }, "play 9 {a.yaml false false true 0}"},
	} {
		if err := tt.do(); err != nil || f.did != tt.want {
			t.Errorf("%s: %q, %v", tt.want, f.did, err)
		}
	}
}

func TestCreatePod(t *testing.T) {
	f := &fakePods{info: webPod()}
	c, _ := serve(t, f)
	p, err := c.CreatePod(t.Context(), api.PodCreate{Name: "web", Spec: api.PodSpec{
		Labels: map[string]string{"a": "b"}, Hostname: "h", ExtraHosts: []string{"x:::1"}, DNS: []string{"1.1.1.1"}, ShmBytes: 5,
		MemoryBytes: 6, NanoCPUs: 7, Kernel: "stock", KernelArgs: []string{"quiet"}, StopTimeout: new(int), AutoRemove: true, Persist: true,
	}})
	if err != nil || p.ID != "0123" {
		t.Fatalf("%+v, %v", p, err)
	}
	want := pod.PodOptions{Name: "web", Spec: pod.PodSpec{
		Labels: map[string]string{"a": "b"}, Hostname: "h", ExtraHosts: []string{"x:::1"}, DNS: []string{"1.1.1.1"}, ShmBytes: 5, Network: "default",
		Resources: pod.PodResources{MemoryBytes: 6, NanoCPUs: 7}, Kernel: "stock", KernelArgs: []string{"quiet"}, StopTimeout: new(int), AutoRemove: true, Persist: true,
	}}
	if diff := cmp.Diff(want, f.made); diff != "" {
		t.Error(diff)
	}
}

func TestPodErrors(t *testing.T) {
	f := &fakePods{info: webPod()}
	c, host := serve(t, f)
	for _, tt := range []struct {
		err                error
		method, path, body string
		status             int
		message            string
	}{
		{nil, "GET", "/pods/nope", "", 404, "No such pod: nope"},
		{nil, "GET", "/pods/nope/stats", "", 404, "No such pod: nope"},
		{nil, "GET", "/pods?all=1", "", 400, `unknown parameter "all"`},
		{nil, "DELETE", "/pods/web?force=perhaps", "", 400, `parameter force: "perhaps" is not true or false`},
		{nil, "POST", "/pods/web/stop?t=long", "", 400, `parameter t: "long" is not a number of seconds`},
		{nil, "POST", "/pods", `{"nmae":"x"}`, 400, `request for a pod: json: unknown field "nmae"`},
		{nil, "POST", "/pods", `{"spec":{"network":"mine"}}`, 501, `network "mine" is not supported yet: only the networks bridge and none are there`},
		{nil, "POST", "/pods", `{"spec":{"extraHosts":["a:host-gateway"]}}`, 400, `extraHosts: "a:host-gateway" is not NAME:ADDRESS`},
		{nil, "POST", "/pods", `{"spec":{"dns":["a"]}}`, 400, `dns: "a" is not an address`},
		{nil, "POST", "/pods", `{"name":"` + strings.Repeat("x", maxBody) + `"}`, 413, "http: request body too large"},
		{nil, "POST", "/pods/play", strings.Repeat("x", maxBody+1), 200, ""},
		{nil, "POST", "/pods/play", strings.Repeat("x", maxPlayBody+1), 413, "http: request body too large"},
		{nil, "POST", "/pods/play?start=false&wait=true", "", 400, "conflicting options: start=false and wait=true"},
		{errdefs.ErrNotModified, "POST", "/pods/web/start", "", 304, ""},
		{errdefs.ErrAlreadyExists.WithMessage("taken"), "POST", "/pods", "{}", 409, "taken"},
		{errdefs.ErrFailedPrecondition.WithMessage("it is running"), "DELETE", "/pods/web", "", 409, "it is running"},
		{errors.New("broken"), "GET", "/why/web", "", 500, "broken"},
	} {
		f.err = tt.err
		req, err := http.NewRequestWithContext(t.Context(), tt.method, host+api.Prefix+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if tt.message != "" && string(body) != fmt.Sprintf("{\"message\":%q}\n", tt.message) || resp.StatusCode != tt.status {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, resp.StatusCode, body)
		}
	}
	f.err = errdefs.ErrFailedPrecondition.WithMessage("it is running")
	if err := c.RemovePod(t.Context(), "web", false); !errdefs.IsConflict(err) || err.Error() != "it is running" {
		t.Errorf("remove: %v", err)
	}
}
