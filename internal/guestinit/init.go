package guestinit

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// initName is what hyperstart is called when it is the first process of a
// container and not of the VM.
const initName = "hyper-init"

// containerInit runs a program as its child, passes signals on to it, reaps
// what it is left with, and returns the program's exit status.
func containerInit(args []string) int {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	path, err := exec.LookPath(args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 127
	}
	attr := &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true}}
	if isTerminal() {
		attr.Sys.Foreground = true
	}
	child, err := syscall.ForkExec(path, args, attr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "exec %s: %v\n", args[0], err)
		if err == syscall.ENOENT {
			return 127
		}
		return 126
	}
	go func() {
		for s := range signals {
			// SIGURG is the Go runtime's own.
			if s != syscall.SIGCHLD && s != syscall.SIGURG {
				syscall.Kill(child, s.(syscall.Signal))
			}
		}
	}()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR || err == nil && (pid != child || ws.Stopped()):
		case err != nil:
			return 255
		case ws.Signaled():
			return 128 + int(ws.Signal())
		default:
			return ws.ExitStatus()
		}
	}
}

func isTerminal() bool {
	_, err := unix.IoctlGetTermios(0, unix.TCGETS)
	return err == nil
}
