package queue

import (
	"context"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// carrier holds the one header of W3C Trace Context that crosses the queue.
type carrier struct{ traceparent string }

func (c *carrier) Get(key string) string {
	if key == "traceparent" {
		return c.traceparent
	}
	return ""
}

func (c *carrier) Set(key, value string) {
	if key == "traceparent" {
		c.traceparent = value
	}
}

func (c *carrier) Keys() []string { return []string{"traceparent"} }

// TraceParent returns the W3C traceparent of ctx for SignRequest.traceparent, and ""
// where the request is not sampled: then nothing behind the queue makes a span for it.
func TraceParent(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return ""
	}
	var c carrier
	propagation.TraceContext{}.Inject(ctx, &c)
	return c.traceparent
}

// WithTraceParent returns ctx with the caller's span as the remote parent. ok is
// false, and ctx as it came, where traceparent is empty or not valid.
func WithTraceParent(ctx context.Context, traceparent string) (_ context.Context, ok bool) {
	if traceparent == "" {
		return ctx, false
	}
	out := propagation.TraceContext{}.Extract(ctx, &carrier{traceparent})
	return out, trace.SpanContextFromContext(out).IsSampled()
}
