package bridge_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/network/bridge"
)

const inOwnHost = "HYPER_TEST_NETNS"

// TestMain runs the tests in a network namespace of their own, which plays
// the host: what the driver does never meets the machine's network.
func TestMain(m *testing.M) {
	if os.Getenv(inOwnHost) == "prepare" {
		prepareForever()
	}
	if os.Getuid() != 0 || os.Getenv(inOwnHost) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inOwnHost+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// A namespace for mounts too: some tests hide files under /etc and /dev.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "run the tests in a network namespace:", err)
		os.Exit(1)
	}
}

// needHost skips where there are no rights to make a network.
func needHost(t testing.TB) {
	t.Helper()
	if os.Getenv(inOwnHost) == "" {
		t.Skip("needs root")
	}
	must(t, run("ip", "link", "set", "lo", "up"))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// newDriver is a driver before Restore whose network goes with the test.
func newDriver(t testing.TB, cfg bridge.Config) *bridge.Driver {
	t.Helper()
	needHost(t)
	d, err := bridge.New(cfg)
	must(t, err)
	t.Cleanup(func() {
		if err := d.Remove(t.Context()); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return d
}

// started is a driver with nothing in use.
func started(t testing.TB, cfg bridge.Config) *bridge.Driver {
	t.Helper()
	d := newDriver(t, cfg)
	must(t, d.Restore(t.Context(), nil))
	return d
}

func podID(n int) string { return fmt.Sprintf("%012x%052x", n+1, 0) }

func attach(t testing.TB, d *bridge.Driver, n int) network.Attachment {
	t.Helper()
	a, err := d.Attach(t.Context(), podID(n))
	must(t, err)
	return a
}

// A machine is another network stack, joined to the host by a cable.
type machine struct {
	t    testing.TB
	ns   netns.NsHandle
	path string
}

// newMachine makes a namespace. The descriptor in path keeps it alive.
func newMachine(t testing.TB) *machine {
	t.Helper()
	m := &machine{t: t}
	onThread(t, func() error {
		ns, err := netns.New()
		m.ns = ns
		return err
	})
	m.path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(m.ns))
	t.Cleanup(func() { m.ns.Close() })
	m.must("ip", "link", "set", "lo", "up")
	return m
}

// onThread runs f on a thread that is thrown away, for it has changed.
func onThread(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// do runs f inside the machine; sockets it makes stay there.
func (m *machine) do(f func() error) {
	m.t.Helper()
	onThread(m.t, func() error {
		if err := netns.Set(m.ns); err != nil {
			return err
		}
		return f()
	})
}

// run runs a program inside the machine.
func (m *machine) run(args ...string) error {
	return run("nsenter", append([]string{"--net=" + m.path}, args...)...)
}

func (m *machine) must(args ...string) {
	m.t.Helper()
	must(m.t, m.run(args...))
}

// plugUplink joins the machine to the host by a veth; addresses with prefix
// length. The host's end goes with the test.
func (m *machine) plugUplink(device string, host, here []string) {
	t := m.t
	t.Helper()
	must(t, run("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", m.path))
	t.Cleanup(func() { _ = run("ip", "link", "del", device) })
	must(t, run("ip", "link", "set", device, "up"))
	m.must("ip", "link", "set", "eth0", "up")
	for _, a := range host {
		must(t, run("ip", "addr", "add", a, "dev", device, "nodad"))
	}
	for _, a := range here {
		m.must("ip", "addr", "add", a, "dev", "eth0", "nodad")
	}
}

// newGuest is a machine that has a pod's connection: a veth takes the place
// of the tap, under its name, so that all rules hold for it.
func newGuest(t testing.TB, a network.Attachment) *machine {
	t.Helper()
	m := newMachine(t)
	must(t, run("ip", "link", "del", a.Device))
	must(t, run("ip", "link", "add", a.Device, "type", "veth", "peer", "name", "eth0", "netns", m.path))
	t.Cleanup(func() { _ = run("ip", "link", "del", a.Device) })
	must(t, run("ip", "link", "set", a.Device, "master", "hyper0", "up"))
	m.must("ip", "link", "set", "eth0", "address", a.MAC.String(), "mtu", fmt.Sprint(a.MTU), "up")
	for i, p := range a.Addrs {
		m.must("ip", "addr", "add", p.String(), "dev", "eth0", "nodad")
		m.must("ip", "route", "add", "default", "via", a.Gateway[i].String())
	}
	return m
}

// ours lists the taps, tables and bridges that are on the host.
func ours(t testing.TB) []string {
	t.Helper()
	var found []string
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		if l.Type() == "tuntap" || l.Type() == "bridge" {
			found = append(found, l.Type()+" "+l.Attrs().Name)
		}
	}
	out, err := exec.Command("nft", "list", "tables").Output()
	must(t, err)
	for line := range strings.Lines(string(out)) {
		if strings.HasSuffix(strings.TrimSpace(line), " hyper") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// bridgeAddrs are the addresses of hyper0 but link-local ones.
func bridgeAddrs(t testing.TB) []netip.Prefix {
	t.Helper()
	i, err := net.InterfaceByName("hyper0")
	must(t, err)
	addrs, err := i.Addrs()
	must(t, err)
	var out []netip.Prefix
	for _, a := range addrs {
		if p := netip.MustParsePrefix(a.String()); !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p)
		}
	}
	return out
}
