package dockerapi

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/hyper-run/hyper/internal/event"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/logs"
	"github.com/hyper-run/hyper/internal/pod"
)

// A program is what a fake process runs.
type program func(args []string, in io.Reader, out, errOut io.Writer, killed <-chan struct{}) int

var programs = map[string]program{
	"echo": func(args []string, _ io.Reader, out, _ io.Writer, _ <-chan struct{}) int {
		fmt.Fprintln(out, strings.Join(args, " "))
		return 0
	},
	"cat": func(_ []string, in io.Reader, out, _ io.Writer, killed <-chan struct{}) int {
		done := make(chan struct{})
		go func() { defer close(done); _, _ = io.Copy(out, in) }()
		select {
		case <-done:
			return 0
		case <-killed:
			return 137
		}
	},
	"both": func(_ []string, _ io.Reader, out, errOut io.Writer, _ <-chan struct{}) int {
		fmt.Fprint(out, "to out\n")
		fmt.Fprint(errOut, "to err\n")
		return 0
	},
	"exit": func(args []string, _ io.Reader, _, _ io.Writer, _ <-chan struct{}) int {
		n, _ := strconv.Atoi(args[0])
		return n
	},
	"sleep": func(_ []string, _ io.Reader, _, _ io.Writer, killed <-chan struct{}) int {
		<-killed
		return 137
	},
	"zeros": func(args []string, _ io.Reader, out, _ io.Writer, _ <-chan struct{}) int {
		n, _ := strconv.Atoi(args[0])
		_, _ = io.CopyN(out, zeros{}, int64(n))
		return 0
	},
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A fakeSet is pods in memory; its processes are programs.
type fakeSet struct {
	pod.Pods // those that are not here are not called
	dir      string
	bus      *event.Bus

	mu         sync.Mutex
	containers []*fakeContainer
	pods       []pod.PodInfo
	execs      map[string]*pod.Exec
	resized    [][2]uint
	attached   int // attachments now
}

type fakeContainer struct {
	pod.Container
	sinks   []pod.AttachOptions
	stdin   *os.File
	killed  chan struct{}
	started chan struct{}
	ended   chan struct{}
	removed chan struct{}
	lines   []logs.Record
}

func newFakeSet(t *testing.T) *fakeSet {
	return &fakeSet{dir: t.TempDir(), bus: &event.Bus{}, execs: map[string]*pod.Exec{}}
}

func (s *fakeSet) find(ref string) (*fakeContainer, error) {
	for _, c := range s.containers {
		if c.ID == ref || c.Name == strings.TrimPrefix(ref, "/") || len(ref) >= 2 && strings.HasPrefix(c.ID, ref) {
			return c, nil
		}
	}
	return nil, notFound("No such container: %s", ref)
}

func (s *fakeSet) locked(ref string, f func(*fakeContainer) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	return f(c)
}

func (s *fakeSet) publish(c *fakeContainer, action string, attrs ...string) {
	m := map[string]string{"name": c.Name, "image": c.Spec.Image}
	for i := 0; i < len(attrs); i += 2 {
		m[attrs[i]] = attrs[i+1]
	}
	s.bus.Publish(event.Event{Type: "container", Action: action, ID: c.ID, Attrs: m})
}

func (s *fakeSet) Create(_ context.Context, o pod.CreateOptions) (string, []string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := digest.FromString(fmt.Sprint(len(s.containers))).Encoded()
	name := cmp.Or(o.Name, "fake_"+id[:4])
	if _, err := s.find(name); err == nil {
		return "", nil, conflict("Conflict. The container name \"/%s\" is already in use", name)
	}
	c := &fakeContainer{
		Container: pod.Container{ID: id, Name: name, PodID: cmp.Or(o.Pod, "pod"+id[:8]), Created: time.Now(), Spec: o.Spec, Status: pod.StatusCreated, Disk: filepath.Join(s.dir, id)},
		started:   make(chan struct{}), ended: make(chan struct{}), killed: make(chan struct{}), removed: make(chan struct{}),
	}
	if err := os.WriteFile(c.Disk, make([]byte, 8192), 0o600); err != nil {
		return "", nil, err
	}
	s.containers = append(s.containers, c)
	s.publish(c, "create")
	return id, nil, nil
}

func (s *fakeSet) Start(_ context.Context, ref string) error {
	return s.locked(ref, func(c *fakeContainer) error {
		if c.Status == pod.StatusRunning {
			return errdefs.ErrNotModified
		}
		run, ok := programs[c.Spec.Args[0]]
		if !ok {
			c.Error = fmt.Sprintf("exec: %q: executable file not found in $PATH", c.Spec.Args[0])
			if c.Spec.AutoRemove {
				c.ExitCode = 127
				s.removeLocked(c)
			}
			return notFound("start container %s: %s", c.Name, c.Error)
		}
		if c.Status == pod.StatusExited {
			c.started, c.ended, c.killed = make(chan struct{}), make(chan struct{}), make(chan struct{})
		}
		c.Status, c.StartedAt, c.PID = pod.StatusRunning, time.Now(), 42
		c.Net = &pod.NetworkInfo{Network: "default", MAC: "02:42:ac:1e:00:02", Gateway: "172.30.0.1", Address: "172.30.0.2", PrefixLen: 16}
		c.VM = &pod.VMInfo{HostPID: 7, Accel: "tcg", Machine: "microvm", CPUs: 1, MemMiB: 128, BootTime: 812 * time.Millisecond}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		c.stdin = w
		close(c.started)
		s.publish(c, "start")
		ended, killed := c.ended, c.killed
		go func() {
			code := run(c.Spec.Args[1:], r, fakeOutput{s, c, logs.Stdout}, fakeOutput{s, c, logs.Stderr}, killed)
			r.Close()
			s.mu.Lock()
			defer s.mu.Unlock()
			c.Status, c.FinishedAt, c.ExitCode, c.Net, c.VM = pod.StatusExited, time.Now(), code, nil, nil
			w.Close()
			s.publish(c, "die", "exitCode", strconv.Itoa(code))
			close(ended)
			if c.Spec.AutoRemove {
				s.removeLocked(c)
			}
		}()
		return nil
	})
}

type fakeOutput struct {
	s      *fakeSet
	c      *fakeContainer
	stream logs.Stream
}

func (o fakeOutput) Write(p []byte) (int, error) {
	o.s.mu.Lock()
	sinks := slices.Clone(o.c.sinks)
	o.c.lines = append(o.c.lines, logs.Record{Time: time.Unix(1700000000, 5).UTC(), Stream: o.stream, Line: bytes.Clone(p)})
	o.s.mu.Unlock()
	for _, k := range sinks {
		w := []io.Writer{k.Stdout, k.Stderr}[o.stream]
		if w != nil {
			_, _ = w.Write(p)
		}
	}
	return len(p), nil
}

func (s *fakeSet) removeLocked(c *fakeContainer) {
	s.containers = slices.DeleteFunc(s.containers, func(x *fakeContainer) bool { return x == c })
	s.publish(c, "destroy")
	close(c.removed)
}

func (s *fakeSet) Kill(_ context.Context, ref, _ string) error {
	return s.locked(ref, func(c *fakeContainer) error {
		if c.Status != pod.StatusRunning {
			return conflict("cannot kill container: %s: container %s is not running", ref, c.ID)
		}
		close(c.killed)
		return nil
	})
}

func (s *fakeSet) Stop(ctx context.Context, ref, _ string, _ *int) error {
	if err := s.Kill(ctx, ref, ""); errdefs.IsConflict(err) {
		return errdefs.ErrNotModified
	} else if err != nil {
		return err
	}
	s.mu.Lock()
	c, err := s.find(ref)
	s.mu.Unlock()
	if err == nil {
		<-c.ended
	}
	return nil
}

func (s *fakeSet) Restart(ctx context.Context, ref, sig string, t *int) error {
	if err := s.Stop(ctx, ref, sig, t); err != nil && !errdefs.IsNotModified(err) {
		return err
	}
	return s.Start(ctx, ref)
}

func (s *fakeSet) setStatus(ref string, from, to pod.Status) error {
	return s.locked(ref, func(c *fakeContainer) error {
		if c.Status != from {
			return conflict("container %s is not %s", c.ID, from)
		}
		c.Status = to
		return nil
	})
}

func (s *fakeSet) Pause(_ context.Context, ref string) error {
	return s.setStatus(ref, pod.StatusRunning, pod.StatusPaused)
}

func (s *fakeSet) Resume(_ context.Context, ref string) error {
	return s.setStatus(ref, pod.StatusPaused, pod.StatusRunning)
}

func (s *fakeSet) Rename(_ context.Context, ref, name string) error {
	return s.locked(ref, func(c *fakeContainer) error { c.Name = name; return nil })
}

func (s *fakeSet) Remove(ctx context.Context, ref string, force bool) error {
	if force {
		_ = s.Stop(ctx, ref, "", nil)
	}
	return s.locked(ref, func(c *fakeContainer) error {
		if c.Status == pod.StatusRunning {
			return conflict("cannot remove container %q: container is running", c.Name)
		}
		s.removeLocked(c)
		return nil
	})
}

func (s *fakeSet) Update(_ context.Context, ref string, r pod.Resources) error {
	return s.locked(ref, func(c *fakeContainer) error { c.Spec.Resources = r; return nil })
}

func (s *fakeSet) Wait(ctx context.Context, ref string, cond pod.WaitCondition) (<-chan pod.ExitStatus, error) {
	ch := make(chan pod.ExitStatus, 1)
	return ch, s.locked(ref, func(c *fakeContainer) error {
		until := c.ended
		if cond == pod.WaitRemoved {
			until = c.removed
		}
		if cond == pod.WaitNotRunning && c.Status == pod.StatusCreated {
			ch <- pod.ExitStatus{}
			return nil
		}
		go func() {
			select {
			case <-until:
				s.mu.Lock()
				defer s.mu.Unlock()
				ch <- pod.ExitStatus{Code: c.ExitCode}
			case <-ctx.Done():
			}
		}()
		return nil
	})
}

func (s *fakeSet) Resize(_ context.Context, ref string, h, w uint) error {
	return s.locked(ref, func(*fakeContainer) error { s.resized = append(s.resized, [2]uint{h, w}); return nil })
}

func (s *fakeSet) Attach(ctx context.Context, ref string, o pod.AttachOptions) error {
	s.mu.Lock()
	c, err := s.find(ref)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	past := slices.Clone(c.lines)
	c.sinks = append(c.sinks, o)
	s.attached++
	started, ended := c.started, c.ended
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.attached--
	}()
	if o.Logs {
		for _, r := range past {
			if w := []io.Writer{o.Stdout, o.Stderr}[r.Stream]; w != nil {
				_, _ = w.Write(r.Line)
			}
		}
	}
	if o.Attached != nil {
		o.Attached()
	}
	if !o.Stream {
		return nil
	}
	broken := make(chan error, 1)
	if o.Stdin != nil && c.Spec.Stdin {
		go func() {
			select {
			case <-started:
			case <-ctx.Done():
				return
			}
			_, err := io.Copy(c.stdin, o.Stdin)
			if c.Spec.StdinOnce && err == nil {
				c.stdin.Close()
			}
			if err != nil {
				broken <- err
			}
		}()
	}
	select {
	case <-ended:
		return nil
	case err := <-broken:
		if errors.Is(err, os.ErrClosed) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, syscall.EPIPE) {
			<-ended
			return nil
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *fakeSet) Get(ref string) (pod.Container, error) {
	var out pod.Container
	err := s.locked(ref, func(c *fakeContainer) error { out = c.Container; return nil })
	return out, err
}

func (s *fakeSet) List(f pod.Filter) []pod.Container {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []pod.Container
	for _, c := range slices.Backward(s.containers) {
		if f.All || c.Status == pod.StatusRunning || c.Status == pod.StatusPaused {
			out = append(out, c.Container)
		}
	}
	return out
}

func (s *fakeSet) Stats(context.Context, string) (*wire.StatsResponse, error) {
	now := time.Now()
	return &wire.StatsResponse{
		ReadAtNanos: now.UnixNano(), CpuUsageNanos: uint64(now.UnixNano() / 4), SystemCpuNanos: uint64(now.UnixNano() * 2), OnlineCpus: 2,
		MemoryBytes: 64 << 20, MemoryLimitBytes: 128 << 20, MemoryStat: map[string]uint64{"inactive_file": 32 << 20}, Pids: 3,
		BlockIo:    []*wire.BlockIO{{Major: 254, ReadBytes: 1 << 20, WriteBytes: 2 << 20}},
		Interfaces: []*wire.InterfaceStats{{Name: "lo", RxBytes: 9}, {Name: "eth0", RxBytes: 1000, TxBytes: 2000}},
	}, nil
}

func (s *fakeSet) Processes(context.Context, string) ([]*wire.Process, error) {
	start := time.Now().Add(-time.Hour).UnixNano()
	return []*wire.Process{
		{Pid: 42, Ppid: 1, User: "root", State: "S", StartedAtNanos: start, CpuNanos: 61e9, VsizeBytes: 4 << 20, RssBytes: 1 << 20, Tty: "?", Args: []string{"/usr/sbin/nginx", "-g", "daemon off;"}},
		{Pid: 43, Ppid: 42, Uid: 33, User: "www-data", State: "S", StartedAtNanos: start, Tty: "?", Args: []string{"nginx: worker"}},
	}, nil
}

func (s *fakeSet) CreateExec(_ context.Context, ref string, spec pod.ExecSpec) (string, error) {
	var id string
	return id, s.locked(ref, func(c *fakeContainer) error {
		if c.Status != pod.StatusRunning {
			return conflict("container %s is not running", c.ID)
		}
		id = digest.FromString(fmt.Sprint("exec", len(s.execs))).Encoded()
		s.execs[id] = &pod.Exec{ID: id, ContainerID: c.ID, Spec: spec}
		return nil
	})
}

func (s *fakeSet) StartExec(ctx context.Context, id string, o *pod.AttachOptions) error {
	s.mu.Lock()
	e := s.execs[id]
	e.Started, e.Running = true, true
	s.mu.Unlock()
	code := 127
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		e.Running, e.ExitCode = false, &code
	}()
	run, ok := programs[e.Spec.Args[0]]
	if !ok {
		return notFound("exec: %q: executable file not found in $PATH", e.Spec.Args[0])
	}
	if o == nil {
		o = &pod.AttachOptions{Stdout: io.Discard, Stderr: io.Discard}
	} else if o.Attached != nil {
		o.Attached()
	}
	code = run(e.Spec.Args[1:], o.Stdin, cmp.Or[io.Writer](o.Stdout, io.Discard), cmp.Or[io.Writer](o.Stderr, io.Discard), ctx.Done())
	return ctx.Err()
}

func (s *fakeSet) ResizeExec(_ context.Context, _ string, h, w uint) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resized = append(s.resized, [2]uint{h, w})
	return nil
}

func (s *fakeSet) GetExec(id string) (pod.Exec, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.execs[id]; e != nil {
		return *e, nil
	}
	return pod.Exec{}, notFound("No such exec instance: %s", id)
}

func (s *fakeSet) Logs(ctx context.Context, ref string, o logs.ReadOptions) (iter.Seq2[logs.Record, error], bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.find(ref)
	if err != nil {
		return nil, false, err
	}
	lines := slices.DeleteFunc(slices.Clone(c.lines), func(r logs.Record) bool {
		return r.Stream == logs.Stdout && !o.Stdout || r.Stream == logs.Stderr && !o.Stderr
	})
	if o.Tail >= 0 {
		lines = lines[max(len(lines)-o.Tail, 0):]
	}
	return func(yield func(logs.Record, error) bool) {
		for _, r := range lines {
			if !yield(r, nil) {
				return
			}
		}
		if o.Follow {
			select {
			case <-ctx.Done():
			case <-c.ended:
			}
		}
	}, c.Spec.TTY, nil
}
