package signer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/problem"
)

type metrics struct {
	requests                                            *prometheus.CounterVec
	messages, pulls, replies, lookups, retries, refused prometheus.Counter
	expired, forged, poison, eventsDropped              prometheus.Counter
	ordersFailed, ordersPoisonous                       prometheus.Counter
	queueWait, prepare, sign, commit                    prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, s *Signer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "certmill_signer_" + name, Help: help})
		reg.MustRegister(c)
		return c
	}
	seconds := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "certmill_signer_" + name, Help: help,
			Buckets: prometheus.ExponentialBuckets(20e-6, 2, 20)}) // 20 µs to 10 s
		reg.MustRegister(h)
		return h
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "certmill_signer_requests_total",
			Help: "Requests ended, by kind (ok or the kind of failure), issuer and profile."}, []string{"kind", "issuer", "profile"}),
		messages:        counter("messages_total", "Messages taken from the queue."),
		pulls:           counter("pulls_total", "Messages asked for."),
		replies:         counter("replies_total", "Reply messages written."),
		lookups:         counter("lookups_total", "Requests looked for in the ledger before they were signed."),
		retries:         counter("hsm_retries_total", "Signatures tried a second time."),
		refused:         counter("refused_by_profile_total", "Requests that a gateway let through and the profile does not."),
		expired:         counter("expired_total", "Messages and requests dropped since their callers had gone."),
		forged:          counter("forged_total", "Messages refused: not made by a gateway of ours, or not for their subject."),
		poison:          counter("poison_total", "Requests that made the signer panic; each was contained."),
		ordersFailed:    counter("orders_failed_total", "Orders ended with a failure; each is logged."),
		ordersPoisonous: counter("orders_poisonous_total", "Orders given up since signers died whenever they worked on them."),
		eventsDropped:   counter("events_dropped_total", "Certificates not announced to presigners at once; their sweep finds them."),
		queueWait:       seconds("queue_wait_seconds", "From the broker's receipt of a request to the start of its work."),
		prepare:         seconds("prepare_seconds", "Profile check, serial, TBS and lint."),
		sign:            seconds("sign_seconds", "Wait for a session, signature, and its check."),
		commit:          seconds("commit_seconds", "Group commit, wait included."),
	}
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "certmill_signer_" + name, Help: help}, value))
	}
	reg.MustRegister(m.requests)
	gauge("in_flight", "Requests held, from the pull to the reply.", func() float64 { return float64(s.inFlight.Load()) })
	gauge("max_in_flight", "Bound of certmill_signer_in_flight.", func() float64 { return float64(s.cfg.MaxInFlight) })
	gauge("signatures_in_hand", "Signatures that are being made, or are made and not yet settled: neither a row nor written down as without one.", func() float64 {
		n := 0
		for _, l := range s.allLines() {
			for _, seat := range l.allSeats() {
				n += cap(seat.hand.free) - len(seat.hand.free)
			}
		}
		return float64(n)
	})
	gauge("clock_skew_seconds", "This clock less the database's, as last measured; beyond max_clock_skew no work is taken.", func() float64 {
		return time.Duration(s.skew.Load()).Seconds()
	})
	gauge("issuers", "Issuers served.", func() float64 { return float64(len(s.allLines())) })
	gauge("ledger_paused", "1 while no work is taken since the ledger does not answer.", func() float64 {
		if s.gate.isOpen() {
			return 0
		}
		return 1
	})
	return m
}

// ended counts a request. profile must be one of ours: it is a label.
func (m *metrics) ended(kind problem.Kind, issuer, profile string) {
	if kind == "" {
		kind = "ok"
	}
	m.requests.WithLabelValues(string(kind), issuer, profile).Inc()
}
