package rest

import (
	"maps"
	"slices"
	"time"

	"github.com/hyper-run/hyper/api"
	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/pod"
)

func podsOf(pods []pod.PodInfo) []api.Pod {
	list := []api.Pod{}
	for _, p := range pods {
		list = append(list, podOf(p))
	}
	return list
}

func podOf(p pod.PodInfo) api.Pod {
	s := p.Spec
	out := api.Pod{
		ID: p.ID, Name: p.Name, Created: p.Created, Status: string(p.Status), Ready: p.Ready, Error: p.Error,
		StartedAt: p.StartedAt, FinishedAt: p.FinishedAt, Containers: []api.PodContainer{},
		Spec: api.PodSpec{
			Labels: s.Labels, Annotations: s.Annotations, Hostname: s.Hostname, Domainname: s.Domainname, ExtraHosts: s.ExtraHosts,
			DNS: s.DNS, DNSSearch: s.DNSSearch, DNSOptions: s.DNSOptions, Network: s.Network, Sysctls: s.Sysctls, SharePID: s.SharePID,
			ShmBytes: s.ShmBytes, MemoryBytes: s.Resources.MemoryBytes, NanoCPUs: s.Resources.NanoCPUs, Kernel: s.Kernel,
			KernelArgs: s.KernelArgs, StopTimeout: s.StopTimeout, AutoRemove: s.AutoRemove, Persist: s.Persist,
		},
	}
	for _, c := range p.Containers {
		out.Containers = append(out.Containers, containerOf(c))
	}
	for _, v := range s.Volumes {
		out.Volumes = append(out.Volumes, api.PodVolume{Name: v.Name, Memory: v.Memory, Bytes: v.Bytes, Files: len(v.Files)})
	}
	if n := p.Net; n != nil {
		out.Network = &api.PodNetwork{
			Name: n.Network, MAC: n.MAC, Address: n.Address, PrefixLen: n.PrefixLen, Gateway: n.Gateway,
			IPv6: n.IPv6, IPv6PrefixLen: n.IPv6PrefixLen, IPv6Gateway: n.IPv6Gateway,
		}
	}
	if v := p.VM; v != nil {
		out.VM = &api.PodVM{
			HostPID: v.HostPID, Accel: v.Accel, Machine: v.Machine, Kernel: v.Kernel, KernelName: v.KernelName, CPUs: v.CPUs, MemMiB: v.MemMiB,
			BootTime: v.BootTime, Road: string(v.Road), Template: v.Template, ColdBoot: v.Cold,
		}
	}
	return out
}

func containerOf(c pod.Container) api.PodContainer {
	role := string(c.Spec.Role)
	if c.Spec.Role == pod.RoleMain {
		role = "main"
	}
	return api.PodContainer{
		ID: c.ID, Name: c.Name, Image: c.Spec.Image, Role: role, Status: string(c.Status), Ready: c.Ready, ExitCode: c.ExitCode,
		OOMKilled: c.OOMKilled, Error: c.Error, Probe: c.Probe, RestartCount: c.RestartCount, StartedAt: c.StartedAt, FinishedAt: c.FinishedAt,
	}
}

// statsOf lists the containers in the order of their pod, then those that the
// pod no longer has.
func statsOf(p pod.PodInfo, s *pod.PodStats) api.PodStats {
	out := api.PodStats{
		ID: p.ID, Name: p.Name, Guest: usageOf(s.Guest), Containers: []api.ContainerUsage{},
		Host: api.HostUsage{CPUNanos: uint64(s.Host.CPU), PSSBytes: s.Host.PSSBytes},
	}
	left := maps.Clone(s.Containers)
	for _, c := range p.Containers {
		if u := left[c.ID]; u != nil {
			out.Containers = append(out.Containers, api.ContainerUsage{ID: c.ID, Name: c.Name, Usage: usageOf(u)})
			delete(left, c.ID)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(left)) {
		out.Containers = append(out.Containers, api.ContainerUsage{ID: id, Usage: usageOf(left[id])})
	}
	return out
}

func usageOf(s *wire.StatsResponse) api.Usage {
	u := api.Usage{
		ReadAt: time.Unix(0, s.GetReadAtNanos()).UTC(), CPUNanos: s.GetCpuUsageNanos(), CPUUserNanos: s.GetCpuUserNanos(),
		CPUSystemNanos: s.GetCpuSystemNanos(), CPUThrottledNanos: s.GetCpuThrottledNanos(), MemoryBytes: s.GetMemoryBytes(),
		MemoryWorkingBytes: workingSet(s), MemoryLimitBytes: s.GetMemoryLimitBytes(), OOMKills: s.GetOomKills(),
		PIDs: s.GetPids(), PIDsLimit: s.GetPidsLimit(),
	}
	for _, b := range s.GetBlockIo() {
		u.BlockReadBytes += b.GetReadBytes()
		u.BlockWriteBytes += b.GetWriteBytes()
		u.BlockReads += b.GetReads()
		u.BlockWrites += b.GetWrites()
	}
	for _, n := range s.GetInterfaces() {
		if n.GetName() != "lo" {
			u.NetworkReceiveBytes += n.GetRxBytes()
			u.NetworkSendBytes += n.GetTxBytes()
		}
	}
	for _, p := range s.GetPressure() {
		u.Pressure = append(u.Pressure, api.Pressure{
			Resource: p.GetResource(), Full: p.GetFull(), TotalMicros: p.GetTotalMicros(),
			Avg10: float64(p.GetAvg10()) / 100, Avg60: float64(p.GetAvg60()) / 100, Avg300: float64(p.GetAvg300()) / 100,
		})
	}
	return u
}

func workingSet(s *wire.StatsResponse) uint64 {
	cache := s.GetMemoryStat()["inactive_file"]
	return s.GetMemoryBytes() - min(cache, s.GetMemoryBytes())
}
