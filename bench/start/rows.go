package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/hyper-run/hyper/bench/internal/ours"
	"github.com/hyper-run/hyper/bench/internal/stats"
)

// runTrue is the row that all is about.
func runTrue(ctx context.Context, b *bench) ([]section, error) {
	who := []contender{
		clone.promising(0.6), warm.promising(0.4), cold,
		docker, docker.with("Docker, no network", "--network", "none"), docker.with("Docker, host's network", "--network", "host"),
		docker20, podman, runsc,
	}
	results, err := b.alternate(ctx, b.n, who, timedRun("--rm", "IMG", "true"))
	return []section{{title: "`run --rm IMG true`, default network", unit: "ms", promise: ratio, results: results}}, err
}

func timedRun(args ...string) func(context.Context, contender, *engine) (float64, error) {
	return func(ctx context.Context, c contender, e *engine) (float64, error) {
		return ours.Timed(c.run(ctx, e, args...))
	}
}

// tail is how even starts are: each contender's in a row, as a user would see
// them.
func tail(ctx context.Context, b *bench) ([]section, error) {
	s := section{title: "the same, %d in a row: p99 / median", unit: "ms", promise: tailRatio}
	n := max(1, b.n*10/3)
	s.title = fmt.Sprintf(s.title, n)
	for _, c := range []contender{clone.promising(2.5), warm, docker} {
		results, err := b.alternate(ctx, n, []contender{c}, timedRun("--rm", "IMG", "true"))
		if err != nil {
			return nil, err
		}
		s.results = append(s.results, results...)
	}
	return []section{s}, nil
}

// crowd is how many containers are started, or idle, at once.
const crowd = 20

func parallel(ctx context.Context, b *bench) ([]section, error) {
	who := []contender{clone.promising(1), docker, docker20, podman}
	results, err := b.alternate(ctx, max(1, b.n/10), who, startCrowd)
	title := fmt.Sprintf("%d started at once, until the last one has printed a line", crowd)
	return []section{{title: title, unit: "ms", promise: ratio, results: results}}, err
}

// startCrowd starts containers that run on, and ends them when all run.
func startCrowd(ctx context.Context, c contender, e *engine) (_ float64, err error) {
	var names []string
	for i := range crowd {
		names = append(names, fmt.Sprintf("crowd-%d", i))
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	up := make(chan error, crowd)
	ended := make(chan struct{}, crowd)
	start := time.Now()
	for _, name := range names {
		cmd := c.run(ctx, e, "--rm", "--name", name, "IMG", "sh", "-c", "echo up; exec sleep 1000")
		go func() {
			firstLine(cmd, up)
			ended <- struct{}{}
		}()
	}
	for range names {
		err = errors.Join(err, <-up)
	}
	took := time.Since(start)
	// Also after Ctrl-C. With --rm they are gone when their CLIs return.
	stop, cancelStop := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancelStop()
	_, stopErr := ours.Output(e.command(stop, append([]string{"rm", "-f"}, names...)...))
	if err == nil {
		err = stopErr
	}
	for range names {
		<-ended
	}
	return stats.Milliseconds(took), err
}

// firstLine runs cmd to its end. It sends once: nil when cmd prints "up".
func firstLine(cmd *exec.Cmd, up chan<- error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		up <- err
		return
	}
	line, readErr := bufio.NewReader(stdout).ReadString('\n')
	if line == "up\n" {
		up <- nil
		cmd.Wait() //nolint:errcheck // it is killed in the end
		return
	}
	up <- fmt.Errorf("printed %q: %w: %s", line, errors.Join(readErr, cmd.Wait()), lastLine(stderr.String()))
}

// sized is a start with limits, which must cost no more than one without.
// Docker refuses more CPUs than the host has, so it gets as many as there are.
func sized(ctx context.Context, b *bench) ([]section, error) {
	limits := func(cpus int) []string { return []string{"-m", "3g", "--cpus", fmt.Sprint(cpus)} }
	most := min(3, runtime.NumCPU())
	label := fmt.Sprintf(" --cpus %d", most)
	who := []contender{
		clone.promising(0.65).with(clone.label+" --cpus 3", limits(3)...),
		docker.with(reference, limits(most)...),
		docker20.with(fallback, limits(most)...),
		podman.with(podman.label+label, limits(most)...),
	}
	results, err := b.alternate(ctx, b.n, who, timedRun("--rm", "IMG", "true"))
	title := "`run --rm -m 3g --cpus 3 IMG true`"
	if most < 3 {
		title += fmt.Sprintf("; Docker and podman with --cpus %d, as they refuse more than the host has", most)
	}
	return []section{{title: title, unit: "ms", promise: ratio, results: results}}, err
}

// execTrue runs a program in a container that runs.
func execTrue(ctx context.Context, b *bench) (_ []section, err error) {
	who := []contender{clone, docker, docker20, podman, runsc}
	ids := map[string]string{} // by label
	defer func() {
		// A context of its own: also after Ctrl-C.
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		for _, c := range who {
			if id := ids[c.label]; id != "" {
				_, rmErr := ours.Output(b.engines.started[c.engine].command(stop, "rm", "-f", id))
				err = errors.Join(err, rmErr)
			}
		}
	}()
	results, err := b.alternate(ctx, b.n, who, func(ctx context.Context, c contender, e *engine) (float64, error) {
		if ids[c.label] == "" {
			id, err := ours.Output(c.run(ctx, e, "-d", "IMG", "sleep", "100000"))
			if err != nil {
				return 0, err
			}
			ids[c.label] = id
		}
		return ours.Timed(e.command(ctx, "exec", ids[c.label], "true"))
	})
	return []section{{title: "`exec C true`", unit: "ms", promise: ratio, results: results}}, err
}
