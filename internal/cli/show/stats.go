package show

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"github.com/hyper-run/hyper/internal/cli/format"
)

// Figures is the list of stats.
var Figures = format.Table{
	Columns: "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}",
	Headers: format.Row{
		"Container": "CONTAINER", "Name": "NAME", "ID": "CONTAINER ID", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT",
		"MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS",
	},
}

// Figure is a line of stats: a container by the name it was asked for, and its
// figures, nil when there are none yet.
func Figure(name string, s *container.StatsResponse, trunc bool) format.Row {
	const missing = "--"
	r := format.Row{
		"Container": name, "ID": "", "Name": missing, "CPUPerc": missing, "MemUsage": missing + " / " + missing,
		"MemPerc": missing, "NetIO": missing, "BlockIO": missing, "PIDs": missing,
	}
	if s == nil {
		return r
	}
	r["ID"] = s.ID
	if trunc {
		r["ID"] = format.ShortID(s.ID)
	}
	if name := strings.TrimPrefix(s.Name, "/"); name != "" {
		r["Name"] = name
	}
	used, percent := memoryUse(s.MemoryStats)
	r["CPUPerc"] = format.Percent(cpuPercent(s))
	r["MemUsage"] = units.BytesSize(used) + " / " + units.BytesSize(float64(s.MemoryStats.Limit))
	r["MemPerc"] = format.Percent(percent)
	r["PIDs"] = strconv.FormatUint(s.PidsStats.Current, 10)
	var rx, tx, read, written uint64
	for _, n := range s.Networks {
		rx, tx = rx+n.RxBytes, tx+n.TxBytes
	}
	for _, e := range s.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(e.Op) {
		case "read":
			read += e.Value
		case "write":
			written += e.Value
		}
	}
	r["NetIO"] = fmt.Sprintf("%s / %s", format.Size(int64(rx)), format.Size(int64(tx)))
	r["BlockIO"] = fmt.Sprintf("%s / %s", format.Size(int64(read)), format.Size(int64(written)))
	return r
}

// memoryUse leaves out the page cache that could be dropped at once, as Docker.
func memoryUse(m container.MemoryStats) (used, percent float64) {
	cache, ok := m.Stats["total_inactive_file"] // cgroup v1
	if !ok {
		cache = m.Stats["inactive_file"]
	}
	used = float64(m.Usage)
	if cache < m.Usage {
		used -= float64(cache)
	}
	if m.Limit > 0 {
		percent = used / float64(m.Limit) * 100
	}
	return used, percent
}

// cpuPercent is 100 for each CPU that was busy since the sample before.
func cpuPercent(s *container.StatsResponse) float64 {
	used := float64(s.CPUStats.CPUUsage.TotalUsage) - float64(s.PreCPUStats.CPUUsage.TotalUsage)
	all := float64(s.CPUStats.SystemUsage) - float64(s.PreCPUStats.SystemUsage)
	cpus := float64(s.CPUStats.OnlineCPUs)
	if cpus == 0 {
		cpus = float64(len(s.CPUStats.CPUUsage.PercpuUsage))
	}
	if used <= 0 || all <= 0 {
		return 0
	}
	return used / all * cpus * 100
}
