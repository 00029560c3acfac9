package show

import (
	"fmt"
	"strconv"
	"time"

	"github.com/docker/go-units"

	"github.com/hyper-run/hyper/api"
	"github.com/hyper-run/hyper/internal/cli/format"
)

// Pods is the list of pod ls.
var Pods = format.Table{
	Columns: "{{.ID}}\t{{.Name}}\t{{.Status}}\t{{.RunningFor}}\t{{.Containers}}\t{{.CPUs}}\t{{.Memory}}\t{{.IP}}",
	Headers: format.Row{
		"ID": "POD ID", "Name": "NAME", "Status": "STATUS", "State": "STATE", "CreatedAt": "CREATED AT", "RunningFor": "CREATED",
		"Containers": "CONTAINERS", "CPUs": "CPUS", "Memory": "MEMORY", "IP": "IP", "Ready": "READY", "Labels": "LABELS",
	},
}

// Pod is a pod as pod ls shows it. One that was made for one container has that
// one's name.
func Pod(p api.Pod, trunc bool) format.Row {
	running := 0
	for _, c := range p.Containers {
		if c.Status == "running" || c.Status == "paused" {
			running++
		}
	}
	r := format.Row{
		"ID": p.ID, "Name": p.Name, "Status": podStatus(p), "State": p.Status, "CreatedAt": p.Created.Local().String(),
		"RunningFor": format.Ago(p.Created), "Containers": fmt.Sprintf("%d/%d", running, len(p.Containers)),
		"CPUs": "auto", "Memory": "auto", "IP": "", "Ready": strconv.FormatBool(p.Ready), "Labels": format.Labels(p.Spec.Labels),
	}
	if trunc {
		r["ID"] = format.ShortID(p.ID)
	}
	if p.Name == "" && len(p.Containers) > 0 {
		r["Name"] = p.Containers[0].Name
	}
	if n := p.Spec.NanoCPUs; n > 0 {
		r["CPUs"] = strconv.FormatFloat(float64(n)/1e9, 'f', -1, 64)
	}
	if n := p.Spec.MemoryBytes; n > 0 {
		r["Memory"] = units.BytesSize(float64(n))
	}
	if p.Network != nil {
		r["IP"] = p.Network.Address
	}
	return r
}

func podStatus(p api.Pod) string {
	switch p.Status {
	case "created":
		return "Created"
	case "exited":
		if p.FinishedAt.IsZero() {
			return "Exited"
		}
		return "Exited " + format.Ago(p.FinishedAt)
	}
	up := "Up " + units.HumanDuration(time.Since(p.StartedAt))
	switch p.Status {
	case "paused":
		up += " (Paused)"
	case "degraded":
		up += " (Degraded)"
	}
	return up
}

// PodFigures is the list of pod stats.
var PodFigures = format.Table{
	Columns: "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}\t{{.HostCPUPerc}}\t{{.HostMem}}",
	Headers: format.Row{
		"ID": "POD ID", "Name": "NAME", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %", "NetIO": "NET I/O",
		"BlockIO": "BLOCK I/O", "PIDs": "PIDS", "HostCPUPerc": "HOST CPU %", "HostMem": "HOST MEM",
	},
}

// PodFigure is a line of pod stats: a pod by the name it was asked for, and two
// of its figures that are took apart; nil when there are none.
func PodFigure(name string, before, now *api.PodStats, took time.Duration, trunc bool) format.Row {
	const missing = "--"
	r := format.Row{
		"ID": "", "Name": name, "CPUPerc": missing, "MemUsage": missing + " / " + missing, "MemPerc": missing, "NetIO": missing,
		"BlockIO": missing, "PIDs": missing, "HostCPUPerc": missing, "HostMem": missing,
	}
	if now == nil {
		return r
	}
	r["ID"] = now.ID
	if trunc {
		r["ID"] = format.ShortID(now.ID)
	}
	if now.Name != "" {
		r["Name"] = now.Name
	}
	g := now.Guest
	r["MemUsage"] = units.BytesSize(float64(g.MemoryWorkingBytes)) + " / " + units.BytesSize(float64(g.MemoryLimitBytes))
	r["MemPerc"] = format.Percent(ratio(g.MemoryWorkingBytes, g.MemoryLimitBytes))
	r["NetIO"] = format.Size(int64(g.NetworkReceiveBytes)) + " / " + format.Size(int64(g.NetworkSendBytes))
	r["BlockIO"] = format.Size(int64(g.BlockReadBytes)) + " / " + format.Size(int64(g.BlockWriteBytes))
	r["PIDs"] = strconv.FormatUint(g.PIDs, 10)
	r["HostMem"] = units.BytesSize(float64(now.Host.PSSBytes))
	if before != nil {
		guest := g.ReadAt.Sub(before.Guest.ReadAt)
		r["CPUPerc"] = format.Percent(ratio(g.CPUNanos-min(before.Guest.CPUNanos, g.CPUNanos), uint64(max(guest, 0))))
		r["HostCPUPerc"] = format.Percent(ratio(now.Host.CPUNanos-min(before.Host.CPUNanos, now.Host.CPUNanos), uint64(max(took, 0))))
	}
	return r
}

// ratio is a part of a whole in percent.
func ratio(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole) * 100
}
