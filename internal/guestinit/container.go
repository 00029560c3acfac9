package guestinit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/cgroup"
	"github.com/hyper-run/hyper/internal/guestinit/inroot"
	"github.com/hyper-run/hyper/internal/guestinit/netconf"
	"github.com/hyper-run/hyper/internal/guestinit/spawn"
)

// A container is a mounted root file system and, once its own process was
// started, the PID namespace of that.
type container struct {
	id     string
	spec   *specs.Spec
	group  *cgroup.Group
	ready  fittings      // of its stage
	filter *filter       // nil: none
	late   []specs.Mount // to be mounted by the container's own process: /proc
	joins  *os.File      // PID namespace that it shares; nil: it has its own
	trees  []volumeTree  // still to be mounted, in the order of its mounts
	synced []string      // volumes on disks that it uses
	upper  string        // device of its writable disk; "": none
	open   open          // see boundOpen
	bound  int64         // memory of an open container; 0: not bounded yet

	births sync.Mutex   // held while a process is born; see outlived
	mu     sync.Mutex   // serialises start, pause and delete
	root   *inroot.Dir  // nil: being made, or gone
	spaces []space      // namespaces that its processes enter, the mount namespace first
	pids   *os.File     // PID namespace; nil before an exec
	init   *spawn.Child // the own process
	paused bool
	memory *memoryWatch
}

// A space is a namespace to enter.
type space struct {
	name string
	flag int
	f    *os.File
}

// CreateContainer implements wire.GuestService.
func (s *Service) CreateContainer(ctx context.Context, r *wire.CreateContainerRequest) (*wire.CreateContainerResponse, error) {
	if err := checkID(r.Id); err != nil {
		return nil, err
	}
	s.settled.Store(false)
	spec := new(specs.Spec)
	if err := json.Unmarshal(r.Spec, spec); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "create container %s: read spec: %v", r.Id, err)
	}
	if err := checkSpec(spec); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "create container %s: %v", r.Id, err)
	}
	filter, err := newFilter(r)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "create container %s: %v", r.Id, err)
	}
	c := &container{id: r.Id, spec: spec, filter: filter}
	s.mu.Lock()
	if s.containers[r.Id] != nil {
		s.mu.Unlock()
		return nil, status.Errorf(codes.AlreadyExists, "container %s exists already", r.Id)
	}
	s.containers[r.Id] = c
	s.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.create(ctx, c, r); err != nil {
		s.release(c)
		s.mu.Lock()
		delete(s.containers, r.Id)
		s.mu.Unlock()
		code := codes.Internal
		if st, ok := status.FromError(err); ok {
			code, err = st.Code(), errors.New(st.Message())
		}
		return nil, status.Errorf(code, "create container %s: %v", r.Id, err)
	}
	return &wire.CreateContainerResponse{}, nil
}

// checkSpec refuses what can't be done here, rather than leave it out.
func checkSpec(spec *specs.Spec) error {
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	l := spec.Linux
	for what, asked := range map[string]bool{
		"hooks":                   spec.Hooks != nil,
		"user namespaces":         len(l.UIDMappings)+len(l.GIDMappings) > 0,
		"seccomp profiles":        l.Seccomp != nil, // the host compiles them
		"time offsets":            len(l.TimeOffsets) > 0,
		"personalities":           l.Personality != nil,
		"mount labels":            l.MountLabel != "",
		"Intel RDT":               l.IntelRdt != nil,
		"shared root propagation": strings.TrimPrefix(l.RootfsPropagation, "r") != "private" && l.RootfsPropagation != "",
	} {
		if asked {
			return fmt.Errorf("%s can't be had in a VM", what)
		}
	}
	for _, ns := range l.Namespaces {
		if ns.Path != "" {
			return fmt.Errorf("joining the %s namespace %s is not supported", ns.Type, ns.Path)
		}
		if _, known := spaceFlags[ns.Type]; !known {
			return fmt.Errorf("%s namespaces are not supported", ns.Type)
		}
	}
	if spec.Process != nil {
		return checkProcess(spec.Process)
	}
	return nil
}

// checkProcess is checkSpec for a process.
func checkProcess(p *specs.Process) error {
	for what, asked := range map[string]bool{
		"AppArmor profiles": p.ApparmorProfile != "",
		"SELinux labels":    p.SelinuxLabel != "",
		"schedulers":        p.Scheduler != nil,
		"I/O priorities":    p.IOPriority != nil,
		"CPU affinities":    p.ExecCPUAffinity != nil,
	} {
		if asked {
			return fmt.Errorf("%s can't be had in a VM", what)
		}
	}
	return nil
}

// spaceFlags are the namespaces a container can have of its own. Zero: it
// always has, made elsewhere.
var spaceFlags = map[specs.LinuxNamespaceType]int{
	specs.PIDNamespace: 0, specs.MountNamespace: 0, specs.CgroupNamespace: 0,
	specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS, specs.NetworkNamespace: unix.CLONE_NEWNET,
}

func (s *Service) create(ctx context.Context, c *container, r *wire.CreateContainerRequest) error {
	disks, err := s.findDisks(ctx, r.Rootfs)
	if err != nil {
		return err
	}
	c.upper = disks.upper
	if c.joins, err = s.joinPIDs(r.PidNamespace); err != nil {
		return err
	}
	if err := s.openVolumes(c); err != nil {
		return err
	}
	stage, err := s.stage(c.id)
	if err != nil {
		return err
	}
	c.group, c.memory, c.spaces, c.ready = stage.group, stage.memory, []space{stage.space}, stage.ready
	s.machine.memory.start(c.memory, func() { s.events.send(&wire.Event{ContainerId: c.id, Kind: "oom", AtNanos: now()}) })
	var root *inroot.Dir
	err = stage.do(func() (err error) {
		if err := c.ready.limit(c); err != nil {
			return err
		}
		if err := c.limitIO(r.Io); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		root, err = c.mountAll(disks, r)
		return err
	})
	if err != nil {
		return err
	}
	s.bounding.Lock()
	c.open = open{memory: true, pids: true}
	s.bounding.Unlock()
	if err := s.opened(c, c.spec.Linux.Resources); err != nil {
		return err
	}
	s.mu.Lock()
	c.root = root
	s.mu.Unlock()
	return nil
}

// mountAll makes the container's further namespaces on this thread, a
// stage's, and mounts everything in them. What it keeps are descriptors.
func (c *container) mountAll(disks *disks, r *wire.CreateContainerRequest) (*inroot.Dir, error) {
	flags := 0
	var spaces []space
	for _, ns := range c.spec.Linux.Namespaces {
		if f := spaceFlags[ns.Type]; f != 0 && flags&f == 0 {
			flags |= f
			spaces = append(spaces, space{string(ns.Type), f, nil})
		}
	}
	if flags != 0 {
		if err := unix.Unshare(flags); err != nil {
			return nil, fmt.Errorf("make namespaces: %w", err)
		}
	}
	if flags&unix.CLONE_NEWNET != 0 {
		if err := netconf.Loopback(); err != nil {
			return nil, err
		}
	}
	for _, sp := range spaces {
		var err error
		if sp.f, err = os.Open("/proc/thread-self/ns/" + spaceFile[sp.flag]); err != nil {
			return nil, err
		}
		c.spaces = append(c.spaces, sp)
	}
	if err := setNames(c.spec.Hostname, c.spec.Domainname); err != nil {
		return nil, err
	}
	if err := setSysctls(c.spec.Linux.Sysctl); err != nil {
		return nil, err
	}
	return c.mountRoot(disks, r)
}

var spaceFile = map[int]string{unix.CLONE_NEWIPC: "ipc", unix.CLONE_NEWUTS: "uts", unix.CLONE_NEWNET: "net"}

// release closes what keeps the container's mounts and its cgroup alive. The
// kernel unmounts when the last descriptor of the namespace is closed.
func (s *Service) release(c *container) error {
	for _, sp := range c.spaces {
		sp.f.Close()
	}
	c.spaces = nil
	for _, f := range []*os.File{c.pids, c.joins} {
		f.Close() // also of nil, which does nothing
	}
	c.pids = nil
	for _, t := range c.trees {
		unix.Close(t.fd)
	}
	c.trees = nil
	if c.root != nil {
		c.root.Close()
	}
	if c.group == nil {
		return nil
	}
	s.machine.memory.remove(c.memory)
	return c.group.Remove()
}

// DeleteContainer implements wire.GuestService.
func (s *Service) DeleteContainer(ctx context.Context, r *wire.DeleteContainerRequest) (*wire.DeleteContainerResponse, error) {
	c, err := s.container(r.Id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.root == nil {
		return nil, status.Errorf(codes.NotFound, "no container %s", r.Id)
	}
	if err := s.kill(ctx, c); err != nil {
		return nil, err
	}
	if err := c.sync(); err != nil {
		return nil, status.Errorf(codes.Internal, "delete container %s: %v", c.id, err)
	}
	s.mu.Lock()
	root := c.root
	c.root = nil
	delete(s.containers, c.id)
	s.mu.Unlock()
	s.Forget(c.id)
	root.Close()
	if err := s.release(c); err != nil {
		return nil, status.Errorf(codes.Internal, "delete container %s: %v", c.id, err)
	}
	go s.restock() // often another takes its place
	return &wire.DeleteContainerResponse{}, nil
}

// kill ends all processes of a container and returns when they are reaped.
func (s *Service) kill(ctx context.Context, c *container) error {
	if c.paused {
		c.group.Freeze(false)
		c.paused = false
	}
	if err := c.group.Kill(); err != nil {
		return status.Errorf(codes.Internal, "kill container %s: %v", c.id, err)
	}
	for _, p := range s.Of(c.id) {
		select {
		case <-p.Ended():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if c.joins == nil {
		return nil // with its first process all had ended
	}
	if err := c.group.Drain(drainPatience); err != nil {
		return status.Errorf(codes.Internal, "kill container %s: %v", c.id, err)
	}
	return nil
}

// sync writes what the container has written, to its own disk and to volumes.
func (c *container) sync() error {
	root, err := c.root.OpenFile("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	files := []*os.File{root}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, dir := range c.synced {
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	for _, f := range files {
		if err := unix.Syncfs(int(f.Fd())); err != nil {
			return fmt.Errorf("sync %s: %w", f.Name(), err)
		}
	}
	return nil
}
