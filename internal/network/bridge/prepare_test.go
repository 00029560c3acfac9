package bridge_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/network/bridge"
)

// taps counts our taps on the host that can be used: on the bridge, allowed
// to send.
func taps(t testing.TB) int {
	t.Helper()
	n := 0
	out, err := exec.Command("nft", "list", "set", "bridge", "hyper", "macs").CombinedOutput()
	if err != nil {
		return 0
	}
	for _, l := range ours(t) {
		if name, ok := strings.CutPrefix(l, "tuntap hyp"); ok && strings.Contains(string(out), name) {
			n++
		}
	}
	return n
}

// settle waits until there are n taps, and then that it stays so.
func settle(t testing.TB, n int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); taps(t) != n && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	if got := taps(t); got != n {
		t.Fatalf("%d taps, want %d", got, n)
	}
}

func prepared(t testing.TB, cfg bridge.Config, n int) *bridge.Driver {
	t.Helper()
	d := started(t, cfg)
	d.Prepare(n)
	settle(t, n)
	return d
}

// isReady says whether an attachment was made ahead of time.
func isReady(a network.Attachment) bool { return a.Device != "hyp"+a.PodID[:12] }

// works says whether what Open gives carries frames and nothing old.
func works(t *testing.T, d *bridge.Driver, a network.Attachment) {
	t.Helper()
	f, err := d.Open(t.Context(), a)
	must(t, err)
	defer f.Close()
	pod := tapGuest{t: t, f: f, mac: a.MAC, ip: a.Addrs[0].Addr()}
	gateway, err := pod.resolve(a.Gateway[0])
	must(t, err)
	must(t, pod.ping(a.Gateway[0], gateway))
}

func TestPrepared(t *testing.T) {
	d := prepared(t, bridge.Config{}, 3)
	var list []network.Attachment
	for i := range 5 {
		a := attach(t, d, i)
		if want := i < 3; isReady(a) != want {
			t.Errorf("attachment %d, %s, was made ahead of time: %v", i, a.Device, !want)
		}
		list = append(list, a)
	}
	for _, a := range list {
		works(t, d, a)
	}
	settle(t, 5+3)
	for _, a := range list {
		must(t, d.Detach(t.Context(), a))
	}
	settle(t, 3)
	d.Prepare(1)
	settle(t, 1)
	d.Prepare(0)
	settle(t, 0)
	if a := attach(t, d, 0); isReady(a) {
		t.Errorf("%s was made ahead of time", a.Device)
	}
}

// TestPreparedAfterABurst: nothing is made while pods are attached.
func TestPreparedAfterABurst(t *testing.T) {
	d := prepared(t, bridge.Config{}, 2)
	count := func() (n int) {
		entries, err := os.ReadDir("/proc/sys/net/ipv4/conf") // quicker than asking for links
		must(t, err)
		for _, e := range entries {
			if len(e.Name()) == len("hyp")+12 && strings.HasPrefix(e.Name(), "hyp") {
				n++
			}
		}
		return n
	}
	for i := range 30 {
		start := time.Now()
		attach(t, d, i)
		time.Sleep(5 * time.Millisecond)
		got, want := count(), max(i+1, 2)
		if time.Since(start) > 25*time.Millisecond {
			t.Skip("the machine is too busy for a burst")
		}
		if got > want {
			t.Fatalf("%d taps after %d pods, want %d", got, i+1, want)
		}
	}
	settle(t, 32)
}

// TestPreparedMends: what was ready is no more when the administrator has
// been there, and Open finds out.
func TestPreparedMends(t *testing.T) {
	for name, cmd := range map[string][]string{
		"rules flushed":    {"nft", "flush", "ruleset"},
		"one table gone":   {"nft", "delete", "table", "bridge", "hyper"},
		"bridge gone":      {"ip", "link", "del", "hyper0"},
		"taps gone":        {"sh", "-c", "for i in /proc/sys/net/ipv4/conf/hyp?????*; do case $i in *hyper0) ;; *) ip link del ${i##*/};; esac; done"},
		"taps down":        {"sh", "-c", "for i in /proc/sys/net/ipv4/conf/hyp?????*; do case $i in *hyper0) ;; *) ip link set ${i##*/} down;; esac; done"},
		"bridge another's": {"sh", "-c", "ip link del hyper0 && ip link add hyper0 type bridge"},
		"nothing":          {"true"},
	} {
		t.Run(name, func(t *testing.T) {
			d := prepared(t, bridge.Config{}, 2)
			before := ours(t)
			must(t, run(cmd[0], cmd[1:]...))
			for i := range 3 {
				a := attach(t, d, i)
				if i < 2 && !isReady(a) {
					t.Errorf("%s was not made ahead of time", a.Device)
				}
				works(t, d, a)
			}
			settle(t, 3+2)
			if now := ours(t); len(now) != len(before)+3 {
				t.Errorf("%q on the host, before three pods %q", now, before)
			}
		})
	}
}

// TestPreparedIsSilent: what the bridge sent to all before a pod had the
// tap, the pod does not get.
func TestPreparedIsSilent(t *testing.T) {
	d := prepared(t, bridge.Config{}, 1)
	for i := range 20 { // the host asks who has an address: a broadcast
		conn, err := net.Dial("udp", fmt.Sprintf("172.30.77.%d:9", i+1))
		must(t, err)
		_, _ = conn.Write([]byte("?"))
		conn.Close()
	}
	a := attach(t, d, 0)
	if !isReady(a) {
		t.Fatalf("%s was not made ahead of time", a.Device)
	}
	f, err := d.Open(t.Context(), a)
	must(t, err)
	defer f.Close()
	must(t, f.SetReadDeadline(time.Now().Add(time.Millisecond)))
	if n, err := f.Read(make([]byte, 2000)); err == nil {
		t.Errorf("a frame of %d bytes from before", n)
	}
}

func TestPreparedLeavesNothing(t *testing.T) {
	for name, end := range map[string]func(d *bridge.Driver) error{
		"Close":   (*bridge.Driver).Close,
		"Restore": func(d *bridge.Driver) error { d.Prepare(0); return d.Restore(context.Background(), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			d := started(t, bridge.Config{})
			good := state(t)
			open, err := os.ReadDir("/proc/self/fd")
			must(t, err)
			for _, wait := range []time.Duration{0, 45 * time.Millisecond, 51 * time.Millisecond, 52 * time.Millisecond, 200 * time.Millisecond} {
				d.Prepare(5)
				time.Sleep(wait) // into the middle of it
				must(t, end(d))
				time.Sleep(100 * time.Millisecond)
				if diff := cmp.Diff(good, state(t)); diff != "" {
					t.Fatalf("after %v (-before +after):\n%s", wait, diff)
				}
				must(t, d.Restore(t.Context(), nil))
			}
			now, err := os.ReadDir("/proc/self/fd")
			must(t, err)
			if len(now) > len(open) {
				t.Errorf("%d descriptors, %d before", len(now), len(open))
			}
			must(t, d.Close())
			goleak.VerifyNone(t)
		})
	}
}

// TestPreparedExhaustion: addresses that are ready are not lost to pods.
func TestPreparedExhaustion(t *testing.T) {
	d := prepared(t, bridge.Config{Subnet: netip.MustParsePrefix("10.9.8.0/29")}, 3)
	for i := range 5 {
		attach(t, d, i)
	}
	settle(t, 5)
}

// TestPreparedKilled: a daemon that is killed leaves taps that no record
// knows; the next one removes them.
func TestPreparedKilled(t *testing.T) {
	next := started(t, bridge.Config{})
	good := state(t)
	must(t, next.Close())
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), inOwnHost+"=prepare")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = bufio.NewReader(out).ReadString('\n')
	settle(t, 5)
	must(t, cmd.Process.Signal(unix.SIGKILL))
	_ = cmd.Wait()
	must(t, err)
	if n := taps(t); n != 5 {
		t.Fatalf("%d taps are left, want 5: this tests nothing", n)
	}
	start := time.Now()
	must(t, next.Restore(t.Context(), nil))
	t.Logf("removed in %v", time.Since(start))
	if diff := cmp.Diff(good, state(t)); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

// prepareForever is the daemon that is killed.
func prepareForever() {
	d, err := bridge.New(bridge.Config{})
	if err == nil {
		err = d.Restore(context.Background(), nil)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	d.Prepare(5)
	fmt.Println("ready")
	select {}
}

func TestSpare(t *testing.T) {
	d := started(t, bridge.Config{})
	before := ours(t)
	a, err := d.Spare(t.Context())
	must(t, err)
	b, err := d.Spare(t.Context())
	must(t, err)
	if got := len(ours(t)); got != len(before)+2 {
		t.Errorf("%d interfaces and tables, want %d", got, len(before)+2)
	}
	must(t, d.Restore(t.Context(), nil))
	if got := len(ours(t)); got != len(before)+2 {
		t.Errorf("%d after Restore, want %d: it is in use", got, len(before)+2)
	}
	must(t, a.Close())
	must(t, b.Close())
	if diff := cmp.Diff(before, ours(t)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

func BenchmarkPrepared(b *testing.B) {
	const n = 64
	d := started(b, bridge.Config{})
	d.Prepare(n)
	settle(b, n)
	var attaching, opening []time.Duration
	for i := range n {
		start := time.Now()
		a := attach(b, d, i)
		mid := time.Now()
		f, err := d.Open(b.Context(), a)
		attaching, opening = append(attaching, mid.Sub(start)), append(opening, time.Since(mid))
		must(b, err)
		f.Close()
	}
	slices.Sort(attaching)
	slices.Sort(opening)
	b.ReportMetric(float64(attaching[n/2].Nanoseconds())/1e3, "attach-µs")
	b.ReportMetric(float64(opening[n/2].Nanoseconds())/1e3, "open-µs")
	b.ReportMetric(float64(opening[0].Nanoseconds())/1e3, "open-least-µs")
}
