package stdio

import (
	"io"
	"os"
	"sync"

	"github.com/moby/term"
)

// Terminal is the descriptor of a stream that is one.
func Terminal(stream any) (fd uintptr, ok bool) {
	f, isFile := stream.(*os.File)
	if !isFile {
		return 0, false
	}
	return f.Fd(), term.IsTerminal(f.Fd())
}

// ConsoleSize is the size of the terminal that output goes to, zero when it
// goes elsewhere.
func ConsoleSize(out io.Writer) (height, width uint) {
	fd, ok := Terminal(out)
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
	fd, ok := Terminal(in)
	if !ok {
		return func() {}, nil
	}
	old, err := term.SetRawTerminal(fd)
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { _ = term.RestoreTerminal(fd, old) }), nil
}
