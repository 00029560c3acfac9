package guestinit

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/cgroup"
)

// userHZ is the unit of times in /proc, the same on every architecture.
const userHZ = 100

const tick = uint64(time.Second / userHZ)

// Stats implements wire.GuestService.
func (s *Service) Stats(_ context.Context, r *wire.StatsRequest) (*wire.StatsResponse, error) {
	g, netDev := s.machine.cgroups, podNetDev
	if r.ContainerId != "" {
		c, err := s.container(r.ContainerId)
		if err != nil {
			return nil, err
		}
		g, netDev = c.group, c.netDev()
	}
	cpu, events := g.Keyed("cpu.stat"), g.Keyed("memory.events")
	out := &wire.StatsResponse{
		ReadAtNanos:   now(),
		CpuUsageNanos: cpu["usage_usec"] * 1000, CpuUserNanos: cpu["user_usec"] * 1000, CpuSystemNanos: cpu["system_usec"] * 1000,
		CpuPeriods: cpu["nr_periods"], CpuThrottledPeriods: cpu["nr_throttled"], CpuThrottledNanos: cpu["throttled_usec"] * 1000,
		OnlineCpus:  uint32(runtime.NumCPU()),
		MemoryBytes: g.Uint("memory.current"), MemoryLimitBytes: g.Uint("memory.max"), MemoryMaxBytes: g.Uint("memory.peak"),
		MemoryStat: g.Keyed("memory.stat"), OomKills: events["oom_kill"],
		Pids: g.Uint("pids.current"), PidsLimit: g.Uint("pids.max"), BlockIo: blockIO(g), Pressure: pressure(g),
	}
	if err := s.addSystem(out, netDev); err != nil {
		return nil, status.Errorf(codes.Internal, "read stats: %v", err)
	}
	return out, nil
}

// addSystem adds what is not the cgroup's alone.
func (s *Service) addSystem(out *wire.StatsResponse, netDev string) (err error) {
	if out.SystemCpuNanos, err = systemCPU(); err != nil {
		return err
	}
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return err
	}
	for _, most := range []uint64{s.machine.cgroups.Uint("memory.max"), si.Totalram * uint64(si.Unit)} {
		if most != 0 && (out.MemoryLimitBytes == 0 || out.MemoryLimitBytes > most) {
			out.MemoryLimitBytes = most
		}
	}
	out.Interfaces, err = interfaces(netDev)
	return err
}

// pressure reads lines such as "some avg10=0.12 avg60=1.00 avg300=0.00 total=34"
// of a kernel that counts it (psi.rst).
func pressure(g *cgroup.Group) []*wire.Pressure {
	var list []*wire.Pressure
	for _, resource := range []string{"cpu", "memory", "io"} {
		for _, line := range g.Lines(resource + ".pressure") {
			f := strings.Fields(line)
			if len(f) != 5 {
				continue
			}
			p := &wire.Pressure{Resource: resource, Full: f[0] == "full"}
			for _, kv := range f[1:] {
				k, v, _ := strings.Cut(kv, "=")
				n, _ := strconv.ParseUint(strings.Replace(v, ".", "", 1), 10, 64) // averages have two decimals
				switch k {
				case "avg10":
					p.Avg10 = uint32(n)
				case "avg60":
					p.Avg60 = uint32(n)
				case "avg300":
					p.Avg300 = uint32(n)
				case "total":
					p.TotalMicros = n
				}
			}
			list = append(list, p)
		}
	}
	return list
}

// systemCPU is the CPU time that passed, busy and idle, over all CPUs: user
// to steal of the first line of /proc/stat (proc_stat(5)).
func systemCPU() (uint64, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f := strings.Fields(string(line))
	var sum uint64
	for _, v := range f[1:min(len(f), 9)] {
		n, _ := strconv.ParseUint(v, 10, 64)
		sum += n
	}
	return sum * tick, nil
}

// blockIO reads lines such as "254:0 rbytes=1 wbytes=2 rios=3 wios=4 …".
func blockIO(g *cgroup.Group) []*wire.BlockIO {
	var list []*wire.BlockIO
	for _, line := range g.Lines("io.stat") {
		f := strings.Fields(line)
		b := new(wire.BlockIO)
		if len(f) < 2 {
			continue
		}
		if _, err := fmt.Sscanf(f[0], "%d:%d", &b.Major, &b.Minor); err != nil {
			continue
		}
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			n, _ := strconv.ParseUint(v, 10, 64)
			switch k {
			case "rbytes":
				b.ReadBytes = n
			case "wbytes":
				b.WriteBytes = n
			case "rios":
				b.Reads = n
			case "wios":
				b.Writes = n
			}
		}
		list = append(list, b)
	}
	return list
}

const podNetDev = "/proc/net/dev"

// netDev is the file that counts what the container's network namespace,
// usually the pod's, has sent and received.
func (c *container) netDev() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sp := range c.spaces {
		if sp.flag == unix.CLONE_NEWNET && c.init != nil {
			return fmt.Sprintf("/proc/%d/net/dev", c.init.PID)
		}
	}
	return podNetDev
}

func interfaces(file string) ([]*wire.InterfaceStats, error) {
	b, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return nil, nil // its own namespace, and its process has ended
	}
	if err != nil {
		return nil, err
	}
	var list []*wire.InterfaceStats
	for line := range strings.Lines(string(b)) {
		name, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || name == "lo" || len(f) < 12 {
			continue
		}
		n := func(i int) uint64 { v, _ := strconv.ParseUint(f[i], 10, 64); return v }
		list = append(list, &wire.InterfaceStats{Name: name,
			RxBytes: n(0), RxPackets: n(1), RxErrors: n(2), RxDropped: n(3),
			TxBytes: n(8), TxPackets: n(9), TxErrors: n(10), TxDropped: n(11)})
	}
	return list, nil
}
