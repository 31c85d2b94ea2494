package e2e

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// spans is an OTLP collector that remembers what it is sent.
type spans struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	names map[string]map[string]string // trace id → span name → service
}

func (s *spans) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
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
				if s.names[id] == nil {
					s.names[id] = map[string]string{}
				}
				s.names[id][span.Name] = service
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// TestOneTraceFromTheCallerToTheCommit gives a traceparent to one call and finds every
// stop of its walk, in both processes, in that one trace.
func TestOneTraceFromTheCallerToTheCommit(t *testing.T) {
	requirePrograms(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := &spans{names: map[string]map[string]string{}}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, got)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	for _, role := range []string{"GATEWAY", "SIGNER"} {
		t.Setenv("CERTMILL_"+role+"_TELEMETRY_TRACE_ENDPOINT", listener.Addr().String())
	}
	dir, err := os.MkdirTemp("", "certmill-trace")
	if err != nil {
		t.Fatal(err)
	}
	s, err := start(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})

	const trace = "0af7651916cd43dd8448eb211c80319c"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+trace+"-b7ad6b7169203331-01")
	if _, err := s.gateway(t).Issue(ctx, &certmillv1.IssueRequest{Csr: newCSR(t, "trace.test"), Profile: "server"}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"gateway.issue": "certmill-gateway", "queue.wait": "certmill-signer", "signer.prepare": "certmill-signer",
		"hsm.sign": "certmill-signer", "ledger.commit": "certmill-signer",
	}
	eventually(t, 20*time.Second, func() error {
		got.mu.Lock()
		defer got.mu.Unlock()
		var missing []string
		for name, service := range want {
			if got.names[trace][name] != service {
				missing = append(missing, name)
			}
		}
		if slices.Sort(missing); len(missing) > 0 {
			return fmt.Errorf("trace %s has %v and lacks %v", trace, got.names[trace], missing)
		}
		return nil
	})
}
