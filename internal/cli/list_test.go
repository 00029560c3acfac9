package cli

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func ago(d time.Duration) int64 { return time.Now().Add(-d).Unix() }

// lists are the answers of a daemon with two containers and three images.
func listsDaemon(t *testing.T) *fakeDaemon {
	d := newFakeDaemon(t)
	id := strings.Repeat("0123456789abcdef", 4)
	d.answers["GET /containers/json"] = fmt.Sprintf(`[
	{"Id":%q,"Names":["/web","/db/web"],"Image":"nginx","ImageID":"sha256:aa","Command":"nginx -g 'daemon off;' -c /etc/nginx.conf",
	 "Created":%d,"State":"running","Status":"Up 2 hours","Labels":{"b":"2","a":"1"},"SizeRw":2,"SizeRootFs":21500000,
	 "Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},{"PrivatePort":443,"Type":"tcp"},
	          {"IP":"::","PrivatePort":81,"PublicPort":81,"Type":"tcp"},{"IP":"::","PrivatePort":82,"PublicPort":82,"Type":"tcp"}],
	 "NetworkSettings":{"Networks":{"bridge":{}}},"Mounts":[]},
	{"Id":"ffff456789abcdef","Names":["/once"],"Image":"sha256:bbbbbbbbbbbbbbbb","ImageID":"sha256:bbbbbbbbbbbbbbbb","Command":"true",
	 "Created":%d,"State":"exited","Status":"Exited (0) 3 minutes ago"}]`, id, ago(2*time.Hour), ago(5*time.Minute))
	d.answers["GET /images/json"] = fmt.Sprintf(`[
	{"Id":"sha256:%[1]s","RepoTags":["nginx:latest","localhost:5000/nginx:1"],"RepoDigests":["nginx@sha256:%[1]s"],"Created":%[2]d,"Size":142000000,"SharedSize":-1,"Containers":-1},
	{"Id":"sha256:eeee","RepoTags":[],"RepoDigests":["busybox@sha256:%[1]s"],"Created":%[3]d,"Size":1240000,"SharedSize":0,"Containers":2},
	{"Id":"sha256:ffff","RepoTags":null,"RepoDigests":null,"Created":0,"Size":0,"SharedSize":-1,"Containers":-1}]`, id, ago(49*time.Hour), ago(800*24*time.Hour))
	return d
}

func TestLists(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 4)
	tests := []struct{ args, asks, want string }{
		{"ps", "GET /containers/json", `
CONTAINER ID   IMAGE          COMMAND                  CREATED         STATUS                     PORTS                                                  NAMES
0123456789ab   nginx          "nginx -g 'daemon of…"   2 hours ago     Up 2 hours                 [::]:81-82->81-82/tcp, 443/tcp, 0.0.0.0:8080->80/tcp   web
ffff456789ab   bbbbbbbbbbbb   "true"                   5 minutes ago   Exited (0) 3 minutes ago                                                          once
`},
		{"ps -q", "GET /containers/json", "\n0123456789ab\nffff456789ab\n"},
		{"ps -aq --no-trunc", "GET /containers/json?all=1", "\n" + long + "\nffff456789abcdef\n"},
		{"ps -l --format {{.Names}}", "GET /containers/json?limit=1", "\nweb\nonce\n"},
		{"ps -n 3 --no-trunc --format {{.Names}}", "GET /containers/json?limit=3", "\nweb,db/web\nonce\n"},
		{"ps -f name=web -f label=a=1 --format {{.ID}}", `GET /containers/json?filters=%7B%22label%22%3A%7B%22a%3D1%22%3Atrue%7D%2C%22name%22%3A%7B%22web%22%3Atrue%7D%7D`, "\n0123456789ab\nffff456789ab\n"},
		{"ps --format table\\x20{{.Names}}\\t{{.Size}}", "GET /containers/json?size=1", `
NAMES     SIZE
web       2B (virtual 21.5MB)
once      0B
`},
		{"container ls --format {{.Names}}\\x20{{.Networks}}\\x20{{.LocalVolumes}}\\x20{{.Labels}}", "GET /containers/json", "\nweb bridge 0 a=1,b=2\nonce  0 \n"},
		{"images", "GET /images/json", `
REPOSITORY             TAG       IMAGE ID       CREATED        SIZE
nginx                  latest    0123456789ab   2 days ago     142MB
localhost:5000/nginx   1         0123456789ab   2 days ago     142MB
busybox                <none>    eeee           2 years ago    1.24MB
<none>                 <none>    ffff           56 years ago   0B
`},
		{"image ls --digests --format {{.Repository}}\\x20{{.Digest}}", "GET /images/json", "\nnginx sha256:" + long + "\nlocalhost:5000/nginx <none>\nbusybox sha256:" + long + "\n<none> <none>\n"},
		{"images -q --no-trunc", "GET /images/json", "\nsha256:" + long + "\nsha256:" + long + "\nsha256:eeee\nsha256:ffff\n"},
		{"images nginx -a -q", `GET /images/json?all=1&filters=%7B%22reference%22%3A%7B%22nginx%22%3Atrue%7D%7D`, "\n0123456789ab\n0123456789ab\neeee\nffff\n"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			d := listsDaemon(t)
			args := strings.Fields(test.args)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], `\x20`, " ")
			}
			got := d.hyper(nil, args...)
			if diff := cmp.Diff(test.want[1:], got.out); got.code != 0 || got.err != "" || diff != "" {
				t.Errorf("%v\nwant (-), got (+): %s", got, diff)
			}
			if !d.asked(test.asks) {
				t.Errorf("asked for %q", d.requests)
			}
		})
	}
}

func TestInspect(t *testing.T) {
	d := newFakeDaemon(t)
	c := `{"Id":"c9","Name":"/web","State":{"Running":true},"Config":{"Env":["A=1","B=2"]},"NetworkSettings":{"IPAddress":"1.2.3.4"},"Own":{"deep":[1,2]}}`
	d.answers["GET /containers/web/json"] = c
	d.answers["GET /images/hello/json"] = `{"Id":"sha256:aa","RepoTags":["hello:latest"]}`
	missing := "404 No such container: "
	for _, n := range []string{"hello", "nope"} {
		d.answers["GET /containers/"+n+"/json"] = missing + n
	}
	d.answers["GET /images/nope/json"] = "404 No such image: nope"
	tests := []struct {
		args string
		want result
	}{
		{"inspect web --format json", result{0, "[" + c + "]\n", ""}},
		{"inspect hello", result{0, "[\n    {\n        \"Id\": \"sha256:aa\",\n        \"RepoTags\": [\n            \"hello:latest\"\n        ]\n    }\n]\n", ""}},
		{"inspect -f {{.Name}} web hello", result{1, "/web\n", "hyper: cannot inspect hello: --format: template: :1:2: executing \"\" at <.Name>: map has no entry for key \"Name\"\n"}},
		{"inspect -f {{.State.Running}}{{json\u00a0.Config.Env}} web", result{0, "true[\"A=1\",\"B=2\"]\n", ""}},
		{"inspect -f {{range\u00a0.Config.Env}}{{.}};{{end}} web", result{0, "A=1;B=2;\n", ""}},
		{"inspect -f {{.NetworkSettings.IPAddress}}\u00a0{{index\u00a0.Own.deep\u00a01}} web", result{0, "1.2.3.4 2\n", ""}},
		{"inspect nope", result{1, "[]\n", "hyper: cannot inspect nope: no such object: nope\n"}},
		{"inspect nope web -f {{.Id}}", result{1, "c9\n", "hyper: cannot inspect nope: no such object: nope\n"}},
		{"inspect --type image web", result{1, "[]\n", "hyper: cannot inspect web: page not found: /images/web/json\n"}},
		{"inspect --type nonsense web", result{1, "", "hyper: cannot inspect: --type \"nonsense\": must be one of \"container\", \"image\"\n"}},
		{"container inspect hello", result{1, "[]\n", "hyper: cannot inspect hello: No such container: hello\nhint: 'hyper ps -a' lists the containers\n"}},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			args := strings.Fields(strings.ReplaceAll(test.args, "\u00a0", "\x00"))
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "\x00", " ")
			}
			if got := d.hyper(nil, args...); got != test.want {
				t.Errorf("got %v\nwant %v", got, test.want)
			}
		})
	}
}

// Commands on several containers go on after an error, and say which failed.
func TestEach(t *testing.T) {
	d := newFakeDaemon(t)
	for _, n := range []string{"a", "b"} {
		for _, verb := range []string{"start", "stop", "restart", "kill", "pause", "unpause"} {
			d.answers["POST /containers/"+n+"/"+verb] = "204 "
		}
		d.answers["DELETE /containers/"+n] = "204 "
	}
	for _, verb := range []string{"start", "stop", "restart", "kill", "pause", "unpause"} {
		d.answers["POST /containers/x/"+verb] = "404 No such container: x"
	}
	d.answers["DELETE /containers/x"] = "404 No such container: x"
	const hint = "hint: 'hyper ps -a' lists the containers\n"
	tests := []struct {
		args, asks string
		want       result
	}{
		{"start a x b", "POST /containers/b/start", result{1, "a\nb\n", "hyper: cannot start x: No such container: x\n" + hint}},
		{"stop -t 3 -s INT a b", "POST /containers/a/stop?signal=INT&t=3", result{0, "a\nb\n", ""}},
		{"stop a", "POST /containers/a/stop", result{0, "a\n", ""}},
		{"restart -t 0 x", "POST /containers/x/restart?t=0", result{1, "", "hyper: cannot restart x: No such container: x\n" + hint}},
		{"kill -s HUP a", "POST /containers/a/kill?signal=HUP", result{0, "a\n", ""}},
		{"pause a", "POST /containers/a/pause", result{0, "a\n", ""}},
		{"unpause a", "POST /containers/a/unpause", result{0, "a\n", ""}},
		{"rm -fv a", "DELETE /containers/a?force=1&v=1", result{0, "a\n", ""}},
		{"rm -f x", "DELETE /containers/x?force=1", result{0, "", ""}},
		{"container rm x a", "DELETE /containers/x", result{1, "a\n", "hyper: cannot remove x: No such container: x\n" + hint}},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			got := d.hyper(nil, strings.Fields(test.args)...)
			if got != test.want || !d.asked(test.asks) {
				t.Errorf("got %v\nwant %v\nrequests %q", got, test.want, d.requests)
			}
		})
	}
}

// addOthers are the answers that are not lists of containers and images.
func addOthers(d *fakeDaemon) {
	d.answers["GET /containers/c1/top"] = `{"Titles":["PID","CMD"],"Processes":[["1","sh -c x"],["12","sleep"]]}`
	d.answers["POST /containers/c1/rename"] = "204 "
	d.answers["POST /images/hello/tag"] = "201 "
	d.answers["DELETE /images/hello"] = `[{"Untagged":"hello:latest"},{"Deleted":"sha256:aa"}]`
	d.answers["GET /containers/c1/logs"] = "\x01\x00\x00\x00\x00\x00\x00\x04out\n\x02\x00\x00\x00\x00\x00\x00\x04err\n"
	d.answers["POST /containers/prune"] = `{"ContainersDeleted":["c1"],"SpaceReclaimed":1500}`
	d.answers["POST /images/prune"] = `{"ImagesDeleted":[{"Untagged":"a:b"},{"Deleted":"sha256:aa"}],"SpaceReclaimed":2000000}`
	d.answers["POST /images/load"] = `{"stream":"Loaded image: hello:latest\n"}`
	d.answers["GET /images/get"] = "tar"
	d.answers["POST /images/create"] = `{"status":"sha256:bb"}`
	d.answers["GET /events"] = `{"Type":"container","Action":"start","Actor":{"ID":"c1","Attributes":{"name":"web","image":"x"}},"timeNano":1700000000000000001}`
	d.answers["GET /version"] = `{"Platform":{"Name":"Hyper"},"Version":"2.0","ApiVersion":"1.56","MinAPIVersion":"1.24","Os":"linux","Arch":"amd64",
		"Components":[{"Name":"Engine","Version":"2.0","Details":{"GoVersion":"go1"}},{"Name":"QEMU","Version":"7.2","Details":{"Accelerator":"tcg"}}]}`
	d.answers["GET /system/df"] = `{"ImageUsage":{"ActiveCount":1,"TotalCount":2,"Reclaimable":500000,"TotalSize":2000000}}`
	d.answers["GET /containers/c1/stats"] = `{"id":"0123456789abcdef","name":"/web","read":"2024-01-01T00:00:00Z","memory_stats":{"usage":2097152,"limit":8388608,"stats":{"inactive_file":1048576}},
		"cpu_stats":{"cpu_usage":{"total_usage":300},"system_cpu_usage":2000,"online_cpus":2},"precpu_stats":{"cpu_usage":{"total_usage":100},"system_cpu_usage":1000},
		"pids_stats":{"current":3},"networks":{"eth0":{"rx_bytes":1000,"tx_bytes":2000}},"blkio_stats":{"io_service_bytes_recursive":[{"op":"read","value":5000000},{"op":"write","value":7}]}}`
	d.answers["GET /info"] = `{"Containers":1,"DriverStatus":[["Accelerator","tcg (no /dev/kvm)"],["Kernel","hyperkernel"]],"Driver":"erofs","NCPU":2,"MemTotal":2147483648,"ServerVersion":"2.0"}`
}

func TestOthers(t *testing.T) {
	d := newFakeDaemon(t)
	addOthers(d)
	d.exited <- 3
	tests := []struct {
		args string
		in   string
		want result
	}{
		{"top c1 -ef", "", result{0, "PID                 CMD\n1                   sh -c x\n12                  sleep\n", ""}},
		{"rename c1 new", "", result{0, "", ""}},
		{"tag hello hi", "", result{0, "", ""}},
		{"rmi hello", "", result{0, "Untagged: hello:latest\nDeleted: sha256:aa\n", ""}},
		{"rmi nope", "", result{1, "", "hyper: cannot remove nope: page not found: /images/nope\n"}},
		{"rmi -f nope", "", result{0, "", "hyper: cannot remove nope: page not found: /images/nope\n"}},
		{"logs -t --tail 3 c1", "", result{0, "out\n", "err\n"}},
		{"wait c1", "", result{0, "3\n", ""}},
		{"load -q", "tar", result{0, "Loaded image: hello:latest\n", ""}},
		{"save hello", "", result{0, "tar", ""}},
		{"import - a:b", "tar", result{0, "sha256:bb\n", ""}},
		{"import /nonexistent", "", result{1, "", "hyper: cannot import /nonexistent: open /nonexistent: no such file or directory\n"}},
		{"pull -q hello", "", result{0, "docker.io/library/hello:latest\n", ""}},
		{"pull hello", "", result{0, "Using default tag: latest\nsha256:bb\ndocker.io/library/hello:latest\n", ""}},
		{"pull -a hello:1", "", result{1, "", "hyper: cannot pull hello:1: tag can't be used with --all-tags/-a\n"}},
		{"pull Hello", "", result{1, "", "hyper: cannot pull Hello: invalid reference format: repository name (library/Hello) must be lowercase\n"}},
		{"container prune", "n\n", result{0, "WARNING! This will remove all stopped containers.\nAre you sure you want to continue? [y/N] ", ""}},
		{"container prune -f", "", result{0, "Deleted Containers:\nc1\n\nTotal reclaimed space: 1.5kB\n", ""}},
		{"image prune", "y\n", result{0, "WARNING! This will remove all dangling images.\nAre you sure you want to continue? [y/N] Deleted Images:\nuntagged: a:b\ndeleted: sha256:aa\n\nTotal reclaimed space: 2MB\n", ""}},
		{"system prune -f", "", result{0, "Deleted Containers:\nc1\n\nDeleted Images:\nuntagged: a:b\ndeleted: sha256:aa\n\nTotal reclaimed space: 2.002MB\n", ""}},
		{"system prune -f --volumes", "", result{125, "", "hyper: cannot prune: --volumes is not supported yet\n"}},
		{"events --until 1 --format {{.Type}}:{{.Action}}", "", result{0, "container:start\n", ""}},
		{"events --format {{.Nope}}", "", result{1, "", "hyper: cannot show events: --format: template: :1:2: executing \"\" at <.Nope>: can't evaluate field Nope in type events.Message\n"}},
		{"version --format {{.Client.Version}}/{{.Server.Version}}", "", result{0, "1.0/2.0\n", ""}},
		{"version -f {{range\u00a0.Server.Components}}{{.Name}};{{end}}", "", result{0, "Engine;QEMU;\n", ""}},
		{"info -f {{.ServerVersion}}:{{index\u00a0.DriverStatus\u00a00\u00a01}}", "", result{0, "2.0:tcg (no /dev/kvm)\n", ""}},
		{"system df", "", result{0, "" +
			"TYPE            TOTAL     ACTIVE    SIZE      RECLAIMABLE\n" +
			"Images          2         1         2MB       500kB (25%)\n" +
			"Containers      0         0         0B        0B\n" +
			"Local Volumes   0         0         0B        0B\n" +
			"Build Cache     0         0         0B        0B\n", ""}},
		{"stats --no-stream c1", "", result{0, "" +
			"CONTAINER ID   NAME      CPU %     MEM USAGE / LIMIT   MEM %     NET I/O     BLOCK I/O   PIDS\n" +
			"0123456789ab   web       40.00%    1MiB / 8MiB         12.50%    1kB / 2kB   5MB / 7B    3\n", ""}},
		{"stats --no-stream nope", "", result{1, "", "hyper: cannot show statistics: page not found: /containers/nope/stats\n"}},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			t.Setenv("DOCKER_CONFIG", t.TempDir())
			args := strings.Fields(strings.ReplaceAll(test.args, "\u00a0", "\x00"))
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "\x00", " ")
			}
			if got := d.hyper(strings.NewReader(test.in), args...); got != test.want {
				t.Errorf("got  %v\nwant %v", got, test.want)
			}
		})
	}
}
