package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	resolvConf = "/etc/resolv.conf"

	// A stub resolver waits 5 s (resolv.conf(5), timeout); it should have
	// our SERVFAIL by then and not ask again.
	queryTimeout = 4500 * time.Millisecond
	maxTries     = 3
)

// errMismatch is an answer to something else than what was asked.
var errMismatch = errors.New("answer does not match the question")

// An upstream forwards to the resolvers in a resolv.conf. Those on loopback
// are as good as others: the queries leave from the host itself.
type upstream struct {
	path string
	port string

	mu      sync.Mutex
	stat    os.FileInfo // of the file as it was read
	servers []string    // host:port, the one that answered last first
}

func newUpstream(path string) *upstream {
	if path == "" {
		path = resolvConf
	}
	return &upstream{path: path, port: "53"}
}

// list returns the resolvers, read anew when the file has changed.
func (u *upstream) list() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	fi, err := os.Stat(u.path)
	changed := err == nil && (u.stat == nil || !os.SameFile(fi, u.stat) ||
		!fi.ModTime().Equal(u.stat.ModTime()) || fi.Size() != u.stat.Size())
	if changed {
		if servers, err := u.read(); err == nil {
			u.stat, u.servers = fi, servers
		}
	}
	if len(u.servers) == 0 {
		return []string{net.JoinHostPort("127.0.0.1", u.port)} // resolv.conf(5): the default without any
	}
	return u.servers
}

func (u *upstream) read() ([]string, error) {
	c, err := dns.ClientConfigFromFile(u.path)
	if err != nil {
		return nil, err
	}
	var servers []string
	for _, s := range c.Servers[:min(len(c.Servers), maxTries)] {
		servers = append(servers, net.JoinHostPort(s, u.port))
	}
	return servers, nil
}

// prefer has queries go to server first from now on.
func (u *upstream) prefer(server string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.servers) == 0 || u.servers[0] == server {
		return
	}
	sorted := []string{server}
	found := false
	for _, s := range u.servers {
		if s == server {
			found = true
		} else {
			sorted = append(sorted, s)
		}
	}
	if found {
		u.servers = sorted // a new slice: list has handed out the old one
	}
}

// exchange asks the resolvers in turn until one answers. A lost datagram is
// sent once more even when there is only one.
func (u *upstream) exchange(ctx context.Context, q *dns.Msg, network string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	servers := u.list()
	tries := max(2, len(servers))
	var last *dns.Msg
	var errs error
	for i := range tries {
		server := servers[i%len(servers)]
		a, err := ask(ctx, q, network, server, queryTimeout/time.Duration(tries))
		switch {
		case err != nil:
			errs = errors.Join(errs, fmt.Errorf("ask %s: %w", server, err))
		case a.Rcode == dns.RcodeServerFailure || a.Rcode == dns.RcodeRefused:
			last = a // perhaps the next one can
		default:
			u.prefer(server)
			return a, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	if last != nil {
		return last, nil
	}
	return nil, errs
}

// ask sends the query from a new random port with an ID of our own, so that
// neither can be guessed by whoever would forge the answer.
func ask(ctx context.Context, q *dns.Msg, network, server string, timeout time.Duration) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	m := *q
	m.Id = dns.Id()
	c := dns.Client{Net: network, Timeout: timeout}
	conn, err := c.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// The client looks at the context's deadline only.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	a, _, err := c.ExchangeWithConnContext(ctx, &m, conn)
	if err != nil {
		return nil, err
	}
	// The final name may differ in case only.
	if len(a.Question) != 1 || a.Question[0].Qtype != q.Question[0].Qtype ||
		dns.CanonicalName(a.Question[0].Name) != dns.CanonicalName(q.Question[0].Name) {
		return nil, errMismatch
	}
	return a, nil
}
