package hsm

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of one token. Several tokens share a registry by their label.
type metrics struct {
	unregister func()
	sign       prometheus.Observer
	wait       prometheus.Observer
	errors     *prometheus.CounterVec
	reinits    *prometheus.CounterVec
	abandoned  prometheus.Counter
	breaker    prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, t *Token) *metrics {
	var mine []prometheus.Collector
	labels := prometheus.Labels{"token": t.name()}
	gauge := func(name, help string, read func() float64) {
		mine = append(mine, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, read))
	}
	histogram := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: name, Help: help, ConstLabels: labels,
			Buckets: prometheus.ExponentialBuckets(25e-6, 2, 18), // 25 µs to 3.3 s
		})
		mine = append(mine, h)
		return h
	}
	counters := func(name, help, label string, values ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, []string{label})
		for _, v := range values {
			c.WithLabelValues(v)
		}
		mine = append(mine, c)
		return c
	}
	gauge("certmill_hsm_sessions", "Sessions of the token's pool.", func() float64 { return float64(t.cfg.Sessions) })
	gauge("certmill_hsm_sessions_busy", "Sessions of the pool that are in use.", func() float64 { return float64(cap(t.free) - len(t.free)) })
	gauge("certmill_hsm_waiting", "Signatures that wait for a session.", func() float64 { return float64(t.queue.length()) })
	gauge("certmill_hsm_calls_hanging", "Calls into the module that were given up and have not come back.", func() float64 { return float64(t.abandoned.Load()) })
	abandoned := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "certmill_hsm_calls_abandoned_total", Help: "Calls into the module that were given up.", ConstLabels: labels})
	breaker := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "certmill_hsm_breaker_state", Help: "The token's breaker: 0 closed (the token works), 1 half-open, 2 open.", ConstLabels: labels})
	mine = append(mine, abandoned, breaker)
	remedyNames := make([]string, len(Remedies))
	for i, r := range Remedies {
		remedyNames[i] = string(r)
	}
	m := &metrics{
		sign:      histogram("certmill_hsm_sign_seconds", "Time of one signature inside the module, mending included; of several made in one call the mean."),
		wait:      histogram("certmill_hsm_wait_seconds", "Time a signature waited for a session."),
		errors:    counters("certmill_hsm_errors_total", "Failed PKCS#11 operations by what helps against them.", "remedy", remedyNames...),
		reinits:   counters("certmill_hsm_reinitialisations_total", "C_Finalize and C_Initialize, by result.", "result", "ok", "failed"),
		abandoned: abandoned, breaker: breaker,
	}
	mine = append(mine, conditionGauges(t, labels)...)
	m.unregister = register(r, mine)
	return m
}

// conditionGauges are one gauge per condition, of which one is 1.
func conditionGauges(t *Token, labels prometheus.Labels) []prometheus.Collector {
	gauges := make([]prometheus.Collector, len(Conditions))
	for i, c := range Conditions {
		gauges[i] = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "certmill_hsm_condition", Help: "1 for what the token is fit for, 0 for the rest.",
			ConstLabels: prometheus.Labels{"token": labels["token"], "condition": string(c)},
		}, func() float64 {
			if t.State().Condition == c {
				return 1
			}
			return 0
		})
	}
	return gauges
}

// register registers the collectors and returns how to undo it. A token opened twice
// under one name counts in the metrics of the first.
func register(r prometheus.Registerer, all []prometheus.Collector) (undo func()) {
	if r == nil {
		return func() {}
	}
	var registered []prometheus.Collector
	for _, c := range all {
		err := r.Register(c)
		var already prometheus.AlreadyRegisteredError
		if errors.As(err, &already) {
			continue
		}
		if err == nil {
			registered = append(registered, c)
		}
	}
	return func() {
		for _, c := range registered {
			r.Unregister(c)
		}
	}
}

func (m *metrics) failure(r Remedy) { m.errors.WithLabelValues(string(r)).Inc() }

func (m *metrics) reinitialised(err error) {
	if err != nil {
		m.reinits.WithLabelValues("failed").Inc()
		return
	}
	m.reinits.WithLabelValues("ok").Inc()
}

// DescribeMetrics registers the metrics of a token that is not there, for their
// reference. They must not be asked for values.
func DescribeMetrics(r prometheus.Registerer) {
	newMetrics(r, &Token{})
	r.MustRegister(newUnopened())
}
