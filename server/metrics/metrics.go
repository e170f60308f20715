// Package metrics shows the server's figures to Prometheus.
//
// Figures that another part counts come by a Source, asked at each scrape;
// boots are counted here, from the events. No label has a node's name or a
// MAC: what strangers on the boot network can make up never becomes a series.
package metrics

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metric is one figure, or a family of them told apart by labels.
type Metric struct {
	Name    string // "dsas_dhcp_received_total"
	Help    string
	Counter bool // only ever grows; else it is a gauge
	Labels  []string
	Samples []Sample
}

// Sample is a value and the labels' values, in their order.
type Sample struct {
	Values []string
	Value  float64
}

// Source gives metrics as they are now. What it gives beside an error is shown.
type Source func(ctx context.Context) ([]Metric, error)

// scrapeTime bounds a scrape: Prometheus's own default is 10 s.
const scrapeTime = 8 * time.Second

// Registry is what /metrics shows.
type Registry struct {
	reg    *prometheus.Registry
	log    *slog.Logger
	source Source
	failed prometheus.Counter
}

// New makes a Registry for a program of this version; source may be nil.
func New(version string, started time.Time, source Source, log *slog.Logger) *Registry {
	r := &Registry{reg: prometheus.NewRegistry(), log: log, source: source}
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "dsas_build_info", Help: "The program; the value is always 1."}, []string{"version"})
	info.WithLabelValues(version).Set(1)
	start := prometheus.NewGauge(prometheus.GaugeOpts{Name: "dsas_start_time_seconds", Help: "When the server started, since 1970."})
	start.Set(float64(started.UnixNano()) / 1e9)
	r.failed = prometheus.NewCounter(prometheus.CounterOpts{Name: "dsas_metrics_failures_total", Help: "Scrapes for which not all figures could be had; the log says why."})
	r.reg.MustRegister(info, start, r.failed, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if source != nil {
		r.reg.MustRegister(pull{r})
	}
	return r
}

// Handler answers scrapes, two at a time.
func (r *Registry) Handler() http.Handler {
	return promhttp.HandlerFor(r.reg, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(r.log.Handler(), slog.LevelError), ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: 2, Timeout: scrapeTime + time.Second,
	})
}

// pull asks the source when it is scraped.
type pull struct{ *Registry }

// Describe describes nothing: which figures there are, the source says.
func (pull) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (p pull) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	list, err := p.source(ctx)
	if err != nil {
		p.failed.Inc()
		p.log.Error("collect metrics", "err", err)
	}
	for _, m := range list {
		kind := prometheus.GaugeValue
		if m.Counter {
			kind = prometheus.CounterValue
		}
		desc := prometheus.NewDesc(m.Name, m.Help, m.Labels, nil)
		for _, s := range m.Samples {
			one, err := prometheus.NewConstMetric(desc, kind, s.Value, s.Values...)
			if err != nil {
				one = prometheus.NewInvalidMetric(desc, err)
			}
			out <- one
		}
	}
}
