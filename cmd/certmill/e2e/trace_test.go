package e2e

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// spans is an OTLP collector that remembers what it is sent.
type spans struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	found map[string]map[string]stop // trace id → span name → the span
	raw   bytes.Buffer               // all of it, as it came
}

// stop is one span of a trace.
type stop struct{ service, id, parent string }

func (s *spans) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, err := proto.Marshal(r)
	if err != nil {
		return nil, err
	}
	s.raw.Write(text)
	for _, resource := range r.ResourceSpans {
		service := ""
		for _, a := range resource.Resource.Attributes {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, scope := range resource.ScopeSpans {
			for _, span := range scope.Spans {
				id := hex.EncodeToString(span.TraceId)
				if s.found[id] == nil {
					s.found[id] = map[string]stop{}
				}
				s.found[id][span.Name] = stop{service, hex.EncodeToString(span.SpanId), hex.EncodeToString(span.ParentSpanId)}
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// services returns who has sent a span.
func (s *spans) services() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[string]bool{}
	for _, walk := range s.found {
		for _, span := range walk {
			found[span.service] = true
		}
	}
	return found
}

// observed is a service that tells all it can: every role logs at level debug and sends
// every trace to a collector of ours. Tests that leave it whole have it in common.
var observed struct {
	once      sync.Once
	service   *service
	spans     *spans
	collector *grpc.Server
	err       error
}

func observe(t *testing.T) (*service, *spans) {
	t.Helper()
	requirePrograms(t)
	observed.once.Do(func() {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			observed.err = err
			return
		}
		observed.spans = &spans{found: map[string]map[string]stop{}}
		observed.collector = grpc.NewServer()
		collector.RegisterTraceServiceServer(observed.collector, observed.spans)
		go func() { _ = observed.collector.Serve(listener) }() // until TestMain stops it
		var env []string
		for _, role := range []string{"GATEWAY", "SIGNER", "PRESIGNER", "RESPONDER", "LEDGER"} {
			env = append(env, "CERTMILL_"+role+"_TELEMETRY_LOG_LEVEL=debug", "CERTMILL_"+role+"_TELEMETRY_TRACE_RATIO=1",
				"CERTMILL_"+role+"_TELEMETRY_TRACE_ENDPOINT="+listener.Addr().String())
		}
		dir, err := os.MkdirTemp("", "certmill-observed")
		if err != nil {
			observed.err = err
			return
		}
		observed.service, observed.err = start(dir, env...)
	})
	if observed.err != nil {
		t.Fatalf("certmill dev did not come up: %v", observed.err)
	}
	return observed.service, observed.spans
}

// TestOneTraceFromTheCallerToTheCommit gives a traceparent to one call and finds every
// stop of its walk, in both processes, in that one trace; and the trace in the lines that
// both log, and in the exemplars of both.
func TestOneTraceFromTheCallerToTheCommit(t *testing.T) {
	s, got := observe(t)
	const trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+trace+"-"+caller+"-01")
	res, err := s.gateway(t).Issue(ctx, &certmillv1.IssueRequest{Csr: newCSR(t, "trace.test"), Profile: "server"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"gateway.issue": "certmill-gateway", "queue.wait": "certmill-signer", "signer.prepare": "certmill-signer",
		"hsm.sign": "certmill-signer", "signer.check": "certmill-signer", "ledger.commit": "certmill-signer",
	}
	eventually(t, 20*time.Second, func() error {
		got.mu.Lock()
		defer got.mu.Unlock()
		var missing []string
		for name, service := range want {
			if got.found[trace][name].service != service {
				missing = append(missing, name)
			}
		}
		if slices.Sort(missing); len(missing) > 0 {
			return fmt.Errorf("trace %s has %v and lacks %v", trace, got.found[trace], missing)
		}
		return nil
	})
	got.mu.Lock()
	walk := got.found[trace]
	got.mu.Unlock()
	if len(walk) != len(want) {
		t.Errorf("the trace has more than the walk: %v", walk)
	}
	for name, span := range walk {
		parent := walk["gateway.issue"].id
		if name == "gateway.issue" {
			parent = caller
		}
		if span.parent != parent {
			t.Errorf("%s hangs below %s, not %s", name, span.parent, parent)
		}
	}
	t.Run("logs", func(t *testing.T) { linesOfATrace(t, s, trace, res.Certificate.Serial) })
	t.Run("exemplars", func(t *testing.T) { exemplarsOfATrace(t, s, trace) })
}

// linesOfATrace finds the line of the gateway and that of a signer.
func linesOfATrace(t *testing.T, s *service, trace, serial string) {
	type line struct {
		Role, Serial string
		TraceID      string `json:"trace_id"`
	}
	logs, err := filepath.Glob(s.file("log/*.log"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		lines := map[string]int{}
		for _, log := range logs {
			text, err := os.ReadFile(log)
			if err != nil {
				return err
			}
			for row := range strings.Lines(string(text)) {
				var l line
				if json.Unmarshal([]byte(row), &l) == nil && l.TraceID == trace && l.Serial == serial {
					lines[l.Role]++
				}
			}
		}
		if lines["gateway"] != 1 || lines["signer"] < 1 || len(lines) != 2 /* a late reply has it served again */ {
			return fmt.Errorf("lines with trace %s and serial %s: %v", trace, serial, lines)
		}
		return nil
	})
}

// exemplarsOfATrace finds the trace in the histograms of every stop, as Prometheus would.
func exemplarsOfATrace(t *testing.T, s *service, trace string) {
	want := []string{
		"certmill_gateway_request_duration_seconds", "certmill_gateway_issuance_seconds", "certmill_signer_queue_wait_seconds",
		"certmill_signer_prepare_seconds", "certmill_signer_sign_seconds", "certmill_hsm_wait_seconds", "certmill_hsm_sign_seconds", "certmill_signer_commit_seconds",
	}
	addresses := s.operators(t)
	eventually(t, 20*time.Second, func() error {
		found := map[string]bool{}
		for _, address := range addresses {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
			if err != nil {
				return err
			}
			request.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				return err
			}
			text, err := io.ReadAll(response.Body)
			if err := errors.Join(err, response.Body.Close()); err != nil {
				return err
			}
			for row := range strings.Lines(string(text)) {
				if strings.Contains(row, `# {trace_id="`+trace+`"}`) {
					found[row[:strings.Index(row, "_bucket")]] = true
				}
			}
		}
		for _, name := range want {
			if !found[name] {
				return fmt.Errorf("no exemplar in %s; there are %v", name, found)
			}
		}
		return nil
	})
}
