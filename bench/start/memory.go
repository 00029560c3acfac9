package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hyper-run/hyper/bench/internal/ours"
	"github.com/hyper-run/hyper/bench/internal/stats"
)

// idleTime is how long containers are left alone before they are looked at.
const idleTime = 20 * time.Second

// memory is what idle containers cost: the processes that come with them. What
// the daemon itself grows by is not theirs alone, and has a table of its own.
func memory(ctx context.Context, b *bench) ([]section, error) {
	title := fmt.Sprintf("each of %d idle containers: ", crowd)
	cost := section{title: title + "its processes' PSS", unit: "MB", promise: absolute}
	grown := section{title: title + "share of what the daemon grew by", unit: "MB"}
	own := section{title: title + "guest memory that the clone made its own", unit: "MB", promise: absolute}
	for _, c := range b.asked([]contender{clone.promising(26), docker, docker20, podman, runsc}) {
		m, err := b.idle(ctx, c)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		r := result{contender: c, values: m.each}
		if err != nil {
			r.missing = reason(err)
		}
		cost.results = append(cost.results, r)
		if err == nil && c.engine != podman.engine { // which has no daemon
			grown.results = append(grown.results, result{contender: c.promising(0), values: []float64{m.daemon}})
		}
		if len(m.own) > 0 {
			own.results = append(own.results, result{contender: c.promising(2), values: m.own})
		}
	}
	sections := []section{cost, grown}
	if len(own.results) > 0 {
		sections = append(sections, own)
	}
	return sections, nil
}

// costs of idle containers, in MB.
type costs struct {
	each   []float64 // mean of all, so one number
	daemon float64
	own    []float64 // per clone
}

func (b *bench) idle(ctx context.Context, c contender) (_ costs, err error) {
	var m costs
	e, err := b.engines.get(ctx, c.engine)
	if err != nil {
		return m, err
	}
	if err := settled(ctx, c, e); err != nil {
		return m, err
	}
	if _, err := proof(ctx, c, e); err != nil {
		return m, err
	}
	daemons := append(descendants(e.root), e.root)
	before := pss(daemons)
	ids := []string{"rm", "-f"}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		_, rmErr := ours.Output(e.command(stop, ids...))
		err = errors.Join(err, rmErr)
	}()
	for range crowd {
		id, err := ours.Output(c.run(ctx, e, "-d", "IMG", "sleep", "100000"))
		if err != nil {
			return m, err
		}
		ids = append(ids, id)
	}
	select {
	case <-ctx.Done():
		return m, ctx.Err()
	case <-time.After(idleTime):
	}
	var theirs []int
	for _, pid := range without(descendants(e.root), daemons) {
		theirs = append(theirs, pid)
		if size, ok := clonePrivate(pid); ok && c.road == clone.road {
			m.own = append(m.own, stats.Megabytes(size))
		}
	}
	m.each = []float64{stats.Megabytes(pss(theirs)) / crowd}
	m.daemon = stats.Megabytes(pss(daemons)-before) / crowd
	return m, nil
}

// pss sums the proportional set sizes of processes, in bytes. What several map
// counts as a part for each; one that has ended counts nothing.
func pss(pids []int) int64 {
	var sum int64
	for _, pid := range pids {
		if f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/smaps_rollup"); err == nil {
			sum += mappingField(f, "", "Pss")
			f.Close()
		}
	}
	return sum
}

// clonePrivate is the part of a template's memory that a clone has copied.
func clonePrivate(pid int) (size int64, ok bool) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/smaps")
	if err != nil {
		return 0, false
	}
	defer f.Close()
	size = mappingField(f, "memfd:", "Private_Dirty")
	return size, size > 0
}

// mappingField sums a field, in bytes, of the mappings in a smaps whose name
// contains a text, proc_pid_smaps(5).
func mappingField(smaps io.Reader, mapping, field string) int64 {
	var sum int64
	within := false
	for sc := bufio.NewScanner(smaps); sc.Scan(); {
		words := strings.Fields(sc.Text())
		switch {
		case len(words) == 0:
		case !strings.HasSuffix(words[0], ":"): // 55d0-55d1 r--p 0000 08:01 123 NAME
			within = strings.Contains(sc.Text(), mapping)
		case within && words[0] == field+":":
			kib, _ := strconv.ParseInt(words[1], 10, 64) //nolint:errcheck // the kernel writes numbers
			sum += kib << 10
		}
	}
	return sum
}
