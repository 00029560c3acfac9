// Package guestinit is hyperstart, PID 1 of a VM: it mounts what a system
// needs, waits for hyperd on a virtio-serial port, and makes containers and
// runs processes as hyperd says.
//
// It never decides policy, and it trusts hyperd, not containers: paths in a
// container's root are resolved inside that root, and nothing a container
// writes is read as anything but data.
//
// Goroutines: those of session, spawn and stdio; one per process that waits
// for its end; one per container that watches its memory. Locks, in this
// order: container.mu, Service.mu, then those of proc and spawn.
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
	// Idle memory counts more than speed here: there may be hundreds of VMs.
	debug.SetGCPercent(100)
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
	rest := time.AfterFunc(restAfter, func() {
		runtime.GC() // a pool's buffers go with the second collection
		debug.FreeOSMemory()
	})
	return session.Serve(wire.ServeLink(port), s, func() { rest.Reset(restAfter) })
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
