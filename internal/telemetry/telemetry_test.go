package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/config"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLogsNameTheRoleAndObeyTheLevel(t *testing.T) {
	var out bytes.Buffer
	cfg := config.DefaultTelemetry()
	cfg.LogLevel = "warn"
	tel, err := NewTo(&out, "signer", cfg)
	if err != nil {
		t.Fatal(err)
	}
	tel.Log.Info("quiet")
	tel.Log.Warn("loud", "n", 3)
	var line struct {
		Msg, Role string
		N         int
	}
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("not one JSON line: %q: %v", out.String(), err)
	}
	if line.Msg != "loud" || line.Role != "signer" || line.N != 3 {
		t.Fatalf("got %+v", line)
	}
}

func TestAWrongLevelOrFormatIsNamed(t *testing.T) {
	for _, cfg := range []config.Telemetry{{LogLevel: "loud", LogFormat: "json"}, {LogLevel: "info", LogFormat: "xml"}} {
		if _, err := NewTo(io.Discard, "x", cfg); err == nil || !strings.Contains(err.Error(), "telemetry.log_") {
			t.Errorf("%+v: got error %v", cfg, err)
		}
	}
}

func TestOperatorsSeeMetricsHealthReadinessAndProfiles(t *testing.T) {
	tel, err := NewTo(io.Discard, "gateway", config.DefaultTelemetry())
	if err != nil {
		t.Fatal(err)
	}
	var down atomic.Bool
	server := httptest.NewServer(tel.Handler(func() error {
		if down.Load() {
			return errors.New("the ledger is away")
		}
		return nil
	}))
	defer server.Close()
	get := func(path string) (int, string) {
		resp, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	for path, want := range map[string]string{
		"/metrics": `certmill_build_info{revision=`, "/healthz": "ok", "/readyz": "ready", "/debug/pprof/": "goroutine", "/debug/pprof/heap?debug=1": "heap profile",
	} {
		if code, body := get(path); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: status %d without %q", path, code, want)
		}
	}
	down.Store(true)
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "the ledger is away") {
		t.Errorf("/readyz of a role that is not ready: %d %q", code, body)
	}
	if code, _ := get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz of a role that is not ready: %d", code)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	cfg := config.DefaultTelemetry()
	cfg.Listen = "127.0.0.1:0"
	tel, err := NewTo(io.Discard, "x", cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// The listener may be refused by the ended context, or opened and closed again.
	if err := tel.Serve(ctx, func() error { return nil }); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestServeSaysThatItsAddressIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := config.DefaultTelemetry()
	cfg.Listen = l.Addr().String()
	tel, err := NewTo(io.Discard, "x", cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := tel.Serve(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "telemetry.listen") {
		t.Fatalf("got %v", err)
	}
}

type sink struct {
	collector.UnimplementedTraceServiceServer
	spans chan string
}

func (s *sink) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	for _, rs := range r.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, span := range ss.Spans {
				s.spans <- span.Name
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func TestSpansReachTheCollectorByTheEndOfShutdown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, spans := grpc.NewServer(), make(chan string, 8)
	collector.RegisterTraceServiceServer(server, &sink{spans: spans})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	cfg := config.DefaultTelemetry()
	cfg.TraceEndpoint, cfg.TraceRatio = l.Addr().String(), 1
	tel, err := NewTo(io.Discard, "gateway", cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := tel.Tracer.Start(t.Context(), "gateway.issue")
	carrier := propagation.MapCarrier{}
	otel.GetTextMapPropagator().Inject(ctx, carrier)
	span.End()
	if carrier["traceparent"] == "" {
		t.Error("no W3C traceparent is passed on")
	}
	stop, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := tel.Shutdown(stop); err != nil {
		t.Fatal(err)
	}
	server.Stop()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	close(spans)
	if got := <-spans; got != "gateway.issue" {
		t.Fatalf("the collector got %q", got)
	}
}

func TestALineAndAnExemplarNameTheTraceOfASampledRequest(t *testing.T) {
	var out bytes.Buffer
	tel, err := NewTo(&out, "gateway", config.DefaultTelemetry())
	if err != nil {
		t.Fatal(err)
	}
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "certmill_test_seconds", Buckets: []float64{1}})
	tel.Registry.MustRegister(h)
	id := trace.TraceID{1, 2, 3}
	for _, flags := range []trace.TraceFlags{0, trace.FlagsSampled} {
		ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: trace.SpanID{4}, TraceFlags: flags}))
		tel.Log.InfoContext(ctx, "request")
		Observe(ctx, h, 0.5)
		if sampled := flags != 0; strings.Contains(out.String(), `"trace_id":"`+id.String()+`"`) != sampled {
			t.Errorf("sampled %t: %s", sampled, out.String())
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	w := httptest.NewRecorder()
	tel.Handler(func() error { return nil }).ServeHTTP(w, r)
	if !strings.Contains(w.Body.String(), `# {trace_id="`+id.String()+`"} 0.5`) {
		t.Error("/metrics has no exemplar")
	}
}
