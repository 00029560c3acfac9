package kube

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hyper-run/hyper/internal/pod"
)

var testImage = ImageConfig{Entrypoint: []string{"/ep"}, Env: []string{"PATH=/bin", "COST=$(5) $$"}, Dir: "/img", User: "app", StopSignal: "INT"}

// run is the pod that hyperd would make of one of a file.
func run(t *testing.T, p Pod, img ImageConfig) pod.PodInfo {
	t.Helper()
	info := pod.PodInfo{Name: p.Name, Spec: p.Spec}
	info.Spec.UntilDone = true
	for _, c := range p.Containers {
		s, err := c.Complete(img)
		if err != nil {
			t.Fatal(err)
		}
		if s.DiskBytes == 0 {
			s.DiskBytes = 10 << 30
		}
		s.ImageID = "sha256:1"
		info.Containers = append(info.Containers, pod.Container{Name: c.Unique, Spec: s})
	}
	return info
}

// generate writes a pod and reads it.
func generate(t *testing.T, p pod.PodInfo) (string, pod.PodInfo) {
	t.Helper()
	text, err := Generate(p)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse(text, testOptions)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if len(f.Pods) != 1 || len(f.Warnings) != 0 {
		t.Fatalf("%d pods, warnings %q\n%s", len(f.Pods), f.Warnings, text)
	}
	return string(text), run(t, f.Pods[0], ImageConfig{Entrypoint: []string{"/other"}})
}

func TestRoundTrip(t *testing.T) {
	whole, err := os.ReadFile("testdata/whole.yaml")
	if err != nil {
		t.Fatal(err)
	}
	job := `{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"j"},"spec":{"backoffLimit":2,"template":{"spec":{"restartPolicy":"OnFailure",
		"initContainers":[{"name":"a","image":"i"},{"name":"b","image":"i","restartPolicy":"Always"}],"containers":[{"name":"c","image":"i"},{"name":"d","image":"i","restartPolicy":"Always"}]}}}}`
	own := strings.Replace(minimal, "name: p", `name: p, annotations: {run.hyper.container/c: '{"extraHosts": ["a:1.1.1.1"], "dns": ["9.9.9.9"], "labels": {"x": "y"}}'}`, 1)
	for name, text := range map[string]string{"whole": string(whole), "minimal": minimal, "job": job, "own": own} {
		want := run(t, parse(t, text).Pods[0], testImage)
		text, got := generate(t, want)
		if d := cmp.Diff(want, got, equateEmpty); d != "" {
			t.Errorf("%s (-want +got):\n%s\n%s", name, d, text)
		}
		if again, _ := generate(t, got); again != text {
			t.Errorf("%s: written again:\n%s", name, cmp.Diff(text, again))
		}
	}
}

// TestGenerate sees that what is usual is written in Kubernetes' words alone.
func TestGenerate(t *testing.T) {
	_, got := generate(t, run(t, parse(t, minimal).Pods[0], ImageConfig{Cmd: []string{"sh", "-c", "echo $HOME $(date)"}, Env: []string{"PATH=/bin"}}))
	text, _ := generate(t, got)
	want := `apiVersion: v1
kind: Pod
metadata:
  name: p
spec:
  containers:
  - command:
    - sh
    - -c
    - echo $$HOME $$(date)
    env:
    - name: PATH
      value: /bin
    image: i
    imagePullPolicy: IfNotPresent
    name: c
  restartPolicy: Always
  securityContext: {}
  terminationGracePeriodSeconds: 30
`
	if d := cmp.Diff(want, text); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestGenerateDocker writes a container that was made by itself, with all
// that Kubernetes can't say.
func TestGenerateDocker(t *testing.T) {
	spec := pod.Spec{
		Image: "nginx", ImageID: "sha256:x", Args: []string{"nginx", "$(X)", "$$"}, Env: []string{"A=$(B)", "BARE"}, Dir: "/w", User: "www", Groups: []string{"video"},
		Labels: map[string]string{"com.docker.compose.project": "x y", "a b": ""}, Hostname: "My_Host", Domainname: "a.b", ExtraHosts: []string{"x_y:1.2.3.4"},
		DNS: []string{"1.1.1.1"}, DNSSearch: []string{"a"}, Network: "none", TTY: true, Init: true, StopSignal: "QUIT", StopTimeout: ptr(3), AutoRemove: true,
		Tmpfs: map[string]string{"/run": "size=1m"}, ShmBytes: 1 << 20, DiskBytes: 1 << 30, Kernel: "/k", CapAdd: []string{"CAP_SYS_TIME"}, NoNewPrivs: true,
		Seccomp: `{"defaultAction":"SCMP_ACT_ALLOW"}`, MaskedPaths: []string{}, Ulimits: []pod.Ulimit{{Name: "core", Soft: -1, Hard: -1}},
		Sysctls: map[string]string{"net.core.somaxconn": "1"}, OOMScoreAdj: 3, PIDMode: "0123", IPCMode: "private",
		Resources: pod.Resources{MemoryBytes: 1 << 30, MemorySwapBytes: -1, NanoCPUs: 1234567, CPUShares: 7, PIDs: 9, CPUSet: "0", IO: pod.IOLimit{Reads: 3}},
		Log:       pod.LogConfig{Driver: "none"}, Restart: pod.RestartPolicy{Policy: "unless-stopped"},
		Probes: pod.Probes{Liveness: &pod.Probe{Handler: pod.Handler{Exec: []string{"$$x"}}, Period: 1500 * time.Millisecond, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 1}},
		Edge:   []byte(`{"x":1}`),
	}
	second := pod.Spec{Image: "busybox", Args: []string{"top"}, Network: "default", JoinNet: "abc", Labels: nil}
	text, got := generate(t, pod.PodInfo{Containers: []pod.Container{{Name: "agile_Turing", Spec: spec}, {Name: "agile-turing", Spec: second}}})

	for _, want := range []string{"# the pod is called agile_Turing here\n", "# container agile_Turing shares the PIDs of container 0123: left out\n", "# container agile_Turing: variable \"BARE\": left out\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no comment %s in\n%s", want, text)
		}
	}
	if got.Name != "agile-turing" || got.Containers[0].Name != "agile-turing-agile-turing" || got.Containers[1].Name != "agile-turing-agile-turing-2" {
		t.Errorf("names %s, %s, %s", got.Name, got.Containers[0].Name, got.Containers[1].Name)
	}
	wantPod := pod.PodSpec{
		Hostname: spec.Hostname, Domainname: spec.Domainname, ExtraHosts: spec.ExtraHosts, DNS: spec.DNS, DNSSearch: spec.DNSSearch, Network: "none",
		ShmBytes: spec.ShmBytes, Kernel: "/k", StopTimeout: ptr(3), Sysctls: spec.Sysctls,
		UntilDone: true,
	}
	if d := cmp.Diff(wantPod, got.Spec, equateEmpty); d != "" {
		t.Errorf("pod (-want +got):\n%s\n%s", d, text)
	}
	want := strip(spec)
	want.ExtraHosts, want.DNS, want.DNSSearch = nil, nil, nil
	want.PIDMode, want.Env, want.StopTimeout = "", []string{"A=$(B)"}, nil
	if d := cmp.Diff(want, strip(got.Containers[0].Spec), equateEmpty); d != "" {
		t.Errorf("container (-want +got):\n%s\n%s", d, text)
	}
	second.Restart.Policy = "no"
	if d := cmp.Diff(strip(second), strip(got.Containers[1].Spec), equateEmpty); d != "" {
		t.Errorf("second container (-want +got):\n%s\n%s", d, text)
	}
}

func TestGenerateRefused(t *testing.T) {
	c := pod.Container{Name: "c", Spec: pod.Spec{Image: "i", Args: []string{"x"}, Network: "default"}}
	bad := c
	bad.Spec.Image = "I:::"
	for _, tt := range []struct {
		in   pod.PodInfo
		want string
	}{
		{pod.PodInfo{Name: "p"}, "generate pod p: it has no containers, and a pod file needs one"},
		{pod.PodInfo{Name: "p", Containers: []pod.Container{bad}}, "it can't be written: its file:"},
		{pod.PodInfo{Name: "p", Spec: pod.PodSpec{Network: "default", Volumes: []pod.Volume{{Name: "a", GID: 1}, {Name: "b"}}}, Containers: []pod.Container{c}},
			"volumes a and b have different groups, which a pod file can't say"},
		{pod.PodInfo{Name: "p", Spec: pod.PodSpec{Network: "default", Volumes: []pod.Volume{{Name: "a", Memory: true, Bytes: 5, Files: []pod.VolumeFile{{Path: "x"}}}}}, Containers: []pod.Container{c}},
			"its volumes can't be written in a pod file"},
	} {
		if text, err := Generate(tt.in); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want %s\n%s", err, tt.want, text)
		}
	}
}
