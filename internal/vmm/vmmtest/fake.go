package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

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
//
// In a clone a new Guest begins; only testguest goes on with what it
// remembered. VMs are no processes: nothing is written to Config.Procs.
type Fake struct {
	Guest    Guest
	NoClones bool // Probe says so, and Start clones nothing

	mu      sync.Mutex
	vms     map[int]*fakeVM // by PID
	last    int
	refusal error // of clones
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
	_ vmm.Saver   = fakeView{}
	_ vmm.Filler  = fakeView{}
	_ vmm.Plugger = fakeView{}
)

// Name is "fake".
func (f *Fake) Name() string { return fakeName }

// Probe implements vmm.Driver.
func (f *Fake) Probe(ctx context.Context) (vmm.Capabilities, error) {
	return vmm.Capabilities{
		Version: "1.0", Identity: fakeName, Clones: !f.NoClones,
		Accel: vmm.AccelTCG, AccelWhy: "a fake accelerates nothing",
	}, ctx.Err()
}

// RefuseClones has Start fail with err, nil: no longer, for clones.
func (f *Fake) RefuseClones(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusal = err
}

// Start implements vmm.Driver. It wants the files of cfg to be there, but
// looks only into those of Restore.
func (f *Fake) Start(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	if err := errors.Join(cfg.Validate(), ctx.Err()); err != nil {
		return nil, err
	}
	var files []string
	if cfg.Restore == nil {
		files = append(files, cfg.Kernel)
	}
	for _, d := range cfg.Disks {
		if d.Path != "" {
			files = append(files, d.Path)
		}
	}
	for _, path := range files {
		if err := checkFile(path); err != nil {
			return nil, err
		}
	}
	if info, err := os.Stat(cfg.Dir); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a directory: %w", cfg.Dir, errdefs.ErrInvalidArgument)
	}
	vm, err := f.make(cfg)
	if err != nil {
		return nil, err
	}
	if err := f.add(vm); err != nil {
		vm.memory.Close()
		return nil, err
	}
	guest := f.Guest
	if guest == nil {
		guest = vm.serveTestguest
	}
	go vm.run(guest)
	return fakeView{vm}, nil
}

// make makes a VM, or a clone of one.
func (f *Fake) make(cfg vmm.Config) (*fakeVM, error) {
	vm := &fakeVM{
		cfg: cfg, port: newPort(), disks: slices.Clone(cfg.Disks),
		handle: vmm.Handle{
			Driver: fakeName, ID: cfg.ID, Dir: cfg.Dir, BootID: fakeBootID,
			Accel: vmm.AccelTCG, Machine: cfg.Machine,
		},
		ended: make(chan struct{}), gone: make(chan struct{}), returned: make(chan struct{}),
	}
	if cfg.Machine == "" || cfg.Machine == vmm.MachineAuto {
		vm.handle.Machine = vmm.MachineMicroVM
	}
	var err error
	switch {
	case cfg.Memory != nil:
		if err = checkSize(cfg.Memory, cfg.MemMiB); err == nil {
			vm.memory, err = duplicate(cfg.Memory)
		}
	case cfg.Restore != nil && f.NoClones:
		err = fmt.Errorf("clones are turned off: %w", errdefs.ErrNotImplemented)
	case cfg.Restore != nil:
		vm.remembered, err = restore(cfg, vm.handle.Machine)
	}
	return vm, err
}

// add gives a VM its number, unless another one lives in the same directory.
func (f *Fake) add(vm *fakeVM) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if vm.cfg.Restore != nil && f.refusal != nil {
		return f.refusal
	}
	for _, other := range f.vms {
		if other.cfg.Dir == vm.cfg.Dir && !isClosed(other.gone) {
			return fmt.Errorf("directory %s is in use: %w", vm.cfg.Dir, errdefs.ErrAlreadyExists)
		}
	}
	if f.vms == nil {
		f.vms = make(map[int]*fakeVM)
	}
	f.last++
	vm.handle.PID, vm.handle.StartTime = fakePID+f.last, uint64(f.last)
	f.vms[vm.handle.PID] = vm
	return nil
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

	mu         sync.Mutex
	exit       vmm.Exit
	console    []byte
	disks      []vmm.Disk // cfg.Disks, with what they were filled with
	plugged    []vmm.Disk
	remembered string   // by testguest
	memory     *os.File // cfg.Memory, where that is saved to; nil: none
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
		v.memory.Close() // an error when there is none
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
func (v *fakeVM) serveTestguest(conn net.Conn, _ io.Writer, _ vmm.Config) vmm.Exit {
	m := &fakeMachine{fakeVM: v}
	testguest.Serve(conn, m)
	return m.stopped
}

// fakeMachine is what testguest sees of a fakeVM.
type fakeMachine struct {
	*fakeVM
	stopped vmm.Exit
}

func (m *fakeMachine) OpenDisk(id string, flags int) (testguest.Disk, error) {
	return m.openDisk(id, flags)
}

func (m *fakeMachine) Remember(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remembered = text
}

func (m *fakeMachine) Recall() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.remembered
}

func (m *fakeMachine) Console(line string) error {
	_, err := fmt.Fprintln(m.fakeVM, line)
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
	m.stopped = map[string]vmm.Exit{
		"poweroff": {Reason: vmm.ExitPowerOff},
		"reboot":   {Reason: vmm.ExitReset},
		"panic":    {Reason: vmm.ExitPanic, Detail: "sysrq triggered crash"},
	}[how]
}
