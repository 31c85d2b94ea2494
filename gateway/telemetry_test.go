package gateway

import (
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc/metadata"

	"github.com/certmill/certmill/internal/problem"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func TestACallIsCountedAndTracedWithItsCaller(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	w := newWorld(t, func(_ *Config, d *Deps) { d.Tracer = provider.Tracer("test") })
	const traceID, parent = "0af7651916cd43dd8448eb211c80319c", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, token: w.idp.token(t, "alice"),
		header: http.Header{"Traceparent": {parent}}, body: armour(newCSR(t, nil, "a.example.test"))}).ok(t, 200)
	ctx := metadata.AppendToOutgoingContext(as(t.Context(), w.idp.token(t, "alice")), "traceparent", parent)
	must(certmillv1.NewCertificateAuthorityClient(w.dial(t)).Issue(ctx, &certmillv1.IssueRequest{Csr: newCSR(t, nil, "b.example.test")}))(t)
	w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType}).expect(t, 401, "authorization", "missing")

	var ours int
	for _, s := range spans.Ended() {
		if s.Name() == "gateway.issue" && s.SpanContext().TraceID().String() == traceID {
			ours++
		}
	}
	if ours != 2 {
		t.Errorf("%d spans continue the caller's trace", ours)
	}
	for kind, want := range map[problem.Kind]float64{"": 2, problem.Unauthenticated: 1, problem.Internal: 0} {
		if got := testutil.ToFloat64(w.gateway.observer.metrics.requests[routeIssue][kind]); got != want {
			t.Errorf("%g calls of kind %q are counted, want %g", got, kind, want)
		}
	}
	families := must(w.registry.Gather())(t)
	names := map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
	}
	for _, name := range []string{
		"certmill_gateway_requests_total", "certmill_gateway_request_duration_seconds", "certmill_gateway_in_flight_requests", "certmill_gateway_in_flight_requests_max",
		"certmill_gateway_order_waiters", "certmill_gateway_order_waiters_max", "certmill_gateway_issuers_age_seconds",
	} {
		if !names[name] {
			t.Errorf("there is no metric %s", name)
		}
	}
}
