package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/vmm"
)

const (
	// startTimeout bounds the time until QEMU answers, a new one or one that is
	// adopted (hyperd does not serve before); 0.1 s is usual.
	startTimeout = 30 * time.Second
	// maxLog is how much of QEMU's output is shown.
	maxLog = 16 << 10
)

// environ is QEMU's environment. One arena instead of one per thread saves
// 5 MB a VM.
var environ = []string{"MALLOC_ARENA_MAX=1"}

// Start implements vmm.Driver.
func (d *Driver) Start(ctx context.Context, cfg vmm.Config) (vmm.VM, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	host, err := d.probe(ctx)
	if err != nil {
		return nil, err
	}
	s := spec{
		ID: cfg.ID, Accel: cfg.Accel, CPUs: cfg.CPUs, MemMiB: cfg.MemMiB,
		Cmdline: cfg.Cmdline, TSCKHz: host.tscKHz, Plug: cfg.Plug,
	}
	if s.Accel == "" || s.Accel == vmm.AccelAuto {
		s.Accel = host.caps.Accel
	}
	if s.Machine, err = machineFor(cfg, s.Accel, s.TSCKHz != 0); err != nil {
		return nil, err
	}
	b := host.programFor(s.Accel, s.Machine)
	s.Sandbox = b.sandbox
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("QEMU did not answer within %v", startTimeout))
	defer cancel()
	v, err := d.launchIn(ctx, b.path, cfg, s)
	if err != nil {
		return nil, fmt.Errorf("start virtual machine %s: %w", cfg.ID, err)
	}
	v.run()
	return v, nil
}

// launchIn is launch in a directory that it leaves as it was when that fails.
func (d *Driver) launchIn(ctx context.Context, binary string, cfg vmm.Config, s spec) (*vm, error) {
	var ours []string
	for _, name := range []string{qmpSocket, guestSocket, logFile, consoleFile} {
		path := filepath.Join(cfg.Dir, name)
		if _, err := os.Lstat(path); err == nil {
			return nil, fmt.Errorf("%s exists: %w", path, errdefs.ErrAlreadyExists)
		}
		ours = append(ours, path)
	}
	clean := func() {
		for _, path := range ours {
			_ = os.Remove(path)
		}
	}
	v, err := d.launch(ctx, binary, cfg, s)
	for tries := 0; err == nil && tries < filterTries && v.misfiltered; tries++ {
		if err = v.abandon(ctx); err == nil {
			clean()
			s.Unfiltered = tries == filterTries-1
			v, err = d.launch(ctx, binary, cfg, s)
		}
	}
	if err != nil {
		clean()
	}
	return v, err
}

// machineFor chooses the machine: microvm where everything has a slot and the
// guest gets a good clock, which without KVM needs a host with a constant TSC.
func machineFor(cfg vmm.Config, accel vmm.Accel, constantTSC bool) (vmm.Machine, error) {
	need := fixedDevices + len(cfg.Disks) + len(cfg.NICs)
	if cfg.Plug {
		need++
	}
	if cfg.Machine != "" && cfg.Machine != vmm.MachineAuto {
		if need > slots[cfg.Machine] {
			return "", fmt.Errorf("machine %s has room for %d devices, not %d: %w", cfg.Machine, slots[cfg.Machine], need, errdefs.ErrInvalidArgument)
		}
		return cfg.Machine, nil
	}
	if need <= slots[vmm.MachineMicroVM] && (accel == vmm.AccelKVM || constantTSC) {
		return vmm.MachineMicroVM, nil
	}
	return vmm.MachineQ35, nil
}

// launch starts QEMU and waits until it runs the guest.
func (d *Driver) launch(ctx context.Context, binary string, cfg vmm.Config, s spec) (*vm, error) {
	var in inheritance
	defer in.close()
	if err := in.open(cfg, &s); err != nil {
		return nil, err
	}
	args := s.argv()
	filtered := unconfined
	layout := s.layout(binary)
	if s.Clone {
		filtered = 0
		if !s.Unfiltered {
			filtered = d.memory.get(layout)
		}
	}
	p, err := in.exec(binary, args, cfg.Dir, filtered)
	if err != nil {
		return nil, err
	}
	// From here on QEMU alone holds the listeners: when it ends, so does a
	// connection to them.
	in.close()
	// A write to cgroup.procs waits for all CPUs, 10 ms, while QEMU comes up.
	entered := make(chan error, 1)
	go func() { entered <- enter(p.pid, cfg.Procs) }()
	v, err := d.greet(ctx, p, cfg, s)
	if eerr := <-entered; err == nil && eerr != nil {
		return nil, errors.Join(eerr, v.abandon(ctx))
	}
	if err == nil {
		if s.Clone && !s.Unfiltered {
			if fd := memoryFD(p.pid, s.MemoryFD, filtered); fd != 0 && fd != filtered {
				v.misfiltered = true
				d.memory.learn(layout, fd)
			}
		}
		return v, nil
	}
	status := p.end(ctx)
	p.close()
	out := readLog(cfg.Dir)
	if context.Cause(ctx) == nil && status != "" {
		err = fmt.Errorf("QEMU ended with %s", status)
		if line := vmm.LastLines([]byte(out), 1); line != "" {
			err = fmt.Errorf("%w: %s", err, line)
		}
	}
	return nil, &vmm.StartError{Tried: binary + " " + strings.Join(args, " "), Err: err, Stderr: out}
}

// enter puts a process into cgroups, by their open cgroup.procs.
func enter(pid int, procs []*os.File) error {
	for _, f := range procs {
		if _, err := f.WriteString(strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("put QEMU into its cgroup: %w", err)
		}
	}
	return nil
}

// greet connects to a new QEMU and makes sure that it runs the guest, or
// loads the state of a clone.
func (d *Driver) greet(ctx context.Context, p *process, cfg vmm.Config, s spec) (*vm, error) {
	h := vmm.Handle{
		Driver: driverName, ID: cfg.ID, Dir: cfg.Dir, PID: p.pid, Accel: s.Accel, Machine: s.Machine,
	}
	var err error
	if h.BootID, err = bootID(); err != nil {
		return nil, err
	}
	if h.StartTime, err = startTime(p.pid); err != nil {
		return nil, err
	}
	v, err := d.connect(ctx, p, h)
	if err != nil {
		return nil, err
	}
	v.saveable = cfg.Memory != nil
	v.slots, v.nextSet = slotsOf(cfg.Disks), firstFreeSet
	if cfg.Plug {
		v.plugs = make(map[string]*plug)
	}
	if s.Clone {
		err = v.load(ctx, s.StateFD)
	} else {
		// It takes commands when all is set up and the CPUs run.
		err = v.qmp.Ready(ctx)
	}
	if err != nil {
		v.disconnect()
		return nil, err
	}
	return v, nil
}

// abandon ends a VM that nobody knows yet.
func (v *vm) abandon(ctx context.Context) error {
	v.disconnect()
	err := v.process.kill()
	if err == nil {
		v.process.end(ctx)
		v.process.close()
	}
	return err
}

// end waits for a child to end, and says how. A QEMU that has closed its end
// of QMP is about to end by itself and then says why; any other is killed.
func (p *process) end(ctx context.Context) (status string) {
	kill := func() { _ = p.kill() }
	defer context.AfterFunc(ctx, kill)()
	defer time.AfterFunc(time.Second, kill).Stop()
	status, _ = p.wait()
	return status
}

// Adopt implements vmm.Driver.
func (d *Driver) Adopt(ctx context.Context, h vmm.Handle) (vmm.VM, error) {
	fail := func(err error) (vmm.VM, error) {
		return nil, fmt.Errorf("adopt virtual machine %s: %w", h.ID, err)
	}
	if h.Driver != driverName {
		return fail(fmt.Errorf("it belongs to driver %q: %w", h.Driver, errdefs.ErrInvalidArgument))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("QEMU did not answer within %v", startTimeout))
	defer cancel()
	p, err := adoptProcess(h)
	if err != nil {
		return fail(err)
	}
	v, err := d.connect(ctx, p, h)
	if err == nil {
		if err = v.settle(ctx); err == nil {
			v.run()
			return v, nil
		}
		v.disconnect()
	}
	defer p.close()
	if _, serr := startTime(h.PID); serr != nil {
		return fail(vmm.ErrGone) // it ended meanwhile
	}
	return fail(err)
}

// inheritance is the descriptors that QEMU gets, from number 3 on.
type inheritance struct {
	files []*os.File
	clone bool // for one
}

func (in *inheritance) close() {
	for _, f := range in.files {
		f.Close()
	}
	in.files = nil
}

// add takes f over and returns its number in QEMU.
func (in *inheritance) add(f *os.File) int {
	in.files = append(in.files, f)
	return 3 + len(in.files) - 1
}

// open opens all that cfg names and notes the numbers in s.
func (in *inheritance) open(cfg vmm.Config, s *spec) error {
	var err error
	if cfg.Restore != nil {
		err = in.openSaved(cfg.Restore, s)
	} else {
		err = in.openBoot(cfg, s)
	}
	if err != nil {
		return err
	}
	for _, d := range cfg.Disks {
		disk := diskSpec{ID: d.ID, ReadOnly: d.ReadOnly}
		if d.Path != "" {
			f, device, err := openDisk(d)
			if err != nil {
				return err
			}
			disk.FD, disk.Device = in.add(f), device
		}
		s.Disks = append(s.Disks, disk)
	}
	for i, n := range cfg.NICs {
		f, err := duplicate(n.Tap)
		if err != nil {
			return fmt.Errorf("tap of network interface %d: %w", i, err)
		}
		nic := nicSpec{TapFD: in.add(f), MAC: n.MAC, MTU: n.MTU}
		if s.Accel == vmm.AccelKVM { // without KVM it has no fast way into the guest
			if f, err := os.OpenFile("/dev/vhost-net", os.O_RDWR, 0); err == nil {
				nic.VhostFD = in.add(f)
			}
		}
		s.NICs = append(s.NICs, nic)
	}
	if s.QMPFD, err = in.listen(filepath.Join(cfg.Dir, qmpSocket)); err != nil {
		return err
	}
	s.GuestFD, err = in.listen(filepath.Join(cfg.Dir, guestSocket))
	return err
}

// openBoot opens what a VM boots from, and the file that its memory is to be.
func (in *inheritance) openBoot(cfg vmm.Config, s *spec) error {
	f, _, err := openFile(cfg.Kernel, true)
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	s.KernelFD = in.add(f)
	if cfg.Initrd != "" {
		if f, _, err = openFile(cfg.Initrd, true); err != nil {
			return fmt.Errorf("initrd: %w", err)
		}
		s.InitrdFD = in.add(f)
	}
	if cfg.Memory != nil {
		if f, err = duplicate(cfg.Memory); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
		s.MemoryFD = in.add(f)
	}
	return nil
}

// openSaved opens what a clone is made of. The state has an offset, so each
// clone opens it anew; QEMU itself does so with the memory.
func (in *inheritance) openSaved(saved *vmm.Saved, s *spec) error {
	s.Clone, in.clone = true, true
	f, err := duplicate(saved.Memory)
	if err != nil {
		return fmt.Errorf("saved memory: %w", err)
	}
	s.MemoryFD = in.add(f)
	if f, err = reopen(saved.State); err != nil {
		return fmt.Errorf("saved state: %w", err)
	}
	s.StateFD = in.add(f)
	return nil
}

func openDisk(d vmm.Disk) (f *os.File, device bool, err error) {
	f, mode, err := openFile(d.Path, d.ReadOnly)
	if err != nil {
		return nil, false, fmt.Errorf("disk %s: %w", d.ID, err)
	}
	return f, !mode.IsRegular(), nil
}

// openFile opens a file or a block device, and never waits as for a pipe.
func openFile(path string, readOnly bool) (*os.File, os.FileMode, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && info.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
		err = fmt.Errorf("%s is neither a file nor a block device: %w", path, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Mode(), nil
}

// duplicate makes a descriptor of its own for the same open file.
func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	if cerr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// reopen opens the file behind f again, to be read from its beginning.
func reopen(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var again *os.File
	if cerr := raw.Control(func(fd uintptr) { again, err = os.Open(fdPath(int(fd))) }); cerr != nil {
		return nil, cerr
	}
	return again, err
}

// listen binds a unix socket for QEMU to accept on.
func (in *inheritance) listen(path string) (int, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return 0, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	f, err := l.File()
	if err != nil {
		return 0, err
	}
	return in.add(f), nil
}

// exec starts QEMU in a session of its own, so that no signal to ours, and
// not our end, ends it.
//
// For filtered see confined.
func (in *inheritance) exec(binary string, args []string, dir string, filtered int) (*process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	log, err := os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	var pidfd int
	var child *os.Process
	start := func() error {
		child, err = os.StartProcess(binary, slices.Concat([]string{binary}, args), &os.ProcAttr{
			Dir: "/", Env: environ,
			Files: slices.Concat([]*os.File{null, log, log}, in.files),
			Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
		})
		return err
	}
	if in.clone {
		whole := start
		start = func() error { return withoutHugePages(whole) }
	}
	if filtered != unconfined {
		err = confined(filtered, start)
	} else {
		err = start()
	}
	if err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	p, err := newProcess(child.Pid, pidfd, child)
	if err != nil {
		return nil, errors.Join(err, child.Kill())
	}
	return p, nil
}

// readLog is the end of what QEMU printed.
func readLog(dir string) string {
	f, err := os.Open(filepath.Join(dir, logFile))
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxLog {
		_, _ = f.Seek(-maxLog, io.SeekEnd)
	}
	b, _ := io.ReadAll(io.LimitReader(f, maxLog))
	return string(bytes.TrimSpace(b))
}
