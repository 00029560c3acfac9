package dockerapi

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"

	"github.com/hyper-run/hyper/internal/pod"
)

// Every field must be in exactly the table that says what becomes of it.
func TestEveryCreateFieldHasAFate(t *testing.T) {
	for _, tt := range []struct {
		v     any
		rules map[string]rule
	}{
		{container.Config{}, configRules},
		{container.HostConfig{}, hostRules},
		{container.Resources{}, resourceRules},
		{network.EndpointSettings{}, endpointRules},
	} {
		typ := reflect.TypeOf(tt.v)
		seen := map[string]bool{"Resources": true}
		for i := range typ.NumField() {
			f := typ.Field(i)
			if f.Anonymous {
				continue
			}
			seen[f.Name] = true
			r, ok := tt.rules[f.Name]
			if !ok {
				t.Errorf("%s.%s is in no table", typ, f.Name)
			}
			if (r.fate == later || r.fate == never) != (r.why != "") {
				t.Errorf("%s.%s: refused fields, and no others, say why", typ, f.Name)
			}
		}
		for name := range tt.rules {
			if !seen[name] {
				t.Errorf("%s has no field %s", typ, name)
			}
		}
	}
}

// Each refused field is set to something and must be refused by name.
func TestRefusedFieldsAreNamed(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct{ json, field string }{
		{`"Volumes":{"/x":{}}`, "Volumes"},
		{`"Healthcheck":{"Test":["CMD","true"]}`, "Healthcheck"},
		{`"MacAddress":"02:00:00:00:00:01"`, "MacAddress"},
		{`"HostConfig":{"Binds":["/a:/b"]}`, "HostConfig.Binds"},
		{`"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}`, "HostConfig.PortBindings"},
		{`"HostConfig":{"PublishAllPorts":true}`, "HostConfig.PublishAllPorts"},
		{`"HostConfig":{"NetworkMode":"host"}`, "HostConfig.NetworkMode"},
		{`"HostConfig":{"IpcMode":"host"}`, "HostConfig.IpcMode"},
		{`"HostConfig":{"PidMode":"host"}`, "HostConfig.PidMode"},
		{`"HostConfig":{"CgroupnsMode":"host"}`, "HostConfig.CgroupnsMode"},
		{`"HostConfig":{"UTSMode":"host"}`, "HostConfig.UTSMode"},
		{`"HostConfig":{"Runtime":"runc"}`, "HostConfig.Runtime"},
		{`"HostConfig":{"Isolation":"hyperv"}`, "HostConfig.Isolation"},
		{`"HostConfig":{"Links":["a:b"]}`, "HostConfig.Links"},
		{`"HostConfig":{"Umask":18}`, "HostConfig.Umask"},
		{`"HostConfig":{"VolumeDriver":"nfs"}`, "HostConfig.VolumeDriver"},
		{`"HostConfig":{"Devices":[{"PathOnHost":"/dev/fuse"}]}`, "HostConfig.Devices"},
		{`"HostConfig":{"DeviceRequests":[{"Count":-1}]}`, "HostConfig.DeviceRequests"},
		{`"HostConfig":{"CgroupParent":"x"}`, "HostConfig.CgroupParent"},
		{`"HostConfig":{"BlkioWeight":10}`, "HostConfig.BlkioWeight"},
		{`"HostConfig":{"BlkioDeviceReadBps":[{"Path":"/dev/sda","Rate":1}]}`, "HostConfig.BlkioDeviceReadBps: /dev/sda"},
		{`"HostConfig":{"BlkioDeviceWriteIOps":[{"Path":"/dev/sda","Rate":1}]}`, "HostConfig.BlkioDeviceWriteIOps: /dev/sda"},
		{`"HostConfig":{"PidMode":"private"}`, "HostConfig.PidMode"},
		{`"HostConfig":{"CpuRealtimePeriod":10}`, "HostConfig.CpuRealtimePeriod"},
		{`"HostConfig":{"MemorySwappiness":10}`, "HostConfig.MemorySwappiness"},
		{`"HostConfig":{"OomKillDisable":true}`, "HostConfig.OomKillDisable"},
		{`"HostConfig":{"Mounts":[{"Type":"bind","Source":"/a","Target":"/b"}]}`, "HostConfig.Mounts"},
		{`"HostConfig":{"LogConfig":{"Type":"syslog"}}`, "HostConfig.LogConfig.Type"},
		{`"HostConfig":{"LogConfig":{"Config":{"tag":"x"}}}`, "HostConfig.LogConfig.Config"},
		{`"HostConfig":{"SecurityOpt":["apparmor=mine"]}`, "HostConfig.SecurityOpt"},
		{`"HostConfig":{"StorageOpt":{"x":"y"}}`, "HostConfig.StorageOpt"},
		{`"HostConfig":{"Annotations":{"run.hyper.warp":"9"}}`, "HostConfig.Annotations"},
		{`"HostConfig":{"Ulimits":[{"Name":"nofile","Soft":2,"Hard":1}]}`, "HostConfig.Ulimits"},
		{`"NetworkingConfig":{"EndpointsConfig":{"mine":{}}}`, "NetworkingConfig.EndpointsConfig"},
		{`"NetworkingConfig":{"EndpointsConfig":{"bridge":{"Aliases":["x"]}}}`, "NetworkingConfig.EndpointsConfig.bridge.Aliases"},
	} {
		res, body := w.do(t, "POST", "/containers/create", `{"Image":"nginx",`+tt.json+`}`)
		if res.StatusCode != 400 && res.StatusCode != 501 || !strings.Contains(body, `{"message":"`+tt.field) {
			t.Errorf("%s: %d %s", tt.json, res.StatusCode, body)
		}
	}
	if n := len(w.set.containers); n != 0 {
		t.Errorf("%d containers were made", n)
	}
}

// What the docker CLI sends for a plain "docker run".
const cliDefaults = `{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":true,"AttachStderr":true,"Tty":false,
"OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":null,"Image":"nginx","Volumes":{},"WorkingDir":"","Entrypoint":null,"Labels":{},
"HostConfig":{"Binds":null,"ContainerIDFile":"","LogConfig":{"Type":"","Config":{}},"NetworkMode":"default","PortBindings":{},
"RestartPolicy":{"Name":"no","MaximumRetryCount":0},"AutoRemove":false,"VolumeDriver":"","VolumesFrom":null,"ConsoleSize":[24,80],
"CapAdd":null,"CapDrop":null,"CgroupnsMode":"","Dns":[],"DnsOptions":[],"DnsSearch":[],"ExtraHosts":null,"GroupAdd":null,"IpcMode":"",
"Cgroup":"","Links":null,"OomScoreAdj":0,"PidMode":"","Privileged":false,"PublishAllPorts":false,"ReadonlyRootfs":false,"SecurityOpt":null,
"UTSMode":"","UsernsMode":"","ShmSize":0,"Isolation":"","CpuShares":0,"Memory":0,"NanoCpus":0,"CgroupParent":"","BlkioWeight":0,
"BlkioWeightDevice":[],"BlkioDeviceReadBps":[],"BlkioDeviceWriteBps":[],"BlkioDeviceReadIOps":[],"BlkioDeviceWriteIOps":[],"CpuPeriod":0,
"CpuQuota":0,"CpuRealtimePeriod":0,"CpuRealtimeRuntime":0,"CpusetCpus":"","CpusetMems":"","Devices":[],"DeviceCgroupRules":null,
"DeviceRequests":null,"MemoryReservation":0,"MemorySwap":0,"MemorySwappiness":-1,"OomKillDisable":false,"PidsLimit":0,"Ulimits":[],
"CpuCount":0,"CpuPercent":0,"IOMaximumIOps":0,"IOMaximumBandwidth":0,"MaskedPaths":null,"ReadonlyPaths":null},
"NetworkingConfig":{"EndpointsConfig":{"default":{"IPAMConfig":null,"Links":null,"Aliases":null,"MacAddress":"","NetworkID":"","EndpointID":"",
"Gateway":"","IPAddress":"","IPPrefixLen":0,"IPv6Gateway":"","GlobalIPv6Address":"","GlobalIPv6PrefixLen":0,"DNSNames":null}}}}`

func TestCreateTakesTheImagesDefaults(t *testing.T) {
	w := newWorld(t)
	res, body := w.do(t, "POST", "/v1.50/containers/create?name=web", cliDefaults)
	if res.StatusCode != 201 {
		t.Fatal(body)
	}
	ct, err := w.set.Get("web")
	if err != nil {
		t.Fatal(err)
	}
	got := ct.Spec
	got.Edge = nil
	want := pod.Spec{
		Image: "nginx", ImageID: testImage("nginx:latest").ID.String(), Layers: layersOf("nginx:latest"), Args: []string{"echo", "from image"}, Env: []string{"PATH=/bin", "LANG=C"},
		Dir: "/srv", Labels: map[string]string{"maker": "us"}, Network: "default", StopSignal: "SIGQUIT", ConsoleSize: [2]uint{24, 80},
		DNSSearch: []string{}, DNSOptions: []string{},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestCreateMapsEveryHonouredField(t *testing.T) {
	w := newWorld(t)
	yes, timeout, pids := true, 3, int64(50)
	cfg := container.Config{
		Image: "nginx", Hostname: "h", Domainname: "d", User: "u:g", Tty: true, OpenStdin: true, StdinOnce: true, Env: []string{"LANG=de", "UNSET"},
		Cmd: []string{"a", "b"}, Entrypoint: []string{"/e"}, WorkingDir: "/w", Labels: map[string]string{"l": "1"}, StopSignal: "INT", StopTimeout: &timeout,
		NetworkDisabled: true, Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}
	host := container.HostConfig{
		LogConfig: container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "1m", "max-file": "3"}}, AutoRemove: true,
		Annotations: map[string]string{"run.hyper.kernel": "/boot/vmlinuz", "note": "x"}, CapAdd: []string{"CAP_NET_ADMIN"}, CapDrop: []string{"ALL"},
		DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9")}, ExtraHosts: []string{"a:1.2.3.4", "b:[::1]"}, GroupAdd: []string{"video"}, OomScoreAdj: 5,
		Privileged: true, ReadonlyRootfs: true, SecurityOpt: []string{"no-new-privileges", "seccomp=unconfined", "label=disable"},
		StorageOpt: map[string]string{"size": "1G"}, Tmpfs: map[string]string{"/t": "size=1m"}, ShmSize: 1 << 20, Sysctls: map[string]string{"net.x": "1"},
		MaskedPaths: []string{"/m"}, ReadonlyPaths: []string{"/r"}, Init: &yes,
		Resources: container.Resources{
			CPUShares: 512, Memory: 64 << 20, NanoCPUs: 5e8, CpusetCpus: "0", MemoryReservation: 32 << 20, MemorySwap: -1, PidsLimit: &pids,
			Ulimits:            []*container.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}},
			BlkioDeviceReadBps: []*blkiodev.ThrottleDevice{{Path: "/", Rate: 1}}, BlkioDeviceWriteBps: []*blkiodev.ThrottleDevice{{Path: "/", Rate: 2}},
			BlkioDeviceReadIOps: []*blkiodev.ThrottleDevice{{Path: "/", Rate: 3}}, BlkioDeviceWriteIOps: []*blkiodev.ThrottleDevice{{Path: "/", Rate: 4}},
		},
		IpcMode: "private", PidMode: "pod",
	}
	w.create(t, "web", cfg, host)
	ct, _ := w.set.Get("web")
	got := ct.Spec
	got.Edge, got.ImageID, got.Layers = nil, "", nil
	want := pod.Spec{
		Image: "nginx", Args: []string{"/e", "a", "b"}, Env: []string{"LANG=de", "PATH=/bin"}, Dir: "/w", User: "u:g", Groups: []string{"video"},
		Labels: map[string]string{"l": "1", "maker": "us"}, Hostname: "h", Domainname: "d", ExtraHosts: []string{"a:1.2.3.4", "b:::1"}, DNS: []string{"9.9.9.9"},
		Network: "none", TTY: true, Stdin: true, StdinOnce: true, Init: true, StopSignal: "INT", StopTimeout: &timeout, AutoRemove: true, ReadOnly: true,
		Tmpfs: map[string]string{"/t": "size=1m"}, ShmBytes: 1 << 20, DiskBytes: 1 << 30, Kernel: "/boot/vmlinuz", Privileged: true, CapAdd: []string{"CAP_NET_ADMIN"},
		CapDrop: []string{"ALL"}, NoNewPrivs: true, Seccomp: "unconfined", MaskedPaths: []string{"/m"}, ReadonlyPaths: []string{"/r"},
		Ulimits: []pod.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}, Sysctls: map[string]string{"net.x": "1"}, OOMScoreAdj: 5,
		Resources: pod.Resources{MemoryBytes: 64 << 20, MemorySwapBytes: -1, MemoryReservationBytes: 32 << 20, NanoCPUs: 5e8, CPUShares: 512, CPUSet: "0", PIDs: 50,
			IO: pod.IOLimit{ReadBytes: 1, WriteBytes: 2, Reads: 3, Writes: 4}},
		IPCMode: "private", PIDMode: "pod",
		Log: pod.LogConfig{Driver: "json-file", MaxBytes: 1 << 20, MaxFiles: 3},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestInspectEchoesTheRequestAndTheUpdate(t *testing.T) {
	w := newWorld(t)
	id := w.create(t, "web", container.Config{Entrypoint: []string{"sleep", "9"}, Labels: map[string]string{"a": "b"}}, container.HostConfig{CapAdd: []string{"CAP_SYS_TIME"}})
	if _, err := w.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.ContainerUpdate(t.Context(), id, client.ContainerUpdateOptions{Resources: &container.Resources{Memory: 1 << 28}}); err != nil {
		t.Fatal(err)
	}
	res, err := w.ContainerInspect(t.Context(), "web", client.ContainerInspectOptions{Size: true})
	if err != nil {
		t.Fatal(err)
	}
	in := res.Container
	bridge := in.NetworkSettings.Networks["bridge"]
	for _, tt := range []struct{ got, want any }{
		{in.ID, id}, {in.Name, "/web"}, {in.Path, "sleep"}, {in.Args, []string{"9"}}, {in.Config.Image, "nginx"}, {in.Image, testImage("nginx:latest").ID.String()},
		{in.Config.Labels, map[string]string{"a": "b", "maker": "us"}}, {in.Config.Hostname, id[:12]}, {in.HostConfig.CapAdd, []string{"CAP_SYS_TIME"}},
		{in.HostConfig.Memory, int64(1 << 28)}, {string(in.HostConfig.NetworkMode), "bridge"}, {string(in.State.Status), "running"}, {in.State.Pid, 42},
		{bridge.IPAddress.String(), "172.30.0.2"}, {bridge.MacAddress.String(), "02:42:ac:1e:00:02"}, {in.Driver, driverName}, {*in.SizeRw, int64(8192)},
		{*in.SizeRootFs, int64(8192 + 3<<20)}, {in.State.FinishedAt, "0001-01-01T00:00:00Z"},
	} {
		if diff := cmp.Diff(tt.want, tt.got); diff != "" {
			t.Error(diff)
		}
	}
	var extra struct {
		Hyper struct {
			VM struct{ Accel, BootTime string }
		}
	}
	if err := json.Unmarshal(res.Raw, &extra); err != nil || extra.Hyper.VM.Accel != "tcg" || extra.Hyper.VM.BootTime != "812ms" {
		t.Errorf("Hyper: %+v, %v in %s", extra, err, res.Raw)
	}
}

func layersOf(ref string) []digest.Digest {
	img := testImage(ref)
	return img.Layers()
}
