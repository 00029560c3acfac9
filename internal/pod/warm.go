package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/template"
	"github.com/hyper-run/hyper/internal/vmm"
)

// A warmPool keeps clones that have answered, with an address but no
// container, for the shapes that were started lately. It is never needed: who
// finds it empty makes a clone.
//
// One goroutine of Set.background makes one clone at a time, and only while nothing
// is being started: it would take the CPU from a start that somebody waits for.
type warmPool struct {
	set  *Set
	size int // clones to keep of each shape

	mu       sync.Mutex
	shelves  []*shelf // the most recently used first
	starting int      // starts under way
	filling  bool     // the goroutine runs
	short    bool     // the host is short of memory: keep none
	closed   bool
	timer    *time.Timer
	ctx      context.Context
	cancel   context.CancelFunc
}

// A shelf has the clones of one shape.
type shelf struct {
	shape template.Shape
	boot  BootFiles
	idle  []*machine
}

const (
	maxShelves = 4
	// warmRest is how long nothing was started before the pool is filled.
	warmRest = 200 * time.Millisecond
)

func newWarmPool(s *Set, size int) *warmPool {
	w := &warmPool{set: s, size: size}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.timer = time.AfterFunc(time.Hour, w.fill)
	w.timer.Stop()
	return w
}

// startBegins and startEnds tell the pool when to keep still.
func (w *warmPool) startBegins() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starting++
	w.timer.Stop()
}

func (w *warmPool) startEnds() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starting--
	w.armLocked()
}

func (w *warmPool) armLocked() {
	if w.starting == 0 && !w.closed && !w.short && w.size > 0 {
		w.timer.Reset(warmRest)
	}
}

// take returns a warm VM for a plan, nil when there is none.
func (w *warmPool) take(p *plan) *machine {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.size == 0 || p.cold != "" || p.attachment != nil {
		return nil
	}
	sh := w.shelfLocked(p)
	for len(sh.idle) > 0 {
		m := sh.idle[0]
		sh.idle = slices.Delete(sh.idle, 0, 1)
		if !isClosed(m.vm.Done()) && m.client.Err() == nil {
			return m
		}
		m.destroy(context.Background())
	}
	return nil
}

// shelfLocked returns the shelf for a plan's shape, and makes it the first.
func (w *warmPool) shelfLocked(p *plan) *shelf {
	i := slices.IndexFunc(w.shelves, func(s *shelf) bool { return s.shape == p.shape })
	sh := &shelf{shape: p.shape, boot: p.boot}
	if i >= 0 {
		sh = w.shelves[i]
		w.shelves = slices.Delete(w.shelves, i, i+1)
	}
	w.shelves = slices.Insert(w.shelves, 0, sh)
	if len(w.shelves) > maxShelves {
		last := w.shelves[maxShelves]
		w.shelves = w.shelves[:maxShelves]
		w.discard(last.idle)
	}
	return sh
}

// discard ends VMs in the background.
func (w *warmPool) discard(ms []*machine) {
	for _, m := range ms {
		w.set.background.Go(func() { <-m.destroy(context.Background()) })
	}
}

// fill is the timer's: it makes what is missing, unless something starts.
func (w *warmPool) fill() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.filling || w.closed {
		return
	}
	w.filling = true
	w.set.background.Go(func() {
		for w.fillOne() {
		}
	})
}

// fillOne makes one clone; false when there is nothing to do, or it must not be done now.
func (w *warmPool) fillOne() bool {
	w.mu.Lock()
	i := slices.IndexFunc(w.shelves, func(s *shelf) bool { return len(s.idle) < w.size })
	if i < 0 || w.starting > 0 || w.short || w.closed {
		w.filling = false
		w.mu.Unlock()
		return false
	}
	sh := w.shelves[i]
	w.mu.Unlock()
	m, err := w.set.makeWarm(w.ctx, sh)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.filling = false
		var notReady *template.NotReadyError
		if !errors.As(err, &notReady) && w.ctx.Err() == nil {
			w.set.log.Warn("keep a VM warm", "err", err)
		}
		return false // until the next start
	}
	if w.closed || w.short || !slices.Contains(w.shelves, sh) {
		w.discard([]*machine{m})
		return true
	}
	sh.idle = append(sh.idle, m)
	return true
}

// want has the pool keep clones of a shape that nobody has started yet.
func (w *warmPool) want(p *plan) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shelfLocked(p)
	w.armLocked()
}

// setShort empties the pool when the host's memory is short, and lets it fill again.
func (w *warmPool) setShort(short bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.short = short
	if short {
		w.emptyLocked()
	}
	w.armLocked()
}

func (w *warmPool) emptyLocked() {
	for _, sh := range w.shelves {
		w.discard(sh.idle)
		sh.idle = nil
	}
}

// close ends all warm VMs; no pod is in them.
func (w *warmPool) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.cancel()
	w.timer.Stop()
	w.emptyLocked()
}

// count is how many VMs are warm, and how many there would be.
func (w *warmPool) count() (warm, wanted int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, sh := range w.shelves {
		warm += len(sh.idle)
	}
	if w.short {
		return warm, 0
	}
	return warm, len(w.shelves) * w.size
}

// makeWarm makes a clone with an address and a connection to its guest.
func (s *Set) makeWarm(ctx context.Context, sh *shelf) (_ *machine, err error) {
	if _, err := s.cfg.Templates.Find(ctx, sh.shape); err != nil {
		return nil, err
	}
	pl := &plan{boot: sh.boot, shape: sh.shape, size: size{memory: vmRoom(sh.shape.MemMiB), cpus: sh.shape.CPUs}}
	m, err := s.newVM("", pl)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.destroy(ctx)
		}
	}()
	tr := s.newTrace("", time.Now())
	if err := m.bringUp(ctx, pl, tr); err != nil {
		return nil, err
	}
	if m.info().Road != RoadClone {
		return nil, fmt.Errorf("make a clone: %w", &template.NotReadyError{Why: pl.cold})
	}
	if err := m.configure(ctx, m.identity(true), tr); err != nil {
		return nil, err
	}
	g, err := m.guest(ctx)
	if err != nil {
		return nil, err
	}
	return m, s.rehearse(ctx, m, g)
}

// rehearsals is how often a small container is run: some roads differ the second time.
const rehearsals = 3

// rehearse runs a small container in a warm VM, so that an emulator has
// translated the code of a start before somebody waits for it. With hardware
// that executes guests there is nothing to gain.
func (s *Set) rehearse(ctx context.Context, m *machine, g *guest.Client) error {
	if s.cfg.Rehearsal == nil || m.info().Accel != string(vmm.AccelTCG) {
		return nil
	}
	sp, err := s.cfg.Rehearsal(ctx)
	if err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	layers, err := s.cfg.Layers(ctx, sp, 1)
	if err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	disk := filepath.Join(s.cfg.Layout.Pod(m.id()), "rehearsal.ext4")
	if err := s.cfg.CreateDisk(disk, minDiskBytes, false); err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	c := s.newContainer(record{ID: newID(), Spec: sp})
	n := &needs{user: c.id, layers: layers, disk: disk}
	if err := m.place(ctx, n); err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	create, err := m.createRequest(c, sp, m.placed(n))
	if err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	for range rehearsals {
		err := rehearseIn(ctx, g, c.id, &wire.RunRequest{
			Configure: &wire.ConfigureRequest{}, Create: create, Start: &wire.StartProcessRequest{ContainerId: c.id},
		})
		if err != nil {
			return err
		}
	}
	if err := m.vacate(ctx, c.id); err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	return os.Remove(disk)
}

// rehearseIn goes the whole road, output and end included.
func rehearseIn(ctx context.Context, g *guest.Client, id string, req *wire.RunRequest) error {
	resp, err := g.Run(ctx, req)
	if err == nil {
		err = runFailure(resp, "rehearsal")
	}
	if err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	out, err := g.Output(ctx, id, "", wire.StreamHeader_STDOUT, 0)
	if err == nil {
		_, err = io.Copy(io.Discard, out)
		out.Close()
	}
	if err == nil {
		_, err = g.Wait(ctx, &wire.WaitRequest{ContainerId: id})
	}
	if err == nil {
		_, err = g.DeleteContainer(ctx, &wire.DeleteContainerRequest{Id: id})
	}
	if err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	return nil
}
