package gateway

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/problem"
)

// route names a call in metrics, logs and traces. The set is closed.
type route uint8

const (
	routeIssue route = iota
	routeBatch
	routeStream
	routeStreamItem
	routeSubmit
	routeGetOrder
	routeRevoke
	routeGetCertificate
	routeListCertificates
	routeRenewalInfo
	routeTrustBundle
	routeCreateToken
	routeListTokens
	routeDeleteToken
	routeAudit
	routeRenewEarly
	routeListEarlyRenewals
	routeEndEarlyRenewal
	routeOpenAPI
	routeHealth
	routeReady
	routeUnknown
	routes // how many there are
)

var routeNames = [routes]string{
	"issue", "issue_batch", "issue_stream", "issue_stream_item", "submit", "get_order", "revoke",
	"get_certificate", "list_certificates", "renewal_info", "trust_bundle", "create_token", "list_tokens", "delete_token",
	"audit", "renew_early", "list_early_renewals", "end_early_renewal", "openapi", "healthz", "readyz", "unknown",
}

func (r route) String() string { return routeNames[r] }

// span names the span of a call; what issues certificates has one name on every transport.
func (r route) span() string {
	if r <= routeStreamItem {
		return "gateway.issue"
	}
	return "gateway." + routeNames[r]
}

// metrics counts calls. The children of each route and kind are looked up once.
type metrics struct {
	requests [routes]map[problem.Kind]prometheus.Counter
	duration [routes]prometheus.Observer
}

func newMetrics(r prometheus.Registerer, s *service) *metrics {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "certmill_gateway_requests_total", Help: "Calls served, by route and kind of outcome (ok or a problem's kind).",
	}, []string{"route", "kind"})
	duration := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "certmill_gateway_request_duration_seconds", Help: "Time from the header of a call to its answer.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	}, []string{"route"})
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	r.MustRegister(requests, duration,
		gauge("certmill_gateway_in_flight_requests", "Calls and certificates in work.", func() float64 { return float64(s.inFlight.used.Load()) }),
		gauge("certmill_gateway_in_flight_requests_max", "Their bound, limits.max_in_flight.", func() float64 { return float64(s.inFlight.max) }),
		gauge("certmill_gateway_renewals_in_flight_requests", "Renewals in work.", func() float64 { return float64(s.renewing.used.Load()) }),
		gauge("certmill_gateway_renewals_in_flight_requests_max", "Their bound, limits.renewal_share of limits.max_in_flight.", func() float64 { return float64(s.renewing.max) }),
		gauge("certmill_gateway_order_waiters", "Callers that wait for an order.", func() float64 { return float64(s.waiting.used.Load()) }),
		gauge("certmill_gateway_order_waiters_max", "Their bound, orders.max_waiting.", func() float64 { return float64(s.waiting.max) }),
		gauge("certmill_gateway_issuers_age_seconds", "Time since the issuers were read from the ledger.", func() float64 {
			if loaded := s.issuers.current().loaded; !loaded.IsZero() {
				return s.now().Sub(loaded).Seconds()
			}
			return 0
		}),
	)
	m := &metrics{}
	for k := range routes {
		m.duration[k] = duration.WithLabelValues(k.String())
		m.requests[k] = map[problem.Kind]prometheus.Counter{"": requests.WithLabelValues(k.String(), kindLabel(""))}
		for _, kind := range problem.Kinds {
			m.requests[k][kind] = requests.WithLabelValues(k.String(), string(kind))
		}
	}
	return m
}

func (m *metrics) observe(r route, kind problem.Kind, elapsed time.Duration) {
	m.requests[r][kind].Inc()
	m.duration[r].Observe(elapsed.Seconds())
}
