// Package dns is the name server that pods of one network ask: it answers
// the names Hyper knows and forwards the rest to the host's own resolvers.
//
// It does not cache, follow CNAMEs or validate: that is the resolvers' work.
// Queries come from guests and are hostile by assumption: messages are parsed
// by miekg/dns, and what one guest and all together may have under way is
// bounded. Each listener has one goroutine, each query under way another.
package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Bounds on what guests can make the server do.
const (
	maxQueries          = 1024 // under way
	maxQueriesPerClient = 128
	maxConns            = 256 // open TCP connections
	maxConnsPerClient   = 16
	maxQueriesPerConn   = 1000

	idleTimeout = 8 * time.Second
	localTTL    = 60 // seconds
)

// A Lookup answers names that Hyper itself knows. name is lower case without
// the final dot. known says that the name exists (perhaps without addresses
// of the family asked for) and must not be forwarded. It must not block.
type Lookup func(name string) (addrs []netip.Addr, known bool)

// Hosts is a Lookup of fixed names.
func Hosts(names map[string][]netip.Addr) Lookup {
	return func(name string) ([]netip.Addr, bool) {
		addrs, ok := names[name]
		return addrs, ok
	}
}

// Config says what a Server does.
type Config struct {
	Lookup     Lookup
	ResolvConf string // names the resolvers to forward to; "" means /etc/resolv.conf
	// Device, if set, is the only interface queries are taken from, so that
	// the server does not resolve for neighbours of the host.
	Device string
}

// A Server listens on one address, UDP and TCP.
type Server struct {
	addr     netip.AddrPort
	udp, tcp *dns.Server
	conn     net.PacketConn
	listener net.Listener
	upstream *upstream
	lookup   Lookup
	queries  *limiter
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	done     chan struct{}
}

// Listen starts a server. The address may be one that the host does not have
// yet. Port 0 takes a free one, the same for UDP and TCP.
func Listen(addr netip.AddrPort, cfg Config) (*Server, error) {
	s := &Server{
		lookup:   cfg.Lookup,
		upstream: newUpstream(cfg.ResolvConf),
		queries:  newLimiter(maxQueries, maxQueriesPerClient),
		done:     make(chan struct{}),
	}
	if err := s.bind(addr, cfg.Device); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	idle := func() time.Duration { return idleTimeout }
	s.udp = &dns.Server{PacketConn: s.conn, Handler: s, UDPSize: dns.DefaultMsgSize}
	s.tcp = &dns.Server{Listener: s.listener, Handler: s, IdleTimeout: idle, MaxTCPQueries: maxQueriesPerConn}
	if err := s.serve(); err != nil {
		return nil, err
	}
	return s, nil
}

// bind opens both sockets. With port 0 the port that TCP got may be taken
// for UDP: then another is tried.
func (s *Server) bind(addr netip.AddrPort, device string) error {
	lc := net.ListenConfig{Control: socketOptions(device)}
	var err error
	for range 8 {
		var l net.Listener
		if l, err = lc.Listen(context.Background(), "tcp", addr.String()); err != nil {
			break
		}
		s.addr = netip.AddrPortFrom(addr.Addr(), l.Addr().(*net.TCPAddr).AddrPort().Port())
		if s.conn, err = lc.ListenPacket(context.Background(), "udp", s.addr.String()); err == nil {
			s.listener = newLimitListener(l, newLimiter(maxConns, maxConnsPerClient))
			return nil
		}
		l.Close()
		if addr.Port() != 0 || !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return fmt.Errorf("serve names on %v: %w", addr, err)
}

// serve runs both servers and returns when they take queries.
func (s *Server) serve() error {
	started := make(chan struct{}, 2)
	ended := make(chan error, 2)
	for _, srv := range []*dns.Server{s.udp, s.tcp} {
		srv.NotifyStartedFunc = func() { started <- struct{}{} }
		go func() { ended <- srv.ActivateAndServe() }()
	}
	for n := range 2 {
		select {
		case <-started:
		case err := <-ended:
			s.listener.Close()
			s.conn.Close()
			if n == 0 {
				<-ended
			}
			return fmt.Errorf("serve names on %v: %w", s.addr, err)
		}
	}
	go func() {
		<-ended
		<-ended
		close(s.done)
	}()
	return nil
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Close stops listening, gives up on queries under way and waits for their
// goroutines.
func (s *Server) Close() error {
	s.cancel()
	err := errors.Join(s.udp.Shutdown(), s.tcp.Shutdown())
	<-s.done
	if err != nil {
		return fmt.Errorf("stop serving names on %v: %w", s.addr, err)
	}
	return nil
}

// socketOptions lets the server bind to an address the host is about to get
// (ip(7), IP_FREEBIND) and, with a device, hear nothing from others.
func socketOptions(device string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
			if err == nil && device != "" {
				err = unix.BindToDevice(int(fd), device)
			}
		})
		return errors.Join(cerr, err)
	}
}

// ServeDNS answers one query.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	client := clientOf(w.RemoteAddr())
	var a *dns.Msg
	if s.queries.enter(client) {
		defer s.queries.leave(client)
		a = s.answer(q, w.LocalAddr().Network())
	} else {
		a = failure(q, dns.RcodeRefused)
	}
	// A client that does not take its answer is its own problem.
	_ = w.WriteMsg(a)
}

// answer never returns nil.
func (s *Server) answer(q *dns.Msg, network string) *dns.Msg {
	if q.Opcode != dns.OpcodeQuery {
		return failure(q, dns.RcodeNotImplemented)
	}
	if len(q.Question) != 1 {
		return failure(q, dns.RcodeFormatError)
	}
	if a := s.local(q); a != nil {
		return a
	}
	a, err := s.upstream.exchange(s.ctx, q, network)
	if err != nil {
		return failure(q, dns.RcodeServerFailure)
	}
	a.Id = q.Id
	if network == "udp" {
		a.Truncate(udpSize(q))
	}
	return a
}

// local answers names that Hyper knows; nil for all others.
func (s *Server) local(q *dns.Msg) *dns.Msg {
	question := q.Question[0]
	if s.lookup == nil || question.Qclass != dns.ClassINET {
		return nil
	}
	name := dns.CanonicalName(question.Name)
	addrs, known := s.lookup(name[:len(name)-1])
	if !known {
		return nil
	}
	a := new(dns.Msg).SetReply(q)
	a.RecursionAvailable = true
	for _, addr := range addrs {
		header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: localTTL}
		switch {
		case question.Qtype == dns.TypeA && addr.Is4():
			a.Answer = append(a.Answer, &dns.A{Hdr: header, A: addr.AsSlice()})
		case question.Qtype == dns.TypeAAAA && addr.Is6():
			a.Answer = append(a.Answer, &dns.AAAA{Hdr: header, AAAA: addr.AsSlice()})
		}
	}
	return a
}

func failure(q *dns.Msg, rcode int) *dns.Msg {
	a := new(dns.Msg).SetRcode(q, rcode)
	a.RecursionAvailable = true
	return a
}

// udpSize is how large an answer the client takes by UDP.
func udpSize(q *dns.Msg) int {
	if opt := q.IsEdns0(); opt != nil {
		return int(max(opt.UDPSize(), dns.MinMsgSize))
	}
	return dns.MinMsgSize
}
