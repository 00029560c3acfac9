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
	"time"

	"github.com/hyper-run/hyper/bench/internal/ours"
	"github.com/hyper-run/hyper/bench/internal/stats"
)

// How a container is put beside another, the neighbour.
var (
	inPod    = []string{"--pod", neighbour}
	byDocker = []string{"--network", "container:" + neighbour}
)

// neighbour is the name of a container, and of its pod if it has one by that name.
const neighbour = "bench-neighbour"

// podRest is how long a pod runs before anything is added to it.
const podRest = time.Second

// idle is a container that does nothing.
var idle = []string{"-d", "IMG", "sleep", "100000"}

// pods is what a further container of a pod costs.
func pods(ctx context.Context, b *bench) ([]section, error) {
	var all []section
	for _, measure := range []func(context.Context, *bench) ([]section, error){second, later, several, podMemory, localhost} {
		sections, err := measure(ctx, b)
		if err != nil {
			return nil, err
		}
		all = append(all, sections...)
	}
	return all, nil
}

// addNeighbour makes a container, and for inPod a pod, that others are put beside.
func addNeighbour(ctx context.Context, e *engine, beside []string) error {
	args := []string{"run", "--name", neighbour}
	if slices.Equal(beside, inPod) {
		args = append([]string{"pod"}, args...)
	}
	_, err := ours.Output(e.ofImage(ctx, append(args, idle...)))
	return err
}

// removeNeighbour takes it away, also after Ctrl-C.
func removeNeighbour(ctx context.Context, e *engine, beside []string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	args := []string{"rm", "-f", neighbour}
	if slices.Equal(beside, inPod) {
		args = append([]string{"pod"}, args...)
	}
	_, err := ours.Output(e.command(ctx, args...))
	return err
}

// beside runs do while there is a neighbour that has been running for a while.
func beside(ctx context.Context, e *engine, how []string, do func() error) (err error) {
	if err := addNeighbour(ctx, e, how); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeNeighbour(ctx, e, how)) }()
	if err := rest(ctx, podRest); err != nil {
		return err
	}
	return do()
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// second is a second container of a pod that has just one.
func second(ctx context.Context, b *bench) ([]section, error) {
	how := map[string][]string{}
	joining := func(c contender, label string, flags []string) contender {
		c.label, how[label] = label, flags
		return c
	}
	who := []contender{
		joining(clone, "**Hyper, `--pod`**", inPod).promising(0.5),
		joining(clone, "Hyper, `--network container:`", byDocker),
		docker, joining(docker, "Docker, `--network container:`", byDocker), docker20,
	}
	results, err := b.alternate(ctx, b.n, who, func(ctx context.Context, c contender, e *engine) (took float64, err error) {
		flags := how[c.label]
		if flags == nil {
			return add(ctx, c, e)
		}
		err = beside(ctx, e, flags, func() error {
			took, err = add(ctx, c.with(c.label, flags...), e)
			return err
		})
		return took, err
	})
	title := "`run -d IMG sleep`: a second container of a running pod, beside a container of its own"
	return []section{{title: title, unit: "ms", promise: ratio, results: results}}, err
}

// add runs a container in the background, which is then removed.
func add(ctx context.Context, c contender, e *engine) (float64, error) {
	start := time.Now()
	id, err := ours.Output(c.run(ctx, e, idle...))
	took := time.Since(start)
	if err == nil {
		_, err = ours.Output(e.command(ctx, "rm", "-f", id))
	}
	return stats.Milliseconds(took), err
}

// later is one more container of a pod in which many have come and gone.
func later(ctx context.Context, b *bench) (_ []section, err error) {
	who := []contender{clone.with("**Hyper, `--pod`**", inPod...), docker, docker.with("Docker, `--network container:`", byDocker...)}
	for _, c := range b.asked(who) {
		if c.flags == nil {
			continue
		}
		e, err := b.engines.get(ctx, c.engine)
		if err != nil {
			continue // alternate says so
		}
		if err := addNeighbour(ctx, e, c.flags); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, removeNeighbour(ctx, e, c.flags)) }()
	}
	results, err := b.alternate(ctx, b.n, who, add)
	return []section{{title: "the same, in a pod in which many have come and gone", unit: "ms", promise: ratio, results: results}}, err
}

// several is a pod of three containers beside one of one.
func several(ctx context.Context, b *bench) ([]section, error) {
	sizes := map[string]int{"**Hyper, pod of 3**": 3, "Hyper, pod of 1": 1}
	s := section{title: "`pod run -f FILE`, a clone, until all containers run", unit: "ms", promise: ratio, to: "Hyper, pod of 1"}
	who := []contender{clone.promising(1.5).with("**Hyper, pod of 3**"), clone.with(s.to)}
	var err error
	s.results, err = b.alternate(ctx, b.n, who, func(ctx context.Context, c contender, e *engine) (float64, error) {
		cmd := e.command(ctx, "pod", "run", "-f", "-")
		cmd.Stdin = strings.NewReader(podFile(sizes[c.label], e.image))
		took, err := ours.Timed(cmd)
		return took, errors.Join(err, removeNeighbour(ctx, e, inPod))
	})
	return []section{s}, err
}

// podFile describes a pod of n containers.
func podFile(n int, image string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\nspec:\n  containers:\n", neighbour)
	for i := range n {
		fmt.Fprintf(&b, "  - {name: c%d, image: %q, imagePullPolicy: IfNotPresent, command: [sleep, \"100000\"]}\n", i, image)
	}
	return b.String()
}

// podMore is how many containers are added to see what one takes.
const podMore = 10

// podMemory is what a further idle container of a pod takes.
func podMemory(ctx context.Context, b *bench) ([]section, error) {
	s := section{title: fmt.Sprintf("each of %d further idle containers of a pod that has two: its processes' PSS, and its share of what the pod's grew by", podMore), unit: "MB", promise: absolute}
	flags := map[string][]string{"hyper": inPod, "docker": byDocker}
	for _, c := range b.asked([]contender{clone.promising(3).with("**Hyper, `--pod`**"), docker.with("Docker, `--network container:`")}) {
		r := result{contender: c}
		for range max(1, b.n/10) {
			each, err := b.furtherMemory(ctx, c, flags[c.engine])
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				r.missing, r.values = reason(err), nil
				break
			}
			r.values = append(r.values, each)
		}
		s.results = append(s.results, r)
	}
	return []section{s}, nil
}

func (b *bench) furtherMemory(ctx context.Context, c contender, flags []string) (each float64, err error) {
	e, err := b.engines.get(ctx, c.engine)
	if err != nil {
		return 0, err
	}
	daemons := append(descendants(e.root), e.root)
	// What all but the daemon take, with n more.
	var ids []string
	with := func(n int) (int64, error) {
		for range n {
			id, err := ours.Output(c.with(c.label, flags...).run(ctx, e, idle...))
			if err != nil {
				return 0, err
			}
			ids = append(ids, id)
		}
		err := rest(ctx, idleTime)
		return pss(without(descendants(e.root), daemons)), err
	}
	err = beside(ctx, e, flags, func() (err error) {
		defer func() {
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			if len(ids) > 0 {
				_, rmErr := ours.Output(e.command(stop, append([]string{"rm", "-f"}, ids...)...))
				err = errors.Join(err, rmErr)
			}
		}()
		two, err := with(1)
		if err != nil {
			return err
		}
		all, err := with(podMore)
		each = stats.Megabytes(all-two) / podMore
		return err
	})
	return each, err
}

// without is all without those in others.
func without(all, others []int) []int {
	return slices.DeleteFunc(all, func(pid int) bool { return slices.Contains(others, pid) })
}

// roundTrips is how many make one measurement.
const roundTrips = 5000

// localhost is how long a round trip over TCP takes from one container of a pod to another.
func localhost(ctx context.Context, b *bench) ([]section, error) {
	dir, err := os.MkdirTemp("", "hyper-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "echo")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./bench/start/echo")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.WaitDelay = time.Second // for compilers that go started
	if _, err := ours.Output(build); err != nil {
		return nil, err
	}
	var sections []section
	for _, of := range []struct {
		c     contender
		name  string
		limit float64
	}{{clone, "**Hyper**", 1.1}, {docker, "Docker", 0}} {
		if len(b.asked([]contender{of.c})) == 0 {
			continue
		}
		s := section{title: "round trip over localhost, " + of.name, unit: "µs", promise: ratio, to: "two processes of one container"}
		who := []contender{of.c.promising(of.limit).with("two containers of a pod"), of.c.with(s.to)}
		s.results, err = b.roundTrips(ctx, who, program)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			for _, c := range who {
				s.results = append(s.results, result{contender: c, missing: reason(err)})
			}
		}
		sections = append(sections, s)
	}
	return sections, nil
}

// roundTrips has the first of two contenders ask the neighbour from another
// container, the second from the neighbour's own.
func (b *bench) roundTrips(ctx context.Context, who []contender, program string) (results []result, err error) {
	e, err := b.engines.get(ctx, who[0].engine)
	if err != nil {
		return nil, err
	}
	const other, address = "bench-other", "127.0.0.1:7007"
	from := map[string]string{who[0].label: other, who[1].label: neighbour}
	err = beside(ctx, e, byDocker, func() (err error) {
		if _, err := ours.Output(e.ofImage(ctx, append(append([]string{"run", "--name", other}, byDocker...), idle...))); err != nil {
			return err
		}
		defer func() {
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			_, rmErr := ours.Output(e.command(stop, "rm", "-f", other))
			err = errors.Join(err, rmErr)
		}()
		for _, name := range from {
			if err := install(e.command(ctx, "exec", "-i", name, "sh", "-c", "cat >/echo && chmod +x /echo"), program); err != nil {
				return err
			}
		}
		if _, err := ours.Output(e.command(ctx, "exec", "-d", neighbour, "/echo", "serve", address)); err != nil {
			return err
		}
		if err := rest(ctx, podRest); err != nil {
			return err
		}
		results, err = b.alternate(ctx, b.n, who, func(ctx context.Context, c contender, e *engine) (float64, error) {
			out, err := ours.Output(e.command(ctx, "exec", from[c.label], "/echo", "ask", address, strconv.Itoa(roundTrips)))
			if err != nil {
				return 0, err
			}
			return strconv.ParseFloat(out, 64)
		})
		return err
	})
	return results, err
}

// install gives a command a file as its standard input.
func install(cmd *exec.Cmd, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd.Stdin = f
	_, err = ours.Output(cmd)
	return err
}
