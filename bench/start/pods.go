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
		contender
		name string
	}{{clone.promising(1.1), "Hyper"}, {docker, "Docker"}} {
		if len(b.asked([]contender{of.contender})) == 0 {
			continue
		}
		s := section{title: "round trip over localhost, " + of.name, unit: "µs", promise: ratio, to: paths[1].label}
		s.results, err = b.roundTrips(ctx, of.contender, program)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			s.results = []result{{contender: of.with(s.to), missing: reason(err)}}
		}
		sections = append(sections, s)
	}
	return sections, nil
}

// other is the name of a container beside the neighbour.
const other = "bench-other"

// paths are where round trips go: from a container, by a program with a CPU of its own
// or none, to a server in the neighbour. No two use the same file, as other programs would not.
var paths = []struct {
	label, from string
	ask         []string
	port        int
}{
	{"**two containers**", other, []string{"/ask"}, 7007},
	{"two processes of one container", neighbour, []string{"/ask"}, 7007},
	{"two containers, each on a CPU of its own", other, []string{"taskset", "2", "/ask"}, 7008},
	{"two processes, each on a CPU of its own", neighbour, []string{"taskset", "2", "/ask"}, 7008},
}

// roundTrips measures c's paths.
func (b *bench) roundTrips(ctx context.Context, c contender, program string) (results []result, err error) {
	e, err := b.engines.get(ctx, c.engine)
	if err != nil {
		return nil, err
	}
	var who []contender
	for i, p := range paths {
		who = append(who, c.with(p.label))
		if i > 0 {
			who[i].limit = 0
		}
	}
	err = beside(ctx, e, byDocker, func() (err error) {
		if _, err := ours.Output(e.ofImage(ctx, slices.Concat([]string{"run", "--name", other}, byDocker, idle))); err != nil {
			return err
		}
		defer func() {
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			_, rmErr := ours.Output(e.command(stop, "rm", "-f", other))
			err = errors.Join(err, rmErr)
		}()
		if err := serveEcho(ctx, e, program); err != nil {
			return err
		}
		results, err = b.alternate(ctx, b.n, who, func(ctx context.Context, c contender, e *engine) (float64, error) {
			p := paths[slices.IndexFunc(who, func(w contender) bool { return w.label == c.label })]
			args := slices.Concat([]string{"exec", p.from}, p.ask, []string{"ask", strconv.Itoa(p.port), strconv.Itoa(roundTrips)})
			out, err := ours.Output(e.command(ctx, args...))
			if err != nil {
				return 0, err
			}
			return strconv.ParseFloat(out, 64)
		})
		return err
	})
	return results, err
}

// serveEcho puts the program where paths want it, and starts its servers.
func serveEcho(ctx context.Context, e *engine, program string) error {
	for _, at := range [][2]string{{neighbour, "/echo"}, {neighbour, "/ask"}, {other, "/ask"}} {
		if err := install(e.command(ctx, "exec", "-i", at[0], "sh", "-c", "cat >"+at[1]+" && chmod +x "+at[1]), program); err != nil {
			return err
		}
	}
	for _, server := range [][]string{{"/echo", "serve", "7007"}, {"taskset", "1", "/echo", "serve", "7008"}} {
		if _, err := ours.Output(e.command(ctx, slices.Concat([]string{"exec", "-d", neighbour}, server)...)); err != nil {
			return err
		}
	}
	return rest(ctx, podRest)
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
