package ocsp

import (
	"github.com/prometheus/client_golang/prometheus"
)

// outcome is what a request ended in: a label of certmill_ocsp_requests_total.
type outcome uint8

const (
	outcomeGood outcome = iota
	outcomeRevoked
	outcomeUnauthorized
	outcomeMalformed
	outcomeTryLater
	outcomeNotModified
	numOutcomes
)

var outcomeNames = [numOutcomes]string{"good", "revoked", "unauthorized", "malformed", "try_later", "not_modified"}

type metrics struct {
	requests    [numOutcomes]prometheus.Counter
	cacheHits   prometheus.Counter
	cacheMisses prometheus.Counter
	cacheStale  prometheus.Counter
	age         prometheus.Histogram

	redisSeconds prometheus.Histogram
	redisBatch   prometheus.Histogram
	redisErrors  prometheus.Counter

	forged        prometheus.Counter
	revocationLag prometheus.Histogram
	resets        prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "certmill_ocsp_" + name, Help: help})
		reg.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "certmill_ocsp_" + name, Help: help, Buckets: buckets})
		reg.MustRegister(h)
		return h
	}
	m := &metrics{
		cacheHits:   counter("cache_hits_total", "Requests answered from the cache without asking Redis."),
		cacheMisses: counter("cache_misses_total", "Requests for which Redis was asked."),
		cacheStale:  counter("cache_unconfirmed_total", "Requests answered from the cache, inside validity, since Redis was down or still being filled."),
		age: histogram("answer_age_seconds", "Age of the answers given: now minus producedAt.",
			[]float64{1, 60, 600, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 24 * 3600, 48 * 3600, 96 * 3600}),
		redisSeconds: histogram("redis_seconds", "Duration of one pipeline of reads from Redis.",
			[]float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1}),
		redisBatch:  histogram("redis_batch_records", "Records read by one pipeline.", []float64{1, 2, 4, 8, 16, 32, 64, 128}),
		redisErrors: counter("redis_errors_total", "Records that could not be read from Redis."),
		forged:      counter("forged_records_total", "Revoked or future records in Redis that the signer they name has not signed; they are not given."),
		revocationLag: histogram("revocation_visible_seconds", "From the acknowledgement of a revocation to this responder saying revoked.",
			[]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60}),
		resets: counter("changes_missed_total", "Times at which changes may have been missed, so that every cached record was asked for again."),
	}
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "certmill_ocsp_requests_total", Help: "Requests by outcome."}, []string{"outcome"})
	reg.MustRegister(vec)
	for o := range m.requests {
		m.requests[o] = vec.WithLabelValues(outcomeNames[o])
	}
	return m
}

// watch registers the gauges that are read from the responder when they are scraped.
func (r *Responder) watch(reg prometheus.Registerer) {
	gauge := func(name, help string, read func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "certmill_ocsp_" + name, Help: help}, read))
	}
	gauge("cache_records", "Records in the cache.", func() float64 { n, _ := r.cache.size(); return float64(n) })
	gauge("cache_bytes", "Bytes of the cache; cache_bytes is its bound.", func() float64 { _, b := r.cache.size(); return float64(b) })
	gauge("connections", "Open connections; max_connections is their bound.", func() float64 {
		if l := r.intake.Load(); l != nil {
			return float64(l.Connections())
		}
		return 0
	})
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "certmill_ocsp_connections_refused_total",
		Help: "Connections closed at once because there were too many, of one address or altogether."}, func() float64 {
		if l := r.intake.Load(); l != nil {
			return float64(l.Refused())
		}
		return 0
	}))
	gauge("redis_waiting", "Requests that wait for Redis; redis_waiting is its bound.", func() float64 { return float64(len(r.fetch.queue)) })
	gauge("changes_silent_seconds", "Time since the stream of changes was last read; above changes_timeout every answer is asked for in Redis.",
		func() float64 { return r.silence().Seconds() })
	gauge("complete", "1 if Redis holds an answer for everything in the ledger.", func() float64 {
		if d := r.directory.Load(); d != nil && d.complete {
			return 1
		}
		return 0
	})
}
