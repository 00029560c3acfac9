package bridge_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/network/bridge"
)

const patience = 700 * time.Millisecond // for what must not come

// serve answers on a port of the machine (nil: the host), by TCP and UDP,
// with the address the client seems to have.
func serve(t testing.TB, m *machine, addr string) {
	t.Helper()
	var l net.Listener
	var conn net.PacketConn
	listen := func() (err error) {
		if l, err = net.Listen("tcp", addr); err == nil {
			conn, err = net.ListenPacket("udp", addr)
		}
		return err
	}
	if m == nil {
		must(t, listen())
	} else {
		m.do(listen)
	}
	t.Cleanup(func() { l.Close(); conn.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}()
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo([]byte(from.(*net.UDPAddr).IP.String()), from)
		}
	}()
}

// ask connects from the machine (nil: the host) and returns what serve says.
func (m *machine) ask(network, addr string, wait time.Duration) (string, error) {
	var c net.Conn
	var err error
	dial := func() error {
		c, err = net.DialTimeout(network, addr, wait)
		return nil
	}
	if m == nil {
		_ = dial()
	} else {
		m.do(dial)
	}
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(wait))
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
		b := make([]byte, 100)
		n, err := c.Read(b)
		return string(b[:n]), err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

// ping sends one echo request from the machine and waits for the reply.
func (m *machine) ping(to netip.Addr) error {
	network, proto, typ := "ip4:icmp", 1, icmp.Type(ipv4.ICMPTypeEcho)
	if to.Is6() {
		network, proto, typ = "ip6:ipv6-icmp", 58, ipv6.ICMPTypeEchoRequest
	}
	var c *icmp.PacketConn
	m.do(func() (err error) {
		c, err = icmp.ListenPacket(network, "")
		return err
	})
	defer c.Close()
	b, err := (&icmp.Message{Type: typ, Body: &icmp.Echo{ID: 77, Seq: 1}}).Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(b, &net.IPAddr{IP: to.AsSlice(), Zone: ""}); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	for {
		b := make([]byte, 1500)
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return fmt.Errorf("ping %v: %w", to, err)
		}
		r, err := icmp.ParseMessage(proto, b[:n])
		reply := err == nil && (r.Type == ipv4.ICMPTypeEchoReply || r.Type == ipv6.ICMPTypeEchoReply)
		if reply && from.String() == to.String() {
			return nil
		}
	}
}

// lookup asks a name server from the machine; "" when there is no answer.
func (m *machine) lookup(server netip.Addr, name string) string {
	m.t.Helper()
	return m.lookupBy("udp", server, name)
}

func (m *machine) lookupBy(network string, server netip.Addr, name string) string {
	var conn net.Conn
	var err error
	m.do(func() error {
		conn, err = net.DialTimeout(network, netip.AddrPortFrom(server, 53).String(), 2*time.Second)
		return nil
	})
	if err != nil {
		return ""
	}
	defer conn.Close()
	c := &mdns.Client{Net: network, Timeout: 2 * time.Second}
	a, _, err := c.ExchangeWithConn(new(mdns.Msg).SetQuestion(name, mdns.TypeA), &mdns.Conn{Conn: conn})
	if err != nil || len(a.Answer) == 0 {
		return ""
	}
	return a.Answer[0].(*mdns.A).A.String()
}

// A site is a host with two pods, and a machine outside that knows nothing
// of their subnet.
type site struct {
	d       *bridge.Driver
	a, b    network.Attachment
	podA    *machine
	podB    *machine
	outside *machine
}

func newSite(t *testing.T, cfg bridge.Config) *site {
	t.Helper()
	needHost(t)
	s := &site{outside: newMachine(t)}
	s.outside.plugUplink("up0", []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	must(t, run("ip", "route", "add", "default", "via", "192.0.2.2"))
	must(t, run("ip", "-6", "route", "add", "default", "via", "2001:db8::2"))
	s.d = started(t, cfg)
	s.a, s.b = attach(t, s.d, 0), attach(t, s.d, 1)
	s.podA, s.podB = newGuest(t, s.a), newGuest(t, s.b)
	return s
}

func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// TestReach is who can talk to whom. Of br_netfilter there are two worlds:
// bridged packets pass the forward chains, or not.
func TestReach(t *testing.T) {
	for _, nf := range []string{"0", "1"} {
		t.Run("bridge-nf-call "+nf, func(t *testing.T) {
			const key = "/proc/sys/net/bridge/bridge-nf-call-iptables"
			if err := os.WriteFile(key, []byte(nf), 0o644); err != nil && nf == "1" {
				t.Skip(err)
			}
			testReach(t, newSite(t, bridge.Config{}))
		})
	}
}

func testReach(t *testing.T, s *site) {
	serve(t, s.outside, ":7000")
	serve(t, s.podB, ":7000")
	serve(t, nil, ":7000")
	s.outside.must("ip", "addr", "add", "169.254.169.254/32", "dev", "eth0")
	must(t, run("ip", "route", "add", "169.254.169.254/32", "via", "192.0.2.2"))
	s.outside.must("ip", "route", "add", s.b.Addrs[0].Masked().String(), "via", "192.0.2.1") // an attacker would
	var host *machine

	tests := []struct {
		name string
		from *machine
		to   string
		want string // the client's address as the server sees it; "": must not work
	}{
		{"pod to outside", s.podA, "192.0.2.2:7000", "192.0.2.1"},
		{"pod to outside, IPv6", s.podA, "[2001:db8::2]:7000", "2001:db8::1"},
		{"pod to pod", s.podA, at(s.b.Addrs[0].Addr(), 7000), s.a.Addrs[0].Addr().String()},
		{"pod to pod, IPv6", s.podA, at(s.b.Addrs[1].Addr(), 7000), s.a.Addrs[1].Addr().String()},
		{"host to pod", host, at(s.b.Addrs[0].Addr(), 7000), s.b.Gateway[0].String()},
		{"host to pod, IPv6", host, at(s.b.Addrs[1].Addr(), 7000), s.b.Gateway[1].String()},
		{"host to metadata", host, "169.254.169.254:7000", "192.0.2.1"},
		{"pod to metadata", s.podA, "169.254.169.254:7000", ""},
		{"pod to host by gateway", s.podA, at(s.a.Gateway[0], 7000), ""},
		{"pod to host by gateway, IPv6", s.podA, at(s.a.Gateway[1], 7000), ""},
		{"pod to host by its other address", s.podA, "192.0.2.1:7000", ""},
		{"pod to host by its other address, IPv6", s.podA, "[2001:db8::1]:7000", ""},
		{"outside to pod", s.outside, at(s.b.Addrs[0].Addr(), 7000), ""},
		{"outside to host", s.outside, "192.0.2.1:7000", "192.0.2.2"},
	}
	for _, tt := range tests {
		for _, network := range []string{"tcp", "udp"} {
			if network == "udp" && strings.Contains(tt.name, "metadata") {
				continue // the server would answer from its first address
			}
			wait := 3 * time.Second
			if tt.want == "" {
				wait = patience
			}
			start := time.Now()
			got, err := tt.from.ask(network, tt.to, wait)
			if got != tt.want {
				t.Errorf("%s, %s %s: seen as %q, want %q (%v)", tt.name, network, tt.to, got, tt.want, err)
			}
			if tt.want == "" && tt.from == s.podA && network == "tcp" && time.Since(start) >= patience {
				t.Errorf("%s: no answer, want a rejection", tt.name)
			}
		}
	}
	for _, to := range []netip.Addr{s.a.Gateway[0], s.a.Gateway[1], s.b.Addrs[0].Addr(), s.b.Addrs[1].Addr(),
		netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")} {
		if err := s.podA.ping(to); err != nil {
			t.Error(err)
		}
	}
}

// TestSpoofing: a pod that takes addresses that are not its own is mute.
func TestSpoofing(t *testing.T) {
	s := newSite(t, bridge.Config{})
	serve(t, s.podB, ":7000")
	ok := func() error {
		_, err := s.podA.ask("tcp", at(s.b.Addrs[0].Addr(), 7000), patience)
		return err
	}
	must(t, ok())
	mine, mine6, other := s.a.Addrs[0].String(), s.a.Addrs[1].String(), netip.PrefixFrom(s.b.Addrs[0].Addr().Next(), 16).String()

	change := func(name string, do, undo []string, broken func() error) {
		t.Helper()
		s.podA.must(do...)
		if broken() == nil {
			t.Errorf("%s: still heard", name)
		}
		s.podA.must(undo...)
		s.podA.must("ip", "neigh", "flush", "all")
		s.podB.must("ip", "neigh", "flush", "all")
	}
	change("another MAC",
		[]string{"ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"},
		[]string{"ip", "link", "set", "eth0", "address", s.a.MAC.String()}, ok)
	must(t, ok())
	change("another IPv4 address",
		[]string{"ip", "addr", "replace", other, "dev", "eth0", "noprefixroute"},
		[]string{"ip", "addr", "del", other, "dev", "eth0"},
		func() error { return s.podA.askFrom(other, at(s.b.Addrs[0].Addr(), 7000)) })
	change("another IPv6 address",
		[]string{"ip", "addr", "add", "2001:db8::99/128", "dev", "eth0", "nodad"},
		[]string{"ip", "addr", "del", "2001:db8::99/128", "dev", "eth0"},
		func() error { return s.podA.askFrom("2001:db8::99/128", at(s.b.Addrs[1].Addr(), 7000)) })
	must(t, ok())
	for from, to := range map[string]netip.Addr{mine: s.b.Addrs[0].Addr(), mine6: s.b.Addrs[1].Addr()} {
		must(t, s.podA.askFrom(from, at(to, 7000)))
	}

	// The host must not take routes from a pod.
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/hyper0/accept_ra")
	must(t, err)
	if strings.TrimSpace(string(b)) != "0" {
		t.Errorf("accept_ra of the bridge: %s", b)
	}
}

// askFrom sends a datagram from an address of the machine and waits for the
// reply. The server's side must be able to route it: only rules may stop it.
func (m *machine) askFrom(local, to string) error {
	addr := netip.MustParsePrefix(local).Addr()
	var c net.Conn
	var err error
	m.do(func() error {
		c, err = net.DialUDP("udp", &net.UDPAddr{IP: addr.AsSlice()}, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
		return nil
	})
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("?")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 100))
	return err
}

// nameServer answers every A question on the machine with one address.
func nameServer(t *testing.T, m *machine, addr, answer string) {
	t.Helper()
	var conn net.PacketConn
	var l net.Listener
	m.do(func() (err error) {
		if conn, err = net.ListenPacket("udp", addr); err == nil {
			l, err = net.Listen("tcp", addr)
		}
		return err
	})
	h := mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		rr, _ := mdns.NewRR(q.Question[0].Name + " 1 IN A " + answer)
		a := new(mdns.Msg).SetReply(q)
		a.Answer = []mdns.RR{rr}
		_ = w.WriteMsg(a)
	})
	for _, s := range []*mdns.Server{{PacketConn: conn, Handler: h}, {Listener: l, Handler: h}} {
		started, done := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(done); _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown(); <-done })
	}
}

func TestDNS(t *testing.T) {
	for _, taken := range []bool{false, true} {
		t.Run(fmt.Sprintf("port taken %v", taken), func(t *testing.T) {
			needHost(t)
			if taken {
				serve(t, nil, "0.0.0.0:53")
			}
			conf := filepath.Join(t.TempDir(), "resolv.conf")
			must(t, os.WriteFile(conf, []byte("nameserver 192.0.2.2\n"), 0o600))
			cfg := bridge.Config{ResolvConf: conf, Lookup: func(name string) ([]netip.Addr, bool) {
				return []netip.Addr{netip.MustParseAddr("172.30.9.9")}, name == "web"
			}}
			s := newSite(t, cfg)
			nameServer(t, s.outside, "192.0.2.2:53", "203.0.113.7")
			check := func() {
				t.Helper()
				for name, want := range map[string]string{
					"example.org.":          "203.0.113.7",
					"host.hyper.internal.":  s.a.Gateway[0].String(),
					"host.docker.internal.": s.a.Gateway[0].String(),
					"web.":                  "172.30.9.9",
				} {
					for _, network := range []string{"udp", "tcp"} {
						if got := s.podA.lookupBy(network, s.a.DNS[0], name); got != want {
							t.Errorf("%s by %s: %q, want %q", name, network, got, want)
						}
					}
				}
			}
			check()
			must(t, s.d.Close()) // the daemon restarts
			next, err := bridge.New(cfg)
			must(t, err)
			must(t, next.Restore(t.Context(), []network.Attachment{s.a, s.b}))
			check()
			must(t, next.Close())
			must(t, s.d.Restore(t.Context(), []network.Attachment{s.a, s.b}))

			// Neighbours of the host get no answers.
			s.outside.must("ip", "route", "add", s.a.Addrs[0].Masked().String(), "via", "192.0.2.1")
			if got := s.outside.lookup(s.a.DNS[0], "host.hyper.internal."); got != "" {
				t.Errorf("answered to the outside: %s", got)
			}
		})
	}
}

// TestTapCarriesFrames speaks ARP and ICMP over the descriptor that a VM
// would get.
func TestTapCarriesFrames(t *testing.T) {
	d := started(t, bridge.Config{})
	a := attach(t, d, 0)
	f, err := d.Open(t.Context(), a)
	must(t, err)
	defer f.Close()
	pod := tapGuest{t: t, f: f, mac: a.MAC, ip: a.Addrs[0].Addr()}
	gatewayMAC, err := pod.resolve(a.Gateway[0])
	must(t, err)
	must(t, pod.ping(a.Gateway[0], gatewayMAC))

	liar := pod
	liar.ip = netip.MustParseAddr("172.30.99.99")
	if err := liar.ping(a.Gateway[0], gatewayMAC); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("with an address of somebody else: %v, want no answer", err)
	}
	if _, err := liar.resolve(a.Gateway[0]); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ARP for somebody else: %v, want no answer", err)
	}
	liar = pod
	liar.mac = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	if _, err := liar.resolve(a.Gateway[0]); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("with a MAC of somebody else: %v, want no answer", err)
	}
}

// TestTrafficSurvivesRestore: connections of pods do not notice that the
// rules are written anew.
func TestTrafficSurvivesRestore(t *testing.T) {
	s := newSite(t, bridge.Config{})
	var l net.Listener
	s.outside.do(func() (err error) {
		l, err = net.Listen("tcp", ":7001")
		return err
	})
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	var c net.Conn
	s.podA.do(func() (err error) {
		c, err = net.DialTimeout("tcp", "192.0.2.2:7001", 3*time.Second)
		return err
	})
	defer c.Close()
	for i := range 20 {
		must(t, s.d.Restore(t.Context(), []network.Attachment{s.a, s.b}))
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := fmt.Fprintf(c, "%02d", i); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
}
