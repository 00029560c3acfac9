package guestinit

import (
	"context"
	"sync"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// A broadcaster hands events to those who listen. One who does not keep up
// loses the oldest.
type broadcaster struct {
	mu        sync.Mutex
	listeners map[chan *wire.Event]bool
}

func (b *broadcaster) send(e *wire.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for l := range b.listeners {
		for sent := false; !sent; {
			select {
			case l <- e:
				sent = true
			default:
				select {
				case <-l:
				default:
				}
			}
		}
	}
}

func (b *broadcaster) listen() (chan *wire.Event, func()) {
	l := make(chan *wire.Event, 64)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.listeners == nil {
		b.listeners = map[chan *wire.Event]bool{}
	}
	b.listeners[l] = true
	return l, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.listeners, l)
	}
}

// Events implements wire.GuestService.
func (s *Service) Events(ctx context.Context, _ *wire.EventsRequest, out wire.Guest_EventsServer) error {
	l, stop := s.events.listen()
	defer stop()
	for {
		select {
		case e := <-l:
			if err := out.Send(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
