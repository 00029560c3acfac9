package guestinit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// Configure implements wire.GuestService.
func (s *Service) Configure(_ context.Context, r *wire.ConfigureRequest) (*wire.ConfigureResponse, error) {
	if err := s.configure(r); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &wire.ConfigureResponse{}, nil
}

func (s *Service) configure(r *wire.ConfigureRequest) error {
	s.configuring.Lock()
	defer s.configuring.Unlock()
	if len(r.Entropy) > 0 {
		if err := addEntropy(r.Entropy); err != nil {
			return err
		}
	}
	if r.WallClockNanos != 0 {
		ts := unix.NsecToTimespec(r.WallClockNanos)
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
			return fmt.Errorf("set clock: %w", err)
		}
	}
	if err := setNames(r.Hostname, r.Domainname); err != nil {
		return err
	}
	if r.ShmBytes != 0 {
		if err := unix.Mount("", podShm, "", unix.MS_REMOUNT|safe, fmt.Sprintf("size=%d", r.ShmBytes)); err != nil {
			return fmt.Errorf("resize shared memory: %w", err)
		}
	}
	if err := s.machine.links.Apply(r.Interfaces, r.Routes); err != nil {
		return err
	}
	if err := s.limitPod(r.MemoryMaxBytes, int(r.Cpus)); err != nil {
		return err
	}
	if err := s.addVolumes(r.Volumes); err != nil {
		return err
	}
	return setSysctls(r.Sysctls)
}

// limitPod limits all containers together; zero leaves things as they are.
func (s *Service) limitPod(memory uint64, cpus int) error {
	limits := new(specs.LinuxResources)
	if memory != 0 {
		most := int64(min(memory, math.MaxInt64))
		limits.Memory = &specs.LinuxMemory{Limit: &most}
	}
	if cpus != 0 {
		limits.CPU = &specs.LinuxCPU{Cpus: fmt.Sprintf("0-%d", min(cpus, runtime.NumCPU())-1)}
	}
	if err := s.machine.cgroups.Set(limits); err != nil {
		return fmt.Errorf("limit pod: %w", err)
	}
	if memory == 0 {
		return nil
	}
	s.bounding.Lock()
	s.podMemory = *limits.Memory.Limit
	s.bounding.Unlock()
	return s.boundOpen()
}

// What a container without limits leaves to its neighbours of what the pod may have.
const (
	othersMemory = 16 << 20 // bytes
	othersPIDs   = 500
)

// An open container has no limit of its own of some of what the pod's is.
type open struct{ memory, pids bool }

// boundOpen bounds the open containers, when there are several, a little below the pod. One that
// takes all it can get meets its own limit then, where only it can make no process, and only it has to
// wait for the kernel to find memory: at the pod's limit all would, for minutes under a fork bomb.
func (s *Service) boundOpen() error {
	s.bounding.Lock()
	defer s.bounding.Unlock()
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.containers))
	s.mu.Unlock()
	if s.podMemory == 0 || len(all) < 2 {
		return nil
	}
	memory := max(s.podMemory-othersMemory, s.podMemory/2)
	pids := int64(s.machine.cgroups.Uint("pids.max"))
	pids = max(pids-othersPIDs, pids/2)
	for _, c := range all {
		var r specs.LinuxResources
		if c.open.memory && c.bound != memory {
			r.Memory = &specs.LinuxMemory{Limit: &memory}
		}
		if c.open.pids && c.bound == 0 {
			r.Pids = &specs.LinuxPids{Limit: &pids}
		}
		if r.Memory == nil && r.Pids == nil {
			continue
		}
		if err := c.group.Set(&r); err != nil && !errors.Is(err, fs.ErrNotExist) { // it has ended
			return fmt.Errorf("bound container %s: %w", c.id, err)
		}
		c.bound = memory
	}
	return nil
}

// opened notes which limits a container was given. Precondition: its group is there.
func (s *Service) opened(c *container, r *specs.LinuxResources) error {
	s.bounding.Lock()
	if r != nil && r.Memory != nil && r.Memory.Limit != nil && *r.Memory.Limit != 0 {
		c.open.memory, c.bound = *r.Memory.Limit < 0, 0
	}
	if r != nil && r.Pids != nil && r.Pids.Limit != nil {
		c.open.pids, c.bound = *r.Pids.Limit < 1, 0
	}
	s.bounding.Unlock()
	return s.boundOpen()
}

// setNames sets the host and domain names of this thread's UTS namespace.
func setNames(host, domain string) error {
	if host != "" {
		if err := unix.Sethostname([]byte(host)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
	}
	if domain != "" {
		if err := unix.Setdomainname([]byte(domain)); err != nil {
			return fmt.Errorf("set domain name: %w", err)
		}
	}
	return nil
}

// setSysctls writes kernel parameters. Those that belong to a network or IPC
// namespace are set in this thread's.
func setSysctls(m map[string]string) error {
	for k, v := range m {
		path, err := sysctlPath(k)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(v), 0); err != nil {
			return fmt.Errorf("set sysctl %s: %w", k, err)
		}
	}
	return nil
}

// sysctlPath translates a name with dots, or with slashes where a part of it
// has a dot, as sysctl(8) does.
func sysctlPath(name string) (string, error) {
	sep := strings.IndexAny(name, "./")
	if sep >= 0 && name[sep] == '.' {
		swap := strings.NewReplacer(".", "/", "/", ".")
		name = swap.Replace(name)
	}
	path := filepath.Join("/proc/sys", name)
	if !strings.HasPrefix(path, "/proc/sys/") || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("set sysctl %q: not a kernel parameter", name)
	}
	return path, nil
}

// addEntropy mixes secret bytes of the host's into the kernel's pool, credits
// them and reseeds, so that clones of one template differ (random(4)).
func addEntropy(seed []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	defer f.Close()
	const chunk = 512
	for len(seed) > 0 {
		n := min(len(seed), chunk)
		b := binary.NativeEndian.AppendUint32(nil, uint32(8*n)) // bits
		b = binary.NativeEndian.AppendUint32(b, uint32(n))      // bytes
		b = append(b, seed[:n]...)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
			return fmt.Errorf("add entropy: %w", errno)
		}
		seed = seed[n:]
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDRESEEDCRNG, 0); errno != 0 {
		return fmt.Errorf("reseed: %w", errno)
	}
	return nil
}
