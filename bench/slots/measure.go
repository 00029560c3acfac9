package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hyper-run/hyper/bench/internal/stats"
)

type config struct {
	shape
	roads    []road
	images   []float64 // MB of each
	n        int       // starts of each
	crowd    int       // VMs at once of each
	progress io.Writer
}

// A row is what was measured of one image on one road. Times are in ms, memory is in MiB,
// throughput in MB/s.
type row struct {
	road
	mb                  float64
	files               int
	qmp, loaded, answer []float64
	first, again        []float64
	private, guest      []float64
	pss, pageTables     []float64
}

// A templateRow is what slots cost a template.
type templateRow struct {
	road
	slots, slotMiB int
	boot           float64 // ms
	used, state    float64 // MiB
}

type report struct {
	host      []string
	crowd     int
	rows      []*row
	templates []templateRow
	perGiB    float64 // MiB of guest memory for a GiB of pmem slots; 0: not measured
}

func measure(ctx context.Context, c config) (_ *report, err error) {
	preparing, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	l, err := newLab(preparing, c.shape)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closeErr := l.close(); err == nil {
			err = closeErr
		}
	}()
	rep := &report{crowd: c.crowd}
	if rep.host, err = hostLines(preparing, c.shape); err != nil {
		return nil, err
	}
	var templates []*template
	for _, r := range c.roads {
		fmt.Fprintf(c.progress, "template %v\n", r)
		t, err := l.makeTemplate(ctx, r, c.shape)
		if err != nil {
			return nil, err
		}
		defer t.close()
		templates = append(templates, t)
		rep.templates = append(rep.templates, templateRowOf(t))
	}
	if err := l.slotCost(ctx, templates, rep); err != nil {
		return nil, err
	}
	for _, mb := range c.images {
		rows, err := c.measureImage(ctx, l, templates, mb)
		if err != nil {
			return nil, err
		}
		rep.rows = append(rep.rows, rows...)
	}
	rep.host = append(rep.host, "load average after: "+loadAverage())
	return rep, nil
}

func templateRowOf(t *template) templateRow {
	size, err := t.state.Seek(0, io.SeekEnd)
	if err != nil {
		size = 0
	}
	return templateRow{
		road: t.road, slots: t.slots, slotMiB: t.slotMiB,
		boot: stats.Milliseconds(t.boot), used: stats.Megabytes(t.used), state: stats.Megabytes(size),
	}
}

// slotCost compares a template with many pmem slots to one with a single slot.
func (l *lab) slotCost(ctx context.Context, templates []*template, rep *report) error {
	for _, t := range templates {
		if t.kind != pmem || t.slots < 2 {
			continue
		}
		s := t.shape
		s.slots = 1
		one, err := l.makeTemplate(ctx, t.road, s)
		if err != nil {
			return err
		}
		defer one.close()
		rep.templates = append(rep.templates, templateRowOf(one))
		gib := float64((t.slots-1)*t.slotMiB) / 1024
		rep.perGiB = stats.Megabytes(t.used-one.used) / gib
		return nil
	}
	return nil
}

// measureImage measures one image on all roads in turn, so that what else the
// machine does falls on all of them.
func (c config) measureImage(ctx context.Context, l *lab, templates []*template, mb float64) ([]*row, error) {
	path := filepath.Join(l.dir, fmt.Sprintf("image-%g", mb))
	img, err := makeImage(path, mb, int64(c.slotMiB)<<20)
	if err != nil {
		return nil, err
	}
	defer os.Remove(path)
	defer img.file.Close()
	if _, err := io.Copy(io.Discard, img.file); err != nil { // into the page cache
		return nil, err
	}
	rows := make([]*row, len(templates))
	for i, t := range templates {
		rows[i] = &row{road: t.road, mb: mb, files: img.files}
	}
	for n := range c.n {
		for i, t := range templates {
			fmt.Fprintf(c.progress, "%g MB, %v: start %d of %d\n", mb, t.road, n+1, c.n)
			if err := t.once(ctx, img, rows[i]); err != nil {
				return nil, fmt.Errorf("measure %v with %g MB: %w", t.road, mb, err)
			}
		}
	}
	for i, t := range templates {
		fmt.Fprintf(c.progress, "%g MB, %v: %d at once\n", mb, t.road, c.crowd)
		if err := t.together(ctx, img, c.crowd, rows[i]); err != nil {
			return nil, fmt.Errorf("measure %d of %v with %g MB: %w", c.crowd, t.road, mb, err)
		}
	}
	return rows, nil
}

// once measures the start of one clone, and how fast it reads.
func (t *template) once(ctx context.Context, img *image, r *row) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	v, took, err := t.clone(ctx, img)
	if err != nil {
		return err
	}
	defer v.end()
	first, err := v.read(ctx, img, 1)
	if err != nil {
		return err
	}
	again, err := v.read(ctx, img, max(1, int(20e6/img.bytes)))
	if err != nil {
		return err
	}
	dax, err := v.ask(ctx, "check")
	if err != nil {
		return err
	}
	if (dax == 1) != (t.kind == pmem) {
		return fmt.Errorf("use of DAX is %d", dax)
	}
	r.qmp = append(r.qmp, stats.Milliseconds(took.qmp))
	r.loaded = append(r.loaded, stats.Milliseconds(took.loaded))
	r.answer = append(r.answer, stats.Milliseconds(took.answer))
	r.first = append(r.first, first)
	r.again = append(r.again, again)
	return nil
}

// read has the guest read the whole image and returns MB/s. The host's clock
// is taken, as a guest's may be wrong; the way of the answer is part of it.
func (v *vm) read(ctx context.Context, img *image, times int) (float64, error) {
	start := time.Now()
	n, err := v.ask(ctx, "read %d", times)
	if err != nil {
		return 0, v.explain(err)
	}
	if want := img.bytes * int64(times); n != want {
		return 0, fmt.Errorf("guest read %d bytes, want %d", n, want)
	}
	return float64(n) / 1e6 / time.Since(start).Seconds(), nil
}

// idleTime is how long VMs are left alone before their memory is looked at.
const idleTime = 5 * time.Second

// together starts clones that each read the whole image and then idle.
func (t *template) together(ctx context.Context, img *image, crowd int, r *row) error {
	ctx, cancel := context.WithTimeout(ctx, 5*patience)
	defer cancel()
	var vms []*vm
	defer func() {
		for _, v := range vms {
			v.end()
		}
	}()
	for range crowd {
		v, _, err := t.clone(ctx, img)
		if err != nil {
			return err
		}
		vms = append(vms, v)
		if _, err := v.read(ctx, img, 1); err != nil {
			return err
		}
	}
	if err := pause(ctx, idleTime); err != nil {
		return err
	}
	for _, v := range vms {
		m, err := memoryOf(v.cmd.Process.Pid)
		if err != nil {
			return err
		}
		r.private = append(r.private, stats.Megabytes(m.private))
		r.guest = append(r.guest, stats.Megabytes(m.guest))
		r.pss = append(r.pss, stats.Megabytes(m.pss))
		r.pageTables = append(r.pageTables, stats.Megabytes(m.pageTables))
	}
	return nil
}
