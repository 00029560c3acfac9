package cli

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

	"github.com/hyper-run/hyper/client"
)

// readyFD is the number of the descriptor that hyperd writes a line end to
// when it serves. HYPER_READY_FD tells it.
const readyFD = 3

// A dialError says why the daemon cannot be reached.
type dialError struct {
	msg, hint string
}

func (e *dialError) Error() string { return e.msg }

// dial connects to the daemon and starts it when nothing listens and it may.
func (a *app) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err == nil || ctx.Err() != nil {
		return conn, err
	}
	switch {
	case errors.Is(err, syscall.EACCES):
		return nil, &dialError{"no permission to connect to " + address, "run hyper as root"}
	case network != "unix", !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED):
		// The words of net's error would make moby's client add its own.
		return nil, &dialError{msg: fmt.Sprintf("no connection to hyperd at %s: %v", address, lastError(err))}
	case a.noStart || !a.ownDaemon():
		return nil, &dialError{"no hyperd listens on " + address, "start hyperd for it"}
	case os.Geteuid() != 0:
		return nil, &dialError{"no hyperd listens on " + address, "start hyperd as root; or run hyper as root, which starts it"}
	}
	if err := a.startDaemon(ctx, func() bool {
		conn, err = d.DialContext(ctx, network, address)
		return err == nil
	}); err != nil {
		return nil, &dialError{"no hyperd listens on " + address + ", and starting it did not work: " + err.Error(), "'hyper doctor' checks this host"}
	}
	if conn != nil {
		return conn, nil
	}
	if conn, err = d.DialContext(ctx, network, address); err != nil {
		return nil, &dialError{msg: fmt.Sprintf("hyperd was started, but does not listen on %s: %v", address, lastError(err))}
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

// ownDaemon says whether a daemon that hyper starts would serve the host meant.
func (a *app) ownDaemon() bool {
	return a.host == client.DefaultHost || a.host == a.Host
}

// startDaemon starts hyperd in a session of its own and returns when it
// serves. served is asked once, with the lock held, whether another hyper has
// done so meanwhile.
func (a *app) startDaemon(ctx context.Context, served func() bool) error {
	program, err := a.daemonProgram()
	if err != nil {
		return err
	}
	path := a.DaemonLog
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
	unlock, err := lockDaemonStart(path)
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
	fmt.Fprintf(a.err, "hyper: started hyperd (pid %d, log in %s)\n", pid, path)
	return nil
}

// daemonProgram is the path of hyperd.
func (a *app) daemonProgram() (string, error) {
	if a.Daemon != "" {
		return a.Daemon, nil
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

// lockDaemonStart keeps two commands from starting two daemons. hyperd must
// not inherit the lock, so it is not on the log itself.
func lockDaemonStart(log string) (unlock func(), err error) {
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
		return cmd.Process.Pid, cmd.Process.Release()
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
