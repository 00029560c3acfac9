package template

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/vmm"
)

const (
	spareBytes  = 256 << 20 // stay available after a template got its memory
	killTimeout = 10 * time.Second
)

// vmID names the VM that becomes a template, by its directory in RunDir.
func vmID(dir string) string { return "template-" + filepath.Base(dir) }

// runDir is that of the VM.
func (s *Store) runDir(id string) string { return filepath.Join(s.cfg.RunDir, id[:12]) }

// enough says whether the host has so much memory, and some to spare.
func (s *Store) enough(bytes int64) error {
	have, err := s.available()
	if err != nil {
		return fmt.Errorf("look for memory: %w", err)
	}
	if want := bytes + spareBytes; have < want {
		return fmt.Errorf("the host has %d MiB of memory available, a template takes %d: %w", have>>20, want>>20, errdefs.ErrResourceExhausted)
	}
	return nil
}

// bootBytes is about what a VM takes until it is saved: kernel, initrd and
// hyperstart, 1/64 for the kernel's own view of its memory, and the VMM.
func (shape Shape) bootBytes() int64 {
	size := int64(shape.MemMiB) << 20
	return min(size, 128<<20+size/32)
}

// make boots a VM of that shape and saves it. It leaves nothing else.
func (s *Store) make(ctx context.Context, shape Shape, id string) (_ vmm.Saved, _ vmm.Handle, err error) {
	if err := s.enough(shape.bootBytes()); err != nil {
		return vmm.Saved{}, vmm.Handle{}, err
	}
	dir := s.runDir(id)
	if err := s.sweep(ctx, dir); err != nil {
		return vmm.Saved{}, vmm.Handle{}, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return vmm.Saved{}, vmm.Handle{}, err
	}
	saved := vmm.Saved{}
	alive := false // whether a VM may have been left; then the next sweep finds it by dir
	defer func() {
		if !alive {
			err = errors.Join(err, os.RemoveAll(dir))
		}
		if err != nil {
			closeSaved(saved)
		}
	}()
	if saved.Memory, err = newMemfd("hyper-template-memory", int64(shape.MemMiB)<<20); err != nil {
		return vmm.Saved{}, vmm.Handle{}, err
	}
	if saved.State, err = newMemfd("hyper-template-state", 0); err != nil {
		return vmm.Saved{}, vmm.Handle{}, err
	}
	vm, err := s.start(ctx, shape, dir, saved.Memory)
	if err != nil {
		return vmm.Saved{}, vmm.Handle{}, err
	}
	err = s.save(ctx, vm, saved.State)
	kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if kerr := vm.Kill(kctx); kerr != nil {
		alive = true
		err = errors.Join(err, fmt.Errorf("end virtual machine: %w", kerr))
	}
	if err != nil {
		return vmm.Saved{}, vmm.Handle{}, err
	}
	return saved, vm.Handle(), errors.Join(seal(saved.Memory), seal(saved.State))
}

func closeSaved(saved vmm.Saved) {
	for _, f := range []*os.File{saved.Memory, saved.State} {
		if f != nil {
			f.Close()
		}
	}
}

// start starts the VM with memory.
func (s *Store) start(ctx context.Context, shape Shape, dir string, memory *os.File) (vmm.VM, error) {
	cfg := vmm.Config{
		ID: vmID(dir), Dir: dir, Accel: s.cfg.Accel, Machine: shape.Machine,
		Kernel: shape.Kernel, Initrd: shape.Initrd, Cmdline: shape.Cmdline,
		CPUs: shape.CPUs, MemMiB: shape.MemMiB, Memory: memory, Disks: shape.Slots(), Plug: shape.Plug,
	}
	if shape.NIC {
		if s.cfg.Spare == nil {
			return nil, fmt.Errorf("there is no network: %w", errdefs.ErrUnavailable)
		}
		tap, err := s.cfg.Spare(ctx)
		if err != nil {
			return nil, fmt.Errorf("make spare tap: %w", err)
		}
		defer tap.Close()
		cfg.NICs = []vmm.NIC{{Tap: tap, MAC: NICAddress}}
	}
	return s.cfg.Driver.Start(ctx, cfg)
}

// save waits until the guest is up and at rest, and saves it.
func (s *Store) save(ctx context.Context, vm vmm.VM, state *os.File) error {
	saver, ok := vm.(vmm.Saver)
	if !ok {
		return fmt.Errorf("%s can't save virtual machines: %w", s.cfg.Driver.Name(), errdefs.ErrNotImplemented)
	}
	if err := s.settle(ctx, vm); err != nil {
		return explain(ctx, vm, err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	if err := saver.Save(ctx, state); err != nil {
		return fmt.Errorf("save virtual machine: %w", err)
	}
	if info, err := state.Stat(); err != nil {
		return err
	} else if info.Size() < 1 || info.Size() > maxState {
		return fmt.Errorf("save virtual machine: %d bytes of state", info.Size())
	}
	return nil
}

// settle returns when the guest is up and has come to rest, and nobody is
// connected to it.
func (s *Store) settle(ctx context.Context, vm vmm.VM) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-vm.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	late := fmt.Errorf("the guest did not answer within %v: %w", s.cfg.Timeout, context.DeadlineExceeded)
	boots, stop := context.WithTimeoutCause(ctx, s.cfg.Timeout, late)
	defer stop()
	conn, err := vm.Dial(boots)
	if err != nil {
		return because(boots, err)
	}
	client, err := s.cfg.DialGuest(boots, conn)
	if err != nil {
		return because(boots, err)
	}
	defer client.Close()
	late = fmt.Errorf("the guest did not come to rest within %v: %w", s.cfg.Timeout, context.DeadlineExceeded)
	settles, stop := context.WithTimeoutCause(ctx, s.cfg.Timeout, late)
	defer stop()
	if _, err := client.Settle(settles, &wire.SettleRequest{Spec: s.cfg.Spec}); err != nil {
		return because(settles, err)
	}
	// hyperstart ends the session, so that no clone has to.
	select {
	case <-client.Done():
		return nil
	case <-settles.Done():
		return because(settles, settles.Err())
	}
}

// because is why ctx has ended when it has, else err.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// deathTimeout is how far apart the end of a VMM and that of its connections
// may be seen.
const deathTimeout = time.Second

// explain adds to err all there is to see of a VM that did not come up.
func explain(ctx context.Context, vm vmm.VM, err error) error {
	se := &vmm.StartError{Err: err}
	ctx, cancel := context.WithTimeout(ctx, deathTimeout)
	defer cancel()
	select {
	case <-vm.Done():
		exit := vm.Exit()
		se.Err = fmt.Errorf("the virtual machine has ended (%s %s): %w", exit.Reason, exit.Detail, err)
		se.Stderr = exit.Stderr
	case <-ctx.Done():
	}
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if console, err := vm.Console(ctx); err == nil {
		se.Console = vmm.LastLines(console, vmm.ConsoleLines)
	}
	return se
}

// sweep ends the VM that was started in dir, and removes dir.
func (s *Store) sweep(ctx context.Context, dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if sweeper, ok := s.cfg.Driver.(vmm.Sweeper); ok {
		if err := sweeper.Sweep(ctx, vmID(dir)); err != nil {
			return fmt.Errorf("end virtual machine %s: %w", vmID(dir), err)
		}
	}
	return os.RemoveAll(dir)
}
