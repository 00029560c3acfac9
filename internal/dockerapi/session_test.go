package dockerapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/hyper-run/hyper/internal/pod"
)

var everything = client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true}

// attach creates, attaches and starts, as "docker run" does.
func (w *world) attachAndStart(t *testing.T, cfg container.Config, o client.ContainerAttachOptions) (string, client.HijackedResponse) {
	t.Helper()
	cfg.OpenStdin, cfg.StdinOnce = true, true
	id := w.create(t, "", cfg, container.HostConfig{})
	res, err := w.ContainerAttach(t.Context(), id, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	return id, res.HijackedResponse
}

func (w *world) waitDetached(t *testing.T) {
	t.Helper()
	for range 1000 {
		w.set.mu.Lock()
		n := w.set.attached
		w.set.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the attachment did not end")
}

func TestAttachIsExactBothWays(t *testing.T) {
	w := newWorld(t)
	_, c := w.attachAndStart(t, container.Config{Entrypoint: []string{"cat"}}, everything)
	defer c.Close()
	if mt, _ := c.MediaType(); mt != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("media type %q", mt)
	}
	data := make([]byte, 8<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Conn.Write(data)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	var out, errOut bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errOut, c.Reader); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if !bytes.Equal(out.Bytes(), data) || errOut.Len() > 0 {
		t.Errorf("%d bytes came back, %d sent; %d on stderr", out.Len(), len(data), errOut.Len())
	}
}

func TestAttachSeparatesStreams(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		tty      bool
		out, err string
	}{{false, "to out\n", "to err\n"}, {true, "to out\nto err\n", ""}} {
		_, c := w.attachAndStart(t, container.Config{Entrypoint: []string{"both"}, Tty: tt.tty}, everything)
		var out, errOut bytes.Buffer
		var err error
		if tt.tty {
			_, err = io.Copy(&out, c.Reader)
		} else {
			_, err = stdcopy.StdCopy(&out, &errOut, c.Reader)
		}
		if err != nil || out.String() != tt.out || errOut.String() != tt.err {
			t.Errorf("tty %v: %q %q %v", tt.tty, &out, &errOut, err)
		}
		c.Close()
	}
}

// The client goes on sending to a process that has ended, and must see the
// end of its output, not a reset.
func TestOutputIsWholeWhenInputIsLeftOver(t *testing.T) {
	w := newWorld(t)
	_, c := w.attachAndStart(t, container.Config{Entrypoint: []string{"zeros", "1000000"}}, everything)
	defer c.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.Copy(c.Conn, zeros{}) // until the server is gone
	}()
	var out, errOut bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errOut, c.Reader); err != nil || out.Len() != 1000000 {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
	c.Close()
	<-sent
}

func TestVanishedClientsLeaveNothing(t *testing.T) {
	w := newWorld(t)
	id, c := w.attachAndStart(t, container.Config{Entrypoint: []string{"sleep"}}, client.ContainerAttachOptions{Stream: true, Stdout: true})
	// A half-close is not a leave.
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	w.set.mu.Lock()
	n := w.set.attached
	w.set.mu.Unlock()
	if n != 1 {
		t.Errorf("a half-close ended the attachment")
	}
	c.Close()
	w.waitDetached(t)

	// With unread input of a process that does not read.
	res, err := w.ContainerAttach(t.Context(), id, everything)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Conn.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	_, _ = io.Copy(res.Conn, zeros{})
	res.Close()
	w.waitDetached(t)

	ctx, cancel := context.WithCancel(t.Context())
	logs, err := w.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	events := w.Events(ctx, client.EventsListOptions{})
	stats, err := w.ContainerStats(ctx, id, client.ContainerStatsOptions{Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	for w.set.bus.Subscribers() == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	logs.Close()
	stats.Body.Close()
	<-events.Err
	for range 400 {
		if w.set.bus.Subscribers() == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("the events subscription is still open")
}

func TestDetachKeysLeaveTheContainerRunning(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct{ keys, press string }{{"", "\x10\x11"}, {"ctrl-a,x", "\x01x"}} {
		o := everything
		o.DetachKeys = tt.keys
		id, c := w.attachAndStart(t, container.Config{Entrypoint: []string{"cat"}, Tty: true}, o)
		if _, err := io.WriteString(c.Conn, "hi\n"+tt.press); err != nil {
			t.Fatal(err)
		}
		// The client, told that the session ended, closes.
		if out, err := io.ReadAll(c.Reader); err != nil || string(out) != "hi\n" && string(out) != "" {
			t.Errorf("%q, %v", out, err)
		}
		c.Close()
		w.waitDetached(t)
		if ct, err := w.set.Get(id); err != nil || ct.Status != pod.StatusRunning {
			t.Errorf("%v %v", ct.Status, err)
		}
	}
}

func TestAttachFailsAsAnyRequest(t *testing.T) {
	w := newWorld(t)
	w.run(t, "web", "sleep")
	if err := w.set.Pause(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/containers/none/attach":                  `{"message":"No such container: none"}`,
		"/containers/web/attach":                   `{"message":"container web is paused, unpause the container before attach"}`,
		"/containers/web/attach?detachKeys=ctrl-?": `{"message":"container web is paused, unpause the container before attach"}`,
	} {
		if _, body := w.do(t, "POST", path, ""); strings.TrimSpace(body) != want {
			t.Errorf("%s: %s", path, body)
		}
	}
	if err := w.set.Resume(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
}

// Old clients do not ask for an upgrade and get the raw stream after "200 OK".
func TestAttachWithoutUpgrade(t *testing.T) {
	w := newWorld(t)
	w.run(t, "web", "both")
	w.waitStatus(t, "web", pod.StatusExited)
	conn, err := net.Dial("unix", w.sock)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /containers/web/attach?logs=1&stdout=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	data, err := io.ReadAll(conn)
	want := "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n\x01\x00\x00\x00\x00\x00\x00\x07to out\n"
	if err != nil || string(data) != want {
		t.Errorf("%q, %v", data, err)
	}
}

func TestAttachWebsocket(t *testing.T) {
	w := newWorld(t)
	id := w.create(t, "web", container.Config{Entrypoint: []string{"cat"}, OpenStdin: true, Tty: true}, container.HostConfig{})
	if _, err := w.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", w.sock) }}
	defer tr.CloseIdleConnections()
	ws, _, err := websocket.Dial(t.Context(), "ws://hyper/v1.50/containers/web/attach/ws?stream=1&stdin=1&stdout=1", &websocket.DialOptions{HTTPClient: &http.Client{Transport: tr}})
	if err != nil {
		t.Fatal(err)
	}
	if err := ws.Write(t.Context(), websocket.MessageBinary, []byte("over there\n")); err != nil {
		t.Fatal(err)
	}
	if kind, data, err := ws.Read(t.Context()); err != nil || kind != websocket.MessageBinary || string(data) != "over there\n" {
		t.Errorf("%v %q %v", kind, data, err)
	}
	ws.CloseNow()
	w.waitDetached(t)
}

func TestExec(t *testing.T) {
	w := newWorld(t)
	w.run(t, "web", "sleep")
	for _, tt := range []struct {
		args     []string
		in       string
		out, err string
		code     int
	}{
		{[]string{"echo", "a", "b"}, "", "a b\n", "", 0},
		{[]string{"both"}, "", "to out\n", "to err\n", 0},
		{[]string{"exit", "42"}, "", "", "", 42},
		{[]string{"cat"}, "through", "through", "", 0},
		{[]string{"ghost"}, "", "", "exec: \"ghost\": executable file not found in $PATH\r\n", 127},
	} {
		created, err := w.ExecCreate(t.Context(), "web", client.ExecCreateOptions{Cmd: tt.args, AttachStdin: tt.in != "", AttachStdout: true, AttachStderr: true})
		if err != nil {
			t.Fatal(err)
		}
		c, err := w.ExecAttach(t.Context(), created.ID, client.ExecAttachOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c.Conn, tt.in); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		var out, errOut bytes.Buffer
		if _, err := stdcopy.StdCopy(&out, &errOut, c.Reader); err != nil || out.String() != tt.out || errOut.String() != tt.err {
			t.Errorf("%v: %q %q %v", tt.args, &out, &errOut, err)
		}
		c.Close()
		in, err := w.ExecInspect(t.Context(), created.ID, client.ExecInspectOptions{})
		if err != nil || in.ExitCode != tt.code || in.Running {
			t.Errorf("%v: %+v, %v", tt.args, in, err)
		}
		if res, body := w.do(t, "POST", "/exec/"+created.ID+"/start", "{}"); res.StatusCode != 409 {
			t.Errorf("second start: %d %s", res.StatusCode, body)
		}
	}
}

func TestExecResizesAndDetaches(t *testing.T) {
	w := newWorld(t)
	w.run(t, "web", "sleep")
	tty, err := w.ExecCreate(t.Context(), "web", client.ExecCreateOptions{Cmd: []string{"echo"}, TTY: true, AttachStdout: true})
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.ExecAttach(t.Context(), tty.ID, client.ExecAttachOptions{TTY: true, ConsoleSize: client.ConsoleSize{Height: 30, Width: 90}})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(c.Reader)
	c.Close()
	if _, err := w.ExecResize(t.Context(), tty.ID, client.ExecResizeOptions{Height: 31, Width: 91}); err != nil {
		t.Error(err)
	}
	if got := fmt.Sprint(w.set.resized); got != "[[30 90] [31 91]]" {
		t.Errorf("resized %s", got)
	}
	for args, ok := range map[string]bool{"echo": true, "ghost": false} {
		created, err := w.ExecCreate(t.Context(), "web", client.ExecCreateOptions{Cmd: []string{args}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.ExecStart(t.Context(), created.ID, client.ExecStartOptions{Detach: true}); (err == nil) != ok {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// cliRuns are what the docker client is run with, one after the other.
var cliRuns = []struct {
	args string
	in   string
	out  string // exact, or with a leading "~" contained in stdout and stderr together
	code int
}{
	{"run --rm nginx", "", "from image\n", 0},
	{"run --rm --entrypoint exit nginx 42", "", "", 42},
	{"run -i --rm --entrypoint cat nginx", "typed\n", "typed\n", 0},
	{"run --rm --entrypoint ghost nginx", "", `~Error response from daemon: start container`, 127},
	{"run -p 80:80 nginx", "", "~HostConfig.PortBindings is not supported yet", 125},
	{"run -v /tmp:/x nginx", "", "~HostConfig.Binds is not supported yet", 125},
	{"run --rm --memory 64m --cpus 1 --read-only --tmpfs /t --init --cap-add NET_ADMIN --ulimit nofile=10:20 --annotation run.hyper.kernel=/k nginx echo hi", "", "hi\n", 0},
	{"run -d --name bg --entrypoint sleep nginx", "", "~", 0},
	{"ps --format {{.Names}}|{{.Image}}|{{.Command}}|{{.Status}}|{{.Ports}}|{{.Networks}}", "", "bg|nginx|\"sleep\"|Up Less than a second|80/tcp|bridge\nruns|nginx|\"sleep 'two words'\"|Up Less than a second|80/tcp|bridge\n", 0},
	{"exec bg exit 7", "", "", 7},
	{"exec -i bg cat", "to exec", "to exec", 0},
	{"exec bg ghost", "", "~executable file not found in $PATH", 127},
	{"inspect --format {{.State.Status}}|{{.Config.Image}}|{{.NetworkSettings.IPAddress}}|{{.Hyper.vm.accel}} bg", "", "running|nginx|172.30.0.2|tcg\n", 0},
	{"top bg", "", "~nginx -g daemon off;", 0},
	{"stats --no-stream --format {{.Name}}|{{.CPUPerc}}|{{.MemUsage}}|{{.NetIO}}|{{.BlockIO}}|{{.PIDs}} bg", "", "bg|25.00%|32MiB / 128MiB|1kB / 2kB|1.05MB / 2.1MB|3\n", 0},
	{"stop bg", "", "bg\n", 0},
	{"wait bg", "", "137\n", 0},
	{"start bg", "", "bg\n", 0},
	{"restart bg", "", "bg\n", 0},
	{"pause bg", "", "bg\n", 0},
	{"unpause bg", "", "bg\n", 0},
	{"kill bg", "", "bg\n", 0},
	{"rename bg fg", "", "", 0},
	{"rm -f fg", "", "fg\n", 0},
	{"run --name both --entrypoint both nginx", "", "to out\n", 0},
	{"logs -t --tail 1 both", "", "~2023-11-14T22:13:20.000000005Z to err", 0},
	{"pull new:1", "", "~Status: Downloaded newer image for new:1", 0},
	{"run --rm pulled:1 echo x", "", "~x\n", 0},
	{"images --format {{.Repository}}:{{.Tag}}|{{.Size}} nginx", "", "nginx:latest|3.15MB\n", 0},
	{"tag nginx again:1", "", "", 0},
	{"history --format {{.CreatedBy}} nginx", "", "ADD / # nginx:latest\n", 0},
	{"rmi nginx", "", "~unable to remove repository reference", 1},
	{"version --format {{.Server.Version}}", "", "0.1\n", 0},
	{"info --format {{.Driver}}|{{.ServerVersion}}", "", "erofs+overlay|0.1\n", 0},
	{"system df --format {{.Type}}|{{.TotalCount}}|{{.Active}}", "", "Images|3|1\nContainers|2|1\nLocal Volumes|0|0\nBuild Cache|0|0\n", 0},
	{"network ls --format {{.Name}}|{{.Driver}}", "", "bridge|bridge\nnone|null\n", 0},
	{"volume ls -q", "", "", 0},
	{"container prune -f", "", "~Total reclaimed space: 8.192kB", 0},
	{"events --since 1 --until 1s --filter event=rename --format {{.Action}}", "", "~", 0},
	{"node ls", "", "~This node is not a swarm manager", 1},
	{"build -", "FROM x", "~not supported yet", 1},
}

// The real docker client, when there is one.
func TestDockerCLI(t *testing.T) {
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("no docker client")
	}
	w := newWorld(t)
	w.run(t, "runs", "sleep", "two words")
	dir := t.TempDir()
	help, err := exec.Command(docker, "run", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range cliRuns {
		if strings.Contains(tt.args, "--annotation ") && !bytes.Contains(help, []byte("--annotation ")) {
			t.Logf("this client is too old for: docker %s", tt.args)
			continue
		}
		cmd := exec.CommandContext(t.Context(), docker, append([]string{"-H", "unix://" + w.sock}, strings.Fields(tt.args)...)...)
		cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+dir, "DOCKER_BUILDKIT=0")
		cmd.Stdin = strings.NewReader(tt.in)
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		_ = cmd.Run()
		contains, loose := strings.CutPrefix(tt.out, "~")
		ok := out.String() == tt.out || loose && strings.Contains(out.String()+errOut.String(), contains)
		if code := cmd.ProcessState.ExitCode(); !ok || code != tt.code {
			t.Errorf("docker %s: code %d, want %d\nstdout %q\nwant   %q\nstderr %q", tt.args, code, tt.code, &out, tt.out, &errOut)
		}
	}
	if w.logged.Len() > 0 {
		t.Errorf("logged: %s", w.logged)
	}
}
