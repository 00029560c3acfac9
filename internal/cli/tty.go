package cli

import (
	"io"
	"os"
	"sync"

	"github.com/moby/term"
)

// terminal is the descriptor of a stream that is one.
func terminal(stream any) (fd uintptr, ok bool) {
	f, isFile := stream.(*os.File)
	if !isFile {
		return 0, false
	}
	return f.Fd(), term.IsTerminal(f.Fd())
}

// consoleSize is the size of the terminal that output goes to, zero when it
// goes elsewhere.
func consoleSize(out io.Writer) (height, width uint) {
	fd, ok := terminal(out)
	if !ok {
		return 0, 0
	}
	ws, err := term.GetWinsize(fd)
	if err != nil {
		return 0, 0
	}
	return uint(ws.Height), uint(ws.Width)
}

// makeRaw lets every key reach the container. restore may be called often.
func makeRaw(in any) (restore func(), err error) {
	fd, ok := terminal(in)
	if !ok {
		return func() {}, nil
	}
	old, err := term.SetRawTerminal(fd)
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { term.RestoreTerminal(fd, old) }), nil
}

// checkTTY refuses a terminal for the container when input is to come from
// something else.
func (a *app) checkTTY(stdin, tty bool) error {
	if _, ok := terminal(a.in); stdin && tty && !ok {
		return hinted{errNotTTY, "leave out -t"}
	}
	return nil
}
