package presign

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/ocsp"
)

type metrics struct {
	records       map[source]map[ocsp.Written]prometheus.Counter
	failures      map[source]prometheus.Counter
	signSeconds   prometheus.Histogram
	badSignatures prometheus.Counter
	forged        prometheus.Counter
	eventSeconds  *prometheus.HistogramVec
	losses        prometheus.Counter
	crls          prometheus.Counter
	mismatches    *prometheus.CounterVec

	sweepExamined, sweepTotal, sweepRunning, sweepLeft prometheus.Gauge
	sweepLast                                          prometheus.Gauge
	backlog                                            prometheus.Gauge
	redisRecords, nearest, oldest, redisBytes, compact prometheus.Gauge
	signerExpiry, overdue                              prometheus.Gauge

	total atomic.Int64 // what sweepTotal shows
}

var writtenNames = map[ocsp.Written]string{
	ocsp.RevokedStands: "revoked_stands", ocsp.Superseded: "superseded", ocsp.Refreshed: "refreshed", ocsp.Changed: "changed",
}

// The ways in which Redis and the ledger can differ: labels of mismatches_total.
const (
	mismatchMissing  = "missing"            // the ledger has a certificate without a record
	mismatchGood     = "good_but_revoked"   // the record says good, the ledger revoked
	mismatchRevoked  = "revoked_but_good"   // the record says revoked, the ledger good
	mismatchUnknown  = "not_in_ledger"      // a record of a certificate that the ledger does not have
	mismatchExpired  = "expired"            // an answer that should have been refreshed has expired
	mismatchUnread   = "unreadable"         // a record that cannot be decoded
	mismatchTooLong  = "beyond_certificate" // nextUpdate lies beyond notAfter
	mismatchSignedBy = "unknown_signer"     // the record names a signer that is not the issuer's
	mismatchForged   = "forged"             // the record says revoked, and no signer of ours has signed it
)

var mismatchKinds = []string{mismatchMissing, mismatchGood, mismatchRevoked, mismatchUnknown, mismatchExpired, mismatchUnread, mismatchTooLong, mismatchSignedBy, mismatchForged}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "certmill_presign_" + name, Help: help})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "certmill_presign_" + name, Help: help})
		reg.MustRegister(g)
		return g
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "certmill_presign_" + name, Help: help}, labels)
		reg.MustRegister(v)
		return v
	}
	m := &metrics{
		records:       map[source]map[ocsp.Written]prometheus.Counter{},
		failures:      map[source]prometheus.Counter{},
		badSignatures: counter("bad_signatures_total", "Signatures that were wrong when they were checked. Any is a defect of the key's token."),
		forged:        counter("forged_events_total", "Events without a valid authentication code."),
		crls:          counter("crls_total", "CRLs brought from the ledger to Redis."),
		losses:        counter("redis_losses_total", "Times at which Redis was found restarted, failed over or emptied."),
		mismatches:    vec("mismatches_total", "Differences between ledger and Redis that the sweep has found.", "kind"),
		signSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "certmill_presign_sign_seconds", Help: "Duration of the signatures of one record.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5}}),
		eventSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "certmill_presign_event_seconds", Help: "From an event in the stream to its answers in Redis.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60}}, []string{"event"}),
		sweepExamined: gauge("sweep_examined", "Certificates that the sweep under way has compared."),
		sweepTotal:    gauge("last_sweep_certificates", "Certificates that the last whole sweep has compared; 0 before the first."),
		sweepRunning:  gauge("sweep_running", "1 while a sweep is under way."),
		sweepLeft:     gauge("sweep_left_seconds", "Estimate of the time until the sweep under way ends; 0 where there is none."),
		sweepLast:     gauge("sweep_last_end_timestamp_seconds", "When the last whole sweep ended."),
		backlog:       gauge("backlog_records", "Records that the sweep has found due and not signed yet."),
		redisRecords:  gauge("redis_records", "Records in this presigner's share of Redis, as last counted."),
		nearest:       gauge("nearest_next_update_timestamp_seconds", "The earliest nextUpdate in this presigner's share, of unexpired certificates, as last counted."),
		oldest:        gauge("oldest_produced_timestamp_seconds", "The earliest producedAt in this presigner's share, as last counted."),
		overdue:       gauge("overdue_records", "Records in this presigner's share that should have been refreshed and were not, as last counted."),
		redisBytes:    gauge("redis_used_bytes", "Memory in use at the Redis servers."),
		compact:       gauge("redis_compact", "1 if the Redis servers keep records in their compact form (hash-max-listpack-value of at least 256)."),
		signerExpiry:  gauge("signer_expiry_timestamp_seconds", "When the first issuer is left without an OCSP signer with a usable key; 0 where there is none."),
	}
	reg.MustRegister(m.signSeconds, m.eventSeconds)
	written := vec("records_total", "Records signed, by reason and what became of them.", "source", "written")
	failed := vec("failures_total", "Batches that could not be signed and written whole, by reason. They are tried again.", "source")
	for _, s := range sources {
		m.records[s] = map[ocsp.Written]prometheus.Counter{}
		for w, name := range writtenNames {
			m.records[s][w] = written.WithLabelValues(string(s), name)
		}
		m.failures[s] = failed.WithLabelValues(string(s))
	}
	for _, k := range mismatchKinds {
		m.mismatches.WithLabelValues(k)
	}
	return m
}

func (m *metrics) written(s source, w ocsp.Written) { m.records[s][w].Inc() }

// watch registers the gauges that are read from the presigner when they are scraped.
func (p *Presigner) watch(reg prometheus.Registerer) {
	gauge := func(name, help string, read func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "certmill_presign_" + name, Help: help}, read))
	}
	gauge("signing", "Records being signed; concurrency is the bound.", func() float64 { return float64(len(p.slots)) })
	gauge("slices", "Slices of the sweep that this presigner holds, of 64.", func() float64 { return float64(len(p.leases.held())) })
}

// setTotal notes what a whole sweep has compared.
func (m *metrics) setTotal(n int) {
	m.total.Store(int64(n))
	m.sweepTotal.Set(float64(n))
	m.sweepLast.SetToCurrentTime()
}

func (m *metrics) lastTotal() float64 { return float64(m.total.Load()) }

func (m *metrics) setCompact(on bool) {
	m.compact.Set(0)
	if on {
		m.compact.Set(1)
	}
}
