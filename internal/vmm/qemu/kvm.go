package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The part of the KVM API that the probe needs
// (Documentation/virt/kvm/api.rst, include/uapi/linux/kvm.h).
const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmSetTSSAddr          = 0xae47
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84

	kvmAPIVersion        = 12
	kvmExitHLT           = 5
	kvmExitInternalError = 17
)

const (
	// probeLoops turns of a loop of two instructions take real hardware far
	// less than a millisecond, and KVM without its help more than 50 ms.
	probeLoops = 100_000
	probeLimit = 10 * time.Millisecond
	// probeTries: a busy host may take the CPU away in the midst of one.
	probeTries = 3
	// probePatience is how long an interrupted KVM_RUN may take to return
	// before its thread is given up.
	probePatience = 2 * time.Second
)

// probeKVM finds out whether KVM executes guest code at a speed that deserves
// the name: /dev/kvm may exist, and let VMs be created, on a host where it
// has no hardware to execute them. why is one sentence either way.
//
// It always returns, within probePatience in the worst case: a KVM_RUN that
// cannot be interrupted keeps its thread, not its caller.
func probeKVM() (works bool, why string) {
	type outcome struct {
		took time.Duration
		err  error
	}
	result := make(chan outcome, 1)
	go func() {
		// KVM_RUN is interrupted by a signal to its thread. The thread ends
		// with the goroutine, since it is never unlocked.
		runtime.LockOSThread()
		took, err := timeGuest("/dev/kvm")
		result <- outcome{took, err}
	}()
	timeout := time.NewTimer(probePatience)
	defer timeout.Stop()
	var o outcome
	select {
	case o = <-result:
	case <-timeout.C:
		o.err = fmt.Errorf("KVM did not come back from running a test guest within %v", probePatience)
	}
	switch {
	case o.err == nil:
		return true, fmt.Sprintf("KVM works: a test guest executed %d instructions in %v", 2*probeLoops, o.took.Round(time.Microsecond))
	case errors.Is(o.err, os.ErrNotExist):
		return false, "this host has no /dev/kvm"
	case errors.Is(o.err, os.ErrPermission):
		return false, "/dev/kvm may not be opened by this user"
	case !hasVirtualization():
		return false, fmt.Sprintf("/dev/kvm exists, but the CPU offers neither vmx nor svm, and %v", o.err)
	}
	return false, fmt.Sprintf("/dev/kvm exists, but %v", o.err)
}

func hasVirtualization() bool {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return false
	}
	flags := cpuFlags(info)
	return slices.Contains(flags, "vmx") || slices.Contains(flags, "svm")
}

// probeVM is a guest of one CPU and two pages. Its user must stay on one thread.
type probeVM struct {
	files []int
	vcpu  int
	mem   []byte // guest physical memory from 0
	run   []byte // struct kvm_run
}

// timeGuest runs a loop in a guest and returns the best time of some tries.
func timeGuest(device string) (time.Duration, error) {
	vm, err := newProbeVM(device)
	if err != nil {
		return 0, err
	}
	defer vm.close()
	err = errors.New("no try")
	for range probeTries {
		var took time.Duration
		if took, err = vm.loop(); err == nil {
			return took, nil
		}
	}
	return 0, err
}

func newProbeVM(device string) (_ *probeVM, err error) {
	vm := &probeVM{}
	defer func() {
		if err != nil {
			vm.close()
		}
	}()
	kvm, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: device, Err: err}
	}
	vm.files = append(vm.files, kvm)
	version, err := ioctl(kvm, kvmGetAPIVersion, 0)
	if err != nil {
		return nil, fmt.Errorf("it does not tell its version: %w", err)
	}
	if version != kvmAPIVersion {
		return nil, fmt.Errorf("it speaks version %d of its interface", version)
	}
	machine, err := ioctl(kvm, kvmCreateVM, 0)
	if err != nil {
		return nil, fmt.Errorf("no VM can be created: %w", err)
	}
	vm.files = append(vm.files, machine)
	// Old Intel CPUs need this out of the guest's way to run unpaged code.
	_, _ = ioctl(machine, kvmSetTSSAddr, 0xfffbd000)
	if vm.mem, err = unix.Mmap(-1, 0, 2*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS); err != nil {
		return nil, err
	}
	region := [4]uint64{0, 0, uint64(len(vm.mem)), uint64(uintptr(unsafe.Pointer(&vm.mem[0])))}
	if _, err := ioctlPtr(machine, kvmSetUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return nil, fmt.Errorf("a VM gets no memory: %w", err)
	}
	if vm.vcpu, err = ioctl(machine, kvmCreateVCPU, 0); err != nil {
		return nil, fmt.Errorf("a VM gets no CPU: %w", err)
	}
	vm.files = append(vm.files, vm.vcpu)
	size, err := ioctl(kvm, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return nil, err
	}
	vm.run, err = unix.Mmap(vm.vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return vm, err
}

func (vm *probeVM) close() {
	for _, m := range [][]byte{vm.run, vm.mem} {
		if m != nil {
			_ = unix.Munmap(m)
		}
	}
	for _, fd := range slices.Backward(vm.files) {
		_ = unix.Close(fd)
	}
}

// loop executes probeLoops turns of the loop, in protected mode without
// paging, and says how long it took; the error is for KVM that does not get
// there within probeLimit.
func (vm *probeVM) loop() (time.Duration, error) {
	const entry = 0x1000
	code := []byte{
		0xb9, 0, 0, 0, 0, // mov ecx, probeLoops
		0x49,       // dec ecx
		0x75, 0xfd, // jnz to dec
		0xf4, // hlt
	}
	binary.LittleEndian.PutUint32(code[1:], probeLoops)
	copy(vm.mem[entry:], code)
	if err := vm.setRegisters(entry); err != nil {
		return 0, err
	}

	tid := unix.Gettid()
	// The second byte of struct kvm_run is immediate_exit: it covers a signal
	// that comes before KVM_RUN is entered.
	vm.run[1] = 0
	interrupted := make(chan struct{})
	limit := time.AfterFunc(probeLimit, func() {
		vm.run[1] = 1
		_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG) // Go's runtime ignores a stray one
		close(interrupted)
	})
	start := time.Now()
	_, err := ioctl(vm.vcpu, kvmRun, 0)
	took := time.Since(start)
	if !limit.Stop() {
		<-interrupted // it must not touch vm.run later
	}

	reason := binary.LittleEndian.Uint32(vm.run[8:])
	switch {
	case errors.Is(err, unix.EINTR):
		return 0, fmt.Errorf("a test guest did not execute %d instructions in %v", 2*probeLoops, probeLimit)
	case err != nil:
		return 0, fmt.Errorf("a test guest does not run: %w", err)
	case reason == kvmExitInternalError:
		return 0, errors.New("it gave up on a test guest with an internal error")
	case reason != kvmExitHLT:
		return 0, fmt.Errorf("a test guest ended with exit reason %d", reason)
	case took > probeLimit:
		return 0, fmt.Errorf("a test guest took %v for %d instructions", took.Round(time.Millisecond), 2*probeLoops)
	}
	return took, nil
}

// setRegisters puts the CPU at entry, in flat 32-bit protected mode.
func (vm *probeVM) setRegisters(entry uint64) error {
	var sregs [312]byte // struct kvm_sregs: cs ds es fs gs ss tr ldt, 24 bytes each …
	if _, err := ioctlPtr(vm.vcpu, kvmGetSregs, unsafe.Pointer(&sregs)); err != nil {
		return err
	}
	for i := range 6 {
		// struct kvm_segment: base u64, limit u32, selector u16, then bytes
		// type, present, dpl, db, s, l, g, avl.
		seg := sregs[24*i : 24*(i+1)]
		kind, selector := byte(3), uint16(0x10)
		if i == 0 {
			kind, selector = 11, 8
		}
		binary.LittleEndian.PutUint64(seg[0:], 0)
		binary.LittleEndian.PutUint32(seg[8:], 0xffffffff)
		binary.LittleEndian.PutUint16(seg[12:], selector)
		copy(seg[14:], []byte{kind, 1, 0, 1, 1, 0, 1, 0})
	}
	sregs[224] |= 1 // cr0: protected mode
	if _, err := ioctlPtr(vm.vcpu, kvmSetSregs, unsafe.Pointer(&sregs)); err != nil {
		return err
	}
	var regs [144]byte // struct kvm_regs: 16 registers, rip, rflags
	binary.LittleEndian.PutUint64(regs[128:], entry)
	binary.LittleEndian.PutUint64(regs[136:], 2)
	_, err := ioctlPtr(vm.vcpu, kvmSetRegs, unsafe.Pointer(&regs))
	return err
}

func ioctl(fd int, request, arg uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// ioctlPtr is ioctl with memory to read or write, which the conversion in the
// call itself keeps in its place (see unsafe.Pointer, case 4).
func ioctlPtr(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}
