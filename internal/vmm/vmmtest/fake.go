package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest/testguest"
)

// A Guest is what runs in a VM of a Fake, from its first instruction on. conn
// is its end of the byte stream, one for its whole life: what it writes while
// the host is away is lost, and it reads on when the host is back. console is
// its kernel's console. The VM ends as the Guest returns; Kill closes conn,
// upon which the Guest has to return.
type Guest func(conn net.Conn, console io.Writer, cfg vmm.Config) vmm.Exit

// A Fake is a vmm.Driver whose VMs are goroutines of this process. The zero
// value serves testguest. After Close it can be used on, as the next hyperd
// would use a driver of its own: VMs live on and can be adopted.
type Fake struct {
	Guest Guest

	mu   sync.Mutex
	vms  map[int]*fakeVM // by PID
	last int
}

const (
	fakeName   = "fake"
	fakeBootID = "fake-boot"
	// fakePID is out of the range of real ones (PID_MAX_LIMIT is 1<<22).
	fakePID = 1 << 23
	// maxConsole is what a Fake keeps of a console.
	maxConsole = 64 << 10
)

var (
	_ vmm.Driver  = (*Fake)(nil)
	_ vmm.Sweeper = (*Fake)(nil)
)

// Name is "fake".
func (f *Fake) Name() string { return fakeName }

// Probe implements vmm.Driver.
func (f *Fake) Probe(ctx context.Context) (vmm.Capabilities, error) {
	return vmm.Capabilities{Version: "1.0", Accel: vmm.AccelTCG, AccelWhy: "a fake accelerates nothing"}, ctx.Err()
}

// Start implements vmm.Driver. It wants the files of cfg to be there, but
// does not look into them.
func (f *Fake) Start(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	if err := errors.Join(cfg.Validate(), ctx.Err()); err != nil {
		return nil, err
	}
	files := []string{cfg.Kernel}
	for _, d := range cfg.Disks {
		files = append(files, d.Path)
	}
	for _, path := range files {
		if info, err := os.Stat(path); err != nil {
			return nil, err
		} else if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is not a file: %w", path, errdefs.ErrInvalidArgument)
		}
	}
	if info, err := os.Stat(cfg.Dir); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a directory: %w", cfg.Dir, errdefs.ErrInvalidArgument)
	}
	vm, err := f.add(cfg)
	if err != nil {
		return nil, err
	}
	guest := f.Guest
	if guest == nil {
		guest = serveTestguest
	}
	go vm.run(guest)
	return fakeView{vm}, nil
}

// add makes the VM, unless another one lives in the same directory.
func (f *Fake) add(cfg vmm.Config) (*fakeVM, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, other := range f.vms {
		if other.cfg.Dir == cfg.Dir && !isClosed(other.gone) {
			return nil, fmt.Errorf("directory %s is in use: %w", cfg.Dir, errdefs.ErrAlreadyExists)
		}
	}
	if f.vms == nil {
		f.vms = make(map[int]*fakeVM)
	}
	f.last++
	machine := cfg.Machine
	if machine == "" || machine == vmm.MachineAuto {
		machine = vmm.MachineMicroVM
	}
	vm := &fakeVM{
		cfg: cfg, port: newPort(),
		handle: vmm.Handle{
			Driver: fakeName, ID: cfg.ID, Dir: cfg.Dir, PID: fakePID + f.last, StartTime: uint64(f.last),
			BootID: fakeBootID, Accel: vmm.AccelTCG, Machine: machine,
		},
		ended: make(chan struct{}), gone: make(chan struct{}), returned: make(chan struct{}),
	}
	f.vms[vm.handle.PID] = vm
	return vm, nil
}

// Adopt implements vmm.Driver.
func (f *Fake) Adopt(ctx context.Context, h vmm.Handle) (vmm.VM, error) {
	f.mu.Lock()
	vm := f.vms[h.PID]
	f.mu.Unlock()
	if vm == nil || vm.handle != h || isClosed(vm.gone) {
		return nil, fmt.Errorf("adopt virtual machine %s: %w", h.ID, vmm.ErrGone)
	}
	return fakeView{vm}, ctx.Err()
}

// Close implements vmm.Driver.
func (f *Fake) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, vm := range f.vms {
		vm.port.disconnect(nil)
	}
}

// Crash ends a VM as if its VMM had been killed from outside.
func (f *Fake) Crash(h vmm.Handle) error {
	f.mu.Lock()
	vm := f.vms[h.PID]
	f.mu.Unlock()
	if vm == nil {
		return vmm.ErrGone
	}
	vm.end(vmm.Exit{Reason: vmm.ExitCrashed, Detail: "fake: crashed"}, true)
	return nil
}

// Sweep implements vmm.Sweeper.
func (f *Fake) Sweep(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, vm := range f.vms {
		if vm.cfg.ID == id {
			vm.end(vmm.Exit{Reason: vmm.ExitCrashed, Detail: "fake: swept"}, true)
		}
	}
	return nil
}

// VMs says how many VMs there are that were not killed: none when a test has
// cleaned up.
func (f *Fake) VMs() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, vm := range f.vms {
		if !isClosed(vm.gone) {
			n++
		}
	}
	return n
}

// fakeVM is a VM as the host has it; vmm.VM is a view of it.
type fakeVM struct {
	cfg    vmm.Config
	handle vmm.Handle
	port   *port

	ended    chan struct{} // the guest has ended
	gone     chan struct{} // so has what a VMM would be
	returned chan struct{} // so has the goroutine

	mu      sync.Mutex
	exit    vmm.Exit
	console []byte
}

func (v *fakeVM) run(guest Guest) {
	defer close(v.returned)
	v.end(guest(v.port, v, v.cfg), false)
}

// Write prints on the console.
func (v *fakeVM) Write(b []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.console = append(v.console, b...)
	v.console = v.console[max(0, len(v.console)-maxConsole):]
	return len(b), nil
}

// end ends the guest, the first time, and with gone also what a VMM would be.
func (v *fakeVM) end(exit vmm.Exit, gone bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !isClosed(v.ended) {
		v.exit = exit
		close(v.ended)
	}
	v.port.shut()
	if gone && !isClosed(v.gone) {
		v.port.disconnect(nil)
		close(v.gone)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// fakeView gives a fakeVM the methods of a vmm.VM.
type fakeView struct{ *fakeVM }

func (v fakeView) Handle() vmm.Handle    { return v.handle }
func (v fakeView) Done() <-chan struct{} { return v.ended }

func (v fakeView) Exit() vmm.Exit {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.exit
}

func (v fakeView) Dial(ctx context.Context) (net.Conn, error) {
	if err := v.alive(ctx); err != nil {
		return nil, err
	}
	return v.port.connect()
}

func (v fakeView) Pause(ctx context.Context) error {
	if err := v.alive(ctx); err != nil {
		return err
	}
	v.port.pause(true)
	return nil
}

func (v fakeView) Resume(ctx context.Context) error {
	if err := v.alive(ctx); err != nil {
		return err
	}
	v.port.pause(false)
	return nil
}

func (v fakeView) alive(ctx context.Context) error {
	if isClosed(v.ended) {
		return fmt.Errorf("virtual machine %s: %w", v.cfg.ID, vmm.ErrGone)
	}
	return ctx.Err()
}

func (v fakeView) Console(ctx context.Context) ([]byte, error) {
	if isClosed(v.gone) {
		return nil, fmt.Errorf("console of virtual machine %s: %w", v.cfg.ID, vmm.ErrGone)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]byte(nil), v.console...), ctx.Err()
}

func (v fakeView) Kill(ctx context.Context) error {
	v.end(vmm.Exit{Reason: vmm.ExitKilled}, true)
	select {
	case <-v.returned:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("kill virtual machine %s: its guest does not return: %w", v.cfg.ID, context.Cause(ctx))
	}
}

// serveTestguest is the Guest of the zero Fake.
func serveTestguest(conn net.Conn, console io.Writer, cfg vmm.Config) vmm.Exit {
	m := &fakeMachine{console: console, cfg: cfg}
	testguest.Serve(conn, m)
	return m.exit
}

type fakeMachine struct {
	console io.Writer
	cfg     vmm.Config
	exit    vmm.Exit
}

func (m *fakeMachine) OpenDisk(id string, flags int) (*os.File, error) {
	for _, d := range m.cfg.Disks {
		if d.ID == id {
			if d.ReadOnly && flags&unix.O_ACCMODE != os.O_RDONLY {
				return nil, unix.EROFS
			}
			return os.OpenFile(d.Path, flags, 0)
		}
	}
	return nil, fmt.Errorf("no disk %q", id)
}

func (m *fakeMachine) Console(line string) error {
	_, err := fmt.Fprintln(m.console, line)
	return err
}

func (m *fakeMachine) Fact(name string) string {
	switch name {
	case "cpus":
		return fmt.Sprint(m.cfg.CPUs)
	case "clocksource":
		return "tsc"
	case "macs":
		var macs []string
		for _, n := range m.cfg.NICs {
			macs = append(macs, fmt.Sprintf("%s/%d", n.MAC, n.MTU))
		}
		return strings.Join(macs, " ")
	}
	return "unknown"
}

func (m *fakeMachine) Stop(how string) {
	m.exit = map[string]vmm.Exit{
		"poweroff": {Reason: vmm.ExitPowerOff},
		"reboot":   {Reason: vmm.ExitReset},
		"panic":    {Reason: vmm.ExitPanic, Detail: "sysrq triggered crash"},
	}[how]
}
