// Command hyperstart is PID 1 of Hyper's virtual machines.
package main

import (
	"runtime"

	"github.com/hyper-run/hyper/internal/guestinit"
)

// version is set by the linker.
var version = "dev"

func init() {
	runtime.LockOSThread() // the main goroutine stays on the main thread; see guestinit.Main
	runtime.MemProfileRate = 0
}

func main() { guestinit.Main(version) }
