package stdio

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// An IO is all of a process's stdio.
type IO struct {
	In       *Input
	Out, Err *Output  // Err is nil with a terminal
	terminal *os.File // the master's end; nil without
}

// orphanGrace is how long output may stay open after its process has ended,
// because another process inherited it. Then it counts as complete.
const orphanGrace = 2 * time.Second

// Pipes makes the stdio of a process without a terminal, and the files that
// become its descriptors 0, 1 and 2, which the caller closes once the process
// has them. Without stdin, descriptor 0 is null (which stays the caller's).
func Pipes(stdin bool, null *os.File) (*IO, [3]*os.File, error) {
	var child [3]*os.File
	fail := func(err error) (*IO, [3]*os.File, error) {
		return nil, child, fmt.Errorf("make pipes for process: %w", err)
	}
	outR, outW, err := pipe(0)
	if err != nil {
		return fail(err)
	}
	errR, errW, err := pipe(0)
	if err != nil {
		outR.Close()
		outW.Close()
		return fail(err)
	}
	child = [3]*os.File{null, outW, errW}
	p := &IO{In: &Input{}}
	if stdin {
		inR, inW, err := pipe(1)
		if err != nil {
			for _, f := range []*os.File{outR, outW, errR, errW} {
				f.Close()
			}
			return fail(err)
		}
		child[0] = inR
		p.In = NewInput(inW, false)
	}
	p.Out = NewOutput(outR, nil)
	p.Err = NewOutput(errR, nil)
	return p, child, nil
}

// pipe returns a pipe of which our end, 0 to read or 1 to write, is
// non-blocking; the process's end must not be.
func pipe(ours int) (r, w *os.File, err error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	if err := syscall.SetNonblock(fds[ours], true); err != nil {
		syscall.Close(fds[0])
		syscall.Close(fds[1])
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// OpenTerminal makes a terminal from an opened ptmx device, which it takes
// over, and returns the stdio of a process and the terminal's other end, whose
// name is its path. That becomes the process's descriptors 0, 1 and 2; the caller closes it once the
// process has it.
func OpenTerminal(ptmx int) (*IO, *os.File, error) {
	fail := func(err error) (*IO, *os.File, error) {
		syscall.Close(ptmx)
		return nil, nil, fmt.Errorf("make terminal for process: %w", err)
	}
	if err := unix.IoctlSetPointerInt(ptmx, unix.TIOCSPTLCK, 0); err != nil {
		return fail(err)
	}
	n, err := unix.IoctlGetInt(ptmx, unix.TIOCGPTN)
	if err != nil {
		return fail(err)
	}
	// TIOCGPTPEER, unlike opening /dev/pts/N, can't be led elsewhere.
	slave, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(ptmx), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return fail(errno)
	}
	if err := syscall.SetNonblock(ptmx, true); err != nil {
		syscall.Close(int(slave))
		return fail(err)
	}
	return terminal(os.NewFile(uintptr(ptmx), "ptmx")), os.NewFile(slave, fmt.Sprintf("/dev/pts/%d", n)), nil
}

func terminal(master *os.File) *IO {
	p := &IO{terminal: master}
	p.In = NewInput(master, true)
	p.Out = NewOutput(master, nil)
	return p
}

// Resize sets the terminal's window size.
func (p *IO) Resize(height, width uint16) error {
	if p.terminal == nil {
		return fmt.Errorf("resize terminal: the process has none")
	}
	raw, err := p.terminal.SyscallConn()
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	})
	if err == nil {
		err = serr
	}
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

// Exited tells that the process has ended. Its output becomes complete when
// nobody can write to it any more, at the latest after a grace period.
func (p *IO) Exited() {
	p.In.Close()
	time.AfterFunc(orphanGrace, func() {
		p.Out.Expire()
		if p.Err != nil {
			p.Err.Expire()
		}
	})
}

// Discard declares the output complete at once.
func (p *IO) Discard() {
	p.Out.Finish()
	if p.Err != nil {
		p.Err.Finish()
	}
}

// Serve carries one stream of a session, until it ends, and closes it.
func (p *IO) Serve(s Stream, h *wire.StreamHeader, session any) {
	switch {
	case h.Kind == wire.StreamHeader_STDIN:
		p.In.Serve(s, session)
	case h.Kind == wire.StreamHeader_STDOUT:
		p.Out.Serve(s, h.Offset)
	case h.Kind == wire.StreamHeader_STDERR && p.Err != nil:
		p.Err.Serve(s, h.Offset)
	default:
		s.Write(wire.RefusalChunk("the process has no such stream"))
		s.Close()
	}
}
