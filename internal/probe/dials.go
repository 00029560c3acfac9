package probe

import (
	"context"
	"net"
	"sync"
)

// dials are the connections of one check. They end with it, or with its context,
// whatever a library has under way on them in goroutines of its own.
type dials struct {
	target Target
	ctx    context.Context
	cancel context.CancelFunc
	stop   func() bool // has the end of ctx end nothing any more
	busy   sync.WaitGroup

	mu    sync.Mutex
	over  bool
	conns []net.Conn
	err   error // of the last that failed, which gRPC would make a text of
}

func newDials(ctx context.Context, t Target) *dials {
	d := &dials{target: t}
	d.ctx, d.cancel = context.WithCancel(ctx)
	d.stop = context.AfterFunc(ctx, d.end)
	return d
}

func (d *dials) dial(address string) (net.Conn, error) {
	d.mu.Lock()
	if d.over {
		d.mu.Unlock()
		return nil, net.ErrClosed
	}
	d.busy.Add(1)
	d.mu.Unlock()
	defer d.busy.Done()
	conn, err := d.target.Dial(d.ctx, address)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err != nil:
		d.err = err
		return nil, err
	case d.over:
		conn.Close()
		return nil, net.ErrClosed
	}
	d.conns = append(d.conns, conn)
	return conn, nil
}

// failed is why the last connection that failed did.
func (d *dials) failed() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// end closes all connections, and there will be no further one.
func (d *dials) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	for _, conn := range d.conns {
		conn.Close()
	}
	d.conns = nil
}

// close ends them, and returns when no dial is under way.
func (d *dials) close() {
	d.stop()
	d.end()
	d.cancel()
	d.busy.Wait()
}
