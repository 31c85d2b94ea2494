package telemetry

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Fill puts a logger, a registry and a tracer that tell nobody, and the real clock, in
// the place of what a role's Deps leave out. A nil pointer is something that the role
// does without.
func Fill(log **slog.Logger, registry *prometheus.Registerer, tracer *trace.Tracer, now *func() time.Time) {
	if log != nil && *log == nil {
		*log = slog.New(slog.DiscardHandler)
	}
	if registry != nil && *registry == nil {
		*registry = prometheus.NewRegistry()
	}
	if tracer != nil && *tracer == nil {
		*tracer = noop.NewTracerProvider().Tracer("")
	}
	if now != nil && *now == nil {
		*now = time.Now
	}
}
