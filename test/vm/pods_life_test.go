package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Containers that join others, as with Docker.
func TestJoin(t *testing.T) {
	img := pulled(t, "busybox")
	run := func(name string, args ...string) {
		must(t, append([]string{"run", "-d", "--name", name}, args...)...)
		t.Cleanup(func() { cleanup(t, "rm", "-f", name) })
	}
	run("jx", "--hostname", "first", img, "sh", "-c", "echo shared > /dev/shm/x; httpd -p 127.0.0.1:80 -h /etc; exec sleep 100000")
	run("jnet", "--network", "container:jx", img, "sleep", "100001")
	run("jpid", "--pid", "container:jx", img, "sleep", "100002")
	run("jipc", "--network", "container:jx", "--ipc", "container:jx", img, "sleep", "100003")
	run("jown", "--network", "container:jx", "--ipc", "private", img, "sleep", "100004")
	if vms := h.vms(); len(vms) != 1 {
		t.Errorf("%d VMs: %v", len(vms), vms)
	}
	const sleeps = "pgrep -f '^sleep' | wc -l"
	var all [][3]string
	for _, name := range []string{"jnet", "jpid", "jipc", "jown"} {
		all = append(all, [3]string{name, "wget -qO- http://127.0.0.1/passwd | head -1; hostname", "root:x:0:0:root:/root:/bin/sh\nfirst"})
	}
	checks(t, append(all, [][3]string{
		{"jnet", sleeps + "; cat /dev/shm/x", "1\nshared"},
		{"jpid", sleeps + "; cat /dev/shm/x; cat /proc/1/root/etc/hostname", "2\nshared\nfirst"},
		{"jipc", sleeps + "; cat /dev/shm/x", "1\nshared"},
		{"jown", sleeps + "; ls /dev/shm | wc -l", "1\n0"},
		{"jx", sleeps + "; echo new > /dev/shm/y", "2"},
		{"jipc", "cat /dev/shm/y", "new"},
	}...))

	// Who is restarted finds the others as they were, and they do not notice.
	lives := life(t, "jx") + life(t, "jipc") + life(t, "jown")
	must(t, "restart", "-t", "0", "jnet")
	if now := life(t, "jx") + life(t, "jipc") + life(t, "jown"); now != lives {
		t.Errorf("after the restart of jnet: %s, before %s", now, lives)
	}
	checks(t, all[:1])
	lives = life(t, "jnet") + life(t, "jipc") + life(t, "jown")
	must(t, "restart", "-t", "0", "jx")
	if now := life(t, "jnet") + life(t, "jipc") + life(t, "jown"); now != lives {
		t.Errorf("after the restart of jx: %s, before %s", now, lives)
	}
	// With the first process of its PID namespace all others in it have ended.
	if got := inspect(t, "jpid", "{{.State.Status}} {{.State.ExitCode}}"); got != "exited 137" {
		t.Errorf("jpid: %s", got)
	}
	checks(t, append(all[:1:1], [][3]string{{"jx", sleeps, "1"}, {"jnet", "cat /dev/shm/y", "new"}}...))
	must(t, "start", "jpid")
	checks(t, [][3]string{{"jpid", sleeps, "2"}})

	// The pod is there as long as somebody is in it.
	must(t, "rm", "-f", "jx")
	if now := life(t, "jnet") + life(t, "jipc") + life(t, "jown"); now != lives {
		t.Errorf("without jx: %s, before %s", now, lives)
	}
	checks(t, [][3]string{{"jnet", "hostname; cat /dev/shm/y", "first\nnew"}})
	if r := hyper(t, "restart", "-t", "0", "jown"); r.code == 0 || !strings.Contains(r.err, "No such container") {
		t.Errorf("restart without what it joined: %+v", r)
	}
	must(t, "rm", "-f", "jnet", "jpid", "jipc", "jown")
	if vms := h.vms(); len(vms) != 0 {
		t.Errorf("VMs are left: %v", vms)
	}
}

// hyperd is killed while a pod is half way: its containers do not notice, and
// the next one goes on keeping them.
func TestPodDaemonKilled(t *testing.T) {
	img := pulled(t, "busybox")
	t.Cleanup(func() { cleanup(t, "pod", "rm", "-f", "crash") })
	must(t, "pod", "run", "-f", "testdata/killed.yaml")
	newPod(t, "again")
	must(t, "run", "-d", "--pod", "again", "--name", "flaps", "--restart", "always", img, "sh", "-c", "echo run; sleep 1; exit 3")
	restarts := func() int {
		n, err := strconv.Atoi(inspect(t, "flaps", "{{.RestartCount}}"))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	kill := func() {
		t.Helper()
		h.signal(syscall.SIGKILL)
		time.Sleep(300 * time.Millisecond)
		if err := h.start(); err != nil {
			t.Fatal(err)
		}
	}
	show := func(want string) {
		t.Helper()
		until(t, want, "pod", "inspect", "--format", "{{range .Containers}}{{.Name}} {{.Status}}\n{{end}}", "crash")
	}
	eventually(t, func() (string, bool) { return fmt.Sprint(restarts(), " restarts"), restarts() > 0 })

	show("crash-side running\ncrash-init created\ncrash-main created")
	side, before := life(t, "crash-side"), restarts()
	kill()
	sh(t, "crash-side", "touch /data/up")
	show("crash-side running\ncrash-init running\ncrash-main created")
	init := life(t, "crash-init")
	kill()
	kill()
	if now := life(t, "crash-init"); now != init {
		t.Errorf("the init container is %s, was %s", now, init)
	}
	sh(t, "crash-side", "touch /data/go")
	show("crash-side running\ncrash-init exited\ncrash-main running")
	main := life(t, "crash-main")
	kill()
	if now := life(t, "crash-main"); now != main {
		t.Errorf("main is %s, was %s", now, main)
	}
	if now := life(t, "crash-side"); now != side {
		t.Errorf("the sidecar is %s, was %s", now, side)
	}
	sh(t, "crash-side", "touch /data/sick")
	until(t, "1 running", "inspect", "--format", "{{.RestartCount}} {{.State.Status}}", "crash-main")
	eventually(t, func() (string, bool) { return fmt.Sprint(restarts(), " restarts, were ", before), restarts() > before })
	must(t, "pod", "stop", "-t", "0", "again")
	if runs, n := strings.Count(must(t, "logs", "flaps"), "run"), restarts(); runs != n+1 && runs != n { // the last may have been stopped before it said so
		t.Errorf("%d runs in the log, %d restarts", runs, n)
	}
	must(t, "pod", "stop", "-t", "0", "crash")
	checkLines(t, must(t, "logs", "crash-side"))
}

// A pod whose VM dies says so, and is there again with its address and its data when its
// containers are to run always.
func TestPodVMDies(t *testing.T) {
	img := pulled(t, "busybox")
	newPod(t, "dies")
	must(t, "run", "-d", "--pod", "dies", "--name", "phoenix", "--restart", "always", img, "sh", "-c", "echo run >> /runs; sync; echo synced; exec sleep 1000000")
	must(t, "run", "-d", "--pod", "dies", "--name", "mortal", img, "sleep", "1000000")
	until(t, "synced", "logs", "phoenix")
	address := must(t, "pod", "inspect", "--format", "{{.Network.Address}}", "dies")
	pid, err := strconv.Atoi(must(t, "pod", "inspect", "--format", "{{.VM.HostPID}}", "dies"))
	if err != nil || pid < 2 {
		t.Fatalf("process %d, %v", pid, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "1 running", "inspect", "--format", "{{.RestartCount}} {{.State.Status}}", "phoenix")
	until(t, "run\nrun", "exec", "phoenix", "cat", "/runs")
	if got := must(t, "why", "--format", "{{.Status}} {{.Cause}} {{.Summary}}", "mortal"); !strings.HasPrefix(got, "exited vmm ") || !strings.Contains(got, "killed") {
		t.Errorf("why: %q", got)
	}
	if now := must(t, "pod", "inspect", "--format", "{{.Status}} {{.Network.Address}}", "dies"); now != "degraded "+address {
		t.Errorf("the pod is %s, it had %s", now, address)
	}
}

// The host goes down and comes up: what is to be there is, with all it had.
func TestReboot(t *testing.T) {
	another(t, nil, "--templates=true")
	must(t, "template", "create")
	img := pulled(t, "busybox")
	podFile(t, "reboot.yaml", "stays", "goes")
	run := func(name string, args ...string) {
		must(t, append([]string{"run", "-d", "--name", name}, args...)...)
		t.Cleanup(func() { cleanup(t, "rm", "-f", name) })
	}
	run("always", "--restart", "always", "--hostname", "al", img, "sh", "-c", "echo run; exec sleep 1000000")
	run("never", img, "sleep", "1000000")
	run("stopped", "--restart", "unless-stopped", img, "sleep", "1000000")
	must(t, "stop", "-t", "0", "stopped")
	sh(t, "stays-a", "echo kept > /data/file; sync; echo kept > /own; sync")
	sh(t, "always", "echo kept > /own; sync")
	address := must(t, "pod", "inspect", "--format", "{{.Network.Address}}", "stays")

	reboot(t)

	until(t, "stays-init exited\nstays-a running\nstays-b running", "pod", "inspect", "--format", "{{range .Containers}}{{.Name}} {{.Status}}\n{{end}}", "stays")
	until(t, "running", "inspect", "--format", "{{.State.Status}}", "always")
	checks(t, [][3]string{
		{"stays-a", "cat /data/file /own /data/boots; hostname; hostname -i", "kept\nkept\nboot\nboot\nstays\n" + address},
		{"always", "cat /own; hostname", "kept\nal"},
	})
	if got := must(t, "pod", "ls", "--format", "{{.Name}} {{.State}} {{.IP}}"); got != "goes exited \nstays running "+address && got != "stays running "+address+"\ngoes exited " {
		t.Errorf("pods: %q", got)
	}
	for name, want := range map[string]string{"never": "exited 255", "stopped": "exited 137", "goes-a": "exited 255"} {
		if got := inspect(t, name, "{{.State.Status}} {{.State.ExitCode}}"); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	for name, want := range map[string]string{"never": "host", "stopped": "stopped", "goes": "host", "goes-a": "host", "stays": "running"} {
		if got := must(t, "why", "--format", "{{.Cause}}", name); got != want {
			t.Errorf("why %s: %q, want %q", name, got, want)
		}
	}
	must(t, "pod", "start", "--wait", "goes")
	must(t, "start", "never")
	if got := must(t, "logs", "always"); got != "run\nrun" {
		t.Errorf("log: %q", got)
	}
}

// reboot does to hyperd and its VMs what the end of their host does: they are
// gone, with all that is not on a disk.
func reboot(t *testing.T) {
	t.Helper()
	h.signal(syscall.SIGKILL)
	for _, proc := range h.vms() {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() (string, bool) { vms := h.vms(); return fmt.Sprint(vms), len(vms) == 0 })
	if err := os.RemoveAll(h.run); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(h.bin+"/hyperd", "--net-prefix", h.prefix, "--remove-network").CombinedOutput(); err != nil {
		t.Fatalf("remove the network: %v\n%s", err, out)
	}
	if err := h.start(); err != nil {
		t.Fatal(err)
	}
}
