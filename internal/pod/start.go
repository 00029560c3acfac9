package pod

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	"github.com/hyper-run/hyper/internal/guest"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/logs"
	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/vmm"
)

// Start runs a container that does not run. The road:
//
//	1 prepare   image layers as disks, kernel and initrd, address  (undone by reclaim)
//	2 boot      VMM process                                        (undone by reclaim)
//	3 contact   hyperstart answers, is told who it is
//	4 mount     the container's root file system in the guest
//	5 run       its process; from here on finish ends the run
//
// Before 1 the VM's record is put, and again after each step that leaves
// something on the host; reclaim takes a record and gives all of it back.
// Error kinds: NotModified when it runs already.
func (s *Set) Start(ctx context.Context, ref string) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if _, err := c.running(); err == nil {
		if c.view().Status == StatusPaused {
			return textError{"cannot start a paused container, try unpause instead", errdefs.ErrConflict}
		}
		return textError{"container " + c.id + " is already running", errdefs.ErrNotModified}
	}
	if c.isRemoved() {
		return notFound("No such container: " + ref)
	}
	// What has begun is finished or undone as a whole, also when the client goes away.
	ctx = context.WithoutCancel(ctx)
	if err := s.start(ctx, c); err != nil {
		return c.startFailed(ctx, err)
	}
	s.publish(c, "start")
	return nil
}

func (c *container) isRemoved() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.removed || c.rec.Status == StatusRemoving
}

func (s *Set) start(ctx context.Context, c *container) (err error) {
	if c.reclaimed != nil {
		<-c.reclaimed
	}
	sp := c.spec()
	rec := vmRecord{PodID: c.rec.PodID, Containers: map[string]runRecord{}}
	if err := s.cfg.Runtime.Put(bucketVMs, rec.PodID, rec); err != nil {
		return err
	}
	m := newMachine(s, rec, nil)
	defer func() {
		if err != nil {
			c.reclaimed = m.destroy(ctx)
		}
	}()
	cfg, err := s.prepare(ctx, c, m)
	if err != nil {
		return err
	}
	if err := m.boot(ctx, cfg); err != nil {
		return err
	}
	g, err := m.firstContact(ctx)
	if err != nil {
		return err
	}
	gctx, cancel := context.WithTimeout(ctx, s.cfg.StartTimeout)
	defer cancel()
	if err := m.configure(gctx, g, c); err != nil {
		return err
	}
	m.rec.Info.BootTime = time.Since(m.bootedAt)
	if err := m.mountRoot(gctx, g, c, cfg.Disks); err != nil {
		return err
	}
	started, err := g.StartProcess(gctx, &wire.StartProcessRequest{
		ContainerId: c.id, User: sp.User, AdditionalGroups: sp.Groups, Stdin: sp.Stdin, Init: sp.Init,
	})
	if err != nil {
		return startError(sp.Args[0], err)
	}
	m.rec.Containers[c.id] = runRecord{PID: started.Pid, StartedAt: time.Now(), Stdin: sp.Stdin}
	if err := m.save(); err != nil {
		return err
	}
	return c.enter(m, true)
}

// prepare gathers all that the VM needs. What is independent runs side by side.
func (s *Set) prepare(ctx context.Context, c *container, m *machine) (vmm.Config, error) {
	sp := c.spec()
	dir := s.cfg.Layout.Pod(m.rec.PodID)
	cfg := vmm.Config{
		ID: vmID(m.rec.PodID), Dir: dir, Accel: s.cfg.Accel,
		CPUs: s.cpus(sp.Resources), MemMiB: s.memMiB(sp.Resources),
		Cmdline: "hyper.log=warn",
	}
	var layers []Layer
	var boot BootFiles
	var g errgroup.Group
	g.Go(func() (err error) {
		layers, err = s.cfg.Layers(ctx, sp, maxLayerDisks)
		return err
	})
	g.Go(func() (err error) {
		boot, err = s.cfg.Boot(sp.Kernel)
		return err
	})
	g.Go(func() error { return m.attach(ctx, sp.Network, &cfg) })
	g.Go(func() error { return os.MkdirAll(dir, 0o700) })
	if err := g.Wait(); err != nil {
		closeNICs(cfg)
		return cfg, err
	}
	cfg.Kernel, cfg.Initrd = boot.Kernel, boot.Initrd
	if boot.Stock {
		cfg.Machine = vmm.MachineQ35
	}
	for _, l := range layers {
		cfg.Disks = append(cfg.Disks, vmm.Disk{ID: l.ID, Path: l.Path, ReadOnly: true})
	}
	cfg.Disks = append(cfg.Disks, vmm.Disk{ID: upperID(c.id), Path: s.cfg.Layout.ContainerDisk(c.id)})
	m.rec.Info = VMInfo{Kernel: boot.Kernel, KernelName: boot.Name, CPUs: cfg.CPUs, MemMiB: cfg.MemMiB}
	return cfg, nil
}

// vmID names a pod's VM on the host.
func vmID(podID string) string { return podID[:12] }

// maxLayerDisks is how many disks an image may take; more layers are merged.
const maxLayerDisks = 16

// upperID is the disk ID of a container's writable disk.
func upperID(id string) string { return "w" + id[:12] }

func closeNICs(cfg vmm.Config) {
	for _, n := range cfg.NICs {
		n.Tap.Close()
	}
}

// guestOverhead is what kernel and hyperstart need beside a container's limit, MiB.
const guestOverhead = 96

func (s *Set) memMiB(r Resources) int {
	if r.MemoryBytes == 0 {
		return s.cfg.MemMiB
	}
	return int((r.MemoryBytes+1<<20-1)>>20) + guestOverhead
}

func (s *Set) cpus(r Resources) int {
	if r.NanoCPUs == 0 {
		return s.cfg.CPUs
	}
	return int((r.NanoCPUs + 1e9 - 1) / 1e9)
}

func (m *machine) attach(ctx context.Context, name string, cfg *vmm.Config) error {
	if name == "none" {
		return nil
	}
	n := m.set.cfg.Network
	if n == nil {
		return fmt.Errorf("no network: %w (use --network none)", m.set.cfg.NetworkErr)
	}
	a, err := n.Attach(ctx, m.rec.PodID)
	if err != nil {
		return fmt.Errorf("attach to network %s: %w", name, err)
	}
	m.rec.Attachment = &a
	if err := m.save(); err != nil {
		return err
	}
	tap, err := n.Open(ctx, a)
	if err != nil {
		return fmt.Errorf("open %s: %w", a.Device, err)
	}
	cfg.NICs = []vmm.NIC{{Tap: tap, MAC: a.MAC, MTU: a.MTU}}
	return nil
}

// boot starts the VM and records it.
func (m *machine) boot(ctx context.Context, cfg vmm.Config) error {
	defer closeNICs(cfg)
	m.bootedAt = time.Now()
	vm, err := m.set.cfg.Driver.Start(ctx, cfg)
	if err != nil {
		return err // it says which VM
	}
	m.vm = vm
	h := vm.Handle()
	m.rec.Handle = &h
	m.rec.Info.HostPID, m.rec.Info.Accel, m.rec.Info.Machine = h.PID, string(h.Accel), string(h.Machine)
	return m.save()
}

// configure tells the guest who it is.
func (m *machine) configure(ctx context.Context, g *guest.Client, c *container) error {
	entropy := make([]byte, 64)
	rand.Read(entropy)
	req := &wire.ConfigureRequest{
		Hostname: c.hostname(), Domainname: c.spec().Domainname,
		WallClockNanos: time.Now().UnixNano(), Entropy: entropy,
		ShmBytes: uint64(max(c.spec().ShmBytes, 0)),
	}
	if a := m.rec.Attachment; a != nil {
		nic := &wire.Interface{Mac: a.MAC.String(), Name: "eth0", Mtu: uint32(a.MTU)}
		for _, p := range a.Addrs {
			nic.Addresses = append(nic.Addresses, p.String())
		}
		req.Interfaces = []*wire.Interface{nic}
		for _, gw := range a.Gateway {
			req.Routes = append(req.Routes, &wire.Route{Gateway: gw.String(), Interface: "eth0"})
		}
	}
	if _, err := g.Configure(ctx, req); err != nil {
		return fmt.Errorf("configure guest: %w", err)
	}
	return nil
}

func (c *container) hostname() string {
	if c.spec().Hostname != "" {
		return c.spec().Hostname
	}
	return c.id[:12]
}

// mountRoot has the guest mount the container's root from the VM's disks:
// the last is the writable one, the others are layers.
func (m *machine) mountRoot(ctx context.Context, g *guest.Client, c *container, disks []vmm.Disk) error {
	var size *specs.Box
	if cs := c.spec().ConsoleSize; cs[0] > 0 && cs[1] > 0 {
		size = &specs.Box{Height: cs[0], Width: cs[1]}
	}
	spec, err := ociSpec(c.spec(), c.hostname(), size)
	if err != nil {
		return err
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	req := &wire.CreateContainerRequest{
		Id: c.id, Spec: data, Files: c.files(m.rec.Attachment),
		Rootfs: &wire.RootFS{ReadOnly: c.spec().ReadOnly, Upper: disks[len(disks)-1].ID},
	}
	for _, d := range disks[:len(disks)-1] {
		req.Rootfs.Layers = append(req.Rootfs.Layers, d.ID)
	}
	_, err = g.CreateContainer(ctx, req)
	return err
}

// files are what Docker puts into every container beside its image.
func (c *container) files(a *network.Attachment) []*wire.File {
	sp := c.spec()
	name := c.hostname()
	full := name
	if sp.Domainname != "" {
		full = name + "." + sp.Domainname + " " + name
	}
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	servers := sp.DNS
	own := "127.0.0.1"
	if a != nil {
		for _, p := range a.Addrs {
			if p.Addr().Is4() {
				own = p.Addr().String()
			}
		}
		if len(servers) == 0 {
			for _, d := range a.DNS {
				servers = append(servers, d.String())
			}
		}
	}
	for _, h := range sp.ExtraHosts {
		host, addr, _ := strings.Cut(h, ":")
		if addr == "host-gateway" {
			addr = gateway(a)
		}
		fmt.Fprintf(&hosts, "%s\t%s\n", addr, host)
	}
	fmt.Fprintf(&hosts, "%s\t%s\n", own, full)
	var resolv strings.Builder
	for _, d := range servers {
		fmt.Fprintf(&resolv, "nameserver %s\n", d)
	}
	if len(sp.DNSSearch) > 0 {
		fmt.Fprintf(&resolv, "search %s\n", strings.Join(sp.DNSSearch, " "))
	}
	if len(sp.DNSOptions) > 0 {
		fmt.Fprintf(&resolv, "options %s\n", strings.Join(sp.DNSOptions, " "))
	}
	return []*wire.File{
		{Path: "/etc/hostname", Content: []byte(name + "\n"), Mode: 0o644},
		{Path: "/etc/hosts", Content: []byte(hosts.String()), Mode: 0o644},
		{Path: "/etc/resolv.conf", Content: []byte(resolv.String()), Mode: 0o644},
	}
}

// CheckExtraHost says whether h is name:address, as --add-host takes it.
func CheckExtraHost(h string) error {
	name, addr, ok := strings.Cut(h, ":")
	if _, err := netip.ParseAddr(strings.Trim(addr, "[]")); !ok || name == "" || (err != nil && addr != "host-gateway") {
		return textError{fmt.Sprintf("bad format for add-host: %q", h), errdefs.ErrInvalidArgument}
	}
	return nil
}

// enter makes the container running in m. fresh is false when it has been
// running and a new hyperd found it.
func (c *container) enter(m *machine, fresh bool) error {
	rr := m.rec.Containers[c.id]
	log, err := logs.Open(c.set.cfg.Layout.ContainerLogs(c.id), logs.Options{
		Discard: c.spec().Log.Driver == "none", MaxBytes: c.spec().Log.MaxBytes, MaxFiles: c.spec().Log.MaxFiles,
	})
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if fresh {
		log.Rewind()
	}
	r := newRun(c, m, rr, log)
	c.mu.Lock()
	if fresh {
		err = c.transitionLocked(StatusRunning)
	}
	if err != nil {
		c.mu.Unlock()
		return errors.Join(err, log.Close())
	}
	c.rec.Status, c.rec.StartedAt = StatusRunning, rr.StartedAt
	if rr.Paused {
		c.rec.Status = StatusPaused
	}
	c.rec.ExitCode, c.rec.OOMKilled, c.rec.Error, c.rec.FinishedAt = 0, false, "", time.Time{}
	c.run = r
	close(c.started)
	c.mu.Unlock()
	r.begin()
	if c.set.isClosing() {
		m.release() // Close did not see this run any more
	}
	if fresh && !c.spec().AutoRemove {
		// Only for what a host crash leaves behind: off the start's road.
		c.set.background.Go(func() {
			if err := c.save(); err != nil {
				c.set.log.Error("record start", "container", c.id, "err", err)
			}
		})
	}
	return nil
}

// startFailed leaves the container as it was, with the reason.
func (c *container) startFailed(ctx context.Context, err error) error {
	endSinks(append(c.out[0].take(), c.out[1].take()...))
	c.mu.Lock()
	c.rec.Error, c.rec.ExitCode = err.Error(), 128
	var ee *execError
	if errors.As(err, &ee) {
		c.rec.ExitCode = ee.code
	}
	remove := c.rec.Spec.AutoRemove
	if remove {
		c.notifyLocked(ExitStatus{Code: c.rec.ExitCode, Error: c.rec.Error}, WaitNextExit, WaitNotRunning)
	}
	c.mu.Unlock()
	if remove {
		return errors.Join(err, c.removeLocked(ctx))
	}
	return errors.Join(err, c.save())
}

func gateway(a *network.Attachment) string {
	if a == nil || len(a.Gateway) == 0 {
		return "127.0.0.1"
	}
	return a.Gateway[0].String()
}

// An execError says that the program itself could not be run. Code is what a
// shell would exit with.
type execError struct {
	err  error
	code int
}

func (e *execError) Error() string { return e.err.Error() }

// Unwrap gives the kind that clients expect: the request was wrong.
func (e *execError) Unwrap() []error { return []error{e.err, errdefs.ErrInvalidArgument} }

// startError sorts out why a guest did not start a process.
func startError(arg0 string, err error) error {
	err = fmt.Errorf("start %q: %w", arg0, err)
	switch {
	case errdefs.IsNotFound(err):
		return &execError{errors.New(err.Error()), 127}
	case errdefs.IsPermissionDenied(err):
		return &execError{errors.New(err.Error()), 126}
	case errdefs.IsInvalidArgument(err):
		return &execError{errors.New(err.Error()), 126}
	}
	return err
}
