package pod

import "sync"

// A queue stands between what comes from the guest and what goes to attached
// clients. While the container runs it is short, so that a slow client stops
// the container, as a slow terminal does. Once the process has exited it takes
// all that is left, which the guest's window bounds, so that the VM can go
// before the slowest client has read everything.
type queue struct {
	f *fanout

	mu     sync.Mutex
	cond   sync.Cond
	chunks []chunk
	size   int
	short  bool // the limit holds
	closed bool
	last   []*sink  // attached when the stream ended
	free   [][]byte // buffers to use again
}

// A chunk is a piece of output and those who were attached when it came.
type chunk struct {
	data  []byte
	sinks []*sink
}

const (
	outputBuffer = 64 << 10 // how much is read from the guest at once
	queueLimit   = 4 * outputBuffer
)

// newQueue starts the goroutine that delivers; it ends after close, when all
// is delivered, and then ends those who were attached at the close.
func newQueue(f *fanout) *queue {
	q := &queue{f: f, short: true}
	q.cond.L = &q.mu
	go q.deliver()
	return q
}

// buffer returns a buffer to read into.
func (q *queue) buffer() []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := len(q.free); n > 0 {
		b := q.free[n-1]
		q.free = q.free[:n-1]
		return b[:outputBuffer]
	}
	return make([]byte, outputBuffer)
}

// push hands a chunk over, and its buffer with it.
func (q *queue) push(c chunk) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(c.sinks) == 0 {
		q.releaseLocked(c.data)
		return
	}
	for q.short && q.size >= queueLimit {
		q.cond.Wait()
	}
	q.chunks = append(q.chunks, c)
	q.size += len(c.data)
	q.cond.Broadcast()
}

func (q *queue) releaseLocked(b []byte) {
	if len(q.free) < 2 {
		q.free = append(q.free, b)
	}
}

// lift takes the limit away: the process has exited, or hyperd ends.
func (q *queue) lift() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.short = false
	q.cond.Broadcast()
}

// close says that nothing more comes. Who attaches from now on waits for the
// next run.
func (q *queue) close() {
	last := q.f.take()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed, q.last = true, last
	q.cond.Broadcast()
}

func (q *queue) deliver() {
	for {
		q.mu.Lock()
		for len(q.chunks) == 0 && !q.closed {
			q.cond.Wait()
		}
		if len(q.chunks) == 0 {
			q.mu.Unlock()
			endSinks(q.last)
			return
		}
		c := q.chunks[0]
		q.mu.Unlock()
		for _, k := range c.sinks {
			q.f.write(k, c.data)
		}
		q.mu.Lock()
		q.chunks = q.chunks[1:]
		q.size -= len(c.data)
		q.releaseLocked(c.data)
		q.cond.Broadcast()
		q.mu.Unlock()
	}
}
