// Package qemu is the vmm driver for QEMU 7.2 and later on x86.
//
// Each VM is one QEMU process in a session of its own, which outlives the
// process that started it. The driver opens everything (disks, kernel,
// sockets) and QEMU inherits descriptors: no path reaches its command line.
// In Config.Dir it keeps
//
//	qmp.sock    where QEMU takes commands (package qmp)
//	guest.sock  the host's end of the virtio port named hyper.guest
//	qemu.log    what QEMU printed
//	console     what was read so far of the guest's console
//
// QEMU listens on both sockets from before its first instruction, since they
// were bound before it was started: nothing here polls or sleeps.
//
// The driver owns three goroutines per VM: one reads QMP, one waits for the
// process to end, one for QMP to end. Lock order: Driver.mu and vm.mu are
// never held together.
package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/vmm"
)

// driverName is what Handle.Driver says.
const driverName = "qemu"

// binaries are where QEMU is looked for, in this order.
var binaries = []string{"qemu-system-x86_64", "/usr/libexec/qemu-kvm"}

// oldest version that understands the command line that is made here.
const oldestMajor, oldestMinor = 7, 2

// Options choose how a Driver works. The zero value is the usual.
type Options struct {
	Binary string    // "": looked for in PATH
	Accel  vmm.Accel // what AccelAuto means; "" or AccelAuto: probed
}

// A Driver starts VMs with QEMU.
type Driver struct {
	options Options

	probing sync.Mutex // held during the probe, which is done once
	host    *host      // nil until probed

	mu  sync.Mutex
	vms map[*vm]struct{} // all that Close has to let go of
}

// host is what the probe found.
type host struct {
	binary string
	caps   vmm.Capabilities
	tscKHz uint64 // 0: unknown or not constant
}

var (
	_ vmm.Driver  = (*Driver)(nil)
	_ vmm.Sweeper = (*Driver)(nil)
)

// New makes a driver. It looks at nothing yet.
func New(o Options) *Driver {
	return &Driver{options: o, vms: make(map[*vm]struct{})}
}

// Name is "qemu".
func (d *Driver) Name() string { return driverName }

// Probe implements vmm.Driver. The first call that succeeds takes some 0.1 s.
func (d *Driver) Probe(ctx context.Context) (vmm.Capabilities, error) {
	h, err := d.probe(ctx)
	if err != nil {
		return vmm.Capabilities{}, err
	}
	return h.caps, nil
}

func (d *Driver) probe(ctx context.Context) (*host, error) {
	d.probing.Lock()
	defer d.probing.Unlock()
	if d.host != nil {
		return d.host, nil
	}
	h := &host{}
	var err error
	if h.binary, err = d.findBinary(); err != nil {
		return nil, err
	}
	if h.caps.Version, err = version(ctx, h.binary); err != nil {
		return nil, err
	}
	switch d.options.Accel {
	case vmm.AccelKVM, vmm.AccelTCG:
		h.caps.Accel, h.caps.AccelWhy = d.options.Accel, "forced by configuration"
	default:
		h.caps.Accel = vmm.AccelTCG
		works, why := probeKVM()
		if works {
			h.caps.Accel = vmm.AccelKVM
		}
		h.caps.AccelWhy = why
	}
	h.tscKHz = tscKHz()
	d.host = h
	return h, nil
}

func (d *Driver) findBinary() (string, error) {
	candidates := binaries
	if d.options.Binary != "" {
		candidates = []string{d.options.Binary}
	}
	for _, name := range candidates {
		if path, err := exec.LookPath(name); err == nil {
			return filepath.Abs(path)
		}
	}
	return "", fmt.Errorf("%s is not installed (Debian, Ubuntu: apt install qemu-system-x86; Fedora: dnf install qemu-system-x86-core): %w",
		candidates[0], errdefs.ErrUnavailable)
}

// version asks QEMU, which says "QEMU emulator version 7.2.22 (Debian 1:…)".
func version(ctx context.Context, binary string) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, "--version")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w: %s", binary, err, bytes.TrimSpace(stderr.Bytes()))
	}
	v, err := parseVersion(out)
	if err != nil {
		return "", fmt.Errorf("%s: %w", binary, err)
	}
	return v, nil
}

func parseVersion(out []byte) (string, error) {
	_, rest, found := bytes.Cut(out, []byte(" version "))
	fields := bytes.Fields(rest)
	if !found || len(fields) == 0 {
		return "", errors.New("does not say its version")
	}
	v := string(fields[0])
	parts := bytes.Split(fields[0], []byte("."))
	if len(parts) < 2 {
		return "", fmt.Errorf("version %q is not understood", v)
	}
	major, err := strconv.Atoi(string(parts[0]))
	minor, err2 := strconv.Atoi(string(parts[1]))
	if err = errors.Join(err, err2); err != nil {
		return "", fmt.Errorf("version %q is not understood", v)
	}
	if major < oldestMajor || major == oldestMajor && minor < oldestMinor {
		return "", fmt.Errorf("version %s is older than %d.%d: %w", v, oldestMajor, oldestMinor, errdefs.ErrUnavailable)
	}
	return v, nil
}

// Close implements vmm.Driver.
func (d *Driver) Close() {
	d.mu.Lock()
	vms := d.vms
	d.vms = make(map[*vm]struct{})
	d.mu.Unlock()
	for v := range vms {
		v.release()
	}
}

func (d *Driver) remember(v *vm) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.vms[v] = struct{}{}
}

func (d *Driver) forget(v *vm) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.vms, v)
}
