package guestinit

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guestinit/dial"
	"github.com/hyper-run/hyper/internal/guestinit/session"
)

// Dial implements session.Handler: in the network of a container that has
// one of its own, else in the pod's.
func (s *Service) Dial(id, address string) (session.Conn, error) {
	conn, err := s.openSocket(id, address)
	if err != nil {
		return nil, err
	}
	if err := conn.Connect(); err != nil {
		return nil, err
	}
	return conn, nil
}

func (s *Service) openSocket(id, address string) (*dial.Conn, error) {
	if id == "" {
		return dial.Open(address, nil)
	}
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock() // its namespaces stay open
	defer c.mu.Unlock()
	var network *os.File
	for _, sp := range c.spaces {
		if sp.flag == unix.CLONE_NEWNET {
			network = sp.f
		}
	}
	return dial.Open(address, network)
}
