// Package event distributes what happens to containers and images to those
// who listen, and remembers the last ones for those who come late.
package event

import "time"

// An Event is one thing that happened.
type Event struct {
	Time   time.Time
	Type   string            // container, image, network, volume, daemon
	Action string            // create, start, die, pull, …
	ID     string            // of the actor
	Attrs  map[string]string // name, image, exitCode, labels, …
}
