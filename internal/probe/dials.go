package probe

import (
	"context"
	"net"
	"sync"
)

// dials are the connections of one check. Libraries let go of theirs at some time,
// in goroutines of their own: here is what makes sure of it.
type dials struct {
	target Target
	ctx    context.Context // of the check; a library's own may last longer
	cancel context.CancelFunc
	busy   sync.WaitGroup

	mu    sync.Mutex
	over  bool
	conns []net.Conn
	err   error // of the last that failed, which gRPC would make a text of
}

func newDials(ctx context.Context, t Target) *dials {
	d := &dials{target: t}
	d.ctx, d.cancel = context.WithCancel(ctx)
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
	if err != nil {
		d.err = err
		return nil, err
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

// close closes all connections, and there will be no further one.
func (d *dials) close() {
	d.mu.Lock()
	d.over = true
	d.mu.Unlock()
	d.cancel()
	d.busy.Wait()
	for _, conn := range d.conns {
		conn.Close()
	}
}
