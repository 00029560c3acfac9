package dockerapi

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/hyper-run/hyper/internal/pod"
)

func (s *fakeSet) CreatePod(ctx context.Context, o pod.PodOptions) (string, error) {
	if p, err := s.GetPod(o.Name); err == nil {
		return "", conflict("Conflict. The pod name %q is already in use by pod %s", o.Name, p.ID)
	}
	p := pod.PodInfo{ID: "id-of-" + o.Name, Name: o.Name, Spec: o.Spec}
	for _, c := range o.Containers {
		c.Pod = p.ID
		if _, _, err := s.Create(ctx, c); err != nil {
			return "", err
		}
	}
	s.pods = append(s.pods, p)
	return p.ID, nil
}

func (s *fakeSet) GetPod(ref string) (pod.PodInfo, error) {
	i := slices.IndexFunc(s.pods, func(p pod.PodInfo) bool { return p.ID == ref || p.Name == ref })
	if i < 0 {
		if c, err := s.Get(ref); err == nil {
			return pod.PodInfo{ID: c.PodID, Containers: []pod.Container{c}}, nil
		}
		return pod.PodInfo{}, notFound("No such pod: %s", ref)
	}
	p := s.pods[i]
	for _, c := range s.List(pod.Filter{All: true}) {
		if c.PodID == p.ID {
			p.Containers = append(p.Containers, c)
		}
	}
	return p, nil
}

func (s *fakeSet) Why(_ context.Context, ref string) (pod.Why, error) {
	c, err := s.Get(ref)
	return pod.Why{ID: c.ID, Name: c.Name, Cause: pod.CauseExit, Summary: "It exited."}, err
}

func (s *fakeSet) SetRestart(_ context.Context, ref string, p pod.RestartPolicy) error {
	return s.locked(ref, func(c *fakeContainer) error { c.Spec.Restart = p; return nil })
}

// A container goes into the pod that its request names in any of the ways.
func TestPlaces(t *testing.T) {
	w := newWorld(t)
	w.create(t, "web", container.Config{}, container.HostConfig{NetworkMode: "none"})
	w.create(t, "own", container.Config{}, container.HostConfig{IpcMode: "private"})
	web, _ := w.set.Get("web")
	if _, err := w.set.CreatePod(t.Context(), pod.PodOptions{Name: "front", Spec: pod.PodSpec{Network: "default"}}); err != nil {
		t.Fatal(err)
	}
	type spec struct{ Pod, Net, JoinNet, PID, IPC string }
	for _, tt := range []struct {
		json string
		want spec
	}{
		{`"NetworkMode":"container:web"`, spec{web.PodID, "none", web.ID, "", ""}},
		{`"NetworkMode":"container:` + web.ID[:6] + `","PidMode":"container:web","IpcMode":"container:web"`, spec{web.PodID, "none", web.ID, web.ID, ""}},
		{`"PidMode":"container:web"`, spec{web.PodID, "none", "", web.ID, ""}},
		{`"IpcMode":"container:web"`, spec{web.PodID, "none", "", "", ""}},
		{`"Annotations":{"hyper.pod":"front"}`, spec{"id-of-front", "default", "", "", ""}},
		{`"Annotations":{"hyper.pod":"front"},"PidMode":"pod","NetworkMode":"bridge"`, spec{"id-of-front", "default", "", "pod", ""}},
		{`"Annotations":{"hyper.pod":"front"},"PidMode":"vm","IpcMode":"private"`, spec{"id-of-front", "default", "", "vm", "private"}},
		{`"Annotations":{"hyper.pod":"web"},"NetworkMode":"container:web"`, spec{web.PodID, "none", web.ID, "", ""}},
	} {
		res, body := w.do(t, "POST", "/containers/create", `{"Image":"nginx","HostConfig":{`+tt.json+`}}`)
		var made container.CreateResponse
		if err := json.Unmarshal([]byte(body), &made); err != nil || res.StatusCode != 201 {
			t.Fatalf("%s: %s", tt.json, body)
		}
		ct, _ := w.set.Get(made.ID)
		if diff := cmp.Diff(tt.want, spec{ct.PodID, ct.Spec.Network, ct.Spec.JoinNet, ct.Spec.PIDMode, ct.Spec.IPCMode}); diff != "" {
			t.Errorf("%s: %s", tt.json, diff)
		}
	}
}

func TestPlacesRefused(t *testing.T) {
	w := newWorld(t)
	w.create(t, "web", container.Config{}, container.HostConfig{})
	w.create(t, "own", container.Config{}, container.HostConfig{IpcMode: "private"})
	own, _ := w.set.Get("own")
	if _, err := w.set.CreatePod(t.Context(), pod.PodOptions{Name: "front", Spec: pod.PodSpec{Network: "default"}}); err != nil {
		t.Fatal(err)
	}
	const joined = `"HostConfig":{"NetworkMode":"container:web"`
	const inFront = `"HostConfig":{"Annotations":{"hyper.pod":"front"}`
	for _, tt := range []struct {
		json    string
		status  int
		message string
	}{
		{`"HostConfig":{"NetworkMode":"container:"}`, 400, "invalid network mode: invalid container format container:<name|id>"},
		{`"HostConfig":{"NetworkMode":"container:nope"}`, 400, "No such container: nope"},
		{`"HostConfig":{"PidMode":"container:nope"}`, 400, "No such container: nope"},
		{`"HostConfig":{"Annotations":{"hyper.pod":"nope"}}`, 404, "No such pod: nope"},
		{`"HostConfig":{"IpcMode":"container:own"}`, 400, "can't join IPC of container " + own.ID + ": non-shareable IPC (hint: use IpcMode:shareable for the donor container)"},
		{`"HostConfig":{"NetworkMode":"container:web","PidMode":"container:own"}`, 400, "conflicting options: network mode container:web and PID mode container:own are of different pods"},
		{`"Labels":{"hyper.pod":"new"},` + inFront + `}`, 400, "conflicting options: pod front and pod new are of different pods"},
		{joined + `},"Hostname":"h"`, 400, "conflicting options: hostname and the network mode"},
		{joined + `,"Dns":["1.1.1.1"]}`, 400, "conflicting options: dns and the network mode"},
		{joined + `,"Links":["a:b"]}`, 400, "conflicting options: container type network can't be used with links. This would result in undefined behavior"},
		{joined + `,"ExtraHosts":["a:1.1.1.1"]}`, 400, "conflicting options: custom host-to-IP mapping and the network mode"},
		{joined + `,"PublishAllPorts":true}`, 400, "conflicting options: port publishing and the container type network mode"},
		{joined + `,"PortBindings":{"80/tcp":[{"HostPort":"1"}]}}`, 400, "conflicting options: port publishing and the container type network mode"},
		{joined + `},"ExposedPorts":{"80/tcp":{}}`, 400, "conflicting options: port exposing and the container type network mode"},
		{inFront + `},"Hostname":"h"`, 400, "conflicting options: hostname and the pod front, for which it is one"},
		{inFront + `,"DnsSearch":["x"]}`, 400, "conflicting options: dns and the pod front, for which it is one"},
		{inFront + `,"ExtraHosts":["a:1.1.1.1"]}`, 400, "conflicting options: custom host-to-IP mapping and the pod front, for which it is one"},
		{inFront + `,"ShmSize":1}`, 400, "conflicting options: size of /dev/shm and the pod front, for which it is one"},
		{inFront + `,"NetworkMode":"none"}`, 400, "conflicting options: network mode none and the pod front, whose network is bridge"},
		{`"HostConfig":{"Annotations":{"hyper.pod":"front","run.hyper.kernel":"stock"}}`, 400, "conflicting options: kernel and the pod front, for which it is one"},
		{`"HostConfig":{"RestartPolicy":{"Name":"sometimes"}}`, 400, "invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"},
		{`"HostConfig":{"RestartPolicy":{"Name":"always","MaximumRetryCount":1}}`, 400, "invalid restart policy: maximum retry count can only be used with 'on-failure'"},
		{`"HostConfig":{"RestartPolicy":{"Name":"always"},"AutoRemove":true}`, 400, "can't create 'AutoRemove' container with restart policy"},
	} {
		res, body := w.do(t, "POST", "/containers/create", `{"Image":"nginx",`+tt.json+`}`)
		var e errorBody
		if err := json.Unmarshal([]byte(body), &e); err != nil || res.StatusCode != tt.status || e.Message != tt.message {
			t.Errorf("%s: %d %s", tt.json, res.StatusCode, body)
		}
	}
	if n := len(w.set.containers); n != 2 {
		t.Errorf("%d containers", n)
	}
}

// A label has the pod made with the first container, and joins it after; an
// image's label does not.
func TestPodOnDemand(t *testing.T) {
	w := newWorld(t)
	labels := map[string]string{keyPod: "shop"}
	a := w.create(t, "a", container.Config{Labels: labels}, container.HostConfig{})
	b := w.create(t, "b", container.Config{Labels: labels}, container.HostConfig{})
	if len(w.set.pods) != 1 {
		t.Fatalf("pods: %+v", w.set.pods)
	}
	p := w.set.pods[0]
	if want := (pod.PodSpec{Network: "default", AutoRemove: true}); !cmp.Equal(p.Spec, want) || p.Name != "shop" {
		t.Errorf("made %+v", p)
	}
	for _, id := range []string{a, b} {
		if ct, _ := w.set.Get(id); ct.PodID != p.ID {
			t.Errorf("container %s is in pod %s", ct.Name, ct.PodID)
		}
	}
	// A name that is taken leaves no pod behind.
	_, err := w.ContainerCreate(t.Context(), client.ContainerCreateOptions{
		Name: "a", Config: &container.Config{Image: "nginx", Labels: map[string]string{keyPod: "other"}}, HostConfig: &container.HostConfig{},
	})
	if err == nil || !strings.Contains(err.Error(), `The container name "/a" is already in use`) || len(w.set.pods) != 1 {
		t.Errorf("%v, pods %+v", err, w.set.pods)
	}
	img := testImage("nginx:latest")
	if img.Config.Config.Labels == nil {
		img.Config.Config.Labels = map[string]string{}
	}
	img.Config.Config.Labels[keyPod] = "shop"
	w.images.images = append(w.images.images[:0], img)
	id := w.create(t, "c", container.Config{}, container.HostConfig{})
	if ct, _ := w.set.Get(id); ct.PodID == p.ID {
		t.Error("the label of an image chose a pod")
	}
}

func TestInspectShowsPodAndPolicy(t *testing.T) {
	w := newWorld(t)
	if _, err := w.set.CreatePod(t.Context(), pod.PodOptions{Name: "front", Spec: pod.PodSpec{Network: "default"}}); err != nil {
		t.Fatal(err)
	}
	id := w.create(t, "web", container.Config{Entrypoint: []string{"exit", "3"}},
		container.HostConfig{Annotations: map[string]string{keyPod: "front"}, RestartPolicy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 2}})
	ct, _ := w.set.Get(id)
	if want := (pod.RestartPolicy{Policy: "on-failure", Max: 2}); ct.Spec.Restart != want {
		t.Errorf("restart: %+v", ct.Spec.Restart)
	}
	type view struct {
		HostConfig struct {
			RestartPolicy      container.RestartPolicy
			IpcMode            string
			BlkioDeviceReadBps []struct{ Rate uint64 }
		}
		Config struct{ Hostname string }
		Hyper  struct {
			Pod, PodName string
			Why          *struct{ Cause, Summary string }
		}
	}
	inspect := func() (v view) {
		_, body := w.do(t, "GET", "/containers/web/json", "")
		if err := json.Unmarshal([]byte(body), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := inspect()
	if v.HostConfig.RestartPolicy != (container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 2}) || v.HostConfig.IpcMode != "shareable" ||
		v.Config.Hostname != "front" || v.Hyper.PodName != "front" || v.Hyper.Pod != "id-of-front" || v.Hyper.Why != nil {
		t.Errorf("%+v", v)
	}
	if _, err := w.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	<-w.set.containers[0].ended
	for _, tt := range []struct {
		body    string
		status  int
		policy  container.RestartPolicyMode
		readBps uint64
	}{
		{`{"RestartPolicy":{"Name":"always"}}`, 200, "always", 0},
		{`{"BlkioDeviceReadBps":[{"Path":"/","Rate":5}]}`, 200, "always", 5},
		{`{"RestartPolicy":{"Name":"never"}}`, 400, "always", 5},
		{`{"BlkioDeviceReadBps":[{"Path":"/dev/sda","Rate":5}]}`, 400, "always", 5},
		{`{"RestartPolicy":{"Name":"no"}}`, 200, "no", 5},
	} {
		res, body := w.do(t, "POST", "/containers/web/update", tt.body)
		v := inspect()
		var rate uint64
		for _, d := range v.HostConfig.BlkioDeviceReadBps {
			rate = d.Rate
		}
		if res.StatusCode != tt.status || v.HostConfig.RestartPolicy.Name != tt.policy || rate != tt.readBps {
			t.Errorf("%s: %d %s: %+v", tt.body, res.StatusCode, body, v.HostConfig)
		}
		if v.Hyper.Why == nil || v.Hyper.Why.Summary != "It exited." {
			t.Errorf("why: %+v", v.Hyper.Why)
		}
	}
	w.create(t, "once", container.Config{}, container.HostConfig{AutoRemove: true})
	if res, body := w.do(t, "POST", "/containers/once/update", `{"RestartPolicy":{"Name":"always"}}`); res.StatusCode != 409 {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

// A container that joined another's network has no endpoint of its own.
func TestJoinedNetworkIsNotListed(t *testing.T) {
	w := newWorld(t)
	w.create(t, "web", container.Config{}, container.HostConfig{})
	id := w.create(t, "side", container.Config{}, container.HostConfig{NetworkMode: "container:web"})
	res, err := w.ContainerInspect(t.Context(), id, client.ContainerInspectOptions{})
	if err != nil || len(res.Container.NetworkSettings.Networks) != 0 {
		t.Errorf("%+v, %v", res.Container.NetworkSettings, err)
	}
	web, _ := w.set.Get("web")
	if mode := string(res.Container.HostConfig.NetworkMode); mode != "container:"+web.ID {
		t.Errorf("mode %s", mode)
	}
	list, err := w.ContainerList(t.Context(), client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("network", "bridge")})
	if err != nil || len(list.Items) != 1 || list.Items[0].Names[0] != "/web" {
		t.Errorf("%+v, %v", list, err)
	}
}
