package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hyper-run/hyper/internal/vmm/qemu/qmp"
)

// patience bounds every wait for a VM.
const patience = 2 * time.Minute

// A vm is a running QEMU and the connections to it.
type vm struct {
	dir       string
	cmd       *exec.Cmd
	started   time.Time
	qmp       *qmp.Client
	guest     net.Conn
	answers   *bufio.Reader
	migration chan string // how one ended
}

// inheritance is what QEMU gets by descriptor.
type inheritance struct{ files []*os.File }

// add returns the number that f has in QEMU.
func (in *inheritance) add(f *os.File) int {
	in.files = append(in.files, f)
	return 2 + len(in.files) // after stdin, stdout and stderr
}

// launch starts QEMU in a new directory dir, whose sockets listen before it
// runs, and returns when it takes commands. s lacks nothing but the sockets.
func launch(ctx context.Context, dir string, s spec, in inheritance) (_ *vm, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	v := &vm{dir: dir, migration: make(chan string, 1)}
	defer func() {
		if err != nil {
			err = v.explain(err)
			v.end()
		}
	}()
	if err := v.exec(s, in); err != nil {
		return nil, err
	}
	// The guest's end first: it is there before a state is loaded, so the
	// guest never sees its host missing.
	if v.guest, err = net.Dial("unix", filepath.Join(dir, "guest")); err != nil {
		return nil, err
	}
	v.answers = bufio.NewReader(v.guest)
	if v.qmp, err = qmp.Dial(ctx, filepath.Join(dir, "qmp"), v.event); err != nil {
		return nil, err
	}
	return v, v.qmp.Ready(ctx)
}

// exec starts QEMU. It alone has the listeners then: when it ends, so do
// connections to it.
func (v *vm) exec(s spec, in inheritance) error {
	for _, socket := range []struct {
		name string
		fd   *int
	}{{"qmp", &s.qmpFD}, {"guest", &s.guestFD}} {
		f, err := listen(filepath.Join(v.dir, socket.name))
		if err != nil {
			return err
		}
		defer f.Close()
		*socket.fd = in.add(f)
	}
	log, err := os.Create(filepath.Join(v.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("qemu-system-x86_64", s.argv()...)
	cmd.Env = []string{"MALLOC_ARENA_MAX=1"}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, in.files
	// In a group of its own an interrupt of the terminal reaches only us, who
	// end it; and it ends with us, however that happens.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	v.started = time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	v.cmd = cmd
	return nil
}

func listen(path string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	return l.File()
}

func (v *vm) event(e qmp.Event) {
	var data struct {
		Status string `json:"status"`
	}
	if e.Name != "MIGRATION" || json.Unmarshal(e.Data, &data) != nil {
		return
	}
	switch data.Status {
	case "completed", "failed":
		select {
		case v.migration <- data.Status:
		default:
		}
	}
}

// migrated waits for the end of a migration, in or out.
func (v *vm) migrated(ctx context.Context) error {
	select {
	case status := <-v.migration:
		if status != "completed" {
			return fmt.Errorf("migration %s: %s", status, v.qmp.MigrationError(ctx))
		}
		return nil
	case <-v.qmp.Done():
		return v.qmp.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask sends a request to the guest and returns its answer.
func (v *vm) ask(ctx context.Context, format string, args ...any) (n int64, err error) {
	request := fmt.Sprintf(format, args...)
	stop := context.AfterFunc(ctx, func() { v.guest.Close() })
	defer stop()
	if _, err = fmt.Fprintln(v.guest, request); err == nil {
		var line string
		if line, err = v.answers.ReadString('\n'); err == nil {
			n, err = parseAnswer(line)
		}
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return 0, fmt.Errorf("ask guest to %s: %w", request, err)
	}
	return n, nil
}

func parseAnswer(line string) (n int64, err error) {
	if text, bad := strings.CutPrefix(line, "error "); bad {
		return 0, errors.New(strings.TrimSpace(text))
	}
	if _, err := fmt.Sscanf(line, "ok %d\n", &n); err != nil {
		return 0, fmt.Errorf("answer %q: %w", line, err)
	}
	return n, nil
}

// explain adds what QEMU and the guest's console said to an error.
func (v *vm) explain(err error) error {
	log, readErr := os.ReadFile(filepath.Join(v.dir, "log"))
	if text := strings.TrimSpace(string(log[max(0, len(log)-2000):])); readErr == nil && text != "" {
		return fmt.Errorf("%w\n%s", err, text)
	}
	return err
}

// end kills QEMU and takes its directory away.
func (v *vm) end() {
	if v.qmp != nil {
		v.qmp.Close()
	}
	if v.guest != nil {
		v.guest.Close()
	}
	if v.cmd != nil {
		_ = v.cmd.Process.Kill()
		_ = v.cmd.Wait() // "killed" is what was wanted
	}
	_ = os.RemoveAll(v.dir) // within the directory that is removed in the end
}
