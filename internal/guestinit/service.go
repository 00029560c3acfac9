package guestinit

import (
	"context"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/proc"
	"github.com/hyper-run/hyper/internal/guestinit/spawn"
)

// A Service answers hyperd's calls; the embedded table those that concern one
// process.
type Service struct {
	proc.Table
	version string
	machine *machine
	spawner *spawn.Spawner
	lastCap int
	events  broadcaster
	rest    *time.Timer // gives memory back when nothing was asked for a while
	settled atomic.Bool // and no container made since
	cloned  atomic.Bool // was settled once

	configuring sync.Mutex
	restocking  sync.Mutex // held while a stage is made ahead
	bounding    sync.Mutex // guards podMemory, and containers' open and bound
	podMemory   int64      // limit of all containers together; 0: none yet

	mu         sync.Mutex
	containers map[string]*container
	spare      []*stage          // for the next containers
	stages     int               // that were made as spare ones so far
	ordinary   *specs.Spec       // what they are fitted for; nil: nothing
	disks      map[string]string // device by serial, as far as known: asking a disk is slow
	volumes    map[string]volume

	pod      podSpace
	shielded sync.Once // see shield
}

func newService(version string, m *machine) (*Service, error) {
	sp, err := spawn.New()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return nil, fmt.Errorf("read last capability: %w", err)
	}
	last, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("read last capability: %w", err)
	}
	return &Service{version: version, machine: m, spawner: sp, lastCap: last, containers: map[string]*container{}}, nil
}

// checkID accepts what is safe as the name of a directory.
func checkID(id string) error {
	ok := id != "" && len(id) <= wire.MaxID && id[0] != '.'
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			ok = false
		}
	}
	if !ok {
		return status.Errorf(codes.InvalidArgument, "bad id %q", id)
	}
	return nil
}

func (s *Service) ids() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.containers))
}

// container returns a container that is complete.
func (s *Service) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil && c.root != nil {
		return c, nil
	}
	return nil, status.Errorf(codes.NotFound, "no container %s", id)
}

// Info implements wire.GuestService.
func (s *Service) Info(context.Context, *wire.InfoRequest) (*wire.InfoResponse, error) {
	var u unix.Utsname
	var si unix.Sysinfo_t
	var up unix.Timespec
	if err := unix.Uname(&u); err != nil {
		return nil, status.Errorf(codes.Internal, "uname: %v", err)
	}
	if err := unix.Sysinfo(&si); err != nil {
		return nil, status.Errorf(codes.Internal, "sysinfo: %v", err)
	}
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return nil, status.Errorf(codes.Internal, "read uptime: %v", err)
	}
	anon, descriptors, processes := usage()
	return &wire.InfoResponse{
		AnonBytes: anon, Descriptors: descriptors, Processes: processes,
		Protocol: wire.Protocol, Version: s.version, KernelRelease: unix.ByteSliceToString(u.Release[:]),
		MemTotalBytes: si.Totalram * uint64(si.Unit), Cpus: uint32(runtime.NumCPU()),
		Containers: s.ids(), UptimeNanos: uint64(up.Nano()),
	}, nil
}

// usage is what hyperstart itself holds. What can't be read is zero.
func usage() (anon uint64, descriptors, processes uint32) {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, _ := strconv.ParseUint(strings.Fields(v)[0], 10, 64)
			anon = kib << 10
		}
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	all, _ := os.ReadDir("/proc")
	for _, e := range all {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		// Kernel threads have no program.
		if _, err := os.Readlink("/proc/" + e.Name() + "/exe"); err == nil {
			processes++
		}
	}
	return anon, uint32(max(len(fds)-1, 0)), processes
}
