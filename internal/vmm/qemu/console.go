package qemu

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/qemu/qmp"
)

const consoleFile = "console"

// readConsole returns the last of the guest's console. QEMU's ring buffer
// forgets what was read from it, so that is kept in a file beside, for the
// next time and for the next hyperd. The caller serializes.
func readConsole(ctx context.Context, c *qmp.Client, dir string) ([]byte, error) {
	path := filepath.Join(dir, consoleFile)
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	fresh, err := c.RingbufRead(ctx, consoleDev, consoleSize)
	if err != nil || len(fresh) == 0 {
		return text, err
	}
	text = append(text, fresh...)
	if extra := len(text) - consoleSize; extra > 0 {
		text = text[extra:]
	}
	// Worth nothing after a crash of the host: no fsync, no rename.
	return text, os.WriteFile(path, text, 0o600)
}

var (
	panicLine  = regexp.MustCompile(`Kernel panic - not syncing: ([^\r\n]*)`)
	rebootLine = []byte("reboot: Restarting system")
)

// panicOn finds the message of a kernel panic on a console.
func panicOn(console []byte) (message string, found bool) {
	all := panicLine.FindAllSubmatch(console, -1)
	if len(all) == 0 {
		return "", false
	}
	return vmm.LastLines(all[len(all)-1][1], 1), true
}

// exitOf says how a guest ended: by what QEMU calls the cause (ShutdownCause
// in qapi/run-state.json, "" when it was not heard) and by the console. A
// kernel that panics resets the machine, because it was told panic=-1, so a
// reset after a panic is the panic's.
func exitOf(cause string, console []byte) vmm.Exit {
	message, panicked := panicOn(console)
	switch {
	case cause == "guest-panic" || panicked && cause != "guest-shutdown":
		return vmm.Exit{Reason: vmm.ExitPanic, Detail: message}
	case cause == "guest-reset" || cause == "" && bytes.Contains(console, rebootLine):
		return vmm.Exit{Reason: vmm.ExitReset}
	}
	return vmm.Exit{Reason: vmm.ExitPowerOff}
}
