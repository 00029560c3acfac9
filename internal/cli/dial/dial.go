// Package dial connects to hyperd, and starts it where nothing listens and the
// user may: the program next to hyper's own, in a session of its own, which
// tells by a descriptor that it serves.
package dial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// readyFD is the number of the descriptor that hyperd writes a line end to
// when it serves. HYPER_READY_FD tells it.
const readyFD = 3

// An Error says why the daemon cannot be reached, and what to do about it.
type Error struct {
	Msg, Hint string
}

func (e *Error) Error() string { return e.Msg }

// A Dialer connects. The zero value never starts a daemon.
type Dialer struct {
	Start   bool      // start a daemon where none listens
	Program string    // of the daemon; "" means hyperd next to this executable, or in PATH
	Log     string    // where its output goes; "" means /var/log/hyper/hyperd.log
	Say     io.Writer // told that a daemon was started
}

// Dial connects to the daemon and starts it when nothing listens and it may.
func (d *Dialer) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var nd net.Dialer
	conn, err := nd.DialContext(ctx, network, address)
	if err == nil || ctx.Err() != nil {
		return conn, err
	}
	switch {
	case errors.Is(err, syscall.EACCES):
		return nil, &Error{"no permission to connect to " + address, "run hyper as root"}
	case network != "unix", !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED):
		// The words of net's error would make moby's client add its own.
		return nil, &Error{Msg: fmt.Sprintf("no connection to hyperd at %s: %v", address, lastError(err))}
	case !d.Start:
		return nil, &Error{"no hyperd listens on " + address, "start hyperd for it"}
	case os.Geteuid() != 0:
		return nil, &Error{"no hyperd listens on " + address, "start hyperd as root; or run hyper as root, which starts it"}
	}
	if err := d.start(ctx, func() bool {
		conn, err = nd.DialContext(ctx, network, address)
		return err == nil
	}); err != nil {
		return nil, &Error{"no hyperd listens on " + address + ", and starting it did not work: " + err.Error(), "'hyper doctor' checks this host"}
	}
	if conn != nil {
		return conn, nil
	}
	if conn, err = nd.DialContext(ctx, network, address); err != nil {
		return nil, &Error{Msg: fmt.Sprintf("hyperd was started, but does not listen on %s: %v", address, lastError(err))}
	}
	return conn, nil
}

// lastError is the innermost cause.
func lastError(err error) error {
	for {
		e := errors.Unwrap(err)
		if e == nil {
			return err
		}
		err = e
	}
}

// start starts hyperd in a session of its own and returns when it
// serves. served is asked once, with the lock held, whether another hyper has
// done so meanwhile.
func (d *Dialer) start(ctx context.Context, served func() bool) error {
	program, err := d.Find()
	if err != nil {
		return err
	}
	path := d.Log
	if path == "" {
		path = "/var/log/hyper/hyperd.log"
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	unlock, err := lockStart(path)
	if err != nil {
		return err
	}
	defer unlock()
	if served() {
		return nil
	}
	pid, err := launch(ctx, program, log)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.Say, "hyper: started hyperd (pid %d, log in %s)\n", pid, path)
	return nil
}

// program is the path of hyperd.
// Find returns the path of the daemon's program.
func (d *Dialer) Find() (string, error) {
	if d.Program != "" {
		return d.Program, nil
	}
	if self, err := os.Executable(); err == nil {
		p := filepath.Join(filepath.Dir(self), "hyperd")
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	p, err := exec.LookPath("hyperd")
	if err != nil {
		return "", errors.New("hyperd is neither next to hyper nor in PATH")
	}
	return p, nil
}

// lockStart keeps two commands from starting two daemons. hyperd must
// not inherit the lock, so it is not on the log itself.
func lockStart(log string) (unlock func(), err error) {
	f, err := os.OpenFile(log+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// launch runs the daemon and waits until it says that it serves, or ends.
func launch(ctx context.Context, program string, log *os.File) (pid int, err error) {
	start, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	cmd := exec.Command(program)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w} // descriptor 3: readyFD
	cmd.Env = append(os.Environ(), fmt.Sprintf("HYPER_READY_FD=%d", readyFD))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return 0, err
	}
	defer context.AfterFunc(ctx, func() { r.Close() })()
	if n, _ := r.Read(make([]byte, 1)); n == 1 {
		pid := cmd.Process.Pid // before Release, which forgets it
		return pid, cmd.Process.Release()
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	// It closed the descriptor without a word: it is ending, or broken.
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, tail(log, start))
	}
	return 0, fmt.Errorf("it ended at once: %s", tail(log, start))
}

// tail is the last lines that were logged after offset start, in one line.
func tail(log *os.File, start int64) string {
	const most = 4 << 10
	end, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err.Error()
	}
	start = max(start, end-most)
	data := make([]byte, end-start)
	n, _ := log.ReadAt(data, start)
	lines := strings.Split(strings.TrimSpace(string(data[:n])), "\n")
	if len(lines) > 5 {
		lines = lines[len(lines)-5:]
	}
	if lines[0] == "" {
		return "it logged nothing"
	}
	return strings.Join(lines, "; ")
}
