package qmp

import (
	"context"
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
	getFDArgs struct {
		FDName string `json:"fdname"`
	}
	capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	migrateSetCapabilitiesArgs struct {
		Capabilities []capability `json:"capabilities"`
	}
	migrateArgs struct {
		URI string `json:"uri"`
	}
	blockdevReopenArgs struct {
		Options []Node `json:"options"`
	}
	blockdevDelArgs struct {
		NodeName string `json:"node-name"`
	}
	deviceDelArgs struct {
		ID string `json:"id"`
	}
	qomListArgs struct {
		Path string `json:"path"`
	}
	queryNodesArgs struct {
		Flat bool `json:"flat"`
	}
)

// Status is the run state of a VM (RunState in qapi/run-state.json).
type Status string

// The run states that Hyper tells apart.
const (
	StatusRunning       Status = "running"
	StatusIncoming      Status = "inmigrate" // a state is being loaded, or will be
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
func (c *Client) AddFD(ctx context.Context, f *os.File, set int) *Call {
	return c.Send(ctx, "add-fd", addFDArgs{set}, f)
}

// RemoveFD closes the descriptors of a set, while the VM runs; the set goes with the last node
// that was opened by its name.
func (c *Client) RemoveFD(ctx context.Context, set int) *Call {
	return c.Send(ctx, "remove-fd", addFDArgs{set}, nil)
}

// FDSets returns the numbers of all sets of descriptors.
func (c *Client) FDSets(ctx context.Context) ([]int, error) {
	var sets []struct {
		ID int `json:"fdset-id"`
	}
	err := c.Execute(ctx, "query-fdsets", nil, &sets)
	var ids []int
	for _, s := range sets {
		ids = append(ids, s.ID)
	}
	return ids, err
}

// GetFD gives QEMU a duplicate of f under a name.
func (c *Client) GetFD(ctx context.Context, f *os.File, name string) *Call {
	return c.Send(ctx, "getfd", getFDArgs{name}, f)
}

// Capabilities of migration (MigrationCapability in qapi/migration.json).
const (
	CapIgnoreShared = "x-ignore-shared" // memory that is a file's is not in the stream
	CapEvents       = "events"          // MIGRATION events
)

// SetMigrationCapabilities turns capabilities on.
func (c *Client) SetMigrationCapabilities(ctx context.Context, names ...string) *Call {
	var args migrateSetCapabilitiesArgs
	for _, n := range names {
		args.Capabilities = append(args.Capabilities, capability{n, true})
	}
	return c.Send(ctx, "migrate-set-capabilities", args, nil)
}

// Migrate begins to write the VM's state to uri. The reply comes before the end.
func (c *Client) Migrate(ctx context.Context, uri string) *Call {
	return c.Send(ctx, "migrate", migrateArgs{uri}, nil)
}

// MigrateIncoming begins to load a state into a QEMU that was started with
// -incoming defer. The reply comes before the end.
func (c *Client) MigrateIncoming(ctx context.Context, uri string) *Call {
	return c.Send(ctx, "migrate-incoming", migrateArgs{uri}, nil)
}

// MigrationError says why a migration that failed did so, as far as QEMU knows.
func (c *Client) MigrationError(ctx context.Context) string {
	var r struct {
		Desc string `json:"error-desc"`
	}
	if err := c.Execute(ctx, "query-migrate", nil, &r); err != nil {
		return err.Error()
	}
	return r.Desc
}

// A Node describes a block node (BlockdevOptions in qapi/block-core.json):
// the fields its driver knows.
type Node struct {
	Driver   string `json:"driver"`
	Name     string `json:"node-name"`
	Filename string `json:"filename,omitempty"` // drivers file and host_device
	File     string `json:"file,omitempty"`     // the node below
	ReadOnly bool   `json:"read-only"`
	Discard  string `json:"discard"`
	Size     int64  `json:"size,omitempty"` // driver null-co
	// ReadZeroes has null-co read as zeros, not as what was in memory.
	ReadZeroes bool `json:"read-zeroes,omitempty"`
}

// BlockdevAdd makes a block node.
func (c *Client) BlockdevAdd(ctx context.Context, n Node) *Call {
	return c.Send(ctx, "blockdev-add", n, nil)
}

// BlockdevReopen changes block nodes, all or none, to what nodes says.
func (c *Client) BlockdevReopen(ctx context.Context, nodes []Node) *Call {
	return c.Send(ctx, "blockdev-reopen", blockdevReopenArgs{nodes}, nil)
}

// BlockdevDel removes a block node that nothing uses.
func (c *Client) BlockdevDel(ctx context.Context, name string) *Call {
	return c.Send(ctx, "blockdev-del", blockdevDelArgs{name}, nil)
}

// NodeInfo is what QEMU tells of a block node.
type NodeInfo struct {
	Name     string `json:"node-name"`
	Driver   string `json:"drv"`
	ReadOnly bool   `json:"ro"`
	File     string `json:"file"`
}

// BlockNodes returns all block nodes with names.
func (c *Client) BlockNodes(ctx context.Context) ([]NodeInfo, error) {
	var nodes []NodeInfo
	err := c.Execute(ctx, "query-named-block-nodes", queryNodesArgs{Flat: true}, &nodes)
	return nodes, err
}

// A SCSIDisk is a device scsi-hd (qemu -device scsi-hd,help).
type SCSIDisk struct {
	ID     string `json:"id"`
	Bus    string `json:"bus"`
	LUN    int    `json:"lun"`
	Drive  string `json:"drive"` // a block node
	Serial string `json:"serial"`
	// WriteError and ReadError are what becomes of the guest: BlockdevOnError.
	WriteError   string `json:"werror"`
	ReadError    string `json:"rerror"`
	RotationRate int    `json:"rotation_rate"` // 1: it doesn't rotate
}

// AddSCSIDisk plugs a disk in.
func (c *Client) AddSCSIDisk(ctx context.Context, d SCSIDisk) *Call {
	return c.Send(ctx, "device_add", struct {
		Driver string `json:"driver"`
		SCSIDisk
	}{"scsi-hd", d}, nil)
}

// DeviceDel begins to delete a device. The event DEVICE_DELETED comes when
// that is done.
func (c *Client) DeviceDel(ctx context.Context, id string) *Call {
	return c.Send(ctx, "device_del", deviceDelArgs{id}, nil)
}

// Devices returns the IDs of all devices that have one.
func (c *Client) Devices(ctx context.Context) ([]string, error) {
	var children []struct {
		Name string `json:"name"`
	}
	err := c.Execute(ctx, "qom-list", qomListArgs{"/machine/peripheral"}, &children)
	var ids []string
	for _, child := range children {
		if child.Name != "type" { // a property
			ids = append(ids, child.Name)
		}
	}
	return ids, err
}
