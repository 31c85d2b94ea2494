package crl

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/ledger"
)

type metrics struct {
	count    *prometheus.CounterVec
	failed   prometheus.Counter
	duration prometheus.Histogram
	entries  prometheus.Histogram
	nearest  prometheus.Gauge
	waiting  prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		count: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "certmill_crl_made_total", Help: "CRLs made by this process, on schedule or for a revocation."}, []string{"cause"}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "certmill_crl_failures_total", Help: "CRLs that this process began to make and did not publish."}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "certmill_crl_make_seconds", Help: "Time to make a CRL.", Buckets: prometheus.ExponentialBuckets(0.004, 4, 9)}),
		entries: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "certmill_crl_entries", Help: "Entries of the CRLs made.", Buckets: prometheus.ExponentialBuckets(1, 10, 8)}),
		nearest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "certmill_crl_nearest_next_update_timestamp_seconds", Help: "The earliest nextUpdate of all CRLs that could be made anew, those that end with their issuer left out; 0 where there is none; alarm when it is near."}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "certmill_crl_waiting", Help: "CRLs that lack a revocation which the ledger has."}),
	}
	r.MustRegister(m.count, m.failed, m.duration, m.entries, m.nearest, m.waiting)
	return m
}

func (m *metrics) look(nearest time.Time, waiting int) {
	at := int64(0)
	if !nearest.IsZero() {
		at = nearest.Unix()
	}
	m.nearest.Set(float64(at))
	m.waiting.Set(float64(waiting))
}

func (m *metrics) made(revoked bool, took time.Duration, c ledger.CRL) {
	cause := "schedule"
	if revoked {
		cause = "revocation"
	}
	m.count.WithLabelValues(cause).Inc()
	m.duration.Observe(took.Seconds())
	m.entries.Observe(float64(c.Entries))
}

// DescribeMetrics registers the metrics of a maker of CRLs that is not there, for their
// reference. They must not be asked for values.
func DescribeMetrics(r prometheus.Registerer) { newMetrics(r) }
