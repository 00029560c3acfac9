package cli

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hyper-run/hyper/api"
)

const podID = "0123456789abcdef"

// podDaemon has the pods shop (of two containers), old and empty, and the one
// of the container single.
func podDaemon(t *testing.T) *fakeDaemon {
	d := newFakeDaemon(t)
	shop := api.Pod{
		ID: podID, Name: "shop", Created: time.Now().Add(-2 * time.Hour), StartedAt: time.Now().Add(-time.Hour), Status: "degraded",
		Spec: api.PodSpec{Labels: map[string]string{"tier": "front"}, MemoryBytes: 256 << 20, NanoCPUs: 15e8},
		Containers: []api.PodContainer{
			{ID: "c0", Name: "prepare", Role: "init", Status: "exited"}, {ID: "c1", Name: "web", Role: "main", Status: "running"},
		},
		Network: &api.PodNetwork{Address: "172.30.0.2"},
	}
	old := api.Pod{ID: "ffff", Name: "old", Created: time.Now().Add(-49 * time.Hour), Status: "exited", FinishedAt: time.Now().Add(-3 * time.Minute)}
	empty := api.Pod{ID: "eeee", Name: "empty", Created: time.Now().Add(-time.Minute), Status: "created"}
	single := api.Pod{ID: "dddd", Created: time.Now().Add(-time.Minute), StartedAt: time.Now().Add(-time.Minute), Status: "running", Containers: []api.PodContainer{{ID: "c9", Name: "single", Role: "main", Status: "running"}}}
	text := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	d.answers["GET /hyper/v1/pods"] = text([]api.Pod{shop, old, empty, single})
	for _, p := range []api.Pod{shop, old, empty} {
		d.answers["GET /hyper/v1/pods/"+p.Name] = text(p)
		for _, verb := range []string{"start", "stop", "restart", "kill", "pause", "unpause", "update"} {
			d.answers["POST /hyper/v1/pods/"+p.Name+"/"+verb] = "204 "
		}
		d.answers["DELETE /hyper/v1/pods/"+p.Name] = "204 "
	}
	for _, path := range []string{"GET /hyper/v1/pods/x", "POST /hyper/v1/pods/x/start", "DELETE /hyper/v1/pods/x"} {
		d.answers[path] = "404 No such pod: x"
	}
	d.answers["POST /hyper/v1/pods"] = text(api.Pod{ID: podID, Name: "new"})
	d.answers["POST /hyper/v1/pods/play"] = text(api.Played{Pods: []api.Pod{{Name: "a"}, {Name: "b"}}, Warnings: []string{"line 3"}})
	d.answers["GET /hyper/v1/pods/shop/console"] = "Linux version 6\n"
	d.answers["GET /hyper/v1/pods/shop/generate"] = "kind: Pod\n"
	return d
}

func TestPodLists(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"pod ls", `
POD ID         NAME      STATUS                   CREATED         CONTAINERS   CPUS      MEMORY    IP
0123456789ab   shop      Up About an hour (Degraded)   2 hours ago          1/2          1.5       256MiB    172.30.0.2
ffff           old       Exited 3 minutes ago     2 days ago      0/0          auto      auto
eeee           empty     Created                  About a minute ago   0/0          auto      auto
`},
		{"pod ls -a --format {{.Name}}:{{.State}}:{{.Containers}}", "\nshop:degraded:1/2\nold:exited:0/0\nempty:created:0/0\nsingle:running:1/1\n"},
		{"pod list -q", "\n0123456789ab\nffff\neeee\n"},
		{"pod ls -q --no-trunc -f name=^sh", "\n" + podID + "\n"},
		{"pod ls -q -f status=exited -f status=created", "\nffff\neeee\n"},
		{"pod ls -q -f label=tier=front", "\n0123456789ab\n"},
		{"pod ls -q -f label=tier -f label=other", "\n"},
		{"pod ls -q -f id=ee", "\neeee\n"},
		{"pod ls -f label=tier --format {{.Name}}\u00a0{{.Label\u00a0\"tier\"}}", "\nshop front\n"},
		{"pod inspect shop -f {{.Name}}:{{.Spec.MemoryBytes}}:{{len\u00a0.Containers}}", "\nshop:268435456:2\n"},
		{"pod inspect empty -f {{.status}}", "\ncreated\n"},
		{"pod console shop", "\nLinux version 6\n"},
		{"pod generate shop", "\nkind: Pod\n"},
		{"pod ps empty -q", "\n"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			args := strings.Fields(strings.ReplaceAll(tt.args, "\u00a0", "\x00"))
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "\x00", " ")
			}
			got := podDaemon(t).hyper(nil, args...)
			if diff := cmp.Diff(columns(tt.want[1:]), columns(got.out)); got.code != 0 || got.err != "" || diff != "" {
				t.Errorf("%v\nwant (-), got (+): %s", got, diff)
			}
		})
	}
}

// columns leaves of a table what is in it, not how wide.
func columns(s string) string {
	var out []string
	for line := range strings.SplitSeq(s, "\n") {
		out = append(out, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(out, "\n")
}

func TestPodVerbs(t *testing.T) {
	const hint = "hint: 'hyper pod ls' lists the pods\n"
	for _, tt := range []struct {
		args, asks, body string
		want             result
	}{
		{"pod start shop x old", "POST /hyper/v1/pods/old/start", "", result{1, "shop\nold\n", "hyper: cannot start pod x: No such pod: x\n" + hint}},
		{"pod start --wait shop", "POST /hyper/v1/pods/shop/start?timeout=300&wait=true", "", result{0, "shop\n", ""}},
		{"pod stop shop", "POST /hyper/v1/pods/shop/stop", "", result{0, "shop\n", ""}},
		{"pod stop -t 0 shop", "POST /hyper/v1/pods/shop/stop?t=0", "", result{0, "shop\n", ""}},
		{"pod restart -t 3 shop", "POST /hyper/v1/pods/shop/restart?t=3", "", result{0, "shop\n", ""}},
		{"pod kill -s HUP shop", "POST /hyper/v1/pods/shop/kill?signal=HUP", "", result{0, "shop\n", ""}},
		{"pod pause shop", "POST /hyper/v1/pods/shop/pause", "", result{0, "shop\n", ""}},
		{"pod unpause shop", "POST /hyper/v1/pods/shop/unpause", "", result{0, "shop\n", ""}},
		{"pod rm -f shop x", "DELETE /hyper/v1/pods/shop?force=true", "", result{0, "shop\n", ""}},
		{"pod remove x shop", "DELETE /hyper/v1/pods/shop", "", result{1, "shop\n", "hyper: cannot remove pod x: No such pod: x\n" + hint}},
		{"pod update -m 1g --cpus 2 shop", "POST /hyper/v1/pods/shop/update", `{"memoryBytes":1073741824,"nanoCPUs":2000000000}`, result{0, "shop\n", ""}},
		{"pod update shop", "", "", result{1, "", "hyper: cannot update: you must provide one or more flags when using this command\n"}},
		{"pod create --name new -m 64m --rm", "POST /hyper/v1/pods", `{"name":"new","spec":{"network":"bridge","memoryBytes":67108864,"autoRemove":true}}`, result{0, podID + "\n", ""}},
		{"pod create new", "", "", result{1, "", "hyper: 'hyper pod create' accepts no arguments\n\nUsage:  hyper pod create [OPTIONS]\n\nSee 'hyper pod create --help'\n"}},
		{"pod ls -f color=red", "", "", result{1, "", "hyper: cannot list pods: invalid filter 'color': there are id, name, status and label\n"}},
		{"pod ls -f status=red", "", "", result{1, "", "hyper: cannot list pods: invalid filter 'status=red': must be one of created, running, degraded, paused, exited\n"}},
		{"pod inspect x", "", "", result{1, "[]\n", "hyper: cannot inspect pod x: No such pod: x\n" + hint}},
		{"pod run", "", "", podRunUsage("'hyper pod run' requires an image or --file")},
		{"pod run -f - nginx", "", "", podRunUsage("'hyper pod run --file' accepts no arguments")},
		{"pod run --wait nginx", "", "", podRunUsage("--wait needs --file")},
		{"pod run -m 1g -f -", "", "", podRunUsage("--memory and --file exclude each other: the file says it")},
		{"pod run -p 80:80 nginx", "DELETE /hyper/v1/pods/" + podID + "?force=true", "", result{125, "", "hyper: pod new is left over: page not found: /hyper/v1/pods/" + podID + "\nhyper: cannot run a pod: --publish is not supported yet\n"}},
		{"pod run -f /nonexistent", "", "", result{125, "", "hyper: cannot run pods: open /nonexistent: no such file or directory\n"}},
		{"pod run -f - --replace --wait", "POST /hyper/v1/pods/play?file=stdin&replace=true&timeout=300&wait=true", "kind: Pod", result{0, "a\nb\n", "WARNING: line 3\n"}},
		{"pod run --start=false -f -", "POST /hyper/v1/pods/play?file=stdin&start=false", "kind: Pod", result{0, "a\nb\n", "WARNING: line 3\n"}},
		{"pod exec empty sh", "", "", result{1, "", "hyper: cannot exec in pod empty: it has no containers\nhint: 'hyper run --pod empty' adds one, 'hyper pod exec --vm' needs none\n"}},
		{"pod exec -c nope shop sh", "", "", result{1, "", "hyper: cannot exec in pod shop: it has no container nope\n"}},
		{"pod exec -c web --vm shop sh", "", "", result{1, "", "hyper: cannot exec in pod shop: --vm and --container exclude each other\n"}},
		{"pod exec --image x shop sh", "", "", result{1, "", "hyper: cannot exec in pod shop: --image needs --vm\n"}},
		{"pod exec --vm old sh", "", "", result{1, "", "hyper: cannot exec in pod old: it is exited\nhint: 'hyper pod start old' starts it\n"}},
		{"pod top old", "", "", result{1, "", "hyper: cannot list the processes of pod old: none of its containers runs\n"}},
	} {
		t.Run(tt.args, func(t *testing.T) {
			d := podDaemon(t)
			got := d.hyper(strings.NewReader("kind: Pod"), strings.Fields(tt.args)...)
			if got != tt.want || tt.asks != "" && !d.asked(tt.asks) || tt.body != "" && d.body != tt.body {
				t.Errorf("got %v\nwant %v\nrequests %q, body %s", got, tt.want, d.requests, d.body)
			}
		})
	}
}

func TestPodFileProblems(t *testing.T) {
	d := podDaemon(t)
	d.answers["POST /hyper/v1/pods/play"] = "400 stdin:1: kind: nonsense\nstdin:2: not YAML"
	want := result{125, "", "hyper: cannot run pods: stdin:1: kind: nonsense\nhyper: cannot run pods: stdin:2: not YAML\n"}
	if got := d.hyper(strings.NewReader("kind: Pod"), "pod", "run", "-f", "-"); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func podRunUsage(text string) result {
	return result{125, "", "hyper: " + text + "\n\nUsage:  hyper pod run [OPTIONS] IMAGE [COMMAND] [ARG...] | run -f FILE [OPTIONS]\n\nSee 'hyper pod run --help'\n"}
}

func TestPodFileTooLarge(t *testing.T) {
	name := filepath.Join(t.TempDir(), "pod.yaml")
	if err := os.WriteFile(name, make([]byte, maxPodFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	want := result{125, "", "hyper: cannot run pods: " + name + " is larger than 4 MiB\n"}
	if got := podDaemon(t).hyper(nil, "pod", "run", "-f", name); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// What runs in a pod is asked for as Docker's create request.
func TestPodContainers(t *testing.T) {
	echo := func(p *fakeProcess) int {
		in, _ := io.ReadAll(p.in)
		p.write(1, append([]byte("ran "), in...))
		return 3
	}
	type created struct {
		Cmd, Entrypoint []string
		Image           string
		OpenStdin       bool
		HostConfig      struct {
			AutoRemove, Privileged        bool
			Annotations                   map[string]string
			NetworkMode, PidMode, IpcMode string
			CapAdd                        []string
			Memory                        int64
		}
	}
	for _, tt := range []struct {
		args string
		want string // fields of the request
		code int
		out  string
	}{
		{"run --pod shop -i x a", `{"Cmd":["a"],"Image":"x","OpenStdin":true,"HostConfig":{"Annotations":{"hyper.pod":"shop"},"NetworkMode":"default"}}`, 3, "ran in"},
		{"pod run --name new --memory 64m -i x a", `{"Cmd":["a"],"Image":"x","OpenStdin":true,"HostConfig":{"Annotations":{"hyper.pod":"` + podID + `"},"NetworkMode":"default"}}`, 3, "ran in"},
		{"pod run --rm -d x", `{"Image":"x","HostConfig":{"AutoRemove":true,"Annotations":{"hyper.pod":"` + podID + `"},"NetworkMode":"default"}}`, 0, podID + "\n"},
		{"pod exec --vm -i shop a b", `{"Entrypoint":["a","b"],"Image":"busybox","OpenStdin":true,"HostConfig":{"AutoRemove":true,"Privileged":true,"Annotations":{"hyper.pod":"` + podID + `"},"PidMode":"vm"}}`, 3, "ran in"},
		{"debug --image tools c1 ps", `{"Entrypoint":["ps"],"Image":"tools","OpenStdin":true,"HostConfig":{"AutoRemove":true,"NetworkMode":"container:c1","PidMode":"container:c1","CapAdd":["ALL"]}}`, 3, "ran in"},
		{"debug c1", `{"Image":"busybox","OpenStdin":true,"HostConfig":{"AutoRemove":true,"NetworkMode":"container:c1","PidMode":"container:c1","CapAdd":["ALL"]}}`, 3, "ran in"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			d := podDaemon(t)
			d.process = echo
			if strings.Contains(tt.args, "-d") && strings.HasPrefix(tt.args, "pod") {
				d.answers["POST /containers/c1/start"] = "204 "
			}
			got := d.hyper(strings.NewReader("in"), strings.Fields(tt.args)...)
			var req, want created
			if err := json.Unmarshal([]byte(d.body), &req); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
				t.Fatal(err)
			}
			if req.HostConfig.Annotations != nil && len(req.HostConfig.Annotations) == 0 {
				req.HostConfig.Annotations = nil
			}
			if diff := cmp.Diff(want, req); diff != "" || got.code != tt.code || got.out != tt.out {
				t.Errorf("%v\nwant (-), got (+): %s", got, diff)
			}
		})
	}
}

// A pod that is missing is not an image that could be pulled.
func TestMissingPodPullsNothing(t *testing.T) {
	d := podDaemon(t)
	d.answers["POST /containers/create"] = "404 No such pod: x"
	want := result{125, "", "hyper: cannot run: No such pod: x\nhint: 'hyper pod ls' lists the pods\n"}
	if got := d.hyper(nil, "run", "--pod", "x", "busybox"); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestPodExec(t *testing.T) {
	d := podDaemon(t)
	d.process = func(p *fakeProcess) int { p.write(1, []byte("out\n")); return 4 }
	if got := d.hyper(nil, "pod", "exec", "shop", "sh"); got.code != 4 || got.out != "out\n" || !d.asked("POST /containers/c1/exec") {
		t.Errorf("%v, %q", got, d.requests)
	}
}

func frame(stream byte, text string) string {
	var h [8]byte
	h[0] = stream
	binary.BigEndian.PutUint32(h[4:], uint32(len(text)))
	return string(h[:]) + text
}

func TestPodLogs(t *testing.T) {
	d := podDaemon(t)
	at := func(s int, text string) string { return fmt.Sprintf("2026-01-02T03:04:%02d.000000000Z %s", s, text) }
	d.answers["GET /containers/c0/json"] = `{"Id":"c0","Config":{"Tty":true}}`
	d.answers["GET /containers/c0/logs"] = at(1, "first\r\n") + at(4, "last\r\n")
	d.answers["GET /containers/c1/logs"] = frame(1, at(2, "second, ")) + frame(2, at(2, "oops\n")) + frame(1, at(3, "long\n")) + frame(1, at(5, "no end"))
	for _, tt := range []struct {
		args, asks string
		want       result
	}{
		{"pod logs shop", "GET /containers/c1/logs?stderr=1&stdout=1&timestamps=1",
			result{0, "prepare | first\nweb     | second, long\nprepare | last\nweb     | no end\n", "web     | oops\n"}},
		{"pod logs -t -n 3 -c web shop", "GET /containers/c1/logs?stderr=1&stdout=1&tail=3&timestamps=1",
			result{0, "web | " + at(2, "second, long\n") + "web | " + at(5, "no end\n"), "web | " + at(2, "oops\n")}},
		{"pod logs -f -c prepare shop", "GET /containers/c0/logs?follow=1&stderr=1&stdout=1&timestamps=1", result{0, "prepare | first\nprepare | last\n", ""}},
		{"pod logs old", "", result{0, "", ""}},
		{"pod logs x", "", result{1, "", "hyper: cannot show the logs of pod x: No such pod: x\nhint: 'hyper pod ls' lists the pods\n"}},
	} {
		t.Run(tt.args, func(t *testing.T) {
			if got := d.hyper(nil, strings.Fields(tt.args)...); got != tt.want || tt.asks != "" && !d.asked(tt.asks) {
				t.Errorf("got %v\nwant %v\n%q", got, tt.want, d.requests)
			}
		})
	}
}

func TestPodTopAndStats(t *testing.T) {
	d := podDaemon(t)
	d.answers["GET /containers/c1/top"] = `{"Titles":["PID","CMD"],"Processes":[["1","sh -c x"]]}`
	d.answers["GET /hyper/v1/pods/shop/stats"] = `{"id":"` + podID + `","name":"shop","guest":{"memoryWorkingBytes":1048576,"memoryLimitBytes":4194304,"pids":3,
		"blockReadBytes":1000,"networkSendBytes":2000},"host":{"pssBytes":2097152}}`
	d.answers["GET /hyper/v1/pods/old/stats"] = "409 pod old is not running"
	for _, tt := range []struct {
		args string
		want result
	}{
		{"pod top shop", result{0, "CONTAINER PID CMD\nweb 1 sh -c x\n", ""}},
		{"pod stats --no-stream shop", result{0, "POD ID NAME CPU % MEM USAGE / LIMIT MEM % NET I/O BLOCK I/O PIDS HOST CPU % HOST MEM\n" +
			"0123456789ab shop 0.00% 1MiB / 4MiB 25.00% 0B / 2kB 1kB / 0B 3 0.00% 2MiB\n", ""}},
		{"pod stats --no-stream --format {{.Name}}={{.HostMem}}", result{0, "shop=2MiB\n", ""}},
		{"pod stats --no-stream shop old", result{1, "", "hyper: cannot show statistics of pods: pod old is not running\n"}},
	} {
		t.Run(tt.args, func(t *testing.T) {
			got := d.hyper(nil, strings.Fields(tt.args)...)
			if got.out = columns(got.out); got != tt.want {
				t.Errorf("got %v\nwant %v", got, tt.want)
			}
		})
	}
}

func TestWhy(t *testing.T) {
	d := podDaemon(t)
	w := api.Why{
		What: "container", ID: podID, Name: "web", At: time.Now().Add(-3 * time.Minute), Cause: "oom", Summary: "It ran out of memory.",
		Detail: "limit 64MiB\nanon 60MiB\n", Log: []string{"one", "two"}, Console: "oom-kill\r\n",
	}
	data, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	d.answers["GET /hyper/v1/why/web"] = string(data)
	d.answers["GET /hyper/v1/why/x"] = "404 No such container: x"
	for _, tt := range []struct {
		args string
		want result
	}{
		{"why web", result{0, `container web (0123456789ab): oom, 3 minutes ago
It ran out of memory.

Details:
  limit 64MiB
  anon 60MiB

Last lines of its log:
  one
  two

Last lines of the VM's console:
  oom-kill
`, ""}},
		{"why -f {{.Cause}} web", result{0, "oom\n", ""}},
		{"why x", result{1, "", "hyper: cannot say why x is not running: No such container: x\nhint: 'hyper ps -a' lists the containers\n"}},
	} {
		if got := d.hyper(nil, strings.Fields(tt.args)...); got != tt.want {
			t.Errorf("%s: got %v\nwant %v", tt.args, got, tt.want)
		}
	}
}

func TestDebugOfWhatDoesNotRun(t *testing.T) {
	d := newFakeDaemon(t)
	d.answers["GET /containers/c1/json"] = `{"Id":"c1","State":{"Running":false},"Config":{},"HostConfig":{}}`
	want := result{125, "", "hyper: cannot debug c1: it is not running\nhint: 'hyper why c1' says why, 'hyper start c1' starts it\n"}
	if got := d.hyper(nil, "debug", "c1"); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestCompletePods(t *testing.T) {
	d := podDaemon(t)
	d.answers["GET /containers/json"] = `[{"Id":"c1","Names":["/web"],"State":"running"}]`
	d.answers["GET /images/json"] = `[]`
	for _, tt := range []struct{ args, want string }{
		{"pod stop ", "shop\n:4\n"},
		{"pod start ", "old\nempty\n:4\n"},
		{"pod rm shop ", "shop\nold\nempty\n:4\n"},
		{"run --pod ", "shop\nold\nempty\n:4\n"},
		{"pod exec ", "shop\n:4\n"},
		{"why ", "web\nshop\nold\nempty\n:4\n"},
		{"pod pau", "pause\tPause one or more pods: their VMs stand still\n:4\n"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			t.Setenv("HYPER_HOST", listen(t, d))
			var out strings.Builder
			if code := Main(t.Context(), Config{}, append([]string{"__complete"}, strings.Split(tt.args, " ")...), nil, &out, io.Discard); code != 0 || out.String() != tt.want {
				t.Errorf("%d:\n%s\nwant:\n%s", code, &out, tt.want)
			}
		})
	}
}
