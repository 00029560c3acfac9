package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu/qmp"
)

// Files in Config.Dir, beside consoleFile.
const (
	qmpSocket   = "qmp.sock"
	guestSocket = "guest.sock"
	logFile     = "qemu.log"
)

// consoleTimeout bounds the look at the console of a guest that has ended.
const consoleTimeout = 2 * time.Second

// vm is one running QEMU. Its guest ends once: by an event from QEMU, which
// then stays, or because the process has ended.
type vm struct {
	driver  *Driver
	handle  vmm.Handle
	process *process
	qmp     *qmp.Client

	ended    chan struct{} // closed when exit is set
	gone     chan struct{} // closed when the process is gone
	released chan struct{} // closed by release

	reading sync.Mutex     // held while the console is read
	events  sync.WaitGroup // goroutines that look into events

	saveable    bool        // its memory is a file
	misfiltered bool        // with a filter for a wrong descriptor (giveback.go)
	resumed     atomic.Bool // QEMU said so, when a clone's state was loaded
	migrated    chan string // how saving ended; room for one

	filling sync.Mutex
	slots   map[string]slot  // by ID; nil: nothing of these four is known
	plugs   map[string]*plug // by ID; nil: it has no controller
	lastLUN int
	nextSet int // of descriptors, for a file that comes

	mu      sync.Mutex
	paused  bool // by Pause
	exit    vmm.Exit
	killed  bool
	conn    net.Conn                 // the open stream to the guest, or nil
	leaving map[string]chan struct{} // closed when the device of that name is deleted
}

var (
	_ vmm.Meter   = (*vm)(nil)
	_ vmm.Saver   = (*vm)(nil)
	_ vmm.Filler  = (*vm)(nil)
	_ vmm.Plugger = (*vm)(nil)
)

// connect makes the VM of a process and a handle, and takes over p. It does
// not wait for QEMU.
func (d *Driver) connect(ctx context.Context, p *process, h vmm.Handle) (*vm, error) {
	v := &vm{
		driver: d, handle: h, process: p,
		ended: make(chan struct{}), gone: make(chan struct{}), released: make(chan struct{}),
		migrated: make(chan string, 1), leaving: make(map[string]chan struct{}),
	}
	// The first event can come before Dial has returned, and needs v.qmp.
	ready := make(chan struct{})
	defer close(ready)
	c, err := qmp.Dial(ctx, filepath.Join(h.Dir, qmpSocket), func(e qmp.Event) { v.event(e, ready) })
	if err != nil {
		return nil, err
	}
	v.qmp = c
	return v, nil
}

// disconnect ends QMP, and what came of its events.
func (v *vm) disconnect() {
	v.qmp.Close()
	v.events.Wait()
}

// run begins to watch the VM.
func (v *vm) run() {
	v.driver.remember(v)
	go v.watchProcess()
	go v.watchQMP()
}

func (v *vm) watchProcess() {
	status, err := v.process.wait()
	if err != nil {
		return // released
	}
	v.disconnect()
	v.mu.Lock()
	exit := vmm.Exit{Reason: vmm.ExitCrashed}
	if v.killed {
		exit.Reason = vmm.ExitKilled
	} else if status != "" {
		exit.Detail = "qemu: " + status
	}
	v.mu.Unlock()
	v.end(exit)
	v.driver.forget(v)
	v.process.close()
	close(v.gone)
}

// watchQMP ends a QEMU that cannot be controlled any more. Most often it has
// ended already.
func (v *vm) watchQMP() {
	<-v.qmp.Done()
	select {
	case <-v.released:
	default:
		_ = v.process.kill()
	}
}

// release lets go of the VM, which runs on.
func (v *vm) release() {
	close(v.released)
	v.disconnect()
	v.mu.Lock()
	if v.conn != nil {
		v.conn.Close()
	}
	v.mu.Unlock()
	v.process.close()
}

// event is called by the QMP client, one at a time, and must not block.
func (v *vm) event(e qmp.Event, ready <-chan struct{}) {
	var data struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
		Status string `json:"status"` // of a migration
		Device string `json:"device"`
	}
	switch e.Name {
	case "SHUTDOWN":
		if json.Unmarshal(e.Data, &data) != nil || !data.Guest {
			return // QEMU itself was told to end, and will
		}
	case "GUEST_PANICKED":
		data.Reason = "guest-panic"
	case "DEVICE_DELETED":
		if json.Unmarshal(e.Data, &data) == nil {
			v.left(data.Device)
		}
		return
	case "STOP": // by us, or because the accelerator cannot go on
	case "RESUME":
		v.resumed.Store(true)
		return
	case "MIGRATION":
		_ = json.Unmarshal(e.Data, &data)
		if !v.migration(data.Status) {
			return
		}
	default:
		return
	}
	v.events.Go(func() {
		<-ready
		if v.qmp == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), consoleTimeout)
		defer cancel()
		switch e.Name {
		case "STOP":
			if s, err := v.qmp.QueryStatus(ctx); err == nil && s == qmp.StatusInternalError {
				v.endBroken()
			}
		case "MIGRATION":
			v.endUnlessPaused(ctx)
		default:
			v.endGuest(ctx, data.Reason)
		}
	})
}

// endGuest ends the VM for a cause that QEMU named, "" when that was missed.
func (v *vm) endGuest(ctx context.Context, cause string) {
	console, _ := v.console(ctx) // without it the reason is less exact
	v.end(exitOf(cause, console))
}

func (v *vm) endBroken() {
	v.end(vmm.Exit{Reason: vmm.ExitCrashed, Detail: fmt.Sprintf("qemu: %s cannot execute the guest", v.handle.Accel)})
}

// settle asks QEMU whether the guest ended while nobody listened, and how.
func (v *vm) settle(ctx context.Context) error {
	if err := v.qmp.Ready(ctx); err != nil {
		return err
	}
	status, err := v.qmp.QueryStatus(ctx)
	switch status {
	case qmp.StatusInternalError:
		v.endBroken()
	case qmp.StatusGuestPanicked:
		v.endGuest(ctx, "guest-panic")
	case qmp.StatusShutdown:
		v.endGuest(ctx, "")
	}
	return err
}

// end sets how the VM ended; the first time counts.
func (v *vm) end(exit vmm.Exit) {
	exit.Stderr = readLog(v.handle.Dir)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.hasEnded() {
		return
	}
	v.exit = exit
	close(v.ended)
}

func (v *vm) hasEnded() bool {
	select {
	case <-v.ended:
		return true
	default:
		return false
	}
}

func (v *vm) Handle() vmm.Handle    { return v.handle }
func (v *vm) Done() <-chan struct{} { return v.ended }

func (v *vm) Exit() vmm.Exit {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.exit
}

// guestConn is the stream to the guest; its end makes room for the next.
type guestConn struct {
	net.Conn
	vm *vm
}

func (c *guestConn) Close() error {
	c.vm.mu.Lock()
	if c.vm.conn == c.Conn {
		c.vm.conn = nil
	}
	c.vm.mu.Unlock()
	return c.Conn.Close()
}

func (v *vm) Dial(ctx context.Context) (net.Conn, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.hasEnded() {
		return nil, v.error("dial", vmm.ErrGone)
	}
	if v.conn != nil {
		return nil, v.error("dial", fmt.Errorf("the guest's stream is open already: %w", errdefs.ErrFailedPrecondition))
	}
	var d net.Dialer
	// QEMU's backlog takes it at once: this does not wait for QEMU.
	conn, err := d.DialContext(ctx, "unix", filepath.Join(v.handle.Dir, guestSocket))
	if err != nil {
		return nil, v.error("dial", err)
	}
	v.conn = conn
	return &guestConn{conn, v}, nil
}

func (v *vm) Pause(ctx context.Context) error {
	v.mu.Lock()
	v.paused = true
	v.mu.Unlock()
	return v.command("pause", func() error { return v.qmp.Stop(ctx) })
}

func (v *vm) Resume(ctx context.Context) error {
	return v.command("resume", func() error {
		if err := v.qmp.Cont(ctx); err != nil {
			return err
		}
		// While it is paused QEMU closes no descriptor that it is told to.
		v.filling.Lock()
		defer v.filling.Unlock()
		v.lookAgain(ctx)
		return nil
	})
}

// command runs f unless the guest has ended.
func (v *vm) command(name string, f func() error) error {
	if v.hasEnded() {
		return v.error(name, vmm.ErrGone)
	}
	return v.error(name, f())
}

func (v *vm) Console(ctx context.Context) ([]byte, error) {
	b, err := v.console(ctx)
	return b, v.error("console", err)
}

func (v *vm) console(ctx context.Context) ([]byte, error) {
	v.reading.Lock()
	defer v.reading.Unlock()
	return readConsole(ctx, v.qmp, v.handle.Dir)
}

// error says what was done to which VM. A QEMU that ended the connection is
// gone or about to be (see watchQMP).
func (v *vm) error(what string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, qmp.ErrClosed) {
		err = vmm.ErrGone
	}
	return fmt.Errorf("%s virtual machine %s: %w", what, v.handle.ID, err)
}

func (v *vm) Kill(ctx context.Context) error {
	v.mu.Lock()
	v.killed = true
	v.mu.Unlock()
	select {
	case <-v.gone:
		return nil
	default:
	}
	if err := v.process.kill(); err != nil && !errors.Is(err, os.ErrClosed) {
		return v.error("kill", err)
	}
	select {
	case <-v.gone:
		return nil
	case <-v.released:
		return v.error("kill", errors.New("the driver was closed"))
	case <-ctx.Done():
		return v.error("kill", context.Cause(ctx))
	}
}

// HostUsage implements vmm.Meter.
func (v *vm) HostUsage(context.Context) (vmm.HostUsage, error) {
	cpu, err := cpuTime(v.process.pid)
	pss, err2 := pssBytes(v.process.pid)
	select {
	case <-v.gone:
		return vmm.HostUsage{}, v.error("measure", vmm.ErrGone)
	default:
	}
	return vmm.HostUsage{CPU: cpu, PSSBytes: pss}, v.error("measure", errors.Join(err, err2))
}
