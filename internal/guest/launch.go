package guest

import (
	"context"
	"errors"
	"io"
	"slices"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// A Process is a process that Launch or LaunchExec started: its streams are
// open and its end is waited for, on the connection it was started on. Who
// needs more than that connection goes on with Output, Stdin and Wait.
type Process struct {
	Out, Err *Output        // Err is nil with a terminal
	In       io.WriteCloser // nil without a standard input

	abandon context.CancelFunc
	ended   chan struct{} // closed when status and err are valid
	status  *wire.WaitResponse
	err     error
}

// Wait returns how the process ended, as Client.Wait does.
func (p *Process) Wait(ctx context.Context) (*wire.WaitResponse, error) {
	select {
	case <-p.ended:
		return p.status, p.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close lets go of the streams that are still open and of the wait. The
// process runs on.
func (p *Process) Close() error {
	p.abandon()
	p.closeStreams()
	return nil
}

func (p *Process) closeStreams() {
	for _, o := range []*Output{p.Out, p.Err} {
		if o != nil {
			o.Close()
		}
	}
	if p.In != nil {
		p.In.Close()
	}
}

// Launch is Run, and at the same time, in one write, opens the streams of the
// container's process, from their beginning, and waits for its end: a round
// trip into a guest costs more than any of these. The Process is nil when
// RunResponse says that a part failed. The guest has to speak protocol 2.
func (c *Client) Launch(ctx context.Context, req *wire.RunRequest, terminal bool) (*wire.RunResponse, *Process, error) {
	l := launch{key: processKey{container: req.GetStart().GetContainerId()}, stdin: req.GetStart().GetStdin(), terminal: terminal}
	var resp *wire.RunResponse
	p, err := c.launch(ctx, l, func() (started bool, err error) {
		resp, err = c.Run(ctx, req)
		return err == nil && resp.Failed == "", err
	})
	return resp, p, err
}

// LaunchExec is to StartProcess what Launch is to Run.
func (c *Client) LaunchExec(ctx context.Context, req *wire.StartProcessRequest, terminal bool) (*wire.StartProcessResponse, *Process, error) {
	l := launch{key: processKey{req.ContainerId, req.ExecId}, stdin: req.Stdin, terminal: terminal}
	var resp *wire.StartProcessResponse
	p, err := c.launch(ctx, l, func() (started bool, err error) {
		resp, err = c.StartProcess(ctx, req)
		return err == nil, err
	})
	return resp, p, err
}

type launch struct {
	key             processKey
	stdin, terminal bool
}

// launch makes the call start and all that goes with it. It returns nil when
// start did not start the process.
func (c *Client) launch(ctx context.Context, l launch, start func() (started bool, err error)) (*Process, error) {
	b := c.newBatch(2)
	defer c.send(b)
	wait, abandon := context.WithCancel(wire.Await(context.WithoutCancel(ctx)))
	p := &Process{abandon: abandon, ended: make(chan struct{})}
	if err := p.open(ctx, c, l); err != nil {
		p.Close()
		return nil, err
	}
	go func() {
		defer close(p.ended)
		p.status, p.err = c.Wait(wait, &wire.WaitRequest{ContainerId: l.key.container, ExecId: l.key.exec})
		abandon()
	}()
	started, err := start()
	if !started {
		// The wait ends by itself: the guest answers it, and ttrpc reports
		// as an error what comes for a call that was abandoned.
		p.closeStreams()
		c.forgetStdin(l.key)
		return nil, err
	}
	return p, nil
}

// open opens the streams of a process that is about to be started.
func (p *Process) open(ctx context.Context, c *Client, l launch) error {
	var errs [3]error
	output := func(kind wire.StreamHeader_Kind) (*Output, error) {
		return c.output(ctx, &wire.StreamHeader{ContainerId: l.key.container, ExecId: l.key.exec, Kind: kind}, true)
	}
	p.Out, errs[0] = output(wire.StreamHeader_STDOUT)
	if !l.terminal {
		p.Err, errs[1] = output(wire.StreamHeader_STDERR)
	}
	if l.stdin {
		p.In, errs[2] = c.stdin(ctx, l.key, true)
	}
	return errors.Join(errs[:]...)
}

// A batch has what is sent wait for some calls to be written, so that all of
// it leaves at once. Other calls count too: they cost the batch, not the calls.
type batch struct{ calls int }

func (c *Client) newBatch(calls int) *batch {
	b := &batch{calls}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.batches = append(c.batches, b)
	c.link.Hold()
	return b
}

// send ends a batch that still waits.
func (c *Client) send(b *batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.batches, b); i >= 0 {
		c.batches = slices.Delete(c.batches, i, i+1)
		c.link.Release()
	}
}

// wroteCall is called after every call that was written.
func (c *Client) wroteCall() {
	c.begin()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.batches = slices.DeleteFunc(c.batches, func(b *batch) bool {
		b.calls--
		if b.calls > 0 {
			return false
		}
		c.link.Release()
		return true
	})
}
