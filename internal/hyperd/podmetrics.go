package hyperd

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/pod"
)

// A podCollector reads what every pod uses when somebody asks for the metrics:
// what the guests say of themselves, and what their VMs cost the host.
type podCollector struct {
	pods interface {
		ListPods() []pod.PodInfo
		PodStats(ctx context.Context, ref string) (*pod.PodStats, error)
	}
}

// A guest that does not answer in this time is left out.
const scrapeTimeout = 2 * time.Second

var (
	podLabels       = []string{"pod", "pod_id"}
	containerLabels = []string{"pod", "pod_id", "container", "container_id"}
)

func desc(name, help string, labels []string, more ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, append(append([]string{}, labels...), more...), nil)
}

// A usage is the metrics of one kind of thing that a guest has counters of.
type usage struct {
	cpu, memory, workingSet, limit, pids, oom, read, written, pressure *prometheus.Desc
}

func newUsage(what string, labels []string) usage {
	name := func(s string) string { return "hyper_" + what + "_" + s }
	return usage{
		cpu:        desc(name("cpu_seconds_total"), "CPU time used, as the guest counts it.", labels),
		memory:     desc(name("memory_bytes"), "Memory used in the guest, with page cache.", labels),
		workingSet: desc(name("memory_working_set_bytes"), "Memory used in the guest, without page cache that was not used lately.", labels),
		limit:      desc(name("memory_limit_bytes"), "Memory that may be used.", labels),
		pids:       desc(name("processes"), "Processes and threads.", labels),
		oom:        desc(name("oom_kills_total"), "Processes that the guest killed for want of memory.", labels),
		read:       desc(name("disk_read_bytes_total"), "Bytes read from disks.", labels),
		written:    desc(name("disk_written_bytes_total"), "Bytes written to disks.", labels),
		pressure:   desc(name("pressure_seconds_total"), "Time that some or all tasks waited for a resource.", labels, "resource", "kind"),
	}
}

var (
	podUsage       = newUsage("pod", podLabels)
	containerUsage = newUsage("container", containerLabels)

	podReceived    = desc("hyper_pod_network_receive_bytes_total", "Bytes received from the network.", podLabels, "interface")
	podTransmitted = desc("hyper_pod_network_transmit_bytes_total", "Bytes sent to the network.", podLabels, "interface")
	vmCPU          = desc("hyper_vm_cpu_seconds_total", "CPU time of the host that the VM's processes used.", podLabels)
	vmMemory       = desc("hyper_vm_memory_pss_bytes", "Memory of the host that the VM's processes take, shared pages in proportion.", podLabels)
	podsRunning    = desc("hyper_pods", "Pods by status.", []string{"status"})
)

// Describe implements prometheus.Collector.
func (podCollector) Describe(ch chan<- *prometheus.Desc) { ch <- podsRunning }

// Collect implements prometheus.Collector.
func (c podCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	statuses := map[pod.PodStatus]int{}
	var g errgroup.Group
	g.SetLimit(64) // those that do not answer take all the time there is, and must not take it from others
	for _, p := range c.pods.ListPods() {
		statuses[p.Status]++
		if p.VM == nil {
			continue
		}
		g.Go(func() error {
			if st, err := c.pods.PodStats(ctx, p.ID); err == nil {
				collectPod(ch, p, st)
			}
			return nil
		})
	}
	_ = g.Wait()
	for status, n := range statuses {
		ch <- prometheus.MustNewConstMetric(podsRunning, prometheus.GaugeValue, float64(n), string(status))
	}
}

func collectPod(ch chan<- prometheus.Metric, p pod.PodInfo, st *pod.PodStats) {
	name := p.Name
	names := map[string]string{}
	for _, c := range p.Containers {
		names[c.ID] = c.Name
		if name == "" {
			name = c.Name // a pod that was made for it
		}
	}
	labels := []string{name, p.ID}
	podUsage.collect(ch, st.Guest, labels)
	for _, i := range st.Guest.Interfaces {
		if i.Name == "eth0" { // the one it was given; what a guest names otherwise is its own affair
			counter(ch, podReceived, float64(i.RxBytes), name, p.ID, i.Name)
			counter(ch, podTransmitted, float64(i.TxBytes), name, p.ID, i.Name)
			break
		}
	}
	counter(ch, vmCPU, st.Host.CPU.Seconds(), labels...)
	ch <- prometheus.MustNewConstMetric(vmMemory, prometheus.GaugeValue, float64(st.Host.PSSBytes), labels...)
	for id, cs := range st.Containers {
		containerUsage.collect(ch, cs, []string{name, p.ID, names[id], id})
	}
}

func (u usage) collect(ch chan<- prometheus.Metric, st *wire.StatsResponse, labels []string) {
	gauge := func(d *prometheus.Desc, v uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	counter(ch, u.cpu, float64(st.CpuUsageNanos)/1e9, labels...)
	gauge(u.memory, st.MemoryBytes)
	gauge(u.workingSet, st.MemoryBytes-min(st.MemoryBytes, st.MemoryStat["inactive_file"]))
	gauge(u.limit, st.MemoryLimitBytes)
	gauge(u.pids, st.Pids)
	counter(ch, u.oom, float64(st.OomKills), labels...)
	var read, written uint64
	for _, b := range st.BlockIo {
		read += b.ReadBytes
		written += b.WriteBytes
	}
	counter(ch, u.read, float64(read), labels...)
	counter(ch, u.written, float64(written), labels...)
	seen := map[[2]string]bool{} // a guest may say anything
	for _, p := range st.Pressure {
		kind := "some"
		if p.Full {
			kind = "full"
		}
		key := [2]string{p.Resource, kind}
		if p.Resource != "cpu" && p.Resource != "memory" && p.Resource != "io" || seen[key] {
			continue
		}
		seen[key] = true
		counter(ch, u.pressure, float64(p.TotalMicros)/1e6, append(append([]string{}, labels...), p.Resource, kind)...)
	}
}

func counter(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
}
