package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/bench/internal/ours"
)

// An engine runs containers, and is ours to end.
type engine struct {
	command func(ctx context.Context, args ...string) *exec.Cmd // its CLI
	root    int                                                 // process ID: all its processes come of that
	image   string                                              // as it calls the image that all run
	version string
	stop    func() error
}

// ofImage is a command with "IMG" replaced by the image.
func (e *engine) ofImage(ctx context.Context, args []string) *exec.Cmd {
	args = slices.Clone(args)
	for i, a := range args {
		if a == "IMG" {
			args[i] = e.image
		}
	}
	return e.command(ctx, args...)
}

// engines are the engines that were asked for so far.
type engines struct {
	c       config
	archive string // of the image, as Docker saves it
	started map[string]*engine
	missing map[string]error
	order   []string // of started
}

// get starts an engine when it is first asked for. The error says why it is
// not available; it is the same each time.
func (e *engines) get(ctx context.Context, name string) (*engine, error) {
	if got := e.started[name]; got != nil {
		return got, nil
	}
	if err := e.missing[name]; err != nil {
		return nil, err
	}
	got, err := e.start(ctx, name)
	if ctx.Err() != nil {
		return nil, errors.Join(ctx.Err(), err)
	}
	if err != nil {
		e.missing[name] = err
		return nil, err
	}
	return got, nil
}

func (e *engines) start(ctx context.Context, name string) (*engine, error) {
	fmt.Fprintf(e.c.progress, "starts %s\n", name)
	var got *engine
	var err error
	switch {
	case hyperds[name] != nil:
		got, err = startHyper(ctx, e.c, name)
	case name == "docker":
		got, err = startDocker(ctx, e.c)
	case name == "docker20":
		got, err = startDocker20(ctx, e.c)
	case name == "podman":
		got, err = startPodman(ctx, e.c)
	}
	if err != nil {
		return nil, err
	}
	if got.image, err = ours.Load(got.command(ctx, "load", "-i", e.archive)); err != nil {
		return nil, errors.Join(err, got.stop())
	}
	e.started[name] = got
	e.order = append(e.order, name)
	return got, nil
}

// stop ends all engines, the last one first.
func (e *engines) stop() error {
	var errs []error
	for _, name := range slices.Backward(e.order) {
		if err := e.started[name].stop(); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// A hyperd of ours differs from the others by its flags.
type hyperd struct {
	netPrefix string
	args      []string
}

// hyperds are ours: each start a clone made for it, a clone taken from the
// pool, and a VM that boots.
var hyperds = map[string]*hyperd{
	"hyper":      {"bsc", []string{"--warm-pool=0"}},
	"hyper-warm": {"bsw", []string{"--warm-pool=1"}},
	"hyper-cold": {"bsb", []string{"--templates=false"}},
}

func startHyper(ctx context.Context, c config, name string) (*engine, error) {
	h := hyperds[name]
	d, err := ours.Start(ctx, ours.Options{Bin: c.bin, NetPrefix: h.netPrefix, Args: h.args})
	if err != nil {
		return nil, err
	}
	e := &engine{command: d.Command, root: d.Pid(), version: "Hyper"}
	e.stop = func() error {
		left := descendants(d.Pid())
		if err := d.Stop(); err != nil {
			return err
		}
		for _, pid := range left {
			if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid))); err == nil {
				return fmt.Errorf("hyperd left process %d", pid)
			}
		}
		return nil
	}
	if name != "hyper-cold" {
		// The template that all starts clone.
		if _, err := d.Hyper(ctx, "template", "create"); err != nil {
			return nil, errors.Join(err, e.stop())
		}
	}
	return e, nil
}

// startDocker starts the Docker of today, with gVisor as a second runtime if it is to be had.
func startDocker(ctx context.Context, c config) (*engine, error) {
	docker, err := getPeer(ctx, c, "docker")
	if err != nil {
		return nil, err
	}
	lowers := []string{docker}
	var args []string
	if slices.Contains(c.peers, "runsc") {
		// Without it, only its own runs fail, and say so.
		if runsc, err := getPeer(ctx, c, "runsc"); err == nil {
			lowers = append(lowers, runsc)
			args = []string{"--add-runtime", "runsc=/usr/local/bin/runsc"}
		} else if ctx.Err() != nil {
			return nil, err
		}
	}
	e, err := startDockerd(ctx, c, "docker", lowers, append([]string{"/usr/local/bin/dockerd"}, args...))
	if err != nil {
		return nil, err
	}
	// It does not know its version, as built.
	var versions []string
	for _, dir := range lowers {
		versions = append(versions, filepath.Base(dir))
	}
	e.version = strings.Join(versions, ", ")
	return e, nil
}

func startDocker20(ctx context.Context, c config) (*engine, error) {
	return startDockerd(ctx, c, "docker20", nil, []string{"/usr/sbin/dockerd"})
}

// startDockerd returns once it answers.
func startDockerd(ctx context.Context, c config, name string, lowers, dockerd []string) (*engine, error) {
	debian, err := getPeer(ctx, c, "debian")
	if err != nil {
		return nil, err
	}
	client, err := exec.LookPath("docker")
	if err != nil {
		return nil, fmt.Errorf("%w (test/deps.sh run gets one)", err)
	}
	b, err := startCell(ctx, cellSpec{
		name: name, lowers: append(lowers, debian), cgroups: "as-is",
		env: []string{"DOCKER_MIN_API_VERSION=1.24"}, // any client will do
		cmd: func(dir string) []string {
			return append(dockerd, "--host", "unix://"+dir+"/docker.sock", "--data-root", dir+"/data", "--exec-root", dir+"/exec",
				"--pidfile", dir+"/pid", "--cgroup-parent", "/hyper-bench-"+name)
		},
	})
	if err != nil {
		return nil, err
	}
	e := &engine{root: b.init, stop: b.stop}
	e.command = func(ctx context.Context, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, client, args...)
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+b.dir+"/docker.sock", "DOCKER_CONFIG="+b.dir+"/client")
		return cmd
	}
	err = b.until(ctx, func() bool { return succeeds(e.command(ctx, "version")) })
	if err == nil {
		e.version, err = ours.Output(e.command(ctx, "version", "--format", "Docker {{.Server.Version}}"))
	}
	if err != nil {
		return nil, errors.Join(err, b.stop())
	}
	return e, nil
}

// containersConf has the limits that this process has, as podman would raise
// them, for which root may lack the right.
func containersConf() (string, error) {
	var files, procs unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return "", err
	}
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &procs); err != nil {
		return "", err
	}
	return fmt.Sprintf(`[containers]
default_ulimits = ["nofile=%d:%d", "nproc=%d:%d"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
`, files.Cur, files.Max, int64(procs.Cur), int64(procs.Max)), nil
}

// startPodman prepares a place for podman, which has no daemon.
func startPodman(ctx context.Context, c config) (*engine, error) {
	debian, err := getPeer(ctx, c, "debian")
	if err != nil {
		return nil, err
	}
	b, err := startCell(ctx, cellSpec{
		name: "podman", lowers: []string{debian}, cgroups: "v1",
		cmd: func(string) []string { return []string{"sleep", "infinity"} },
	})
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(b.dir, "containers.conf")
	e := &engine{root: b.init, stop: b.stop}
	e.command = func(ctx context.Context, args ...string) *exec.Cmd {
		enter := []string{"--target", strconv.Itoa(b.init), "--mount", "--net", "--pid", "podman", "--root", b.dir + "/data", "--runroot", b.dir + "/run"}
		if args[0] == "run" {
			args = append([]string{"run", "--cgroup-parent", "/" + b.cgroup()}, args[1:]...)
		}
		cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
		cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+conf)
		return cmd
	}
	text, err := containersConf()
	if err == nil {
		err = os.WriteFile(conf, []byte(text), 0o644)
	}
	if err != nil {
		return nil, errors.Join(err, b.stop())
	}
	err = b.until(ctx, func() bool { return succeeds(e.command(ctx, "version")) })
	if err == nil {
		e.version, err = ours.Output(e.command(ctx, "version", "--format", "podman {{.Client.Version}}"))
	}
	if err != nil {
		return nil, errors.Join(err, b.stop())
	}
	return e, nil
}
