// Package telemetry gives every role its logger, its metrics registry, its tracer
// and the operator's listener (/metrics, /healthz, /readyz, /debug/pprof).
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/certmill/certmill/internal/config"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Version is the program's version; the build sets it (see the Makefile).
var Version = "dev"

// Telemetry is what one process tells of itself. It is safe for concurrent use.
type Telemetry struct {
	Log      *slog.Logger
	Registry *prometheus.Registry
	Tracer   trace.Tracer
	// Provider makes further tracers, for libraries that want one of their own.
	Provider trace.TracerProvider

	cfg   config.Telemetry
	flush func(context.Context) error
}

// New makes the telemetry of a role, with logs to standard error. It connects to
// nothing and listens nowhere. It makes this process's OpenTelemetry globals ours:
// the propagator is W3C trace context, and errors of the exporter are logged.
func New(role string, cfg config.Telemetry) (*Telemetry, error) {
	return NewTo(os.Stderr, role, cfg)
}

// NewTo is New with logs to w.
func NewTo(w io.Writer, role string, cfg config.Telemetry) (*Telemetry, error) {
	log, err := newLogger(w, role, cfg)
	if err != nil {
		return nil, err
	}
	t := &Telemetry{Log: log, Registry: newRegistry(role), cfg: cfg}
	if err := t.startTracing(role); err != nil {
		return nil, fmt.Errorf("setting traces up: %w", err)
	}
	return t, nil
}

// newLogger makes the logger; nothing below it checks the level or the format again.
func newLogger(w io.Writer, role string, cfg config.Telemetry) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return nil, fmt.Errorf("telemetry.log_level: %q is not debug, info, warn or error", cfg.LogLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler
	switch cfg.LogFormat {
	case "json":
		handler = slog.NewJSONHandler(w, options)
	case "text":
		handler = slog.NewTextHandler(w, options)
	default:
		return nil, fmt.Errorf("telemetry.log_format: %q is not json or text", cfg.LogFormat)
	}
	return slog.New(traced{handler}).With("role", role), nil
}

func newRegistry(role string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo(role))
	return r
}

func buildInfo(role string) prometheus.Collector {
	version, revision := Build()
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "certmill_build_info",
		Help:        "Always 1; the labels say which build runs in which role.",
		ConstLabels: prometheus.Labels{"version": version, "revision": revision, "role": role},
	}, func() float64 { return 1 })
}

// DescribeMetrics registers the metrics that every role has beside Go's and the
// process's, for their description.
func DescribeMetrics(r prometheus.Registerer) { r.MustRegister(buildInfo("any")) }

// Build returns the version and the revision of the source, "unknown" where the
// build did not record it.
func Build() (version, revision string) {
	revision = "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	return Version, revision
}

func (t *Telemetry) startTracing(role string) error {
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { t.Log.Warn("traces are not delivered", "error", err) }))
	t.flush = func(context.Context) error { return nil }
	t.Provider = noop.NewTracerProvider()
	if t.cfg.TraceEndpoint != "" {
		exporter, err := otlptracegrpc.New(context.Background(),
			otlptracegrpc.WithEndpoint(t.cfg.TraceEndpoint), otlptracegrpc.WithInsecure())
		if err != nil {
			return err
		}
		provider := sdktrace.NewTracerProvider(
			// The batcher's queue is bounded; beyond it spans are dropped, never requests.
			sdktrace.WithBatcher(exporter, sdktrace.WithMaxQueueSize(8192)),
			sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(t.cfg.TraceRatio))),
			sdktrace.WithResource(resource.NewSchemaless(
				attribute.String("service.name", "certmill-"+role),
				attribute.String("service.version", Version),
			)),
		)
		t.Provider = provider
		t.flush = func(ctx context.Context) error { return errors.Join(provider.ForceFlush(ctx), provider.Shutdown(ctx)) }
	}
	otel.SetTracerProvider(t.Provider)
	t.Tracer = t.Provider.Tracer("github.com/certmill/certmill")
	return nil
}

// Shutdown delivers the spans that are waiting, as far as ctx allows. Call it after
// the role has stopped; spans that end later are lost.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	if err := t.flush(ctx); err != nil {
		return fmt.Errorf("delivering the last traces: %w", err)
	}
	return nil
}
