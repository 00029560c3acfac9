package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hyper-run/hyper/api"
)

// restarted has a hyperd with more flags serve until the end of the test.
func restarted(t *testing.T, flags ...string) {
	t.Helper()
	h.signal(syscall.SIGTERM)
	if err := h.start(flags...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.signal(syscall.SIGTERM)
		if err := h.start(); err != nil {
			t.Error(err)
		}
	})
}

// templated makes sure that the usual template is there.
func templated(t *testing.T) string {
	t.Helper()
	return must(t, "template", "create")
}

type vmInfo struct {
	HostPID            int
	Road, Template     string
	ColdBoot, BootTime string
}

func inspectVM(t *testing.T, container string) (v vmInfo) {
	t.Helper()
	if err := json.Unmarshal([]byte(must(t, "inspect", "-f", "{{json .Hyper.vm}}", container)), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestClonesDiffer: what must never be the same in two clones of a template.
func TestClonesDiffer(t *testing.T) {
	pulled(t, "busybox")
	for _, road := range []string{"clone", "warm"} {
		restarted(t, "--warm-pool", map[string]string{"clone": "0", "warm": "2"}[road])
		templated(t)
		seen := map[string]string{}
		for i := range 3 {
			if road == "warm" {
				waitWarm(t, 2)
			}
			before := time.Now()
			id := container(t, "busybox", "sleep", "1000")
			out := must(t, "exec", id, "sh", "-c", `
				echo boot $(cat /proc/sys/kernel/random/boot_id)
				echo uuid $(cat /proc/sys/kernel/random/uuid)
				echo urandom $(head -c 16 /dev/urandom | xxd -p)
				echo stack $(grep stack /proc/self/maps)
				echo auxv $(xxd -p -c 400 /proc/self/auxv)
				echo mac $(cat /sys/class/net/eth0/address)
				echo address $(ip -4 -o addr show eth0)
				echo host $(hostname)
				date +'clock %s'`)
			for line := range strings.Lines(out) {
				what, value, _ := strings.Cut(strings.TrimSpace(line), " ")
				if what == "clock" {
					s, err := strconv.ParseInt(value, 10, 64)
					if at := time.Unix(s, 0); err != nil || at.Before(before.Add(-2*time.Second)) || at.After(time.Now().Add(2*time.Second)) {
						t.Errorf("%s %d: clock says %s, the host %s", road, i, at, before)
					}
					continue
				}
				key := what + " " + value
				if other, twice := seen[key]; twice || value == "" {
					t.Errorf("%s %d: %s is that of %s", road, i, key, other)
				}
				seen[key] = fmt.Sprintf("%s %d", road, i)
			}
			if v := inspectVM(t, id); v.Road != road || v.Template == "" {
				t.Errorf("got %+v, want road %s", v, road)
			}
		}
	}
}

func waitWarm(t *testing.T, n int) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		var w api.Warm
		native(t, "/warm", &w)
		if w.Ready >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v are warm, want %d", w, n)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// get fetches a path of hyperd's socket.
func get(t *testing.T, path string) []byte {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", h.run+"/hyper.sock")
	}}}
	resp, err := c.Get("http://hyperd" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %s, %v", path, resp.Status, b, err)
	}
	return b
}

func native(t *testing.T, path string, v any) {
	t.Helper()
	if err := json.Unmarshal(get(t, api.Prefix+path), v); err != nil {
		t.Fatal(err)
	}
}

// TestLimitsOfClone: the usual VM is larger than what a container may have of it.
func TestLimitsOfClone(t *testing.T) {
	pulled(t, "busybox")
	templated(t)
	usual := must(t, "run", "--rm", "busybox", "nproc")
	if want := strconv.Itoa(min(runtime.NumCPU(), 4)); usual != want {
		t.Errorf("without limits nproc says %s, want %s", usual, want)
	}
	use := func(mib int) []string {
		return []string{"run", "--rm", "-m", "3g", "--shm-size", "4g", "--cpus", "3", "busybox", "sh", "-c",
			fmt.Sprintf("nproc; dd if=/dev/zero of=/dev/shm/x bs=1M count=%d 2>/dev/null && stat -c %%s /dev/shm/x", mib)}
	}
	if got, want := must(t, use(2800)...), fmt.Sprintf("3\n%d", 2800<<20); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if r := hyper(t, use(3300)...); r.code != 137 || strings.Contains(r.out, strconv.Itoa(3300<<20)) {
		t.Errorf("3300 MiB inside a limit of 3 GiB: %+v", r)
	}
	if r := hyper(t, "run", "--rm", "--cpus", "64", "busybox", "true"); r.code != 125 || !strings.Contains(r.err, "range of CPUs") {
		t.Errorf("got %+v", r)
	}
}

// anonymous is the memory of a process that is its own, in MiB.
func anonymous(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(b, []byte("\nAnonymous:"))
	kib, err := strconv.Atoi(string(bytes.Fields(rest)[0]))
	if err != nil {
		t.Fatal(err)
	}
	return kib / 1024
}

// TestMemoryGoesBack: after a spike of 500 MB the host has it again within 30 s.
func TestMemoryGoesBack(t *testing.T) {
	pulled(t, "busybox")
	templated(t)
	id := container(t, "--shm-size", "1g", "busybox", "sleep", "1000")
	v := inspectVM(t, id)
	if v.Road == "boot" {
		t.Fatalf("not a clone: %+v", v)
	}
	idle := anonymous(t, v.HostPID)
	must(t, "exec", id, "dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=500")
	peak := anonymous(t, v.HostPID)
	must(t, "exec", id, "rm", "/dev/shm/x")
	if peak < idle+400 {
		t.Fatalf("a spike of 500 MB took %d MiB, and %d when idle", peak, idle)
	}
	start := time.Now()
	for {
		now := anonymous(t, v.HostPID)
		if now < idle+60 {
			t.Logf("idle %d MiB, peak %d, %d after %v", idle, peak, now, time.Since(start).Round(time.Second))
			return
		}
		if time.Since(start) > 30*time.Second {
			t.Fatalf("idle %d MiB, peak %d, still %d after %v", idle, peak, now, time.Since(start))
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// TestTemplateDamaged: whatever became of a template's files, starts succeed.
// More kinds of damage are in internal/template.
func TestTemplateDamaged(t *testing.T) {
	pulled(t, "busybox")
	for name, damage := range map[string]func(dir string) error{
		"flipped": flipByte,
		"gone":    os.RemoveAll,
	} {
		t.Run(name, func(t *testing.T) {
			id := templated(t)
			h.signal(syscall.SIGTERM)
			err := damage(filepath.Join(h.root, "templates", id))
			if serr := h.start(); err != nil || serr != nil {
				t.Fatal(err, serr)
			}
			if out := must(t, "run", "--rm", "busybox", "echo", "works"); out != "works" {
				t.Errorf("got %q", out)
			}
			if again := templated(t); again != id {
				t.Errorf("template %s became %s", id, again)
			}
		})
	}
}

// flipByte changes one byte of a template's memory that is no hole.
func flipByte(dir string) error {
	f, err := os.OpenFile(dir+"/memory", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const seekData = 3
	at, err := f.Seek(16<<20, seekData)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b, at)
	return err
}

// TestKilledWhileStarting kills hyperd at many moments of a clone's start, and while a
// template is made: the next one leaves nothing behind, and works.
func TestKilledWhileStarting(t *testing.T) {
	pulled(t, "busybox")
	templated(t)
	for ms := 5; ms < 320; ms += 35 {
		cmd := h.command(t.Context(), "run", "--name", "killed", "busybox", "true")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(ms) * time.Millisecond)
		h.signal(syscall.SIGKILL)
		cmd.Wait() //nolint:errcheck // it lost its daemon
		if err := h.start(); err != nil {
			t.Fatal(err)
		}
		hyper(t, "rm", "-f", "killed")
		if out := must(t, "run", "--rm", "busybox", "echo", "works"); out != "works" {
			t.Errorf("after %d ms: %q", ms, out)
		}
	}
	must(t, "template", "rm", templated(t))
	making := h.command(t.Context(), "template", "create")
	if err := making.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(600 * time.Millisecond)
	h.signal(syscall.SIGKILL)
	making.Wait() //nolint:errcheck // likewise
	if err := h.start(); err != nil {
		t.Fatal(err)
	}
	templated(t)
	if left, _ := filepath.Glob(h.run + "/making/*"); len(left) > 0 {
		t.Errorf("left of making templates: %v", left)
	}
}

func TestTraceAndMetrics(t *testing.T) {
	pulled(t, "busybox")
	restarted(t, "--warm-pool", "0")
	templated(t)
	r := hyper(t, "run", "--rm", "--trace", "busybox", "echo", "out")
	if r.code != 0 || r.out != "out\n" {
		t.Errorf("got %+v", r)
	}
	for _, stage := range []string{"(clone)", "plan", "prepare", "vmm", "answer", "wire", "configure", "mount", "exec", "first output"} {
		if !strings.Contains(r.err, stage) {
			t.Errorf("no stage %s in\n%s", stage, r.err)
		}
	}
	text := string(get(t, "/metrics"))
	for _, want := range []string{`hyper_start_seconds_count{road="clone"} 1`, `hyper_start_stage_seconds_bucket{road="clone",stage="mount"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if r := hyper(t, "run", "--trace", "--rm", "busybox", "false"); r.code != 1 {
		t.Errorf("got %+v", r)
	}
}
