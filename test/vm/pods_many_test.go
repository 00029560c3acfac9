package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// oneOf is the name of a container of TestPodOfTwenty.
func oneOf(i int) string { return fmt.Sprintf("many-%02d", i) }

func addOne(t *testing.T, i int) error {
	r := hyper(t, "run", "-d", "--pod", "many", "--name", oneOf(i), "busybox", "sh", "-c", "echo $0 > /id; exec sleep 1000000", oneOf(i))
	if r.code != 0 {
		return fmt.Errorf("add %s: %s", oneOf(i), r.err)
	}
	return nil
}

// addTwenty adds half of them at once, the first of which brings up the VM, and then one by one.
func addTwenty(t *testing.T) {
	t.Helper()
	var g errgroup.Group
	for i := range 10 {
		g.Go(func() error { return addOne(t, i) })
	}
	err := g.Wait()
	for i := 10; i < 20 && err == nil; i++ {
		err = addOne(t, i)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Twenty containers in one VM, which come and go while the others run. Most of
// their disks have to be plugged in.
func TestPodOfTwenty(t *testing.T) {
	pulled(t, "busybox")
	before, fds := h.settled(t), descriptors(t)
	newPod(t, "many")
	addTwenty(t)
	lives := map[int]string{}
	own := func(i int) {
		if got := sh(t, oneOf(i), "cat /id; pgrep sleep"); got != oneOf(i)+"\n1" {
			t.Errorf("%s has the ID and the process %q", oneOf(i), got)
		}
	}
	for i := range 20 {
		own(i)
		lives[i] = life(t, oneOf(i))
	}
	disks := func() string {
		return must(t, "pod", "exec", "--vm", "many", "sh", "-c", "ls /sys/block | grep -c ^sd")
	}
	plugged := disks()
	if n, err := strconv.Atoi(plugged); err != nil || n < 16 {
		t.Errorf("%q disks were plugged in, want at least 16", plugged)
	}
	if vms := len(h.vms()); vms != 1 {
		t.Errorf("%d VMs", vms)
	}

	// One stops, one goes, one comes.
	must(t, "stop", "-t", "0", oneOf(3))
	must(t, "rm", "-f", oneOf(17))
	if err := addOne(t, 20); err != nil {
		t.Fatal(err)
	}
	own(20)
	if got, want := must(t, "pod", "ls", "--format", "{{.State}} {{.Containers}}", "-f", "name=many"), "degraded 19/20"; got != want {
		t.Errorf("the pod is %q, want %q", got, want)
	}
	must(t, "start", oneOf(3))
	own(3)
	for i, was := range lives {
		if i == 3 || i == 17 {
			continue
		}
		if now := life(t, oneOf(i)); now != was {
			t.Errorf("%s is %s, was %s", oneOf(i), now, was)
		}
	}
	if now := disks(); now != plugged {
		t.Errorf("%s disks are plugged in, there were %s", now, plugged)
	}

	must(t, "pod", "rm", "-f", "many")
	if after := h.settled(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
	if now := descriptors(t); now > fds+5 {
		t.Errorf("hyperd has %d descriptors, had %d", now, fds)
	}
}

// Containers that take all they can get of something do no harm to their neighbours.
func TestPodHogs(t *testing.T) {
	img := pulled(t, "busybox")
	newPod(t, "hogs", "--memory", "256m")
	must(t, "run", "-d", "--pod", "hogs", "--name", "calm", img, "sh", "-c", "echo here > /x; exec httpd -f -p 127.0.0.1:80 -h /")
	calm := life(t, "calm")
	hog := func(name string, args ...string) {
		must(t, append([]string{"run", "-d", "--pod", "hogs", "--name", name}, args...)...)
		t.Cleanup(func() { cleanup(t, "rm", "-f", name) })
	}
	well := func(when string) {
		t.Helper()
		checkWell(t, when)
		if now := life(t, "calm"); now != calm {
			t.Fatalf("%s: the neighbour is %s, was %s", when, now, calm)
		}
	}
	ends := func(name string) string {
		return must(t, "wait", name) + " " + inspect(t, name, "{{.State.OOMKilled}}") + " " + must(t, "why", "--format", "{{.Cause}}", name)
	}
	oom := func(name string, args ...string) {
		t.Helper()
		hog(name, append(args, img, "dd", "if=/dev/zero", "of=/dev/null", "bs=700M", "count=1")...)
		if got := ends(name); got != "137 true oom" {
			t.Errorf("%s: exit code, OOMKilled and cause: %q", name, got)
		}
		if detail := must(t, "why", "--format", "{{.Detail}}", name); !strings.Contains(detail, "dd") || !strings.Contains(detail, "anon") {
			t.Errorf("%s: why: %q, want the process and what the memory was for", name, detail)
		}
		well(name)
	}

	oom("its-memory", "-m", "32m")
	oom("all-memory") // no limit but the pod's

	hog("disk", "--storage-opt", "size=32m", img, "sh", "-c", "dd if=/dev/zero of=/big bs=1M; ls -l /big; exec sleep 1000000")
	eventually(t, func() (string, bool) {
		r := hyper(t, "logs", "disk")
		return r.out + r.err, strings.Contains(r.err, "No space left on device") && strings.Contains(r.out, "/big")
	})
	well("a full disk")
	if size := diskUsed(t, inspect(t, "disk", "{{.Id}}")); size > 40<<20 {
		t.Errorf("a disk of 32 MiB takes %d MiB of the host", size>>20)
	}

	hog("pids", "--pids-limit", "20", img, "sh", "-c", "sh -c 'for i in $(seq 100); do sleep 1000000 & done'; exec sleep 1000000")
	eventually(t, func() (string, bool) {
		r := hyper(t, "logs", "pids")
		return r.out + r.err, strings.Contains(r.err, "can't fork")
	})
	until(t, "19", "stats", "--no-stream", "--format", "{{.PIDs}}", "pids") // the shell that was refused one has gone
	well("full PIDs")

	hog("bomb", img, "sh", "-c", "b() { b | b & }; b; exec sleep 1000000") // no limit but the VM's
	time.Sleep(3 * time.Second)
	well("a fork bomb")
	if n, err := strconv.Atoi(must(t, "stats", "--no-stream", "--format", "{{.PIDs}}", "bomb")); err != nil || n < 100 {
		t.Errorf("the fork bomb has %d processes (%v)", n, err)
	}
	must(t, "rm", "-f", "bomb")
	well("after the fork bomb")
	if out := must(t, "pod", "inspect", "--format", "{{.Status}} {{.Error}}", "hogs"); out != "degraded" && out != "degraded " {
		t.Errorf("the pod is %q", out)
	}
	// A VM of the usual size, of which the pod may use 256 MiB.
	if pss := vmMemory(t, "hogs"); pss > 700<<20 {
		t.Errorf("the VM takes %d MiB of the host", pss>>20)
	}
}

// checkWell asks the neighbour of hogs whether it can do its work.
func checkWell(t *testing.T, when string) {
	t.Helper()
	begin := time.Now()
	if state := inspect(t, "calm", "{{.State.Status}}"); state != "running" {
		t.Fatalf("%s: the neighbour is %s: %s", when, state, must(t, "why", "calm"))
	}
	if out := sh(t, "calm", "cat /x; wget -qO- http://127.0.0.1/x; echo new > /y"); out != "here\nhere" {
		t.Errorf("%s: the neighbour says %q", when, out)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("%s: the neighbour took %v", when, took)
	}
}

// diskUsed is what a container's disk takes of the host, bytes.
func diskUsed(t *testing.T, id string) int64 {
	t.Helper()
	fi, err := os.Stat(filepath.Join(h.root, "containers", id, "disk.ext4"))
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Blocks * 512
}
