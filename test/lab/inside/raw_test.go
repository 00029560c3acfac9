package inside

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-run/hyper/internal/vmm/qemu/qmp"
)

// A raw is a QEMU without the driver, for devices that the driver has not: a microvm with KVM, 4 GiB of
// memory in a file, and the virtio port "echo".
type raw struct {
	dir     string // of its sockets
	cmd     *exec.Cmd
	qmp     *qmp.Client
	status  chan string // of the migration
	started time.Time
}

// A saved VM, as files.
type saved struct{ memory, state string }

// startRaw starts a QEMU and ends it with the test. With restore it waits, and runs nothing yet.
func startRaw(t *testing.T, memory string, restore bool, args ...string) *raw {
	t.Helper()
	dir, err := os.MkdirTemp("", "raw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &raw{dir: dir, status: make(chan string, 16), started: time.Now()}
	share := "share=on"
	if restore {
		share = "share=off"
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "qmp"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	sock, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	all := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "microvm,acpi=on,isa-serial=on,graphics=off,memory-backend=m", "-accel", "kvm", "-cpu", "host", "-m", "4096M",
		"-object", "memory-backend-file,id=m,size=4096M,mem-path=" + memory + ",reserve=off," + share,
		"-global", "virtio-mmio.force-legacy=off",
		"-chardev", "socket,id=qmp,fd=3,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
		"-serial", "file:" + filepath.Join(dir, "console"),
		"-device", "virtio-serial-device,max_ports=2",
		"-chardev", "socket,id=echo,path=" + filepath.Join(dir, "echo") + ",server=on,wait=off",
		"-device", "virtserialport,chardev=echo,name=echo",
	}
	if restore {
		all = append(all, "-incoming", "defer")
	}
	r.cmd = exec.Command("qemu-system-x86_64", append(all, args...)...)
	r.cmd.Env = []string{"MALLOC_ARENA_MAX=1"}
	r.cmd.ExtraFiles = []*os.File{sock}
	var out strings.Builder
	r.cmd.Stderr = &out
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.kill()
		if t.Failed() {
			console, _ := os.ReadFile(filepath.Join(dir, "console"))
			t.Logf("QEMU: %s\nconsole: %s", out.String(), console)
		}
	})
	sock.Close() // QEMU has its own; when it dies, the connection ends
	l.Close()
	if r.qmp, err = qmp.Dial(ctxOf(t), filepath.Join(dir, "qmp"), r.handle); err != nil {
		r.kill()
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Cleanup(r.qmp.Close)
	if restore || len(args) > 0 {
		r.execute(t, "migrate-set-capabilities", map[string]any{"capabilities": []map[string]any{
			{"capability": "x-ignore-shared", "state": true}, {"capability": "events", "state": true},
		}})
	}
	return r
}

func (r *raw) handle(e qmp.Event) {
	if e.Name == "MIGRATION" {
		var d struct{ Status string }
		if json.Unmarshal(e.Data, &d) == nil && (d.Status == "completed" || d.Status == "failed") {
			r.status <- d.Status
		}
	}
}

func (r *raw) kill() {
	r.cmd.Process.Kill() //nolint:errcheck // it may be gone
	r.cmd.Wait()         //nolint:errcheck // it was killed
}

func (r *raw) execute(t *testing.T, command string, args any) {
	t.Helper()
	if err := r.qmp.Execute(ctxOf(t), command, args, nil); err != nil {
		t.Fatalf("%s: %v", command, err)
	}
}

// migrated waits for the end of a migration, out or in.
func (r *raw) migrated(t *testing.T) {
	t.Helper()
	select {
	case s := <-r.status:
		if s != "completed" {
			t.Fatalf("migration: %s", s)
		}
	case <-ctxOf(t).Done():
		t.Fatal("migration does not end")
	}
}

// save writes the state of the devices and ends the VM; its memory stays in its file.
func (r *raw) save(t *testing.T, to saved) {
	t.Helper()
	r.execute(t, "stop", nil)
	r.execute(t, "migrate", map[string]string{"uri": "exec:cat >" + to.state})
	r.migrated(t)
	r.kill()
}

// restore starts a clone and returns once it runs.
func restore(t *testing.T, from saved, args ...string) *raw {
	t.Helper()
	r := startRaw(t, from.memory, true, args...)
	r.execute(t, "migrate-incoming", map[string]string{"uri": "exec:cat " + from.state})
	r.migrated(t)
	r.execute(t, "cont", nil) // it was saved stopped
	return r
}

// echo opens the virtio port "echo".
func (r *raw) echo(t *testing.T) net.Conn {
	t.Helper()
	port, err := net.Dial("unix", filepath.Join(r.dir, "echo"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { port.Close() })
	return port
}

// ctxOf bounds one step of a test.
func ctxOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeoutCause(t.Context(), patience, fmt.Errorf("a step of %s takes too long", t.Name()))
	t.Cleanup(cancel)
	return ctx
}
