package cli

import (
	"errors"
	"strings"
	"syscall"
)

// The exit codes of hyper. Any other is the container's own.
//
//	code  run, create          exec                 every other command
//	0     as the container     as the process       done
//	1     stdin is no tty      daemon refused       refused, in part or whole
//	125   daemon refused,      wrong flags          wrong flags
//	      wrong flags
//	126   not executable       the same (daemon's)  -
//	127   command not found    the same (daemon's)  -
//	130   -                    -                    interrupted
const (
	exitFailed        = 1
	exitRefused       = 125
	exitNotExecutable = 126
	exitNotFound      = 127
	exitInterrupted   = 130
)

// An exitError gives an error its exit code; err is nil when there is nothing
// to print, as when a container's own code is passed on.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func exitCode(err error) int {
	var e *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.code
	default:
		return exitFailed
	}
}

// status passes a container's exit code on.
func status(code int) error {
	if code == 0 {
		return nil
	}
	return &exitError{code: code}
}

// withCode gives err an exit code; nil stays nil.
func withCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code: code, err: err}
}

// startCode is the exit code for a container that could not be started. As in
// Docker it is told from the text, which is all that the API carries.
func startCode(err error) int {
	text := err.Error()
	if !strings.HasPrefix(strings.TrimPrefix(text, "Error response from daemon: "), `start "`) {
		return exitRefused // something else than the program is missing
	}
	switch {
	case strings.Contains(text, "executable file not found"), strings.Contains(text, syscall.ENOENT.Error()):
		return exitNotFound
	case strings.Contains(text, syscall.EACCES.Error()), strings.Contains(text, syscall.EISDIR.Error()):
		return exitNotExecutable
	default:
		return exitRefused
	}
}
