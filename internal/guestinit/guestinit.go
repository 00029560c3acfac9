// Package guestinit is hyperstart, PID 1 of a VM: it mounts what a system
// needs, waits for hyperd on a virtio-serial port, and makes containers and
// runs processes as hyperd says.
//
// It never decides policy, and it trusts hyperd, not containers: paths in a
// container's root are resolved inside that root, and nothing a container
// writes is read as anything but data.
//
// Goroutines: those of session, spawn and stdio; one per process that waits
// for its end; one that watches the memory of all containers; in a settled guest
// one each on threads of their own, where the next containers are to be made. Locks,
// in this order: Service.configuring or container.mu, Service.mu, then the rest. Who
// makes a container holds its mu, which nobody else asks for yet, and may take another's.
package guestinit

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/device"
	"github.com/hyper-run/hyper/internal/guestinit/session"
)

// PortName is the name of the virtio-serial port that leads to hyperd.
const PortName = "hyper.guest"

const (
	portPatience = 5 * time.Second // for the port to show up
	restAfter    = 2 * time.Second // without a call memory goes back to the kernel
	memoryLimit  = 64 << 20        // of the Go heap, soft
)

// When garbage is collected. A heap of less than 4 MiB · percent / 100 never is.
const (
	gcPercent      = 30
	cloneGCPercent = 100
	cloneGarbage   = 4 << 20
)

// Main is hyperstart: PID 1 of the VM, or of a container when its first
// argument says so. It does not return. The caller has locked the main
// goroutine to its thread, from an init function: nothing else may run on the
// thread that /proc/self speaks of.
func Main(version string) {
	if os.Getpid() == 1 && len(os.Args) > 1 && os.Args[0] == initName {
		os.Exit(containerInit(os.Args[1:]))
	}
	fatal(run(version))
}

func run(version string) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("hyperstart is PID 1 of a virtual machine, not a command")
	}
	// Idle memory counts more than speed here: there may be hundreds of VMs. One thread runs Go: waking
	// another CPU for each goroutine costs more than it brings.
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	runtime.GOMAXPROCS(1)
	m, err := boot()
	if err != nil {
		return err
	}
	s, err := newService(version, m)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), portPatience)
	defer cancel()
	path, err := device.Port(ctx, PortName)
	if err != nil {
		return err
	}
	port, err := openPort(path)
	if err != nil {
		return err
	}
	s.rest = time.AfterFunc(restAfter, s.takeRest)
	return session.Serve(wire.ServeLink(port), s, s.answered)
}

// answered follows every call. A settled guest has nothing to give back, and
// none of its clones is to do anything by itself.
func (s *Service) answered() {
	if !s.settled.Load() {
		s.rest.Reset(restAfter)
	}
}

// takeRest is what happens after restAfter without a call. In a clone,
// collecting garbage writes to memory that it still shares with its template:
// as long as there is little, it is cheaper to keep.
func (s *Service) takeRest() {
	s.restock()
	if s.cloned.Load() && heapHeld() <= cloneGarbage {
		debug.SetGCPercent(cloneGCPercent)
		return
	}
	debug.SetGCPercent(gcPercent)
	giveBack()
}

// heapHeld is what the heap keeps of the kernel's memory.
func heapHeld() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapSys - m.HeapReleased
}

// giveBack returns memory that is not used to the kernel.
func giveBack() {
	runtime.GC() // a pool's buffers go with the second collection
	debug.FreeOSMemory()
}

// fatal is how hyperstart ends when it can't go on: it says why on the
// console, where hyperd finds it, and stops the VM.
func fatal(err error) {
	fmt.Fprintf(os.Stderr, "hyperstart: %v\n", err)
	if os.Getpid() == 1 {
		syscall.Sync()
		powerOff()
	}
	os.Exit(1)
}
