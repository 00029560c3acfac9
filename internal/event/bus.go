package event

import (
	"context"
	"errors"
	"sync"
	"time"
)

// ErrTooSlow is what a subscription ends with when its reader fell behind by
// more than a queue: what follows would have a hole.
var ErrTooSlow = errors.New("events: the subscriber is too slow, events were lost")

// ErrClosed is what Next returns after Close.
var ErrClosed = errors.New("events: subscription closed")

const (
	historySize = 1024  // events remembered
	queueSize   = 16384 // events that wait for one subscriber
)

// A Bus hands every event to every subscriber, in one order, and remembers
// the last ones. The zero value is ready. Safe for concurrent use.
type Bus struct {
	mu      sync.Mutex
	history []Event // a ring once it is full
	oldest  int     // index of the oldest event in history
	subs    map[*Subscription]struct{}
}

// Publish hands e to all subscribers and never waits for one: a subscriber
// whose queue is full is cut off. A zero e.Time becomes now. The bus keeps
// e.Attrs; nobody may change it afterwards.
func (b *Bus) Publish(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if len(b.history) < historySize {
		b.history = append(b.history, e)
	} else {
		b.history[b.oldest] = e
		b.oldest = (b.oldest + 1) % historySize
	}
	for s := range b.subs {
		if len(s.queue) == queueSize {
			s.err = ErrTooSlow
			s.queue = nil
			delete(b.subs, s)
		} else {
			s.queue = append(s.queue, e)
		}
		s.wake()
	}
}

// Subscribe returns the remembered events that are not older than since (none
// when since is zero) and a subscription to all that come after them. The
// caller closes the subscription.
func (b *Bus) Subscribe(since time.Time) (past []Event, s *Subscription) {
	s = &Subscription{bus: b, more: make(chan struct{}, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subs == nil {
		b.subs = make(map[*Subscription]struct{})
	}
	b.subs[s] = struct{}{}
	if since.IsZero() {
		return nil, s
	}
	for i := range b.history {
		if e := b.history[(b.oldest+i)%len(b.history)]; !e.Time.Before(since) {
			past = append(past, e)
		}
	}
	return past, s
}

// Subscribers is how many subscriptions are open.
func (b *Bus) Subscribers() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs)
}

// A Subscription is one reader's queue of events. Next is for one goroutine.
type Subscription struct {
	bus   *Bus
	batch []Event       // taken from queue, only Next touches it
	more  chan struct{} // queue or err changed

	// Guarded by bus.mu.
	queue []Event
	err   error
}

// Next returns the next event, waiting for it until ctx ends. After ErrTooSlow
// or ErrClosed no more events come.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		if len(s.batch) > 0 {
			e := s.batch[0]
			s.batch = s.batch[1:]
			return e, nil
		}
		s.bus.mu.Lock()
		s.batch, s.queue = s.queue, nil
		err := s.err
		s.bus.mu.Unlock()
		if len(s.batch) > 0 {
			continue
		}
		if err != nil {
			return Event{}, err
		}
		select {
		case <-s.more:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Close ends the subscription. Idempotent.
func (s *Subscription) Close() {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	delete(s.bus.subs, s)
	if s.err == nil {
		s.err = ErrClosed
	}
	s.queue = nil
	s.wake()
}

func (s *Subscription) wake() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}
