package gateway

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/intake"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/telemetry"
)

// route names a call in metrics, logs and traces. The set is closed.
type route uint8

const (
	routeIssue route = iota
	routeBatch
	routeStream
	routeStreamItem
	routeMesh // Istio's CreateCertificate
	routeSubmit
	routeGetOrder
	routeRevoke
	routeGetCertificate
	routeListCertificates
	routeRenewalInfo
	routeTrustBundle
	routeSPIFFEBundle
	routeCreateToken
	routeListTokens
	routeDeleteToken
	routeAudit
	routeRenewEarly
	routeListEarlyRenewals
	routeEndEarlyRenewal
	routeStatus
	routeOpenConsole
	routeConsole
	routeOpenAPI
	routeHealth
	routeReady
	routeUnknown
	routes // how many there are
)

var routeNames = [routes]string{
	"issue", "issue_batch", "issue_stream", "issue_stream_item", "mesh_issue", "submit", "get_order", "revoke",
	"get_certificate", "list_certificates", "renewal_info", "trust_bundle", "spiffe_bundle", "create_token", "list_tokens", "delete_token",
	"audit", "renew_early", "list_early_renewals", "end_early_renewal", "status", "open_console", "console", "openapi", "healthz", "readyz", "unknown",
}

func (r route) String() string { return routeNames[r] }

// span names the span of a call; what issues certificates has one name on every transport.
func (r route) span() string {
	if r <= routeMesh {
		return "gateway.issue"
	}
	return "gateway." + routeNames[r]
}

// metrics counts calls. The children of each route and kind are looked up once.
type metrics struct {
	requests [routes]map[problem.Kind]prometheus.Counter
	duration [routes]prometheus.Observer
	refused  map[string]prometheus.Counter // by bound
}

// bounds are the rules of Overloaded problems: the closed set of refusals_total.
var bounds = []string{"in_flight", "renewals_in_flight", "streams", "order_waiters", "unguarded", "caller_share", "caller_rate", "names_rate", "gateway_pending", "other"}

func newMetrics(r prometheus.Registerer, s *service, listeners func() map[string]*intake.Listener) *metrics {
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
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "certmill_gateway_refusals_total", Help: "Calls and certificates refused as too many, by the bound that was reached.",
	}, []string{"bound"})
	r.MustRegister(requests, duration, refused,
		gauge("certmill_gateway_in_flight_requests", "Calls and certificates in work.", func() float64 { return float64(s.inFlight.used.Load()) }),
		gauge("certmill_gateway_in_flight_requests_max", "Their bound at present: limits.max_in_flight, or less while requests wait longer than limits.max_wait.", func() float64 { return float64(s.admission.calls.bound.Load()) }),
		gauge("certmill_gateway_renewals_in_flight_requests", "Renewals in work.", func() float64 { return float64(s.renewing.used.Load()) }),
		gauge("certmill_gateway_renewals_in_flight_requests_max", "Their bound, limits.renewal_share of that of all.", func() float64 { return float64(s.renewing.bound.Load()) }),
		gauge("certmill_gateway_order_waiters", "Callers that wait for an order.", func() float64 { return float64(s.waiting.used.Load()) }),
		gauge("certmill_gateway_order_waiters_max", "Their bound, orders.max_waiting.", func() float64 { return float64(s.waiting.max) }),
		gauge("certmill_gateway_streams", "IssueStream calls that are open.", func() float64 { return float64(s.streams.used.Load()) }),
		gauge("certmill_gateway_streams_max", "Their bound, limits.max_streams.", func() float64 { return float64(s.streams.max) }),
		gauge("certmill_gateway_callers", "Callers with calls in work.", func() float64 { n, _ := s.admission.calls.callers(); return float64(n) }),
		gauge("certmill_gateway_caller_requests_most", "Calls in work of the caller who has the most.", func() float64 { _, most := s.admission.calls.callers(); return float64(most) }),
		&sharing{s.admission}, &connections{listeners, s.cfg.Limits.MaxConnections},
		gauge("certmill_gateway_issuer_expiry_timestamp_seconds", "When the first active issuer expires; 0 where there is none.", s.issuers.nearestExpiry),
		gauge("certmill_gateway_ledger_read_only", "1 while the ledger answers and takes no writes, so that requests are refused at once.", func() float64 {
			if s.writable.check() != nil {
				return 1
			}
			return 0
		}),
		gauge("certmill_gateway_issuers_age_seconds", "Time since the issuers were read from the ledger.", func() float64 {
			if loaded := s.issuers.current().loaded; !loaded.IsZero() {
				return s.now().Sub(loaded).Seconds()
			}
			return 0
		}),
	)
	m := &metrics{refused: map[string]prometheus.Counter{}}
	for _, bound := range bounds {
		m.refused[bound] = refused.WithLabelValues(bound)
	}
	for k := range routes {
		m.duration[k] = duration.WithLabelValues(k.String())
		m.requests[k] = map[problem.Kind]prometheus.Counter{"": requests.WithLabelValues(k.String(), kindLabel(""))}
		for _, kind := range problem.Kinds {
			m.requests[k][kind] = requests.WithLabelValues(k.String(), string(kind))
		}
	}
	return m
}

func (m *metrics) observe(ctx context.Context, r route, kind problem.Kind, elapsed time.Duration) {
	m.requests[r][kind].Inc()
	telemetry.Observe(ctx, m.duration[r], elapsed.Seconds())
}

// refuse counts a failure that is Overloaded by its bound; another one is not counted.
func (m *metrics) refuse(err error) {
	if problem.KindOf(err) != problem.Overloaded {
		return
	}
	counter := m.refused[problem.From(err).Rule]
	if counter == nil { // the queue's and the signers' own
		counter = m.refused["other"]
	}
	counter.Inc()
}
