package gateway

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/presence"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/telemetry"
)

// issuance measures what the service is for: certificates, whatever way they were
// asked for. Its figures are the service's level indicators.
type issuance struct {
	window  presence.Window
	outcome map[queue.Priority]map[problem.Kind]prometheus.Counter
	seconds map[queue.Priority]prometheus.Observer
	issuers *prometheus.CounterVec
}

func newIssuance(r prometheus.Registerer) *issuance {
	outcome := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "certmill_gateway_issuance_total", Help: "Certificates asked for, in every way that waits for one, by kind of outcome and by priority (first or renewal).",
	}, []string{"kind", "priority"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "certmill_gateway_issuance_seconds", Help: "Time from a checked caller to a certificate that is committed, by priority; failures are not in it.",
		Buckets: []float64{.0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	}, []string{"priority"})
	issuers := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "certmill_gateway_issued_total", Help: "Certificates handed out to callers that waited for them, by issuer.",
	}, []string{"issuer"})
	r.MustRegister(outcome, seconds, issuers)
	i := &issuance{issuers: issuers, outcome: map[queue.Priority]map[problem.Kind]prometheus.Counter{}, seconds: map[queue.Priority]prometheus.Observer{}}
	for _, p := range []queue.Priority{queue.First, queue.Renewal} {
		i.seconds[p] = seconds.WithLabelValues(string(p))
		i.outcome[p] = map[problem.Kind]prometheus.Counter{"": outcome.WithLabelValues(kindLabel(""), string(p))}
		for _, kind := range problem.Kinds {
			i.outcome[p][kind] = outcome.WithLabelValues(string(kind), string(p))
		}
	}
	return i
}

// ended counts one request for a certificate.
func (i *issuance) ended(ctx context.Context, p queue.Priority, took time.Duration, err error) {
	kind := problem.KindOf(err)
	i.outcome[p][kind].Inc()
	outcome := presence.Refused
	switch kind {
	case "":
		outcome = presence.Issued
		telemetry.Observe(ctx, i.seconds[p], took.Seconds())
	case problem.Internal, problem.Unavailable, problem.Overloaded:
		outcome = presence.Failed
	}
	i.window.Count(outcome, took, time.Now())
}

// by counts one certificate for its issuer.
func (i *issuance) by(issuer string) { i.issuers.WithLabelValues(issuer).Inc() }
