package vm

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hyper-run/hyper/boot"
)

func TestBadFullContainerDisk(t *testing.T) {
	img := pulled(t, "busybox")
	r := hyper(t, "run", "--rm", "--storage-opt", "size=32m", img, "sh", "-c",
		"dd if=/dev/zero of=/f bs=1M count=100; rm /f && echo more > /g && cat /g")
	if r.code != 0 || !strings.Contains(r.err, "No space left on device") || r.out != "more\n" {
		t.Errorf("%+v", r)
	}
}

func TestBadCommands(t *testing.T) {
	img := pulled(t, "busybox")
	tests := []struct {
		code int
		want string
		args []string
	}{
		{127, "executable file not found in $PATH", []string{"run", "--rm", img, "no-such"}},
		{127, "no such file or directory", []string{"run", "--rm", img, "/no/such"}},
		{126, "permission denied", []string{"run", "--rm", img, "/etc/passwd"}},
		{125, "unable to find user nobody-here", []string{"run", "--rm", "-u", "nobody-here", img, "true"}},
		{125, "unable to find group none-such", []string{"run", "--rm", "-u", "0:none-such", img, "true"}},
		{125, "Minimum memory limit allowed is 6MB", []string{"run", "--rm", "-m", "5m", img, "true"}},
		{125, "only the networks bridge and none are there", []string{"run", "--rm", "--network", "none-such", img, "true"}},
		{125, "neither a bzImage nor an ELF vmlinux", []string{"run", "--rm", "--kernel", "/etc/passwd", img, "true"}},
		{125, "/no/kernel", []string{"run", "--rm", "--kernel", "/no/kernel", img, "true"}},
		{125, "too small", []string{"run", "--rm", "--storage-opt", "size=1m", img, "true"}},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) { refused(t, tt.code, tt.want, tt.args...) })
	}
}

// As with Docker, what an exec could not run is told as its output.
func TestBadExec(t *testing.T) {
	id := container(t, pulled(t, "busybox"), "sleep", "1000")
	tests := []struct {
		code int
		want string
		args []string
	}{
		{127, "executable file not found in $PATH", []string{id, "no-such"}},
		{127, "no such file or directory", []string{id, "/no/such"}},
		{126, "permission denied", []string{id, "/etc/passwd"}},
		{126, "is a directory", []string{id, "/etc"}},
		{126, "unable to find user nobody-here", []string{"-u", "nobody-here", id, "true"}},
		{1, "No such container", []string{"no-such-container", "true"}},
	}
	for _, tt := range tests {
		r := hyper(t, append([]string{"exec"}, tt.args...)...)
		if r.code != tt.code || !strings.Contains(r.out+r.err, tt.want) {
			t.Errorf("exec %v: %+v, want code %d and %q", tt.args, r, tt.code, tt.want)
		}
	}
}

// The least that can be asked for is enough.
func TestBadLittleMemory(t *testing.T) {
	img := pulled(t, "busybox")
	if out := must(t, "run", "--rm", "-m", "6m", img, "echo", "enough"); out != "enough" {
		t.Errorf("%q", out)
	}
	out, err := exec.Command(h.bin+"/hyperd", "--default-memory", "32").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "a guest needs at least 64 MiB") {
		t.Errorf("%v, %s", err, out)
	}
	another(t, nil, "--default-memory", "64")
	must(t, "run", "--rm", "hello")
}

// exitELF is the smallest program: it ends with code 7.
func exitELF() []byte {
	b, _ := hex.DecodeString("7f454c4602010100000000000000000002003e0001000000780040000000000040000000000000000000000000000000000000004000380001000000000000000" +
		"1000000050000000000000000000000000040000000000000004000000000008400000000000000840000000000000000100000000000006a3c586a075f0f05")
	return append(b, make([]byte, 0x84-len(b))...)
}

// Guests that do not come up: the error has the end of the console.
func TestBadBoot(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name, want, console string
		flags               []string
	}{
		{"init is none", "the guest's kernel panicked", "Kernel panic", []string{"--hyperstart", write("text", []byte("text\n"))}},
		{"init ends", "the guest's kernel panicked", "Attempted to kill init", []string{"--hyperstart", write("exit", exitELF())}},
		{"init is missing", "/no/hyperstart", "", []string{"--hyperstart", "/no/hyperstart"}},
		{"kernel is garbage", "neither a bzImage nor an ELF vmlinux", "", []string{"--kernel", write("garbage", make([]byte, 1<<20))}},
		{"kernel is missing", "/no/kernel", "", []string{"--kernel", "/no/kernel"}},
		{"kernel does nothing", "did not answer within 2s", "", []string{"--kernel", write("silent", silentKernel(t)), "--boot-timeout", "2s"}},
		{"no time", "did not answer within 1ms", "", []string{"--boot-timeout", "1ms"}},
		{"QEMU is missing", "/no/qemu is not installed", "", []string{"--qemu", "/no/qemu"}},
		{"QEMU is none", "/bin/true for its version", "", []string{"--qemu", "/bin/true"}},
		{"QEMU fails", "out of luck", "", []string{"--qemu", write("qemu", []byte("#!/bin/sh\n[ $1 = --version ] && echo QEMU emulator version 7.2.0 || { echo out of luck >&2; exit 3; }\n"))}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			another(t, nil, tt.flags...)
			r := refused(t, 125, tt.want, "run", "--rm", "hello")
			if !strings.Contains(r.err, tt.console) {
				t.Errorf("no %q in %s", tt.console, r.err)
			}
			id := must(t, "create", "hello")
			if r := hyper(t, "start", id); r.code != 1 || !strings.Contains(r.err, tt.want) {
				t.Errorf("start: %+v", r)
			}
			if why := must(t, "inspect", "-f", "{{.State.Status}} {{.State.Error}}", id); !strings.HasPrefix(why, "created ") || !strings.Contains(why, tt.want) {
				t.Errorf("inspect: %s", why)
			}
			must(t, "rm", id)
		})
	}
}

// silentKernel is the kernel under test with its code taken out.
func silentKernel(t *testing.T) []byte {
	t.Helper()
	k, err := boot.DefaultKernels().Select(os.Getenv("HYPER_TEST_KERNEL"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(k.Path)
	if err != nil {
		t.Fatal(err)
	}
	clear(data[1<<20 : 5<<20])
	return data
}

// QEMU is killed before the guest has answered.
func TestBadKilledWhileBooting(t *testing.T) {
	silent := filepath.Join(t.TempDir(), "silent")
	if err := os.WriteFile(silent, silentKernel(t), 0o600); err != nil {
		t.Fatal(err)
	}
	d := another(t, nil, "--kernel", silent)
	killed := make(chan error, 1)
	go func() {
		var vms []string
		for end := time.Now().Add(20 * time.Second); len(vms) == 0 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			vms = d.vms()
		}
		time.Sleep(500 * time.Millisecond) // it waits for the guest by now
		pid, err := strconv.Atoi(filepath.Base(strings.Join(vms, "/")))
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		killed <- err
	}()
	refused(t, 125, "stopped before the guest answered: the VMM died (qemu: signal: killed)", "run", "--rm", "hello")
	if err := <-killed; err != nil {
		t.Error(err)
	}
}

func TestBadPath(t *testing.T) {
	t.Setenv("PATH", "/usr/sbin:/sbin") // no QEMU there
	another(t, nil)
	refused(t, 125, "qemu-system-x86_64 is not installed", "run", "--rm", "hello")
	if info := must(t, "info"); !strings.Contains(info, "VMM: none") {
		t.Errorf("info: %s", info)
	}
}

// An initrd that somebody removed is made again.
func TestBadInitrdRemoved(t *testing.T) {
	d := another(t, nil)
	must(t, "run", "--rm", "hello")
	files, _ := filepath.Glob(d.root + "/boot/*")
	if len(files) == 0 {
		t.Fatal("no initrd")
	}
	for _, f := range files {
		os.RemoveAll(f)
	}
	must(t, "run", "--rm", "hello")
}

// QEMU is killed under running containers.
func TestBadKilledVM(t *testing.T) {
	img := pulled(t, "busybox")
	kill := func(t *testing.T, id string) {
		t.Helper()
		pid, err := strconv.Atoi(must(t, "inspect", "-f", "{{.Hyper.vm.hostPID}}", id))
		if err != nil {
			t.Fatal(err)
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil || !strings.Contains(exe, "qemu") {
			t.Fatalf("process %d is %s (%v), not a QEMU", pid, exe, err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("stays", func(t *testing.T) {
		id := container(t, img, "sh", "-c", "echo before; sleep 1000")
		eventually(t, func() (string, bool) { out := must(t, "logs", id); return out, out == "before" })
		kill(t, id)
		if r := hyper(t, "wait", id); !strings.Contains(r.out+r.err, "the VMM died") {
			t.Errorf("wait: %+v", r)
		}
		if why := must(t, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}", id); !strings.HasPrefix(why, "exited 137 the virtual machine stopped: the VMM died") {
			t.Errorf("inspect: %s", why)
		}
		if out := must(t, "logs", id); out != "before" {
			t.Errorf("logs: %q", out)
		}
		must(t, "start", id) // its disk is as after a power cut
		if out := must(t, "exec", id, "echo", "again"); out != "again" {
			t.Errorf("exec: %q", out)
		}
	})
	t.Run("removes itself", func(t *testing.T) {
		before := h.settled(t)
		cmd := h.command(t.Context(), "run", "--rm", "--name", "bad-rm", img, "sleep", "1000")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() (string, bool) {
			r := hyper(t, "inspect", "-f", "{{.State.Status}}", "bad-rm")
			return r.out, r.out == "running\n"
		})
		kill(t, "bad-rm")
		cmd.Wait() //nolint:errcheck // its code is looked at
		if code := cmd.ProcessState.ExitCode(); code != 137 || !strings.Contains(stderr.String(), "the VMM died") {
			t.Errorf("exit code %d, %s", code, &stderr)
		}
		if after := h.settled(t); after != before {
			t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
		}
	})
}

// The guest's kernel panics under a container.
func TestBadPanic(t *testing.T) {
	img := pulled(t, "busybox")
	id := container(t, "--privileged", "-m", "16m", img, "sh", "-c",
		"echo 2 > /proc/sys/vm/panic_on_oom; exec dd if=/dev/zero of=/dev/null bs=64M")
	hyper(t, "wait", id)
	if code := must(t, "inspect", "-f", "{{.State.ExitCode}}", id); code != "137" {
		t.Errorf("exit code %s", code)
	}
	why := must(t, "inspect", "-f", "{{.State.Error}}", id)
	if !strings.Contains(why, "the guest's kernel panicked (Out of memory") || !strings.Contains(why, "guest console:") {
		t.Errorf("inspect: %s", why)
	}
}
