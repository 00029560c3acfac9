package inside

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A daemon is a hyperd of a test's own.
type daemon struct {
	run string // its directory of sockets
}

// startHyperd starts hyperd with an image called busybox, and stops it with the test.
func startHyperd(t *testing.T) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "hl") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &daemon{run: filepath.Join(dir, "run")}
	ready, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	var log bytes.Buffer
	cmd := exec.Command(program("hyperd"), "--root", filepath.Join(dir, "root"), "--run", d.run, "--accel", "kvm",
		"--kernel", "hyperkernel", "--vm-cpus", "1", "--warm-pool", "0", "--boot-timeout", patience.String())
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), "HYPER_READY_FD=3")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may be gone
		cmd.Wait()                          //nolint:errcheck // what it printed says more
		if t.Failed() {
			t.Logf("hyperd's log:\n%s", &log)
		}
	})
	if err := ready.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		t.Fatalf("hyperd does not serve: %v", err)
	}
	d.must(t, "load", "-q", "-i", os.Getenv("HYPER_LAB_IMAGE"))
	return d
}

// must runs hyper and returns what it printed.
func (d *daemon) must(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := d.hyper(ctx, args...)
	if err != nil {
		t.Fatalf("hyper %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

func (d *daemon) hyper(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program("hyper"), args...)
	cmd.Env = append(os.Environ(), "HYPER_HOST=unix://"+d.run+"/hyper.sock")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// idle starts a container that does nothing until the end of the test.
func (d *daemon) idle(t *testing.T) {
	t.Helper()
	id := d.must(t, "run", "-d", "busybox", "sleep", "100000")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if out, err := d.hyper(ctx, "rm", "-f", id); err != nil {
			t.Errorf("rm: %v\n%s", err, out)
		}
	})
}

// vms are the processes of this hyperd's VMs: their output goes to a file in the VM's directory.
func (d *daemon) vms(t *testing.T) []int {
	t.Helper()
	outputs, err := filepath.Glob("/proc/[0-9]*/fd/1")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, fd := range outputs {
		if to, _ := os.Readlink(fd); strings.HasPrefix(to, d.run+"/") {
			pid, err := strconv.Atoi(strings.Split(fd, "/")[2])
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestHyperd is hyper from end to end, with KVM: what runs is cloned from a template.
func TestHyperd(t *testing.T) {
	d := startHyperd(t)
	if info := d.must(t, "info"); !strings.Contains(info, "kvm") {
		t.Errorf("hyper info does not speak of kvm:\n%s", info)
	}
	start := time.Now()
	d.must(t, "template", "create")
	t.Logf("NUMBER template made: %v", time.Since(start))
	t.Run("Run", func(t *testing.T) {
		start := time.Now()
		if got := d.must(t, "run", "--rm", "--trace", "busybox", "echo", "hello"); !strings.Contains(got, "hello") || !strings.Contains(got, "(clone)") {
			t.Errorf("echo hello, which was to run in a clone, printed %q", got)
		}
		t.Logf("NUMBER hyper run: %v", time.Since(start))
	})
	t.Run("VhostNet", func(t *testing.T) { vhostNet(t, d) })
	t.Run("IdleMemory", func(t *testing.T) { idleMemory(t, d) })
}

// vhostNet: the road to the gateway and back is tap, vhost-net and bridge.
func vhostNet(t *testing.T, d *daemon) {
	d.must(t, "run", "--rm", "busybox", "sh", "-c", `ping -c 2 -W 10 $(ip route | sed -n 's/^default via \([^ ]*\).*/\1/p')`)
	d.idle(t)
	vms := d.vms(t)
	if len(vms) == 0 {
		t.Fatal("no VM runs")
	}
	for _, pid := range vms {
		if open := openFiles(t, pid); !slices.Contains(open, "/dev/vhost-net") {
			t.Errorf("process %d has no /dev/vhost-net among %v", pid, open)
		}
	}
}

func openFiles(t *testing.T, pid int) []string {
	t.Helper()
	fds, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil {
			files = append(files, to)
		}
	}
	return files
}

// idleMemory measures what an idle container costs when several run.
func idleMemory(t *testing.T, d *daemon) {
	const n = 8
	for range n {
		d.idle(t)
	}
	time.Sleep(5 * time.Second) // for what the guests give back
	sum := map[string]int{}
	vms := d.vms(t)
	for _, pid := range vms {
		for key, kB := range memory(t, pid) {
			sum[key] += kB
		}
	}
	if len(vms) == 0 {
		t.Fatal("no VM runs")
	}
	mean := func(keys ...string) (MB float64) {
		for _, k := range keys {
			MB += float64(sum[k]) / float64(len(vms)) / 1024
		}
		return MB
	}
	t.Logf("NUMBER idle busybox with KVM, mean of %d VMs: PSS %.1f MB (anonymous %.1f, file %.1f, shmem %.1f), private %.1f MB",
		len(vms), mean("Pss"), mean("Pss_Anon"), mean("Pss_File"), mean("Pss_Shmem"), mean("Private_Clean", "Private_Dirty"))
}

// memory is what /proc/PID/smaps_rollup says, in kB.
func memory(t *testing.T, pid int) map[string]int {
	t.Helper()
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := map[string]int{}
	for in := bufio.NewScanner(f); in.Scan(); {
		if key, value, ok := strings.Cut(in.Text(), ":"); ok {
			if kB, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(value, "kB"))); err == nil {
				m[key] = kB
			}
		}
	}
	return m
}
