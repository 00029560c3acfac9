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

// lightSuffix makes the name of Debian's other build of QEMU: KVM only, and
// without PCI's virtio devices, modules and most libraries, it starts in a
// fifth of the time.
const lightSuffix = "-microvm"

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

	memory memoryFDs

	mu  sync.Mutex
	vms map[*vm]struct{} // all that Close has to let go of
}

// host is what the probe found.
type host struct {
	full   program
	light  *program // for microvm with KVM; nil: there is none
	caps   vmm.Capabilities
	tscKHz uint64 // 0: unknown or not constant
}

// A program is an installed QEMU.
type program struct {
	path    string
	version string
	sandbox bool // knows -sandbox
}

// programFor returns the QEMU to run a machine with.
func (h *host) programFor(accel vmm.Accel, machine vmm.Machine) program {
	if h.light != nil && accel == vmm.AccelKVM && machine == vmm.MachineMicroVM {
		return *h.light
	}
	return h.full
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
	path, err := d.findBinary()
	if err != nil {
		return nil, err
	}
	if h.full, err = examine(ctx, path); err != nil {
		return nil, err
	}
	h.caps.Version, h.caps.Clones = h.full.version, true
	if d.options.Binary == "" {
		// Of another version, or none: the usual serves.
		if b, err := examine(ctx, path+lightSuffix); err == nil && b.version == h.full.version {
			h.light = &b
		}
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
	if h.caps.Identity, err = h.identity(); err != nil {
		return nil, err
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

// examine finds out what a QEMU is. One that was built without seccomp
// refuses the option -sandbox.
func examine(ctx context.Context, path string) (program, error) {
	b := program{path: path, sandbox: true}
	out, err := run(ctx, path, "-sandbox", "off", "--version")
	var refused *exec.ExitError
	if errors.As(err, &refused) {
		b.sandbox = false
		out, err = run(ctx, path, "--version")
	}
	if err == nil {
		b.version, err = parseVersion(out)
	}
	if err != nil {
		return program{}, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	return b, nil
}

// run returns what a command prints.
func run(ctx context.Context, path string, args ...string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, err
}

// parseVersion reads "QEMU emulator version 7.2.22 (Debian 1:…)".

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
