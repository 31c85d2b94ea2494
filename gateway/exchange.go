package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/queue"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// exchange is one call on its way through the gateway, whatever its transport: what
// its span, its metrics and its one log line need. It belongs to the call's goroutine.
type exchange struct {
	observer  *observer
	route     route
	requestID string
	started   time.Time
	span      trace.Span

	caller  *Caller
	profile string
	issued  *issued // what Issue gave
	items   int     // of a batch
}

// observer ends exchanges: it is the one place that logs and counts requests.
type observer struct {
	log     *slog.Logger
	tracer  trace.Tracer
	metrics *metrics
}

// begin opens the span of a call. traceparent is the caller's, or empty.
func (o *observer) begin(ctx context.Context, r route, traceparent string) (context.Context, *exchange) {
	x := &exchange{observer: o, route: r, requestID: newRequestID(), started: time.Now()}
	ctx, _ = queue.WithTraceParent(ctx, traceparent)
	ctx, x.span = o.tracer.Start(ctx, r.span(), trace.WithSpanKind(trace.SpanKindServer))
	return ctx, x
}

// about notes what the call asks for, and takes the caller's name for it.
func (x *exchange) about(in *certmillv1.IssueRequest) {
	x.profile = in.GetProfile()
	if id := requestIDOf(in); id != "" {
		x.requestID = id
	}
}

// end closes the call. err is what the caller was told, with its cause.
func (x *exchange) end(ctx context.Context, err error) {
	elapsed := time.Since(x.started)
	kind := problem.KindOf(err)
	x.observer.metrics.observe(ctx, x.route, kind, elapsed)
	x.observer.metrics.refuse(err)
	if x.span.IsRecording() {
		x.endSpan(kind, err)
	}
	x.span.End()
	x.write(ctx, kind, elapsed, err)
}

func (x *exchange) endSpan(kind problem.Kind, err error) {
	x.span.SetAttributes(attribute.String("certmill.request_id", x.requestID), attribute.String("certmill.profile", x.profile))
	if err != nil {
		x.span.SetAttributes(attribute.String("certmill.kind", string(kind)))
		x.span.SetStatus(codes.Error, problem.From(err).Detail)
	}
}

// write logs the call. A refusal for overload is counted, and not logged above debug:
// a flood must not become a flood of lines.
func (x *exchange) write(ctx context.Context, kind problem.Kind, elapsed time.Duration, err error) {
	level := slog.LevelInfo
	switch kind {
	case problem.Internal:
		level = slog.LevelError
	case problem.Unavailable:
		level = slog.LevelWarn
	case problem.Overloaded:
		level = slog.LevelDebug
	case "":
		if x.route == routeHealth || x.route == routeReady || x.route == routeOpenAPI {
			level = slog.LevelDebug
		}
	}
	if !x.observer.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs, slog.String("request_id", x.requestID), slog.String("route", x.route.String()),
		slog.String("kind", kindLabel(kind)), slog.Duration("duration", elapsed))
	if x.caller != nil {
		attrs = append(attrs, slog.String("caller", x.caller.ID))
	}
	if x.items > 0 {
		attrs = append(attrs, slog.Int("items", x.items))
	}
	switch {
	case x.issued != nil:
		attrs = append(attrs, slog.String("profile", x.issued.request.Profile), slog.String("issuer", x.issued.issuer.Name), slog.String("serial", x.issued.serial.String()))
	case x.profile != "":
		attrs = append(attrs, slog.String("profile", x.profile))
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	x.observer.log.LogAttrs(ctx, level, "request", attrs...)
}

func kindLabel(k problem.Kind) string {
	if k == "" {
		return "ok"
	}
	return string(k)
}

// panicked makes a failure of a recovered panic: logged with its stack, never sent.
func panicked(v any) error {
	return &problem.Error{Kind: problem.Internal, Detail: "internal error; the request id finds it in the log", Cause: fmt.Errorf("panic: %v\n%s", v, debug.Stack())}
}

// serverTiming writes where the time went as a Server-Timing header (W3C Server
// Timing), in milliseconds.
func serverTiming(r *queuev1.SignResult, total time.Duration) string {
	b := make([]byte, 0, 112)
	b = appendTiming(b, "queue", int64(r.QueueUs))
	b = appendTiming(b, "prepare", int64(r.PrepareUs))
	b = appendTiming(b, "hsm", int64(r.SignUs))
	b = appendTiming(b, "commit", int64(r.CommitUs))
	return string(appendTiming(b, "total", total.Microseconds()))
}

// totalTiming is serverTiming for an answer that no signer had a part in.
func totalTiming(total time.Duration) string {
	return string(appendTiming(nil, "total", total.Microseconds()))
}

func appendTiming(b []byte, name string, micros int64) []byte {
	if len(b) > 0 {
		b = append(b, ", "...)
	}
	b = append(append(b, name...), ";dur="...)
	b = append(strconv.AppendInt(b, micros/1000, 10), '.')
	below := micros % 1000
	return append(b, '0'+byte(below/100), '0'+byte(below/10%10), '0'+byte(below%10))
}

// problemMessage is the form in which a failure is sent.
func problemMessage(err error, requestID string) *certmillv1.Problem {
	e := problem.From(err)
	p := &certmillv1.Problem{
		Type: e.Kind.Type(), Title: e.Kind.Title(), Status: int32(statusOf(err)), Detail: strings.ToValidUTF8(e.Detail, "�"),
		Field: e.Field, Rule: e.Rule, RequestId: requestID,
	}
	if e.RetryAfter > 0 {
		p.RetryAfter = durationMessage(e.RetryAfter)
	}
	return p
}
