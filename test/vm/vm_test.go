// Package vm tests Hyper as its users have it: the built programs, real QEMU,
// real images pulled from a real registry. One hyperd serves all tests of a
// run; each test removes what it makes, and the end checks that nothing is
// left on the host.
//
// It needs root, QEMU, a guest kernel (make kernel, or the stock one of make
// deps) and the images of test/images.
package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// A host is the hyperd under test and what surrounds it.
type host struct {
	dir      string // of everything
	bin      string // of the built programs
	root     string
	run      string
	prefix   string // of network devices
	registry string // host:port
	flags    []string
	daemon   *exec.Cmd
	exited   chan struct{}
}

var h *host

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("skipped: -short")
		os.Exit(0)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if h, err = newHost(); err != nil {
		log.Print("set up: ", err)
		return 1
	}
	defer os.RemoveAll(h.dir)
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	h.registry = strings.TrimPrefix(srv.URL, "http://")
	if err := h.start(); err != nil {
		log.Print("start hyperd: ", err)
		return 1
	}
	// Ahead, so that no test has it made in the background.
	if out, err := h.command(context.Background(), "template", "create").CombinedOutput(); err != nil {
		log.Printf("make a template: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	if err := h.leave(); err != nil {
		log.Print("left behind: ", err)
		code = 1
	}
	return code
}

func newHost() (*host, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("these tests need root")
	}
	dir, err := os.MkdirTemp("", "hv")
	if err != nil {
		return nil, err
	}
	h := &host{
		dir: dir, bin: filepath.Join(dir, "bin"), root: filepath.Join(dir, "root"), run: filepath.Join(dir, "run"),
		prefix: fmt.Sprintf("t%02x", os.Getpid()&0xff),
		flags:  []string{"--warm-pool=0"}, // what is there before and after a test is compared
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", h.bin+"/", "./cmd/...")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build: %w\n%s", err, out)
	}
	return h, nil
}

// start starts hyperd and returns when it serves.
func (h *host) start(more ...string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	logf, err := os.OpenFile(h.dir+"/hyperd.log", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logf.Close()
	args := append([]string{"--root", h.root, "--run", h.run, "--net-prefix", h.prefix}, h.flags...)
	h.daemon = exec.Command(h.bin+"/hyperd", append(args, more...)...)
	h.daemon.Stderr, h.daemon.Stdout = logf, logf
	h.daemon.ExtraFiles = []*os.File{w}
	h.daemon.Env = append(os.Environ(), "HYPER_READY_FD=3")
	if err := h.daemon.Start(); err != nil {
		return err
	}
	w.Close()
	h.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		cmd.Wait() //nolint:errcheck // killed on purpose at times
		close(exited)
	}(h.daemon, h.exited)
	r.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		out, _ := os.ReadFile(h.dir + "/hyperd.log")
		return fmt.Errorf("hyperd does not serve: %w\n%s", err, out)
	}
	return nil
}

func (h *host) signal(sig syscall.Signal) {
	h.daemon.Process.Signal(sig) //nolint:errcheck // it may be gone
	<-h.exited
}

// hyper runs the CLI.
func (h *host) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, h.bin+"/hyper", args...)
	cmd.Env = append(os.Environ(), "HYPER_HOST=unix://"+h.run+"/hyper.sock")
	return cmd
}

type result struct {
	out, err string
	code     int
}

// hyper runs a command of the CLI to its end.
func hyper(t *testing.T, args ...string) result {
	t.Helper()
	return hyperIn(t, nil, args...)
}

func hyperIn(t *testing.T, stdin io.Reader, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := h.command(ctx, args...)
	var out, errb bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errb
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		t.Fatalf("hyper %s: %v", strings.Join(args, " "), err)
	}
	return result{out.String(), errb.String(), cmd.ProcessState.ExitCode()}
}

// must runs a command that has to succeed and returns what it printed.
func must(t *testing.T, args ...string) string {
	t.Helper()
	r := hyper(t, args...)
	if r.code != 0 {
		t.Fatalf("hyper %s: exit code %d\nstdout: %s\nstderr: %s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return strings.TrimRight(r.out, "\n")
}

// container runs a container in the background until the end of the test.
func container(t *testing.T, args ...string) string {
	t.Helper()
	id := must(t, append([]string{"run", "-d"}, args...)...)
	t.Cleanup(func() { cleanup(t, "rm", "-f", id) })
	return id
}

// cleanup runs a command at the end of a test, when its context is over.
func cleanup(t *testing.T, args ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if out, err := h.command(ctx, args...).CombinedOutput(); err != nil && !strings.Contains(string(out), "No such container") && !strings.Contains(string(out), "No such pod") {
		t.Errorf("hyper %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// pulled makes sure that an image of test/images is there under its short
// name, pulled from the registry.
func pulled(t *testing.T, image string) string {
	t.Helper()
	if hyper(t, "inspect", "--type", "image", image).code == 0 {
		return image
	}
	ref := push(t, image)
	must(t, "pull", "-q", ref)
	must(t, "tag", ref, image)
	return image
}

// push puts an image of test/images into the registry.
func push(t *testing.T, image string) string {
	t.Helper()
	img := archive(t, image)
	ref, err := name.ParseReference(h.registry+"/"+image+":latest", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

// archive opens an OCI archive of test/images, making it if need be.
func archive(t *testing.T, image string) v1.Image {
	t.Helper()
	out, err := exec.Command("../images/make", image).Output()
	if err != nil {
		t.Fatalf("test/images/make %s: %v", image, err)
	}
	lines := strings.Fields(string(out))
	if len(lines) == 0 {
		t.Fatalf("test/images/make %s printed no path", image)
	}
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-xf", lines[len(lines)-1], "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v\n%s", err, out)
	}
	idx, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil || len(m.Manifests) == 0 {
		t.Fatalf("index of %s: %v", image, err)
	}
	img, err := idx.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// leave stops hyperd and says what of ours is still on the host.
func (h *host) leave() error {
	out, err := h.command(context.Background(), "ps", "-aq").Output()
	if err != nil {
		return fmt.Errorf("ps: %w", err)
	}
	var left []string
	for _, id := range strings.Fields(string(out)) {
		left = append(left, "container "+id)
		h.command(context.Background(), "rm", "-f", id).Run() //nolint:errcheck // reported as left
	}
	if out, err = h.command(context.Background(), "pod", "ls", "-aq", "--no-trunc").Output(); err != nil {
		return fmt.Errorf("pod ls: %w", err)
	}
	for _, id := range strings.Fields(string(out)) {
		left = append(left, "pod "+id)
		h.command(context.Background(), "pod", "rm", "-f", id).Run() //nolint:errcheck // reported as left
	}
	h.signal(syscall.SIGTERM)
	left = append(left, h.remains()...)
	taps, _ := filepath.Glob("/sys/class/net/" + h.prefix + "[0-9a-f]*[0-9a-f]")
	left = append(left, taps...)
	if out, err := exec.Command(h.bin+"/hyperd", "--net-prefix", h.prefix, "--remove-network").CombinedOutput(); err != nil {
		left = append(left, "network: "+string(out))
	}
	if len(left) > 0 {
		logs, _ := os.ReadFile(h.dir + "/hyperd.log")
		return fmt.Errorf("%s\nhyperd's log:\n%s", strings.Join(left, "\n"), logs)
	}
	return nil
}

// remains lists processes, directories and cgroups of this hyperd's pods.
// Devices are ready before pods are there.
func (h *host) remains() []string {
	var left []string
	// A VM's output goes to a file in its directory, whatever its command line says.
	outputs, _ := filepath.Glob("/proc/[0-9]*/fd/1")
	for _, fd := range outputs {
		if to, _ := os.Readlink(fd); strings.HasPrefix(to, h.run+"/pods/") || strings.HasPrefix(to, h.run+"/making/") {
			left = append(left, "process "+fd+" with "+to)
		}
	}
	for _, pattern := range []string{h.run + "/pods/*", h.run + "/making/*", h.root + "/containers/*", h.root + "/pods/*", "/sys/fs/cgroup/*/" + h.cgroup() + "/*/cgroup.procs"} {
		found, _ := filepath.Glob(pattern)
		left = append(left, found...)
	}
	return left
}

// cgroup is the parent of the cgroups of this hyperd's VMs.
func (h *host) cgroup() string {
	sum := sha256.Sum256([]byte(h.run))
	return fmt.Sprintf("hyper-%x", sum[:6])
}
