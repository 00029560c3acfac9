package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// resolver is an upstream on an address of loopback and the given port (0:
// a free one). A nil handler never answers.
func resolver(t *testing.T, addr netip.AddrPort, h dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	conn, err := net.ListenPacket("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	if h == nil {
		h = func(dns.ResponseWriter, *dns.Msg) {}
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // runs after the shutdowns
	for _, s := range []*dns.Server{{Listener: l, Handler: h}, {PacketConn: conn, Handler: h}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() { _ = s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return at
}

// fixed answers every question with one address.
func fixed(addr string) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		rr, _ := dns.NewRR(q.Question[0].Name + " 300 IN A " + addr)
		a.Answer = []dns.RR{rr}
		_ = w.WriteMsg(a)
	}
}

// server forwards to the addresses in a resolv.conf, all on one port.
func server(t *testing.T, port uint16, resolvers ...string) *Server {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	writeConf(t, path, resolvers...)
	gw := []netip.Addr{netip.MustParseAddr("172.30.0.1"), netip.MustParseAddr("fd00::1")}
	s, err := Listen(loopback, Config{
		ResolvConf: path,
		Lookup: Hosts(map[string][]netip.Addr{
			"host.hyper.internal": gw,
			"v4.only":             gw[:1],
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.upstream.port = fmt.Sprint(port)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func writeConf(t *testing.T, path string, resolvers ...string) {
	t.Helper()
	var b strings.Builder
	b.WriteString("# made by a test\nsearch example.org\noptions ndots:1\n")
	for _, r := range resolvers {
		fmt.Fprintf(&b, "nameserver %s\n", r)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

func query(t *testing.T, s *Server, network, name string, qtype uint16) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 6 * time.Second}
	a, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, qtype), s.Addr().String())
	if err != nil {
		t.Fatalf("%s %s: %v", network, name, err)
	}
	return a
}

// text is an answer as "RCODE address…".
func text(a *dns.Msg) string {
	out := dns.RcodeToString[a.Rcode]
	for _, rr := range a.Answer {
		out += " " + strings.TrimPrefix(rr.String(), rr.Header().String())
	}
	return out
}

func TestAnswers(t *testing.T) {
	at := resolver(t, loopback, fixed("192.0.2.1"))
	s := server(t, at.Port(), "127.0.0.1")
	tests := []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"host.hyper.internal.", dns.TypeA, "NOERROR 172.30.0.1"},
		{"HOST.Hyper.internal.", dns.TypeA, "NOERROR 172.30.0.1"},
		{"host.hyper.internal.", dns.TypeAAAA, "NOERROR fd00::1"},
		{"v4.only.", dns.TypeAAAA, "NOERROR"},
		{"v4.only.", dns.TypeMX, "NOERROR"},
		{"example.org.", dns.TypeA, "NOERROR 192.0.2.1"},
		{"not.host.hyper.internal.", dns.TypeA, "NOERROR 192.0.2.1"},
		{".", dns.TypeNS, "NOERROR 192.0.2.1"},
	}
	for _, tt := range tests {
		for _, network := range []string{"udp", "tcp"} {
			a := query(t, s, network, tt.name, tt.qtype)
			if got := text(a); got != tt.want || !a.Response {
				t.Errorf("%s %s %s: %q, want %q", network, tt.name, dns.TypeToString[tt.qtype], got, tt.want)
			}
		}
	}
}

func TestRefusesWhatIsNoQuery(t *testing.T) {
	s := server(t, 1, "127.0.0.1")
	m := new(dns.Msg).SetQuestion("example.org.", dns.TypeA)
	m.Opcode = dns.OpcodeNotify
	if a := s.answer(m, "udp"); a.Rcode != dns.RcodeNotImplemented {
		t.Errorf("NOTIFY: %s", text(a))
	}
	m = new(dns.Msg)
	if a := s.answer(m, "udp"); a.Rcode != dns.RcodeFormatError {
		t.Errorf("no question: %s", text(a))
	}
}

func TestUpstreamDead(t *testing.T) {
	silent := resolver(t, loopback, nil)
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.3"), silent.Port())
	resolver(t, at, fixed("192.0.2.3"))

	t.Run("all of them", func(t *testing.T) {
		s := server(t, silent.Port(), "127.0.0.1", "127.0.0.2")
		start := time.Now()
		if a := query(t, s, "udp", "example.org.", dns.TypeA); a.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s, want SERVFAIL", text(a))
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("SERVFAIL after %v, when a client has given up", d)
		}
	})
	t.Run("the first", func(t *testing.T) {
		s := server(t, silent.Port(), "127.0.0.1", "127.0.0.3")
		query(t, s, "udp", "example.org.", dns.TypeA)
		start := time.Now()
		if a := query(t, s, "udp", "example.org.", dns.TypeA); text(a) != "NOERROR 192.0.2.3" {
			t.Errorf("%s", text(a))
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("second query took %v: the dead resolver was asked first again", d)
		}
	})
}

func TestNextAfterServerFailure(t *testing.T) {
	bad := resolver(t, loopback, func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
	})
	resolver(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), bad.Port()), fixed("192.0.2.2"))
	s := server(t, bad.Port(), "127.0.0.1", "127.0.0.2")
	if a := query(t, s, "udp", "example.org.", dns.TypeA); text(a) != "NOERROR 192.0.2.2" {
		t.Error(text(a))
	}
	if a := query(t, server(t, bad.Port(), "127.0.0.1"), "tcp", "example.org.", dns.TypeA); a.Rcode != dns.RcodeServerFailure {
		t.Error(text(a))
	}
}

func TestResolvConfIsReadAgain(t *testing.T) {
	first := resolver(t, loopback, fixed("192.0.2.1"))
	resolver(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), first.Port()), fixed("192.0.2.2"))
	s := server(t, first.Port(), "127.0.0.1")
	steps := []struct {
		change func(path string) error
		want   string
	}{
		{func(string) error { return nil }, "192.0.2.1"},
		{func(p string) error {
			writeConf(t, p+".new", "127.0.0.2")
			return os.Rename(p+".new", p)
		}, "192.0.2.2"},
		{os.Remove, "192.0.2.2"}, // being replaced: what was known still holds
		{func(p string) error { return os.WriteFile(p, nil, 0o600) }, "192.0.2.1"}, // none named: 127.0.0.1
	}
	for i, step := range steps {
		if err := step.change(s.upstream.path); err != nil {
			t.Fatal(err)
		}
		if got := text(query(t, s, "udp", "example.org.", dns.TypeA)); got != "NOERROR "+step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
}

func TestLargeAnswers(t *testing.T) {
	at := resolver(t, loopback, func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		for i := range 100 {
			rr, _ := dns.NewRR(fmt.Sprintf("%s 300 IN A 192.0.2.%d", q.Question[0].Name, i))
			a.Answer = append(a.Answer, rr)
		}
		if w.LocalAddr().Network() == "udp" {
			a.Truncate(udpSize(q))
		}
		_ = w.WriteMsg(a)
	})
	s := server(t, at.Port(), "127.0.0.1")
	if a := query(t, s, "udp", "example.org.", dns.TypeA); !a.Truncated {
		t.Error("512 bytes held 100 addresses")
	}
	if a := query(t, s, "tcp", "example.org.", dns.TypeA); a.Truncated || len(a.Answer) != 100 {
		t.Errorf("TCP: truncated %v, %d addresses", a.Truncated, len(a.Answer))
	}
	m := new(dns.Msg).SetQuestion("example.org.", dns.TypeA).SetEdns0(4096, false)
	c := dns.Client{}
	if a, _, err := c.Exchange(m, s.Addr().String()); err != nil || a.Truncated || len(a.Answer) != 100 {
		t.Errorf("UDP with EDNS: %v, %v", err, a)
	}
}

func TestForgedAnswerIsNotTaken(t *testing.T) {
	at := resolver(t, loopback, func(w dns.ResponseWriter, q *dns.Msg) {
		q.Question[0].Name = "evil.example."
		fixed("192.0.2.66")(w, q)
	})
	if a := query(t, server(t, at.Port(), "127.0.0.1"), "udp", "example.org.", dns.TypeA); a.Rcode != dns.RcodeServerFailure {
		t.Error(text(a))
	}
}

func TestBoundedPerClient(t *testing.T) {
	silent := resolver(t, loopback, nil)
	s := server(t, silent.Port(), "127.0.0.1")
	conn, err := net.Dial("udp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &dns.Conn{Conn: conn}
	for range maxQueriesPerClient + 20 {
		if err := c.WriteMsg(new(dns.Msg).SetQuestion("example.org.", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
	}
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	if a, err := c.ReadMsg(); err != nil || a.Rcode != dns.RcodeRefused {
		t.Errorf("over the limit: %v, %v; want REFUSED at once", a, err)
	}

	var open []net.Conn
	for range maxConnsPerClient + 1 {
		tcp, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		open = append(open, tcp)
	}
	last := open[maxConnsPerClient]
	_ = last.SetReadDeadline(time.Now().Add(2 * time.Second))
	if _, err := last.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("connection %d: %v, want it closed", maxConnsPerClient+1, err)
	}
}

func TestCloseDoesNotWaitForResolvers(t *testing.T) {
	silent := resolver(t, loopback, nil)
	path := filepath.Join(t.TempDir(), "resolv.conf")
	writeConf(t, path, "127.0.0.1")
	s, err := Listen(loopback, Config{ResolvConf: path})
	if err != nil {
		t.Fatal(err)
	}
	s.upstream.port = fmt.Sprint(silent.Port())
	var wg sync.WaitGroup
	wg.Go(func() {
		c := dns.Client{Timeout: 3 * time.Second}
		_, _, _ = c.Exchange(new(dns.Msg).SetQuestion("example.org.", dns.TypeA), s.Addr().String())
	})
	for s.queries.len() == 0 {
		time.Sleep(time.Millisecond)
	}
	start := time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("Close took %v", d)
	}
	wg.Wait()
}

func (l *limiter) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

func TestListenErrors(t *testing.T) {
	s := server(t, 1)
	if other, err := Listen(s.Addr(), Config{}); err == nil {
		other.Close()
		t.Error("two servers on one address")
	} else if !strings.Contains(err.Error(), s.Addr().String()) {
		t.Errorf("%v does not name the address", err)
	}
	if other, err := Listen(loopback, Config{Device: "no-such-dev"}); err == nil {
		other.Close()
		t.Error("listens on a device that is not there")
	}
	// Not (yet) an address of this host.
	future, err := Listen(netip.MustParseAddrPort("192.0.2.77:0"), Config{})
	if err != nil {
		t.Fatal(err)
	}
	future.Close()
}

// FuzzAnswer feeds what a guest may send through the parser to the answer.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"host.hyper.internal.", "example.org.", ".", `a\000b.`} {
		b, err := new(dns.Msg).SetQuestion(name, dns.TypeA).SetEdns0(1232, true).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // never ask anyone
	s := &Server{
		ctx: ctx, upstream: newUpstream("/dev/null"),
		lookup: Hosts(map[string][]netip.Addr{"host.hyper.internal": {netip.MustParseAddr("172.30.0.1")}}),
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			return
		}
		a := s.answer(q, "udp")
		if a == nil || !a.Response || a.Id != q.Id {
			t.Fatalf("answer to %v: %v", q, a)
		}
		if len(q.Question) == 1 {
			if _, err := a.Pack(); err != nil {
				t.Fatalf("answer to %v: %v", q, err)
			}
		}
	})
}
