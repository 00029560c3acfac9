package hyperd

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/hyper-run/hyper/internal/pod"
)

// metrics are what /metrics serves, in Prometheus' format.
type metrics struct {
	registry *prometheus.Registry
	starts   *prometheus.HistogramVec // seconds, by road
	stages   *prometheus.HistogramVec // seconds, by road and stage
}

func newMetrics(pods *pod.Set) *metrics {
	buckets := prometheus.ExponentialBuckets(0.001, 2, 14) // 1 ms to 8 s
	m := &metrics{
		registry: prometheus.NewRegistry(),
		starts: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hyper_start_seconds", Buckets: buckets,
			Help: "Time from the request to start a container to its process running, by how its VM came to be.",
		}, []string{"road"}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hyper_start_stage_seconds", Buckets: buckets,
			Help: "Time of each stage of starting a container.",
		}, []string{"road", "stage"}),
	}
	warm := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hyper_warm_vms", Help: "VMs that are kept ready.",
	}, func() float64 { ready, _ := pods.Warm(); return float64(ready) })
	m.registry.MustRegister(m.starts, m.stages, warm, podCollector{pods},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) started(t pod.Trace) {
	for _, s := range t.Stages {
		m.stage(t.Road, s)
	}
	if n := len(t.Stages); n > 0 {
		last := t.Stages[n-1]
		m.starts.WithLabelValues(string(t.Road)).Observe((last.At + last.Took).Seconds())
	}
}

func (m *metrics) stage(road pod.Road, s pod.Stage) {
	m.stages.WithLabelValues(string(road), s.Name).Observe(s.Took.Seconds())
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
