package dns

import (
	"net"
	"net/netip"
	"sync"
)

// A limiter bounds how much of something all clients together, and each by
// itself, have at one time.
type limiter struct {
	total, each int

	mu   sync.Mutex
	now  int
	held map[netip.Addr]int
}

func newLimiter(total, each int) *limiter {
	return &limiter{total: total, each: each, held: map[netip.Addr]int{}}
}

// enter takes one for the client; leave must follow unless it says no.
func (l *limiter) enter(client netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now >= l.total || l.held[client] >= l.each {
		return false
	}
	l.now++
	l.held[client]++
	return true
}

func (l *limiter) leave(client netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now--
	if l.held[client]--; l.held[client] == 0 {
		delete(l.held, client)
	}
}

// clientOf is the address of a peer without its port.
func clientOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr()
	case *net.TCPAddr:
		return a.AddrPort().Addr()
	}
	return netip.Addr{}
}

// A limitListener closes connections beyond the limit at once.
type limitListener struct {
	net.Listener
	limit *limiter
}

func newLimitListener(l net.Listener, limit *limiter) *limitListener {
	return &limitListener{l, limit}
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := clientOf(c.RemoteAddr())
		if l.limit.enter(client) {
			return &limitedConn{Conn: c, leave: sync.OnceFunc(func() { l.limit.leave(client) })}, nil
		}
		c.Close()
	}
}

type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
