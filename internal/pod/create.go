package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Limits of what may be asked for.
const (
	minMemory    = 6 << 20 // bytes, as Docker
	minDiskBytes = 16 << 20

	// DefaultDiskBytes is the size of the disk of a container or volume for which none was said.
	DefaultDiskBytes = 10 << 30
)

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// Create records a new container and makes its writable disk.
func (s *Set) Create(ctx context.Context, o CreateOptions) (string, []string, error) {
	p := s.newPod(newID())
	if o.Pod != "" {
		var err error
		if p, err = s.findPod(o.Pod); err != nil {
			return "", nil, err
		}
		if err := p.admits(&o.Spec); err != nil {
			return "", nil, err
		}
	}
	if err := s.check(o.Spec); err != nil {
		return "", nil, err
	}
	c, err := s.newMember(p, o)
	if err != nil {
		return "", nil, err
	}
	return c.id, nil, nil
}

// newMember makes a container in a pod.
func (s *Set) newMember(p *pod, o CreateOptions) (*container, error) {
	o.Spec.DiskBytes = cmp.Or(o.Spec.DiskBytes, DefaultDiskBytes)
	c := s.newContainer(record{
		ID: newID(), PodID: p.id, Created: time.Now(), Spec: o.Spec, Status: StatusCreated,
		Stopped: true, StoppedIn: p.record().Starts,
	})
	c.pod = p
	c.op.Lock() // who finds it by its name waits until it is whole
	defer c.op.Unlock()
	if err := s.claim(c, o.Name); err != nil {
		return nil, err
	}
	if err := c.make(); err != nil {
		return nil, errors.Join(fmt.Errorf("create container %s: %w", c.rec.Name, err), c.unmake())
	}
	s.publish(c, "create")
	return c, nil
}

// claim gives the container its name and puts it into the Set.
func (s *Set) claim(c *container, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == "" {
		name = s.freeNameLocked()
	} else if !validName.MatchString(name) {
		return textError{fmt.Sprintf("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name), errdefs.ErrInvalidArgument}
	}
	if id, taken := s.names[name]; taken {
		return nameTaken(name, id)
	}
	c.rec.Name = name
	if p := c.pod; p.isRemoved() || p.isClosed() == beingRemoved {
		return notFound("No such pod: " + p.label())
	}
	s.pods[c.podID] = c.pod // also one that has just gone with its last container
	s.names[name] = c.id
	s.containers[c.id] = c
	return nil
}

func nameTaken(name, id string) error {
	return textError{fmt.Sprintf("Conflict. The container name \"/%s\" is already in use by container \"%s\". You have to remove (or rename) that container to be able to reuse that name.", name, id), errdefs.ErrConflict}
}

// make records the container, then makes what it has on disk.
func (c *container) make() error {
	if err := c.save(); err != nil {
		return err
	}
	l := c.set.cfg.Layout
	if err := os.MkdirAll(l.Container(c.id), 0o700); err != nil {
		return err
	}
	return c.set.cfg.CreateDisk(l.ContainerDisk(c.id), c.rec.Spec.DiskBytes, c.rec.Spec.AutoRemove)
}

// unmake removes what make made, and the record last. Idempotent.
func (c *container) unmake() error {
	if err := os.RemoveAll(c.set.cfg.Layout.Container(c.id)); err != nil {
		return err
	}
	st := c.set.cfg.Store
	if c.spec().AutoRemove {
		st = c.set.cfg.Runtime
	}
	c.saving.Lock()
	err := st.Delete(bucketContainers, c.id)
	if err == nil {
		c.mu.Lock()
		c.removed = true
		c.mu.Unlock()
	}
	c.saving.Unlock()
	if err != nil {
		return err
	}
	c.set.mu.Lock()
	defer c.set.mu.Unlock()
	delete(c.set.containers, c.id)
	c.pod.mu.Lock()
	c.pod.emptied = true
	c.pod.mu.Unlock()
	c.set.dropPodLocked(c.podID)
	for name, id := range c.set.names { // two of them while it is renamed
		if id == c.id {
			delete(c.set.names, name)
		}
	}
	c.pod.wake()
	return nil
}

// check refuses what can never run, with Docker's words where it has some.
func (s *Set) check(sp Spec) error {
	invalid := func(format string, a ...any) error {
		return textError{fmt.Sprintf(format, a...), errdefs.ErrInvalidArgument}
	}
	r := sp.Resources
	switch {
	case len(sp.Args) == 0 || sp.Args[0] == "":
		return invalid("no command specified")
	case r.MemoryBytes != 0 && r.MemoryBytes < minMemory:
		return invalid("Minimum memory limit allowed is 6MB")
	case r.MemorySwapBytes > 0 && r.MemoryBytes == 0:
		return invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.MemorySwapBytes > 0 && r.MemorySwapBytes < r.MemoryBytes:
		return invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.MemoryReservationBytes > 0 && r.MemoryBytes > 0 && r.MemoryBytes < r.MemoryReservationBytes:
		return invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
	case r.NanoCPUs < 0 || r.NanoCPUs > int64(s.maxCPUs())*1e9:
		return invalid("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", s.maxCPUs(), s.maxCPUs())
	case r.NanoCPUs > 0 && (r.CPUQuotaUs > 0 || r.CPUPeriodUs > 0):
		return invalid("Conflicting options: Nano CPUs and CPU quota or period cannot both be set")
	case sp.DiskBytes != 0 && sp.DiskBytes < minDiskBytes:
		return invalid("storage size %d is too small: at least %d bytes are needed", sp.DiskBytes, minDiskBytes)
	case sp.Network != "default" && sp.Network != "none":
		return notFound("network " + sp.Network + " not found")
	case sp.Network == "default" && s.cfg.Network == nil:
		return fmt.Errorf("no network: %w (use --network none)", s.cfg.NetworkErr)
	}
	if sp.Kernel != "" {
		if _, err := s.cfg.Boot(sp.Kernel); err != nil {
			return textError{err.Error(), errdefs.ErrInvalidArgument} // not "not found": that is the image
		}
	}
	if _, err := parseSignal(sp.StopSignal, unix.SIGTERM); err != nil {
		return err
	}
	_, _, err := ociSpec(sp, "", nil)
	return err
}

// maxCPUs is how many a container can have: the usual VM may have more than a small host.
func (s *Set) maxCPUs() int { return max(s.cfg.HostCPUs, s.cfg.VM.CPUs) }

// Rename gives the container another name.
func (s *Set) Rename(_ context.Context, ref, name string) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if !validName.MatchString(name) {
		return textError{fmt.Sprintf("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name), errdefs.ErrInvalidArgument}
	}
	s.mu.Lock()
	if s.containers[c.id] == nil {
		s.mu.Unlock()
		return notFound("No such container: " + ref)
	}
	if id, taken := s.names[name]; taken {
		s.mu.Unlock()
		return nameTaken(name, id)
	}
	c.mu.Lock()
	old := c.rec.Name
	c.rec.Name = name
	c.mu.Unlock()
	s.names[name] = c.id
	s.mu.Unlock()
	if err := c.save(); err != nil {
		s.mu.Lock()
		c.mu.Lock()
		c.rec.Name = old
		c.mu.Unlock()
		delete(s.names, name)
		s.mu.Unlock()
		return err
	}
	s.mu.Lock()
	if s.names[old] == c.id {
		delete(s.names, old)
	}
	s.mu.Unlock()
	s.publish(c, "rename", "oldName", "/"+old)
	return nil
}
