package session

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// awaitTimeout bounds how long something awaits its process.
const awaitTimeout = time.Minute

// An awaiter lets streams and calls of a session await a process that a call
// of the session starts; see wire.Await.
type awaiter struct {
	mu   sync.Mutex
	next chan struct{} // closed when the next call ends
}

func newAwaiter() *awaiter { return &awaiter{next: make(chan struct{})} }

// callEnded says that a call has ended, which may have started a process.
func (w *awaiter) callEnded() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.next)
	w.next = make(chan struct{})
}

// await calls find, and again after every call that ends, as long as it
// returns that there is no such process. It gives up after a while, or with ctx.
func (w *awaiter) await(ctx context.Context, find func() error) error {
	timeout := time.NewTimer(awaitTimeout)
	defer timeout.Stop()
	for {
		w.mu.Lock()
		next := w.next
		w.mu.Unlock()
		err := find()
		if status.Code(err) != codes.NotFound {
			return err
		}
		select {
		case <-next:
		case <-ctx.Done():
			return err
		case <-timeout.C:
			return err
		}
	}
}
