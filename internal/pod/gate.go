package pod

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
)

// Why a pod is closed, as what follows its name in an error.
const (
	beingMade    = "is being made"
	beingStopped = "is being stopped"
	beingRemoved = "is being removed"
)

// close keeps everything from being started in the pod, until open. One who closes it waits for
// another who has. Errors: errdefs NotFound when it is removed meanwhile.
func (p *pod) close(ctx context.Context, why string) error {
	if err := p.life.acquire(ctx); err != nil {
		return fmt.Errorf("pod %s %s: %w", p.label(), p.isClosed(), err)
	}
	return p.closeLocked(why)
}

// tryClose is close, but false when somebody else has closed it.
func (p *pod) tryClose(why string) bool {
	return p.life.tryAcquire() && p.closeLocked(why) == nil
}

func (p *pod) closeLocked(why string) error {
	p.mu.Lock()
	removed := p.removed
	if !removed {
		p.closed = why
	}
	p.mu.Unlock()
	if removed {
		p.life.release()
		return notFound("No such pod: " + p.label())
	}
	return nil
}

// open ends close.
func (p *pod) open() {
	p.mu.Lock()
	p.closed = ""
	wanted := p.rec.Wanted
	p.mu.Unlock()
	p.life.release()
	p.set.dropPod(p) // its last container may have gone meanwhile
	if wanted {
		p.keep() // its keeper has left
	}
}

func (p *pod) isClosed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// begin counts a start that begins in the pod, and has to be ended by ended. An error says why
// nothing can be started.
func (p *pod) begin() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.removed:
		return notFound("No such pod: " + p.id)
	case p.closed != "":
		return &closedError{fmt.Sprintf("pod %s %s", p.rec.Name, p.closed)}
	case p.rec.Half:
		return &closedError{fmt.Sprintf("pod %s was not wholly made or removed: remove it", p.rec.Name)}
	}
	p.starting++
	return nil
}

// ended is the end of a start. Close waits for none; the last lets go of the VM instead.
func (p *pod) ended() {
	p.mu.Lock()
	p.starting--
	p.changeLocked()
	p.mu.Unlock()
	if p.set.isClosing() {
		p.release()
	}
}

// idle waits until no start is under way in a closed pod.
func (p *pod) idle(ctx context.Context) error {
	for {
		p.mu.Lock()
		n, changed := p.starting, p.changed
		p.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for what is being started in pod %s: %w", p.label(), ctx.Err())
		}
	}
}

// changeLocked tells who waits for the pod that something of it has changed.
func (p *pod) changeLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *pod) isEmptied() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.emptied
}

// A closedError says that nothing can be started in a pod at the moment.
type closedError struct{ msg string }

func (e *closedError) Error() string { return e.msg }
func (e *closedError) Unwrap() error { return errdefs.ErrConflict }

// dropPod removes a pod that goes with its last container, when that has gone, in the background.
func (s *Set) dropPod(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropPodLocked(p.id)
}

// dropPodLocked lets go of a pod whose last container is gone, if it was there for them only.
func (s *Set) dropPodLocked(id string) {
	p := s.pods[id]
	if p == nil || s.hasMembersLocked(id) {
		return
	}
	rec := p.record()
	switch {
	case rec.Name == "":
		delete(s.pods, id)
	case rec.Spec.AutoRemove && p.isEmptied() && p.tryClose(beingRemoved): // nobody can add one now
		gone := make(chan struct{})
		p.mu.Lock()
		p.gone = gone
		p.mu.Unlock()
		s.background.Go(func() {
			defer close(gone)
			defer p.open()
			if err := p.remove(context.Background(), false); err != nil {
				s.log.Error("remove pod", "pod", id, "err", err)
			}
		})
	}
}
