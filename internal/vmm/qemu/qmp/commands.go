package qmp

import (
	"context"
	"fmt"
	"os"
)

// Commands, as their argument types, so that the test can hold them against
// the schema of the installed QEMU.
type (
	ringbufReadArgs struct {
		Device string `json:"device"`
		Size   int    `json:"size"`
		Format string `json:"format"`
	}
	addFDArgs struct {
		FDSetID int `json:"fdset-id"`
	}
)

// Status is the run state of a VM (RunState in qapi/run-state.json).
type Status string

// The run states that Hyper tells apart.
const (
	StatusRunning       Status = "running"
	StatusPaused        Status = "paused"
	StatusShutdown      Status = "shutdown"       // the guest stopped or reset itself
	StatusGuestPanicked Status = "guest-panicked" // and told so through pvpanic
	StatusInternalError Status = "internal-error" // the accelerator gave up
)

// Stop stops all vCPUs.
func (c *Client) Stop(ctx context.Context) error { return c.Execute(ctx, "stop", nil, nil) }

// Cont lets all vCPUs run.
func (c *Client) Cont(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// QueryStatus says whether the VM runs.
func (c *Client) QueryStatus(ctx context.Context) (Status, error) {
	var r struct {
		Status Status `json:"status"`
	}
	err := c.Execute(ctx, "query-status", nil, &r)
	return r.Status, err
}

// RingbufRead takes up to size bytes out of the ring buffer of a chardev.
// What was read is no longer in the buffer.
func (c *Client) RingbufRead(ctx context.Context, device string, size int) ([]byte, error) {
	var data []byte // encoding/json decodes base64 into bytes
	err := c.Execute(ctx, "ringbuf-read", ringbufReadArgs{device, size, "base64"}, &data)
	return data, err
}

// AddFD puts a duplicate of f into a set of descriptors, which QEMU opens
// under the name /dev/fdset/SET.
func (c *Client) AddFD(ctx context.Context, f *os.File, set int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("qmp add-fd: %w", err)
	}
	// Inside Control the descriptor cannot be closed under our hands.
	if cerr := raw.Control(func(fd uintptr) {
		_, err = c.execute(ctx, "add-fd", addFDArgs{set}, int(fd))
	}); cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("qmp add-fd: %w", err)
	}
	return nil
}
