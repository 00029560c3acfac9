package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hyper-run/hyper/bench/internal/ours"
)

// A bench is one run of this command.
type bench struct {
	config
	engines engines
}

// rowKinds are all that can be measured, in the order of the table.
var rowKinds = []struct {
	name    string
	measure func(context.Context, *bench) ([]section, error)
}{
	{"run", runTrue},
	{"tail", tail},
	{"parallel", parallel},
	{"clone", cloneTime},
	{"sized", sized},
	{"exec", execTrue},
	{"memory", memory},
	{"pod-add", second},
	{"pod-again", later},
	{"pod-three", several},
	{"pod-memory", podMemory},
	{"pod-localhost", localhost},
}

func rowNames() []string {
	var names []string
	for _, k := range rowKinds {
		names = append(names, k.name)
	}
	return names
}

func measure(ctx context.Context, c config, rows []string) (_ report, err error) {
	var r report
	if c.image == "" {
		if c.image, err = ours.MakeImage(ctx, c.progress); err != nil {
			return r, err
		}
	}
	b := &bench{config: c, engines: engines{c: c, started: map[string]*engine{}, missing: map[string]error{}}}
	dir, err := os.MkdirTemp("", "hyper-bench-")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, b.engines.stop(), os.RemoveAll(dir)) }()
	b.engines.archive = filepath.Join(dir, "image.tar")
	if r.host, err = prepare(ctx, c, b.engines.archive); err != nil {
		return r, err
	}
	for _, kind := range rowKinds {
		if !slices.Contains(rows, kind.name) {
			continue
		}
		fmt.Fprintf(c.progress, "measures %s\n", kind.name)
		sections, err := kind.measure(ctx, b)
		if err != nil {
			return r, fmt.Errorf("measure %s: %w", kind.name, err)
		}
		r.sections = append(r.sections, sections...)
	}
	for _, name := range b.engines.order {
		r.host = append(r.host, fmt.Sprintf("%s: %s", name, b.engines.started[name].version))
	}
	return r, nil
}

// prepare describes the host, and writes the image as all products can load
// it, which not all can from an OCI archive.
func prepare(ctx context.Context, c config, archive string) (lines []string, err error) {
	d, err := ours.Start(ctx, ours.Options{Bin: c.bin, NetPrefix: "bsp"})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	if lines, err = ours.HostLines(ctx, d); err != nil {
		return nil, err
	}
	image, err := ours.Load(d.Command(ctx, "load", "-i", c.image))
	if err != nil {
		return nil, err
	}
	_, err = d.Hyper(ctx, "save", "-o", archive, image)
	return lines, err
}

// A contender is one way to run a container.
type contender struct {
	label  string
	engine string
	flags  []string // of run
	road   string   // of a start, as hyper run --trace calls it; "": not ours
	limit  float64  // see section; 0: nothing was promised
}

// reference is what promises compare with; where it is not to be had, fallback.
const (
	reference = "Docker, bridge"
	fallback  = "Docker 20.10, bridge"
)

var (
	clone    = contender{label: "**Hyper, clone**", engine: "hyper", road: "clone"}
	warm     = contender{label: "**Hyper, warm pool**", engine: "hyper-warm", road: "warm"}
	cold     = contender{label: "Hyper, cold boot", engine: "hyper-cold", road: "boot"}
	docker   = contender{label: reference, engine: "docker"}
	docker20 = contender{label: fallback, engine: "docker20"}
	podman   = contender{label: "podman + crun, bridge", engine: "podman"}
	runsc    = contender{label: "Docker + gVisor runsc, bridge", engine: "docker", flags: []string{"--runtime", "runsc"}}
)

// promising is c with a limit.
func (c contender) promising(limit float64) contender {
	c.limit = limit
	return c
}

// with is c with other flags of run, and a label that says so.
func (c contender) with(label string, flags ...string) contender {
	c.label, c.flags = label, append(slices.Clone(c.flags), flags...)
	return c
}

// run is `run` with the contender's flags, and "IMG" replaced by the image.
func (c contender) run(ctx context.Context, e *engine, args ...string) *exec.Cmd {
	return e.ofImage(ctx, slices.Concat([]string{"run"}, c.flags, args))
}

// alternate measures each contender n times, in turns, after warm-up. First and
// last it wants proof that they do what their labels say. One that does not work is left out from then on, with the
// reason. Errors: ctx's only.
func (b *bench) alternate(ctx context.Context, n int, who []contender, once func(context.Context, contender, *engine) (float64, error)) ([]result, error) {
	const warmUp = 2
	var results []result
	for _, c := range b.asked(who) {
		results = append(results, result{contender: c})
	}
	for round := range warmUp + n + 1 {
		for i := range results {
			r := &results[i]
			if r.missing != "" {
				continue
			}
			do := once
			if round == 0 || round == warmUp+n {
				do = proof
			}
			value, err := b.once(ctx, r.contender, do)
			switch {
			case ctx.Err() != nil:
				return nil, ctx.Err()
			case err != nil:
				r.missing, r.values = reason(err), nil
				fmt.Fprintf(b.progress, "%s is not available: %s\n", plain(r.label), r.missing)
			case round >= warmUp && round < warmUp+n:
				r.values = append(r.values, value)
			}
		}
	}
	return results, nil
}

// asked are those of who that -peers names, and ours.
func (b *bench) asked(who []contender) []contender {
	return slices.DeleteFunc(slices.Clone(who), func(c contender) bool {
		return hyperds[c.engine] == nil &&
			(!slices.Contains(b.peers, c.engine) || c.label == runsc.label && !slices.Contains(b.peers, "runsc"))
	})
}

// reason is an error in one line that fits a table. A long one loses its
// middle: the command is at the beginning, the cause at the end.
func reason(err error) string {
	const head, tail = 60, 180
	line, _, _ := strings.Cut(err.Error(), "\n")
	if len(line) > head+tail {
		line = line[:head] + " … " + line[len(line)-tail:]
	}
	return line
}

func (b *bench) once(ctx context.Context, c contender, once func(context.Context, contender, *engine) (float64, error)) (float64, error) {
	e, err := b.engines.get(ctx, c.engine)
	if err != nil {
		return 0, err
	}
	if err := settled(ctx, c, e); err != nil {
		return 0, err
	}
	return once(ctx, c, e)
}

// proof is a start that shows by which road it came.
func proof(ctx context.Context, c contender, e *engine) (float64, error) {
	if c.road == "" {
		return 0, nil
	}
	cmd := c.run(ctx, e, "--rm", "--trace", "IMG", "true")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("run --trace: %w: %s", err, lastLine(stderr.String()))
	}
	if !strings.Contains(stderr.String(), "STAGE ("+c.road+")") {
		line, _, _ := strings.Cut(stderr.String(), "\n")
		return 0, fmt.Errorf("the start's road is not %q, its trace begins %q", c.road, line)
	}
	return 0, nil
}

// settled waits until the warm pool is full, which hyper info tells as
// "Warm VMs: READY of WANTED".
func settled(ctx context.Context, c contender, e *engine) error {
	if c.engine != warm.engine {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		info, err := ours.Output(e.command(ctx, "info"))
		if err != nil {
			return err
		}
		ready, wanted, ok := poolStatus(info)
		switch {
		case !ok:
			return errors.New("hyper info tells of no warm VMs")
		case ready > 0 && ready == wanted:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the warm pool, %d of %d, to be full: %w", ready, wanted, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// poolStatus reads that line of hyper info.
func poolStatus(info string) (ready, wanted int, ok bool) {
	for _, line := range strings.Split(info, "\n") {
		if n, _ := fmt.Sscanf(strings.TrimSpace(line), "Warm VMs: %d of %d", &ready, &wanted); n == 2 {
			return ready, wanted, true
		}
	}
	return 0, 0, false
}
