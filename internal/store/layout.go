package store

import "path/filepath"

// A Layout names every path hyperd uses. Root survives a reboot, Run does not.
type Layout struct {
	Root string // /var/lib/hyper
	Run  string // /run/hyper
}

// DefaultLayout is where hyperd of a normal installation keeps its things.
var DefaultLayout = Layout{Root: "/var/lib/hyper", Run: "/run/hyper"}

// Paths that survive a reboot.
func (l Layout) DB() string                     { return filepath.Join(l.Root, "state.db") }
func (l Layout) Images() string                 { return filepath.Join(l.Root, "images") }
func (l Layout) Layers() string                 { return filepath.Join(l.Root, "layers") }
func (l Layout) Boot() string                   { return filepath.Join(l.Root, "boot") }
func (l Layout) Templates() string              { return filepath.Join(l.Root, "templates") }
func (l Layout) Containers() string             { return filepath.Join(l.Root, "containers") }
func (l Layout) Container(id string) string     { return filepath.Join(l.Containers(), id) }
func (l Layout) ContainerDisk(id string) string { return filepath.Join(l.Container(id), "disk.ext4") }
func (l Layout) AllPodDisks() string            { return filepath.Join(l.Root, "pods") }
func (l Layout) PodDisks(id string) string      { return filepath.Join(l.AllPodDisks(), id) } // its volumes
func (l Layout) ContainerLogs(id string) string { return filepath.Join(l.Container(id), "logs") }

// Paths that do not.
func (l Layout) Socket() string { return filepath.Join(l.Run, "hyper.sock") }
func (l Layout) Lock() string   { return filepath.Join(l.Run, "hyperd.lock") }
func (l Layout) Pods() string   { return filepath.Join(l.Run, "pods") }
func (l Layout) Making() string { return filepath.Join(l.Run, "making") } // VMs that become templates

// Pod is short: unix sockets live in it and their paths are limited to 107 bytes.
func (l Layout) Pod(id string) string { return filepath.Join(l.Pods(), short(id)) }

func short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}
