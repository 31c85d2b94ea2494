package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/intake"
)

// sharing collects how many buckets are remembered for the rates, and their bound.
type sharing struct{ *admission }

var (
	rateEntries    = prometheus.NewDesc("certmill_gateway_rate_entries", "Callers and sets of names remembered for their rates.", []string{"bound"}, nil)
	rateEntriesMax = prometheus.NewDesc("certmill_gateway_rate_entries_max", "Their bound, limits.rate_entries; 0 where the rate is not limited.", []string{"bound"}, nil)
)

// Describe implements prometheus.Collector.
func (c *sharing) Describe(out chan<- *prometheus.Desc) { out <- rateEntries; out <- rateEntriesMax }

// Collect implements prometheus.Collector.
func (c *sharing) Collect(out chan<- prometheus.Metric) {
	for _, r := range []struct {
		bound    string
		len, max int
	}{{"caller_rate", c.callers.len(), c.callers.bound()}, {"names_rate", c.names.len(), c.names.bound()}} {
		out <- prometheus.MustNewConstMetric(rateEntries, prometheus.GaugeValue, float64(r.len), r.bound)
		out <- prometheus.MustNewConstMetric(rateEntriesMax, prometheus.GaugeValue, float64(r.max), r.bound)
	}
}

// connections collects the connections of the listeners, from when they are open.
type connections struct {
	listeners func() map[string]*intake.Listener
	max       int
}

var (
	connectionsOpen    = prometheus.NewDesc("certmill_gateway_connections", "Open connections.", []string{"listener"}, nil)
	connectionsMax     = prometheus.NewDesc("certmill_gateway_connections_max", "Their bound, limits.max_connections.", []string{"listener"}, nil)
	connectionsRefused = prometheus.NewDesc("certmill_gateway_connections_refused_total", "Connections closed at once because there were too many, of one address or altogether.", []string{"listener"}, nil)
)

// Describe implements prometheus.Collector.
func (c *connections) Describe(out chan<- *prometheus.Desc) {
	out <- connectionsOpen
	out <- connectionsMax
	out <- connectionsRefused
}

// Collect implements prometheus.Collector.
func (c *connections) Collect(out chan<- prometheus.Metric) {
	for name, l := range c.listeners() {
		out <- prometheus.MustNewConstMetric(connectionsOpen, prometheus.GaugeValue, float64(l.Connections()), name)
		out <- prometheus.MustNewConstMetric(connectionsMax, prometheus.GaugeValue, float64(c.max), name)
		out <- prometheus.MustNewConstMetric(connectionsRefused, prometheus.CounterValue, float64(l.Refused()), name)
	}
}
