package dockerapi

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// statsInterval is how often a stream of stats has a new sample.
const statsInterval = time.Second

func (a *api) stats(c *call) error {
	ct, err := a.Containers.Get(c.name)
	if err != nil {
		return err
	}
	s, err := a.sample(c, ct.ID)
	if err != nil {
		return err
	}
	if !c.flag("stream", true) {
		oneShot := c.flag("one-shot", false) && !c.before(41)
		if !oneShot && isRunning(ct) {
			if s, err = a.nextSample(c, s); err != nil {
				return err
			}
		}
		return c.json(http.StatusOK, s)
	}
	c.begin("application/json", http.StatusOK)
	enc := json.NewEncoder(c.w)
	for {
		if err := enc.Encode(s); err != nil {
			return err
		}
		c.flush()
		if s, err = a.nextSample(c, s); errdefs.IsNotFound(err) {
			return nil // removed
		} else if err != nil {
			return err
		}
	}
}

// nextSample waits and takes a sample that can be compared with the one before.
func (a *api) nextSample(c *call, before *container.StatsResponse) (*container.StatsResponse, error) {
	select {
	case <-time.After(statsInterval):
	case <-c.ctx().Done():
		return nil, c.ctx().Err()
	}
	s, err := a.sample(c, before.ID)
	if err != nil {
		return nil, err
	}
	s.PreRead, s.PreCPUStats = before.Read, before.CPUStats
	return s, nil
}

// sample reads a container's counters; of one that does not run, only its names.
func (a *api) sample(c *call, id string) (*container.StatsResponse, error) {
	ct, err := a.Containers.Get(id)
	if err != nil {
		return nil, err
	}
	out := &container.StatsResponse{ID: ct.ID, Name: "/" + ct.Name, OSType: "linux"}
	if !isRunning(ct) {
		return out, nil
	}
	s, err := a.Containers.Stats(c.ctx(), ct.ID)
	if err != nil {
		if now, getErr := a.Containers.Get(id); getErr == nil && !isRunning(now) {
			return out, nil // it ended in between
		}
		return nil, err
	}
	fillStats(out, s)
	return out, nil
}

func fillStats(out *container.StatsResponse, s *wire.StatsResponse) {
	out.Read = time.Unix(0, s.GetReadAtNanos()).UTC()
	out.CPUStats = container.CPUStats{
		CPUUsage:    container.CPUUsage{TotalUsage: s.GetCpuUsageNanos(), UsageInKernelmode: s.GetCpuSystemNanos(), UsageInUsermode: s.GetCpuUserNanos()},
		SystemUsage: s.GetSystemCpuNanos(), OnlineCPUs: s.GetOnlineCpus(),
		ThrottlingData: container.ThrottlingData{Periods: s.GetCpuPeriods(), ThrottledPeriods: s.GetCpuThrottledPeriods(), ThrottledTime: s.GetCpuThrottledNanos()},
	}
	out.MemoryStats = container.MemoryStats{
		Usage: s.GetMemoryBytes(), MaxUsage: s.GetMemoryMaxBytes(), Limit: s.GetMemoryLimitBytes(), Stats: s.GetMemoryStat(), Failcnt: s.GetOomKills(),
	}
	out.PidsStats = container.PidsStats{Current: s.GetPids(), Limit: s.GetPidsLimit()}
	for _, b := range s.GetBlockIo() {
		entry := func(op string, n uint64) container.BlkioStatEntry {
			return container.BlkioStatEntry{Major: uint64(b.GetMajor()), Minor: uint64(b.GetMinor()), Op: op, Value: n}
		}
		io := &out.BlkioStats
		io.IoServiceBytesRecursive = append(io.IoServiceBytesRecursive, entry("read", b.GetReadBytes()), entry("write", b.GetWriteBytes()))
		io.IoServicedRecursive = append(io.IoServicedRecursive, entry("read", b.GetReads()), entry("write", b.GetWrites()))
	}
	for _, n := range s.GetInterfaces() {
		if n.GetName() == "lo" {
			continue
		}
		if out.Networks == nil {
			out.Networks = map[string]container.NetworkStats{}
		}
		out.Networks[n.GetName()] = container.NetworkStats{
			RxBytes: n.GetRxBytes(), RxPackets: n.GetRxPackets(), RxErrors: n.GetRxErrors(), RxDropped: n.GetRxDropped(),
			TxBytes: n.GetTxBytes(), TxPackets: n.GetTxPackets(), TxErrors: n.GetTxErrors(), TxDropped: n.GetTxDropped(),
		}
	}
}
