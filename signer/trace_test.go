package signer

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/ledger"
)

// One trace runs from the caller's request to the commit, and untraced requests make
// no span at all.
func TestOneTraceRunsToTheCommit(t *testing.T) {
	w := newWorld(t)
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())))
	s, err := New(w.cfg, Deps{Tracer: provider.Tracer("test"), Log: testLog(t)})
	w.check(err)
	w.run(s, prometheus.NewRegistry(), s.Run)

	traced, untraced := w.request("traced"), w.request("untraced")
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	traced.Traceparent = "00-" + trace + "-" + parent + "-01"
	before := len(spans.Ended())
	w.send(queue.First, untraced)
	w.certificate(w.await(1)[ledger.RequestKey(untraced.RequestKey)])
	w.send(queue.First, traced)
	w.certificate(w.await(1)[ledger.RequestKey(traced.RequestKey)])
	w.drained()

	got := map[string]bool{}
	for _, span := range spans.Ended()[before:] {
		if id := span.SpanContext().TraceID().String(); id != trace {
			if span.Name() != "hsm.sign" || span.Parent().IsValid() { // the token's own test signatures
				t.Errorf("span %s is of trace %s, parent %s", span.Name(), id, span.Parent().TraceID())
			}
			continue
		}
		if span.Parent().SpanID().String() != parent {
			t.Errorf("span %s hangs on %s", span.Name(), span.Parent().SpanID())
		}
		got[span.Name()] = true
	}
	for _, want := range []string{"queue.wait", "signer.prepare", "hsm.sign", "ledger.commit"} {
		if !got[want] {
			t.Errorf("no span %s in %v", want, got)
		}
	}
}
