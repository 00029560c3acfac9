package host

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Limits bound what the processes of one VM take together.
type Limits struct {
	CPUs        float64 // 0: no limit
	MemoryBytes int64   // 0: no limit
}

// GroupsConfig says where cgroups are made. Zero values are the defaults.
type GroupsConfig struct {
	Name string // of the parent of all VMs' cgroups, "hyper"; another for each hyperd on a host
	Proc string // "/proc"
	Log  *slog.Logger
}

// Groups are the cgroups of VMs, on hosts with cgroup v1, v2, or both:
//
//	v1  <mount of memory>/hyper/<id>, <mount of cpu>/hyper/<id>
//	v2  <mount>/hyper/<id>
//
// The parent is at the top, not below hyperd's own cgroup: there the next
// hyperd finds it, whoever started that, and stopping hyperd's service does
// not end VMs. Groups of nil, and of a host whose cgroups can't be written, do nothing.
// Methods may be called concurrently for different VMs.
type Groups struct {
	parents []parent
}

// A parent is the cgroup "hyper" of one hierarchy.
type parent struct {
	mount
	dir         string
	memory, cpu bool // what it bounds
}

// cpuPeriod is the kernel's default, in µs; less than minQuota it refuses.
const (
	cpuPeriod = 100_000
	minQuota  = 1_000
)

// NewGroups makes the parent. What this host can't do is logged once, here.
func NewGroups(cfg GroupsConfig) *Groups {
	if cfg.Name == "" {
		cfg.Name = "hyper"
	}
	if cfg.Proc == "" {
		cfg.Proc = procDir
	}
	g := &Groups{}
	mounts, err := cgroupMounts(cfg.Proc)
	if err == nil {
		err = errors.Join(g.use(mounts, cfg.Name, "memory"), g.use(mounts, cfg.Name, "cpu"))
	}
	if err != nil && cfg.Log != nil {
		cfg.Log.Warn("the host does not bound all that VMs take of it", "err", err)
	}
	return g
}

// use has a controller bound VMs.
func (g *Groups) use(mounts []mount, name, controller string) error {
	m, ok := controlled(mounts, controller)
	if !ok {
		return fmt.Errorf("no cgroup hierarchy has controller %s", controller)
	}
	p := parent{mount: m, dir: filepath.Join(m.dir, name), memory: controller == "memory", cpu: controller == "cpu"}
	if err := p.prepare(); err != nil {
		return err
	}
	for i := range g.parents {
		if has := &g.parents[i]; has.dir == p.dir {
			has.memory, has.cpu = has.memory || p.memory, has.cpu || p.cpu
			return nil
		}
	}
	g.parents = append(g.parents, p)
	return nil
}

func (p *parent) controllers() []string {
	var list []string
	if p.memory {
		list = append(list, "memory")
	}
	if p.cpu {
		list = append(list, "cpu")
	}
	return list
}

// prepare makes the parent. On v2 a cgroup has the controllers that all
// above it pass on (kernel: cgroup-v2.rst, "Enabling and Disabling").
func (p *parent) prepare() error {
	if err := os.Mkdir(p.dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make cgroup of all VMs: %w", err)
	}
	if !p.v2 {
		return nil
	}
	for _, dir := range []string{p.mount.dir, p.dir} {
		file := filepath.Join(dir, "cgroup.subtree_control")
		for _, c := range p.controllers() {
			if listed(file, c) {
				continue
			}
			if err := write(file, "+"+c); err != nil {
				return fmt.Errorf("pass on cgroup controller %s: %w", c, err)
			}
		}
	}
	return nil
}

// write writes to a file of the cgroup file system, which is there or can't be made.
func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// Create makes a VM's cgroups and returns their open cgroup.procs files: a
// process moves into a cgroup when its ID, or 0 by itself, is written there.
// The caller closes them. On error nothing is left behind.
func (g *Groups) Create(id string, l Limits) ([]*os.File, error) {
	if g == nil {
		return nil, nil
	}
	if err := checkID(id); err != nil {
		return nil, err
	}
	var procs []*os.File
	for _, p := range g.parents {
		f, err := p.create(id, l)
		if err != nil {
			for _, f := range procs {
				f.Close()
			}
			return nil, errors.Join(fmt.Errorf("make cgroup of VM %s: %w", id, err), g.Remove(id))
		}
		procs = append(procs, f)
	}
	return procs, nil
}

func checkID(id string) error {
	if id == "" || id == "." || id == ".." || strings.ContainsAny(id, "/\n\x00") {
		return fmt.Errorf("cgroup of VM %q: not a name: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (p *parent) create(id string, l Limits) (*os.File, error) {
	dir := filepath.Join(p.dir, id)
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) { // somebody removed the parent
		if err = p.prepare(); err == nil {
			err = os.Mkdir(dir, 0o755)
		}
	}
	switch {
	case errors.Is(err, fs.ErrExist): // left by a crash: its limits are old
		err = p.limit(dir, l, true)
	case err == nil:
		err = p.limit(dir, l, false)
	}
	if err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0)
}

// limit writes the limits. Those that are none are written when there may
// have been one. Who manages the top of v2 (systemd) may have withdrawn a
// controller; it is asked for once more.
func (p *parent) limit(dir string, l Limits, none bool) error {
	err := p.writeLimits(dir, l, none)
	if !p.v2 || err == nil {
		return err
	}
	if p.prepare() != nil {
		return err
	}
	return p.writeLimits(dir, l, none)
}

func (p *parent) writeLimits(dir string, l Limits, none bool) error {
	memory, cpu := "memory.limit_in_bytes", "cpu.cfs_quota_us"
	noLimit, suffix := "-1", ""
	if p.v2 {
		memory, cpu = "memory.max", "cpu.max"
		noLimit, suffix = "max", " "+strconv.Itoa(cpuPeriod)
	}
	if p.memory && (none || l.MemoryBytes > 0) {
		value := noLimit
		if l.MemoryBytes > 0 {
			value = strconv.FormatInt(l.MemoryBytes, 10)
		}
		if err := write(filepath.Join(dir, memory), value); err != nil {
			return err
		}
	}
	if p.cpu && (none || l.CPUs > 0) {
		value := noLimit
		if l.CPUs > 0 {
			value = strconv.Itoa(max(int(l.CPUs*cpuPeriod), minQuota))
		}
		if err := write(filepath.Join(dir, cpu), value+suffix); err != nil {
			return err
		}
	}
	return nil
}

// Update replaces the limits of a VM. One that was started without a cgroup
// stays without. On v1 a memory limit below what is in use and can't be
// given back is an error (EBUSY).
func (g *Groups) Update(id string, l Limits) error {
	if g == nil {
		return nil
	}
	if err := checkID(id); err != nil {
		return err
	}
	for _, p := range g.parents {
		dir := filepath.Join(p.dir, id)
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := p.limit(dir, l, true); err != nil {
			return fmt.Errorf("limit VM %s: %w", id, err)
		}
	}
	return nil
}

// Remove removes the cgroups of a VM. Idempotent. It waits for no process:
// while one is in there, the error is EBUSY.
func (g *Groups) Remove(id string) error {
	if g == nil {
		return nil
	}
	if err := checkID(id); err != nil {
		return err
	}
	var errs error
	for _, p := range g.parents {
		errs = errors.Join(errs, rmdir(filepath.Join(p.dir, id)))
	}
	return errs
}

// rmdir is what removes a cgroup: its files can't be removed.
func rmdir(dir string) error {
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}

// Sweep removes the cgroups of all VMs that are not in keep.
func (g *Groups) Sweep(keep map[string]bool) error {
	if g == nil {
		return nil
	}
	var errs error
	for _, p := range g.parents {
		entries, err := os.ReadDir(p.dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = errors.Join(errs, fmt.Errorf("list cgroups: %w", err))
		}
		for _, e := range entries {
			if e.IsDir() && !keep[e.Name()] {
				errs = errors.Join(errs, rmdir(filepath.Join(p.dir, e.Name())))
			}
		}
	}
	return errs
}

// Close removes the parent when there is no VM in it.
func (g *Groups) Close() error {
	if g == nil {
		return nil
	}
	var errs error
	for _, p := range g.parents {
		if err := rmdir(p.dir); !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = errors.Join(errs, err)
		}
	}
	return errs
}
