package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/event"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/vmm"
)

var _ Pods = (*Set)(nil)

// findPod returns the pod that ref means: an ID, a name, a unique ID
// prefix, or that of a container in it, in this order.
func (s *Set) findPod(ref string) (*pod, error) {
	s.mu.Lock()
	p := s.pods[ref]
	if id, ok := s.podNames[ref]; p == nil && ok {
		p = s.pods[id]
	}
	if p == nil && isHex(ref) {
		for id, other := range s.pods {
			if !strings.HasPrefix(id, ref) {
				continue
			}
			if p != nil {
				s.mu.Unlock()
				return nil, textError{"multiple IDs found with provided prefix: " + ref, errdefs.ErrInvalidArgument}
			}
			p = other
		}
	}
	s.mu.Unlock()
	if p != nil {
		return p, nil
	}
	if c, err := s.find(ref); err == nil {
		return c.pod, nil
	}
	return nil, notFound("No such pod: " + ref)
}

// admits completes the spec of a container that is to be added to the pod, or refuses it.
func (p *pod) admits(sp *Spec) error {
	names := map[string]bool{}
	rec := p.record()
	for _, v := range rec.Spec.Volumes {
		names[v.Name] = true
	}
	switch {
	case rec.Name != "":
		sp.Network = rec.Spec.Network
	case sp.Network == "":
		for _, c := range p.set.members(p.id) {
			sp.Network = c.spec().Network
		}
	}
	return checkMounts(sp.Mounts, names)
}

func (p *pod) isRemoved() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.removed
}

// CheckPod completes what CreatePod gets, or refuses what can never run.
func (s *Set) CheckPod(o *PodOptions) error {
	o.Spec.Network = cmp.Or(o.Spec.Network, "default")
	o.Containers = slices.Clone(o.Containers)
	for i := range o.Containers {
		o.Containers[i].Spec.Network = o.Spec.Network
	}
	return s.checkPod(*o)
}

// CreatePod implements Pods.
func (s *Set) CreatePod(ctx context.Context, o PodOptions) (_ string, err error) {
	if err := s.CheckPod(&o); err != nil {
		return "", err
	}
	p, err := s.claimPod(o)
	if err != nil {
		return "", err
	}
	defer p.open()
	if err := p.make(o); err != nil {
		return "", errors.Join(err, p.unmake(context.WithoutCancel(ctx)))
	}
	s.publishPod(p, "create")
	return p.id, nil
}

// make records the pod, then makes what it has on disk, and its containers.
func (p *pod) make(o PodOptions) error {
	s := p.set
	if err := p.setHalf(true); err != nil {
		return err
	}
	for _, v := range o.Spec.Volumes {
		if v.Memory {
			continue
		}
		disk := p.volumeDisk(v)
		if err := os.MkdirAll(filepath.Dir(disk), 0o700); err != nil {
			return err
		}
		if err := s.cfg.CreateDisk(disk, cmp.Or(v.Bytes, DefaultDiskBytes), false); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	for _, c := range o.Containers {
		if _, err := s.newMember(p, c); err != nil {
			return err
		}
	}
	return p.setHalf(false)
}

// claimPod gives a new pod its name and puts it into the Set; nothing can be started in it yet.
func (s *Set) claimPod(o PodOptions) (*pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.Name == "" {
		o.Name = s.freeNameLocked()
	}
	if id, taken := s.podNames[o.Name]; taken {
		return nil, textError{fmt.Sprintf("Conflict. The pod name %q is already in use by pod %s. You have to remove that pod to be able to reuse that name.", o.Name, short(id)), errdefs.ErrConflict}
	}
	p := s.podLocked(newID())
	p.rec = podRecord{ID: p.id, Name: o.Name, Created: time.Now(), Spec: o.Spec}
	p.life.tryAcquire() // it is new
	p.closed = beingMade
	s.podNames[o.Name] = p.id
	return p, nil
}

var (
	validVolume = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	kernelArg   = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,64}(=[a-zA-Z0-9_.,:/@%+-]{0,256})?$`)
)

// ownKernelArgs are the parameters that Hyper gives the guest's kernel itself.
var ownKernelArgs = []string{"init", "rdinit", "root", "console", "panic", "reboot", "virtio_mmio.device", "initrd", "initcall_blacklist", "tsc_early_khz", "mem", "memmap"}

// CheckKernelArg says whether arg may be given to a guest's kernel: NAME or
// NAME=VALUE of plain characters, and not one on which Hyper itself depends.
func CheckKernelArg(arg string) error {
	name, _, _ := strings.Cut(arg, "=")
	if !kernelArg.MatchString(arg) || strings.HasPrefix(name, "hyper.") || slices.Contains(ownKernelArgs, name) {
		return textError{fmt.Sprintf("kernel parameter %q: want NAME or NAME=VALUE of letters, digits and _.,:/@%%+-, and none that Hyper sets itself", arg), errdefs.ErrInvalidArgument}
	}
	return nil
}

// checkPod refuses what can never run.
func (s *Set) checkPod(o PodOptions) error {
	invalid := func(format string, a ...any) error {
		return textError{fmt.Sprintf(format, a...), errdefs.ErrInvalidArgument}
	}
	sp := o.Spec
	if o.Name != "" && !validName.MatchString(o.Name) {
		return invalid("Invalid pod name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", o.Name)
	}
	if err := s.checkMachine(sp); err != nil {
		return err
	}
	names := map[string]bool{}
	files := 0
	for _, v := range sp.Volumes {
		for _, f := range v.Files {
			files += len(f.Content)
		}
		switch {
		case files > maxVolumeFiles:
			return invalid("volume %s: the files of all volumes are more than %d MiB", v.Name, maxVolumeFiles/mib)
		case !validVolume.MatchString(v.Name):
			return invalid("volume %q: want a name of 1 to 63 lower case letters, digits and -", v.Name)
		case names[v.Name]:
			return invalid("volume %s is there twice", v.Name)
		case v.Bytes < 0 || !v.Memory && v.Bytes != 0 && v.Bytes < minDiskBytes:
			return invalid("volume %s: want a size of at least %d MiB", v.Name, minDiskBytes/mib)
		case !v.Memory && len(v.Files) > 0:
			return invalid("volume %s: only one in memory can have files", v.Name)
		}
		names[v.Name] = true
	}
	for _, a := range sp.KernelArgs {
		if err := CheckKernelArg(a); err != nil {
			return err
		}
	}
	for _, h := range sp.ExtraHosts {
		if err := CheckExtraHost(h); err != nil {
			return err
		}
	}
	if err := s.checkPodResources(sp.Resources); err != nil {
		return err
	}
	var all []Spec
	for _, c := range o.Containers {
		if err := s.check(c.Spec); err != nil {
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
		if err := checkMounts(c.Spec.Mounts, names); err != nil {
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
		all = append(all, c.Spec)
	}
	return s.checkSize(s.sizeOfPod(all, sp.Resources))
}

// maxVolumeFiles is how much files of volumes can have in them: the guest gets all in one message.
const maxVolumeFiles = 3 << 20

// checkMachine refuses what no VM can be made for.
func (s *Set) checkMachine(sp PodSpec) error {
	switch {
	case sp.Network != "default" && sp.Network != "none":
		return notFound("network " + sp.Network + " not found")
	case sp.Network == "default" && s.cfg.Network == nil:
		return fmt.Errorf("no network: %w (use --network none)", s.cfg.NetworkErr)
	case sp.ShmBytes < 0:
		return textError{"the size of /dev/shm can not be less than 0", errdefs.ErrInvalidArgument}
	}
	if sp.Kernel != "" {
		if _, err := s.cfg.Boot(sp.Kernel); err != nil {
			return textError{err.Error(), errdefs.ErrInvalidArgument}
		}
	}
	return nil
}

func (s *Set) checkPodResources(r PodResources) error {
	switch {
	case r.MemoryBytes < 0 || r.MemoryBytes != 0 && r.MemoryBytes < minMemory:
		return textError{"Minimum memory limit allowed is 6MB", errdefs.ErrInvalidArgument}
	case r.NanoCPUs < 0 || r.NanoCPUs > int64(s.maxCPUs())*1e9:
		return textError{fmt.Sprintf("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", s.maxCPUs(), s.maxCPUs()), errdefs.ErrInvalidArgument}
	}
	return nil
}

// checkSize refuses a pod that no VM here is large enough for.
func (s *Set) checkSize(z size) error {
	if z.cpus > s.maxCPUs() {
		return textError{fmt.Sprintf("its containers are promised %d CPUs together, and there are only %d available", z.cpus, s.maxCPUs()), errdefs.ErrInvalidArgument}
	}
	if room := vmRoom(vmm.MaxMemMiB); z.memory > room {
		return textError{fmt.Sprintf("its containers may use %d MiB together, and the largest VM has room for %d MiB", z.memory/mib, room/mib), errdefs.ErrInvalidArgument}
	}
	return nil
}

func checkMounts(mounts []Mount, volumes map[string]bool) error {
	for _, m := range mounts {
		if !volumes[m.Volume] {
			return textError{fmt.Sprintf("mount %s: the pod has no volume %q", m.Path, m.Volume), errdefs.ErrInvalidArgument}
		}
		if !filepath.IsAbs(m.Path) || filepath.Clean(m.Path) == "/" || slices.Contains(strings.Split(m.SubPath, "/"), "..") || filepath.IsAbs(m.SubPath) {
			return textError{fmt.Sprintf("mount of volume %s: want an absolute path in the container and a relative one in the volume, not %q and %q", m.Volume, m.Path, m.SubPath), errdefs.ErrInvalidArgument}
		}
	}
	return nil
}

func (p *pod) volumeDisk(v Volume) string {
	return filepath.Join(p.set.cfg.Layout.PodDisks(p.id), v.Name+".ext4")
}

// volumeUser is who a volume's disk is for, see slot.Users.
func volumeUser(v Volume) string { return "volume:" + v.Name }

func (p *pod) save() error {
	p.saving.Lock()
	defer p.saving.Unlock()
	if p.isRemoved() || !p.explicit() {
		return nil
	}
	return p.set.cfg.Store.Put(bucketPods, p.id, p.record())
}

// unmake removes the pod, its containers and its volumes. Precondition: it is closed, and
// no container of it runs. Idempotent.
func (p *pod) unmake(ctx context.Context) error {
	s := p.set
	p.op.Lock()
	p.destroyMachine(ctx)
	p.waitReclaimed()
	p.op.Unlock()
	var errs []error
	for _, c := range s.members(p.id) {
		if _, err := c.removeStopped(ctx); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(s.cfg.Layout.PodDisks(p.id)), p.detach(ctx)); err != nil {
		return err
	}
	p.saving.Lock()
	err := s.cfg.Store.Delete(bucketPods, p.id)
	p.mu.Lock()
	p.removed = err == nil
	p.mu.Unlock()
	p.saving.Unlock()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.podNames, p.record().Name)
	delete(s.pods, p.id)
	return nil
}

// detach gives back the addresses that the pod kept.
func (p *pod) detach(ctx context.Context) error {
	a := p.record().Attachment
	if a == nil || p.set.cfg.Network == nil {
		return nil
	}
	if err := p.set.cfg.Network.Detach(ctx, *a); err != nil {
		return err
	}
	p.mu.Lock()
	p.rec.Attachment = nil // somebody else may have them from now on
	p.mu.Unlock()
	return nil
}

// startVM brings up the VM of a pod that was made as such, without a container, and records
// that it is wanted. Precondition: p.op is held.
func (p *pod) startVM(ctx context.Context, tr *trace) error {
	p.mu.Lock()
	wanted, kept := p.rec.Wanted, p.rec.Attachment
	p.rec.Wanted, p.rec.End, p.rec.StartedAt = true, End{}, time.Now()
	p.mu.Unlock()
	err := p.save()
	if err == nil {
		err = p.tryVM(ctx, tr)
	}
	m := p.running()
	if err == nil && m == nil {
		err = fmt.Errorf("its virtual machine stopped at once: %w", errdefs.ErrUnavailable)
	}
	p.mu.Lock()
	if err != nil {
		p.rec.Wanted, p.rec.End = wanted, startEnd(err, tr)
	} else {
		p.rec.Attachment = m.attachment()
	}
	changed := err != nil || !same(p.rec.Attachment, kept)
	p.mu.Unlock()
	if changed {
		if serr := p.save(); serr != nil {
			p.set.log.Error("record start of pod", "pod", p.id, "err", serr)
		}
	}
	if err != nil {
		return fmt.Errorf("start pod %s: %w", p.record().Name, err)
	}
	p.set.background.Go(func() { p.watch(m) })
	p.set.publishPod(p, "start")
	return nil
}

func (p *pod) tryVM(ctx context.Context, tr *trace) error {
	pl, err := p.plan(ctx, nil, p.set.members(p.id)...)
	if err != nil {
		return err
	}
	tr.stage("plan")
	return p.inNewVM(ctx, pl, tr, func(m *machine) error { return p.beginVM(ctx, m, pl.size, tr) })
}

func same(a, b *network.Attachment) bool {
	return a == b || a != nil && b != nil && a.PodID == b.PodID && a.Device == b.Device
}

// beginVM tells a new VM who it is and gives it the pod's volumes.
func (p *pod) beginVM(ctx context.Context, m *machine, z size, tr *trace) error {
	sp := p.record().Spec
	for _, v := range sp.Volumes {
		if !v.Memory {
			if err := m.place(ctx, &needs{user: volumeUser(v), disk: p.volumeDisk(v)}); err != nil {
				return fmt.Errorf("volume %s: %w", v.Name, err)
			}
		}
	}
	conf := m.configuration(z)
	conf.Hostname, conf.Domainname, conf.Sysctls = p.hostname(), sp.Domainname, sp.Sysctls
	conf.ShmBytes = uint64(max(sp.ShmBytes, 0))
	for _, v := range sp.Volumes {
		vol := &wire.Volume{Name: v.Name, Bytes: uint64(v.Bytes), Mode: v.Mode, Gid: v.GID}
		if !v.Memory {
			vol.Disk = m.placed(&needs{user: volumeUser(v), disk: p.volumeDisk(v)}).Upper
		}
		for _, f := range v.Files {
			content := f.Content
			if f.Field != "" {
				content = []byte(p.field(f.Field, m.attachment()))
			}
			vol.Files = append(vol.Files, &wire.File{Path: f.Path, Content: content, Mode: f.Mode})
		}
		conf.Volumes = append(conf.Volumes, vol)
	}
	if err := m.configure(ctx, conf, tr); err != nil {
		return err
	}
	return m.update(func(r *vmRecord) { r.Begun = true })
}

func (p *pod) hostname() string {
	rec := p.record()
	if rec.Spec.Hostname != "" {
		return rec.Spec.Hostname
	}
	return rec.Name
}

// watch waits for the end of the VM of a pod that was made as such, and records it
// if nobody here has ended it.
func (p *pod) watch(m *machine) {
	select {
	case <-m.vm.Done():
	case <-m.ctx.Done():
		if !isClosed(m.vm.Done()) {
			return // this hyperd lets go of it, or ends it
		}
	}
	end := m.died()
	for _, c := range p.set.members(p.id) { // they end with it
		if r, err := c.running(); err == nil && r.vm == m {
			<-r.released
		}
	}
	p.op.Lock()
	defer p.op.Unlock()
	p.mu.Lock()
	mine := p.machine == m // else somebody has ended it, or replaced it
	if mine {
		p.rec.End = end
	}
	p.mu.Unlock()
	defer p.wake()
	if !mine {
		return
	}
	p.destroyMachine(context.Background())
	if err := p.save(); err != nil {
		p.set.log.Error("record end of pod", "pod", p.id, "err", err)
	}
	p.set.publishPod(p, "die")
}

// lost records that the VM ended while no hyperd was there to see.
func (p *pod) lost() {
	p.mu.Lock()
	p.rec.End = End{Cause: CauseHost, Error: "the virtual machine ended while hyperd was not running", FinishedAt: time.Now()}
	p.mu.Unlock()
	if err := p.save(); err != nil {
		p.set.log.Error("record end of pod", "pod", p.id, "err", err)
	}
}

// release lets go of the pod's VM without stopping it, when nothing is being started in it.
func (p *pod) release() {
	p.mu.Lock()
	m := p.machine
	busy := p.starting > 0
	p.mu.Unlock()
	if m != nil && !busy {
		m.release()
	}
}

func (s *Set) publishPod(p *pod, action string) {
	rec := p.record()
	attrs := map[string]string{"name": rec.Name}
	for k, v := range rec.Spec.Labels {
		attrs[k] = v
	}
	s.cfg.Events.Publish(event.Event{Time: time.Now(), Type: "pod", Action: action, ID: p.id, Attrs: attrs})
}
