package kube

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/hyper-run/hyper/internal/pod"
)

var testOptions = Options{File: "pod.yaml", Node: "host1", CPUs: 4, MemoryBytes: 1 << 30, DiskBytes: 10 << 30}

func parse(t *testing.T, text string) *File {
	t.Helper()
	f, err := Parse([]byte(text), testOptions)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func ptr[T any](v T) *T { return &v }

// equateEmpty makes nil and empty the same, but for paths to mask: of those
// nil are the defaults.
var equateEmpty = cmp.FilterPath(func(p cmp.Path) bool {
	name := p.Last().String()
	return name != ".MaskedPaths" && name != ".ReadonlyPaths"
}, cmpopts.EquateEmpty())

func diff(want, got any) string {
	return cmp.Diff(want, got, cmpopts.IgnoreUnexported(Container{}), equateEmpty)
}

// TestWhole reads a file with about everything in it.
func TestWhole(t *testing.T) {
	text, err := os.ReadFile("testdata/whole.yaml")
	if err != nil {
		t.Fatal(err)
	}
	f := parse(t, string(text))
	always := pod.RestartPolicy{Policy: "always", Delay: 10 * time.Second, MaxDelay: 5 * time.Minute, ResetAfter: 10 * time.Minute}
	again := always
	again.Policy = "on-failure"
	label := func(name string) map[string]string {
		return map[string]string{labelPod: "web", labelNamespace: "default", labelContainer: name}
	}
	probe := func(h pod.Handler) *pod.Probe {
		return &pod.Probe{Handler: h, Period: 10 * time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3}
	}
	startup := probe(pod.Handler{HTTP: &pod.HTTPGet{Port: 8080, Path: "/health?x=1", HTTPS: true, Headers: [][2]string{{"Host", "web"}}}})
	startup.InitialDelay, startup.FailureThreshold, startup.Grace = 2*time.Second, 30, ptr(5)

	want := Pod{
		Name: "web",
		Spec: pod.PodSpec{
			Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"note": "hello"},
			Hostname: "www", Domainname: "sub", ExtraHosts: []string{"db:10.0.0.5", "cache:10.0.0.5", "six:fd00::1"},
			DNS: []string{"9.9.9.9"}, DNSSearch: []string{"example.org"}, DNSOptions: []string{"ndots:2", "rotate"},
			Network: "default", Sysctls: map[string]string{"net.core.somaxconn": "1024"}, SharePID: true, ShmBytes: 128 << 20,
			Resources: pod.PodResources{MemoryBytes: 1 << 30, NanoCPUs: 2e9}, Kernel: "/boot/mine",
			StopTimeout: ptr(7),
			Volumes: []pod.Volume{
				{Name: "shared", Bytes: 1 << 30, GID: 2000, Mode: 0o1777},
				{Name: "mem", Memory: true, Bytes: 64 << 20, GID: 2000},
				{Name: "conf", Memory: true, GID: 2000, Files: []pod.VolumeFile{
					{Path: "bin", Content: []byte{0, 1, 2}, Mode: 0o644}, {Path: "etc/app.conf", Content: []byte("a=1\n"), Mode: 0o640},
				}},
				{Name: "keys", Memory: true, GID: 2000, Files: []pod.VolumeFile{
					{Path: "password", Content: []byte("secret"), Mode: 0o440, Secret: true}, {Path: "user", Content: []byte("me$(X)"), Mode: 0o440, Secret: true},
				}},
				{Name: "info", Memory: true, GID: 2000, Files: []pod.VolumeFile{
					{Path: "cpus", Content: []byte("500"), Mode: 0o644}, {Path: "ip", Field: "status.podIP", Mode: 0o644},
					{Path: "labels", Content: []byte(`app="web"`), Mode: 0o644},
				}},
				{Name: "all", Memory: true, GID: 2000, Files: []pod.VolumeFile{
					{Path: "bin", Content: []byte{0, 1, 2}, Mode: 0o644}, {Path: "name", Content: []byte("web"), Mode: 0o644},
					{Path: "pw", Content: []byte("secret"), Mode: 0o440, Secret: true},
				}},
				{Name: "scratch", Bytes: 5 << 30, GID: 2000},
				{Name: "none", Memory: true, GID: 2000},
			},
		},
		Containers: []Container{
			{
				Name: "setup", Unique: "web-setup", Image: "busybox:1.36", Pull: PullIfNotPresent, Command: []string{"sh", "-c", "true"},
				Spec: pod.Spec{Network: "default", Labels: label("setup"), Role: pod.RoleInit, Restart: again, User: "1000", Groups: []string{"3000", "2000"}, Resources: pod.Resources{CPUShares: 2}},
			},
			{
				Name: "log", Unique: "web-log", Image: "busybox", Pull: PullAlways, Args: []string{"tail"},
				Spec: pod.Spec{
					Network: "default", Labels: label("log"), Role: pod.RoleSidecar, Restart: always, User: "1000", Env: []string{"NAME=web"}, Groups: []string{"3000", "2000"},
					Mounts:    []pod.Mount{{Volume: "shared", SubPath: "logs/web", Path: "/logs", ReadOnly: true}},
					Resources: pod.Resources{CPUShares: 2},
				},
			},
			{
				Name: "app", Unique: "web-app", Image: "example.com/app@sha256:" + strings.Repeat("a", 64), Pull: PullNever,
				Command: []string{"/app", "--ip=$(IP)", "--cost=$$5", "$$(NOPE)"}, Args: []string{"a b"},
				Spec: pod.Spec{
					Network: "default", Labels: label("app"), Restart: always, User: "0", Groups: []string{"3000", "2000"}, Dir: "/srv",
					Env: []string{
						"CFG_key=v$$(A)", "password=secret", "user=me$$(X)", "PLAIN=x", "TWICE=second", "URL=http://$(IP):80/x", "NODE=host1",
						"NS=default", "APP=web", "MEM=256", "CPU=4", "FROMMAP=v$$(A)", "ESC=$$(PLAIN)",
					},
					EnvFields: []pod.EnvField{{Name: "IP", Field: "status.podIP"}, {Name: "UID", Field: "metadata.uid"}}, Expand: true,
					TTY: true, Stdin: true, StdinOnce: true, StopSignal: "SIGQUIT", ReadOnly: true, NoNewPrivs: true, Seccomp: "unconfined",
					CapAdd: []string{"NET_ADMIN"}, CapDrop: []string{"ALL"}, DiskBytes: 2 << 30, Ulimits: []pod.Ulimit{{Name: "nofile", Soft: 64, Hard: 128}},
					MaskedPaths: []string{}, ReadonlyPaths: []string{},
					Resources: pod.Resources{NanoCPUs: 5e8, CPUShares: 256, MemoryBytes: 256 << 20, MemoryReservationBytes: 128 << 20},
					Mounts: []pod.Mount{
						{Volume: "shared", SubPath: "logs/web", Path: "/logs"}, {Volume: "conf", Path: "/conf", ReadOnly: true},
						{Volume: "mem", Path: "/mem"},
					},
					Probes: pod.Probes{
						Startup:   startup,
						Liveness:  probe(pod.Handler{Exec: []string{"check", "x"}}),
						Readiness: probe(pod.Handler{GRPC: &pod.GRPCCheck{Port: 9000, Service: "s"}}),
					},
					Hooks: pod.Hooks{PostStart: &pod.Handler{TCP: &pod.TCPSocket{Port: 8080}}, PreStop: &pod.Handler{Sleep: 3 * time.Second}},
				},
			},
		},
	}
	if d := diff(want, f.Pods[0]); d != "" {
		t.Errorf("pod (-want +got):\n%s", d)
	}
	wantWarnings := []string{
		"pod.yaml:40: spec.nodeSelector: has no effect: there is one host, nothing is scheduled",
	}
	if d := cmp.Diff(wantWarnings, f.Warnings); d != "" {
		t.Errorf("warnings (-want +got):\n%s", d)
	}
}

const minimal = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: c\n    image: i\n"

func TestDefaults(t *testing.T) {
	p := parse(t, minimal).Pods[0]
	want := Pod{
		Name: "p", Spec: pod.PodSpec{Network: "default", StopTimeout: ptr(30)},
		Containers: []Container{{
			Name: "c", Unique: "p-c", Image: "i", Pull: PullAlways,
			Spec: pod.Spec{
				Network: "default", Labels: map[string]string{labelPod: "p", labelNamespace: "default", labelContainer: "c"},
				Restart: pod.RestartPolicy{Policy: "always", Delay: 10 * time.Second, MaxDelay: 5 * time.Minute, ResetAfter: 10 * time.Minute},
			},
		}},
	}
	if d := diff(want, p); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestManyPods(t *testing.T) {
	text := `
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: d, namespace: other}
  spec:
    replicas: 2
    selector: {matchLabels: {a: b}}
    template:
      metadata: {labels: {a: b}}
      spec:
        containers:
        - name: c
          image: i
          env: [{name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}]
---
{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {"backoffLimit": 3,
  "template": {"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "i"}]}}}}
---
# nothing
---
` + minimal
	f := parse(t, text)
	var got []string
	for _, p := range f.Pods {
		c := p.Containers[0]
		got = append(got, p.Name+" "+c.Unique+" "+c.Spec.Restart.Policy+" "+strings.Join(c.Spec.Env, " "))
	}
	want := []string{"d-0 d-0-c always ME=d-0 NS=other", "d-1 d-1-c always ME=d-1 NS=other", "j j-c on-failure ", "p p-c always "}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if m := f.Pods[2].Containers[0].Spec.Restart.Max; m != 3 {
		t.Errorf("the job is tried %d times more", m)
	}
}

// TestYAML reads the same with other means of writing.
func TestYAML(t *testing.T) {
	want := parse(t, minimal)
	for name, text := range map[string]string{
		"json":   "{\t\"apiVersion\": \"v1\", \"kind\": \"Pod\",\r\n\t\"metadata\": {\"name\": \"p\"}, \"spec\": {\"containers\": [{\"name\": \"c\", \"image\": \"\\u0069\"}]}}",
		"flow":   "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i}]}}",
		"bom":    "\xef\xbb\xbf" + minimal,
		"crlf":   strings.ReplaceAll(minimal, "\n", "\r\n"),
		"alias":  "apiVersion: v1\nkind: Pod\nmetadata: {name: &p p}\nspec:\n  containers:\n  - {name: c, image: i, stdin: off, tty: No, workingDir: null}\n",
		"merge":  "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - <<: [&x {name: c, image: z}, {tty: false}]\n    image: i\n",
		"notes":  minimal + "  serviceAccountName: default\n  schedulerName: default-scheduler\n  hostNetwork: false\n  imagePullSecrets: []\nstatus: {phase: Running, new: [1]}\n",
		"octal":  minimal + "  terminationGracePeriodSeconds: 0x1e\n",
		"twice?": "---\n" + minimal + "---\n",
	} {
		f, err := Parse([]byte(text), testOptions)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := diff(want, f); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// In these, what comes after "spec:" or, with two spaces more, the only container.
func TestRefused(t *testing.T) {
	tests := []struct{ in, want string }{
		// Form.
		{"a: [\n", `pod.yaml:1: invalid YAML: `},
		{"apiVersion: v1\nkind: Pod\n  bad: x\n", "pod.yaml:3: invalid YAML: mapping values are not allowed in this context"},
		{minimal + "  - name: b\n   image: x\n", "pod.yaml:9: invalid YAML: did not find expected key"},
		{minimal + "  - name: b\n    args: [a,\n      b\n    image: x\n", "pod.yaml:9: invalid YAML: "},
		{"{\"apiVersion\": \"v1\",\n\"kind\" \"Pod\"}", "pod.yaml:2: invalid JSON: "},
		{"{\"apiVersion\": \"v1\",\n\"kind\": }", "pod.yaml:1: apiVersion and kind are needed"},
		{"", "pod.yaml: there is no Pod, Deployment or Job in it"},
		{"x", "pod.yaml:1: not an object, but a string"},
		{"apiVersion: v1\n", "pod.yaml:1: apiVersion and kind are needed"},
		{"apiVersion: v1\nkind: Service\n", "pod.yaml:2: kind: Service of v1 is not supported"},
		{"a: *b\n", "pod.yaml:1: invalid YAML: unknown anchor"},
		{minimal + "    imagee: x\n", "pod.yaml:8: spec.containers[0].imagee: unknown field"},
		{minimal + "    image: x\n", "pod.yaml:8: spec.containers[0].image: is given twice, first in line 7"},
		{minimal + "    tty: 1\n", "pod.yaml:8: spec.containers[0].tty: true or false is needed, not 1"},
		{minimal + "    env: {}\n", "pod.yaml:8: spec.containers[0].env: a list is needed, not an object"},
		{minimal + "    env:\n    - name: A\n      value: 1\n", `pod.yaml:10: spec.containers[0].env[0].value: a string is needed: write "1" in quotes`},
		{minimal + "    env:\n    - {name: A, value: yes}\n", `pod.yaml:9: spec.containers[0].env[0].value: a string is needed: write "yes" in quotes`},
		{minimal + "  terminationGracePeriodSeconds: 1.5\n", "spec.terminationGracePeriodSeconds: a whole number of 64 bits is needed, not 1.5"},
		{minimal + "  terminationGracePeriodSeconds: -1\n", "pod.yaml:8: spec.terminationGracePeriodSeconds: -1 is not between"},
		{minimal + "  securityContext: []\n", "pod.yaml:8: spec.securityContext: an object is needed, not a list"},
		{minimal + "    resources: {limits: {memory: lots}}\n", "pod.yaml:8: spec.containers[0].resources.limits.memory: not a quantity: lots"},
		{minimal + "    resources: {limits: {memory: 1e9999999}}\n", "not a quantity: 1e9999999"},
		{minimal + "    resources: {limits: {memory: -1}}\n", "-1 is not between 0 and"},
		{minimal + "    resources: {limits: {cpu: 1}, requests: {cpu: 2}}\n", "resources.requests.cpu: 2 is more than the limit of 1"},
		{minimal + "    resources: {limits: {nvidia.com/gpu: 1}}\n", "resources.limits[nvidia.com/gpu]: not supported: a container has cpu, memory and ephemeral-storage"},
		{minimal + "  nodeSelector: {a: {}}\n", "spec.nodeSelector.a: a string is needed, not an object"},
		{"apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {nam: x}\n", "pod.yaml:6: items[0].metadata.nam: unknown field"},
		// Not supported.
		{minimal + "  hostNetwork: true\n", "pod.yaml:8: spec.hostNetwork: not supported: a pod is a virtual machine"},
		{minimal + "  hostUsers: false\n", "spec.hostUsers: not supported"},
		{minimal + "  os: {name: windows}\n", "spec.os.name: windows is not supported: guests run Linux"},
		{minimal + "  volumes: [{name: v, hostPath: {path: /}}]\n", "spec.volumes[0].hostPath: not supported: host directories can't be mounted yet"},
		{minimal + "  volumes: [{name: v, persistentVolumeClaim: {claimName: x}}]\n", "spec.volumes[0].persistentVolumeClaim: not supported"},
		{minimal + "  volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: x}}]}}]\n", "serviceAccountToken: not supported: there is no API server"},
		{minimal + "  volumes: [{name: v, emptyDir: {medium: HugePages}}]\n", `emptyDir.medium: "HugePages" is not supported`},
		{minimal + "    ports: [{containerPort: 80, hostPort: 8080}]\n", "spec.containers[0].ports[0].hostPort: not supported: publishing ports comes in a later release"},
		{minimal + "    securityContext: {seccompProfile: {type: Localhost}}\n", `seccompProfile.type: "Localhost" is not supported`},
		{minimal + "    securityContext: {appArmorProfile: {type: Unconfined}}\n", "appArmorProfile: not supported"},
		{minimal + "    volumeMounts: [{name: v, mountPath: /x, mountPropagation: Bidirectional}]\n", "mountPropagation: not supported"},
		{minimal + "    volumeDevices: [{name: v, devicePath: /x}]\n", "volumeDevices: not supported"},
		// Values.
		{"apiVersion: v1\nkind: Pod\nspec: {containers: [{name: c, image: i}]}\n", "pod.yaml:1: metadata.name: is needed"},
		{strings.Replace(minimal, "name: p", "name: P_", 1), `pod.yaml:3: metadata.name: "P_": a lowercase RFC 1123 subdomain`},
		{strings.Replace(minimal, "image: i", "image: I:x:y", 1), `pod.yaml:7: spec.containers[0].image: "I:x:y": invalid reference format`},
		{minimal + "  - name: c\n    image: j\n", "pod.yaml:8: spec.containers[1].name: there are two containers c"},
		{minimal + "---\n" + minimal, "pod.yaml:11: metadata.name: there are two pods p"},
		{minimal + "  restartPolicy: Sometimes\n", `spec.restartPolicy: "Sometimes" is none of`},
		{minimal + "    imagePullPolicy: Perhaps\n", `imagePullPolicy: "Perhaps" is none of`},
		{minimal + "  volumes: [{name: v, emptyDir: {}}, {name: v, emptyDir: {}}]\n", "spec.volumes[1].name: there are two volumes v"},
		{minimal + "  volumes: [{name: v}]\n", "spec.volumes[0]: has no source"},
		{minimal + "  volumes: [{name: v, emptyDir: {}, secret: {secretName: x, optional: true}}]\n", "has more than one source"},
		{minimal + "  volumes: [{name: v, configMap: {name: cm}}]\n", "pod.yaml:8: spec.volumes[0].configMap.name: ConfigMap cm is not in the file"},
		{minimal + "  volumes: [{name: v, emptyDir: {mode: 02777}}]\n", "emptyDir.mode: 02777 is not between 01 and 01777"},
		{minimal + "    volumeMounts: [{name: v, mountPath: /x}]\n", `pod.yaml:8: spec.containers[0].volumeMounts[0].name: there is no volume "v" in the pod`},
		{minimal + "    volumeMounts: [{name: v, mountPath: /x}, {name: v, mountPath: /x/}]\n  volumes: [{name: v, emptyDir: {}}]\n", "volumeMounts[1].mountPath: there are two mounts on /x"},
		{minimal + "    volumeMounts: [{name: v, mountPath: /x, subPath: ../y}]\n  volumes: [{name: v, emptyDir: {}}]\n", `subPath: "../y" is not a path in the volume`},
		{minimal + "    env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]\n    volumeMounts: [{name: v, mountPath: /x, subPathExpr: $(IP)}]\n  volumes: [{name: v, emptyDir: {}}]\n",
			"subPathExpr: refers to a variable that is known only when the pod runs"},
		{minimal + "    env: [{name: A=B}]\n", `env[0].name: "A=B"`},
		{minimal + "    env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.x}}}]\n", `fieldPath: "spec.x" is not supported`},
		{minimal + "    env: [{name: A, valueFrom: {}}]\n", "valueFrom: one source is needed, not 0"},
		{minimal + "    envFrom: [{secretRef: {name: s}}]\n", "envFrom[0].secretRef.name: Secret s is not in the file"},
		{minimal + "    env: [{name: A, value: \"\\0\"}]\n", "env[0].value: has a zero byte in it"},
		{minimal + "    livenessProbe: {httpGet: {port: web}}\n", `livenessProbe.httpGet.port: the container has no port "web"`},
		{minimal + "    livenessProbe: {tcpSocket: {port: 70000}}\n", "livenessProbe.tcpSocket.port: "},
		{minimal + "    livenessProbe: {}\n", "livenessProbe: one thing to do is needed, not 0"},
		{minimal + "    livenessProbe: {successThreshold: 2, exec: {command: [x]}}\n", "livenessProbe.successThreshold: must be 1"},
		{minimal + "    lifecycle: {stopSignal: TERM}\n", `stopSignal: "TERM" is not a signal's name`},
		{minimal + "  initContainers: [{name: d, image: i, readinessProbe: {exec: {command: [x]}}}]\n", "spec.initContainers[0]: an init container has no probes"},
		{minimal + "    ports: [{containerPort: 80}, {containerPort: 80, protocol: TCP}]\n", "ports[1]: is the same as ports[0]"},
		{minimal + "    securityContext: {allowPrivilegeEscalation: false, privileged: true}\n", "allowPrivilegeEscalation: can't be false"},
		{minimal + "    securityContext: {runAsUser: -1}\n", "runAsUser: -1 is not between"},
		{minimal + "  hostAliases: [{ip: x, hostnames: [a]}]\n", `hostAliases[0].ip: "x" is not an IP address`},
		{minimal + "  dnsPolicy: None\n", "spec.dnsPolicy: None needs dnsConfig.nameservers"},
		{minimal + "  dnsConfig: {nameservers: [1.1.1.1]}\n", "dnsConfig.nameservers: not supported with dnsPolicy"},
		{minimal + "  securityContext: {sysctls: [{name: a b, value: x}]}\n", `"a b" is not the name of a sysctl`},
		{strings.Replace(minimal, "name: p", "name: p, annotations: {run.hyper.kernle: x}", 1), "metadata.annotations[run.hyper.kernle]: unknown"},
		{strings.Replace(minimal, "name: p", `name: p, annotations: {run.hyper.pod: '{"x": 1}'}`, 1), "metadata.annotations[run.hyper.pod]: unknown field x"},
		{strings.Replace(minimal, "name: p", `name: p, annotations: {run.hyper.container/x: '{}'}`, 1), "there is no container x"},
		{"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {../x: y}\n---\n" + minimal, `pod.yaml:4: data[../x]: "../x": a valid config key`},
		{"apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {x: '***'}\n---\n" + minimal, "pod.yaml:4: data.x: not base64"},
		{"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  replicas: 1000\n", "pod.yaml:5: spec.replicas: 1000 is not between 0 and 100"},
		{"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}}}\n", "spec.selector: does not select the labels of spec.template"},
		{"apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\nspec: {completions: 2, template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}\n", "spec.completions: not supported"},
		{"apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\nspec: {template: {spec: {containers: [{name: c, image: i}]}}}\n", "spec.template.spec.restartPolicy: must be OnFailure or Never"},
	}
	for _, tt := range tests {
		_, err := Parse([]byte(tt.in), testOptions)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !errdefs.IsInvalidArgument(err) {
			t.Errorf("error %v, want %s\n%s", err, tt.want, tt.in)
		}
	}
}

// TestManyProblems sees that all are told, in the order of the lines.
func TestManyProblems(t *testing.T) {
	_, err := Parse([]byte(minimal+"    livenessProbe: {}\n    ports: [{containerPort: 0}]\n  restartPolicy: X\n"), testOptions)
	want := `pod.yaml:8: spec.containers[0].livenessProbe: one thing to do is needed, not 0
pod.yaml:9: spec.containers[0].ports[0].containerPort: "0": must be between 1 and 65535, inclusive
pod.yaml:10: spec.restartPolicy: "X" is none of Always, OnFailure, Never`
	if err == nil || err.Error() != want {
		t.Errorf("error:\n%v\nwant:\n%s", err, want)
	}
	_, err = Parse([]byte(minimal+"    env:\n"+strings.Repeat("    - {name: }\n", 50)), testOptions)
	if err == nil || strings.Count(err.Error(), "\n") != maxProblems || !strings.HasSuffix(err.Error(), "and 30 more") {
		t.Errorf("error:\n%v", err)
	}
}

// TestBounds reads what is small as text and large when it is understood.
func TestBounds(t *testing.T) {
	laughs := minimal + "    env: &e [" + strings.Repeat("{name: A},", 1000) + "]\n" + strings.Repeat("  - {name: x, image: i, env: *e}\n", 1000)
	chain := minimal + "    env:\n    - {name: A0, value: xx}\n"
	prev := "A0"
	for range 40 {
		next := prev + "x"
		chain += "    - {name: " + next + ", value: $(" + prev + ")$(" + prev + ")}\n"
		prev = next
	}
	many := minimal + "    env:\n    - {name: A, value: " + strings.Repeat("x", 100_000) + "}\n    args: [" + strings.Repeat("$(A),", 1000) + "]\n"
	tests := map[string]struct{ in, want string }{
		"laughs":   {laughs, "the file has more than 200000 values"},
		"affinity": {"apiVersion: v1\nkind: Pod\nspec:\n  tolerations: &t0 [{},{},{},{},{},{},{},{},{}]\n  containers: [*t0]\n", "an object is needed, not a list"},
		"cycle":    {"apiVersion: v1\nkind: Pod\nspec: &s\n  containers: [{lifecycle: *s}]\n  initContainers: &i [*i, *i]\n", "an object is needed, not a list"},
		"chain":    {chain, "is longer than 131071 bytes once its variables are replaced"},
		"many":     {many, "more than 16777216 bytes together"},
		"deep":     {strings.Repeat("[", 5000), "invalid YAML"},
		"deepjson": {`{"a":` + strings.Repeat("[", 100_000), "invalid"},
		"large":    {strings.Repeat("#", MaxBytes+1), "larger than 4 MiB"},
	}
	for name, tt := range tests {
		start := time.Now()
		_, err := Parse([]byte(tt.in), testOptions)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %.300v, want %s", name, err, tt.want)
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("%s took %v", name, d)
		}
	}
}

func TestComplete(t *testing.T) {
	img := ImageConfig{Entrypoint: []string{"/ep"}, Cmd: []string{"cmd"}, Env: []string{"PATH=/bin", "X=$(IP)"}, Dir: "/img", User: "app", StopSignal: "SIGINT"}
	tests := []struct {
		name, in string
		img      ImageConfig
		want     func(*pod.Spec)
		err      string
	}{
		{name: "image", img: img, want: func(s *pod.Spec) { s.Args = []string{"/ep", "cmd"} }},
		{name: "args", in: "args: [a]", img: img, want: func(s *pod.Spec) { s.Args = []string{"/ep", "a"} }},
		{name: "command", in: "command: [c]", img: img, want: func(s *pod.Spec) { s.Args = []string{"c"} }},
		{name: "both", in: "command: [c]\n    args: [a, b]", img: img, want: func(s *pod.Spec) { s.Args = []string{"c", "a", "b"} }},
		{name: "neither", err: "neither the pod nor the image i says what to run"},
		{name: "env", in: "env: [{name: PATH, value: /x}, {name: Y, value: z}]", img: img, want: func(s *pod.Spec) {
			s.Args, s.Env = []string{"/ep", "cmd"}, []string{"PATH=/x", "X=$(IP)", "Y=z"}
		}},
		{name: "expand", in: "env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]\n    args: [$(IP)]", img: img, want: func(s *pod.Spec) {
			s.Args, s.Env = []string{"/ep", "$(IP)"}, []string{"PATH=/bin", "X=$$(IP)"}
			s.Expand, s.EnvFields = true, []pod.EnvField{{Name: "IP", Field: "status.podIP"}}
		}},
		{name: "user", in: "securityContext: {runAsUser: 5, runAsGroup: 6}", img: img, want: func(s *pod.Spec) {
			s.Args, s.User = []string{"/ep", "cmd"}, "5:6"
		}},
		{name: "group", in: "securityContext: {runAsGroup: 6}", img: img, want: func(s *pod.Spec) {
			s.Args, s.User = []string{"/ep", "cmd"}, "app:6"
		}},
		{name: "dir and signal", in: "workingDir: /w\n    lifecycle: {stopSignal: SIGHUP}", img: img, want: func(s *pod.Spec) {
			s.Args, s.Dir, s.StopSignal = []string{"/ep", "cmd"}, "/w", "SIGHUP"
		}},
		{name: "root image", in: "securityContext: {runAsNonRoot: true}\n    args: [a]", err: "runAsNonRoot, but the image's user is root"},
		{name: "root", in: "securityContext: {runAsNonRoot: true, runAsUser: 0}\n    args: [a]", img: img, err: "runAsNonRoot, but runAsUser is root"},
		{name: "named", in: "securityContext: {runAsNonRoot: true}", img: img, err: `runAsNonRoot, but the image's user is "app", which may be root`},
		{name: "numbered", in: "securityContext: {runAsNonRoot: true}\n    command: [a]", img: ImageConfig{User: "7:8"}, want: func(s *pod.Spec) {
			s.Args, s.User, s.Dir, s.StopSignal, s.Env = []string{"a"}, "7:8", "", "", nil
		}},
	}
	for _, tt := range tests {
		text := minimal
		if tt.in != "" {
			text += "    " + tt.in + "\n"
		}
		c := parse(t, text).Pods[0].Containers[0]
		got, err := c.Complete(tt.img)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) || !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: error %v, want %s", tt.name, err, tt.err)
			}
			continue
		}
		want := parse(t, minimal).Pods[0].Containers[0].Spec
		want.Image, want.User, want.Dir, want.StopSignal, want.Env = "i", "app", "/img", "SIGINT", img.Env
		tt.want(&want)
		if d := diff(want, got); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, d)
		}
	}
}
