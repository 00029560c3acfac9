package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/cli/dial"
)

// An actionError says what hyper could not do.
type actionError struct {
	action string // "start web"
	err    error
}

// joined is what errors.Join makes.
type joined interface{ Unwrap() []error }

// cannot wraps err with what was tried, each one of several; nil stays nil.
func cannot(err error, action string, args ...any) error {
	if err == nil {
		return nil
	}
	if many, ok := err.(joined); ok { //nolint:errorlint // only what is joined at the top
		var errs []error
		for _, e := range many.Unwrap() {
			errs = append(errs, cannot(e, action, args...))
		}
		return errors.Join(errs...)
	}
	return &actionError{action: fmt.Sprintf(action, args...), err: err}
}

func (e *actionError) Error() string { return "cannot " + e.action + ": " + text(e.err) }
func (e *actionError) Unwrap() error { return e.err }

// A hinted error brings its own advice.
type hinted struct {
	error
	hint string
}

func (e hinted) Unwrap() error { return e.error }

// A usageError is about the command line; it is printed with the way to help.
type usageError struct {
	err     error
	usage   string // the use line, "" for none
	command string // path of the command: "hyper run"
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// report prints an error as the user shall see it.
func report(w io.Writer, err error) {
	if err == nil {
		return
	}
	switch e := err.(type) { //nolint:errorlint // only what is at the top
	case *exitError:
		report(w, e.err)
		return
	case joined:
		for _, e := range e.Unwrap() {
			report(w, e)
		}
		return
	}
	if err.Error() == "" {
		return
	}
	var u *usageError
	if errors.As(err, &u) {
		fmt.Fprintf(w, "hyper: %v\n\n", u.err)
		if u.usage != "" {
			fmt.Fprintf(w, "Usage:  %s\n\n", u.usage)
		}
		fmt.Fprintf(w, "See '%s --help'\n", u.command)
		return
	}
	fmt.Fprintf(w, "hyper: %s\n", text(err))
	if h := hintFor(err); h != "" {
		fmt.Fprintf(w, "hint: %s\n", h)
	}
}

// text is an error without what moby's client puts around it.
func text(err error) string {
	var d *dial.Error
	var a *actionError
	switch {
	case errors.As(err, &a) && error(a) != err:
		return a.Error()
	case a == nil && errors.As(err, &d):
		return d.Error()
	case errors.Is(err, context.Canceled):
		return "interrupted"
	}
	return strings.TrimPrefix(err.Error(), "Error response from daemon: ")
}

// hintFor is what the user can do about an error.
func hintFor(err error) string {
	var h hinted
	var d *dial.Error
	msg := err.Error()
	switch {
	case errors.As(err, &h):
		return h.hint
	case errors.As(err, &d):
		return d.Hint
	case strings.Contains(msg, "is too new"), strings.Contains(msg, "is too old"):
		return "hyper and hyperd are of different versions: install both of one version and restart hyperd"
	case strings.Contains(msg, "o such image"):
		return "'hyper images' lists the images that are here, 'hyper pull' fetches others"
	case errdefs.IsNotFound(err) && strings.Contains(msg, "o such container"):
		return "'hyper ps -a' lists the containers"
	case errdefs.IsNotFound(err) && strings.Contains(msg, "o such pod"):
		return "'hyper pod ls' lists the pods"
	case errdefs.IsUnauthorized(err), strings.Contains(msg, "unauthorized"), strings.Contains(msg, "authentication required"):
		return "'hyper login' stores credentials for a registry"
	}
	return ""
}
