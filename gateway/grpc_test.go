package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certmill/certmill/internal/problem"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func (w *world) dial(t testing.TB, certs ...tls.Certificate) *grpc.ClientConn {
	t.Helper()
	conn := must(grpc.NewClient(w.grpc, grpc.WithTransportCredentials(credentials.NewTLS(w.clientTLS(certs...)))))(t)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// as returns a context that carries a bearer token.
func as(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func TestGRPC(t *testing.T) {
	w := newWorld(t)
	conn := w.dial(t)
	ca, ops := certmillv1.NewCertificateAuthorityClient(conn), certmillv1.NewOperationsClient(conn)
	alice := as(t.Context(), w.idp.token(t, "alice"))
	operator := as(t.Context(), w.idp.token(t, "operator"))

	t.Run("Issue", func(t *testing.T) {
		var header metadata.MD
		r := must(ca.Issue(alice, &certmillv1.IssueRequest{Csr: armour(newCSR(t, nil, "a.example.test")), RequestId: "grpc-1", Lifetime: durationpb.New(time.Hour)}, grpc.Header(&header)))(t)
		w.verify(t, parseChain(t, []byte(r.Certificate.Pem)), "a.example.test")
		if got := header.Get("request-id"); len(got) != 1 || got[0] != "grpc-1" {
			t.Errorf("request-id %q", got)
		}
		if got := header.Get("server-timing"); len(got) != 1 || !strings.Contains(got[0], "hsm;dur=0.070") {
			t.Errorf("server-timing %q", got)
		}
		got := must(ca.GetCertificate(alice, &certmillv1.GetCertificateRequest{Serial: r.Certificate.Serial}))(t)
		if string(got.Der) != string(r.Certificate.Der) || got.RenewAt.AsTime() != r.Certificate.RenewAt.AsTime() {
			t.Error("GetCertificate tells another story than Issue")
		}
		revoked := must(ca.Revoke(alice, &certmillv1.RevokeRequest{Serial: r.Certificate.Serial, Reason: certmillv1.RevocationReason_REVOCATION_REASON_SUPERSEDED}))(t)
		if revoked.RevokedBy != w.idp.id("alice") {
			t.Errorf("revoked by %q", revoked.RevokedBy)
		}
		list := must(ca.ListCertificates(alice, &certmillv1.ListCertificatesRequest{Caller: w.idp.id("alice")}))(t)
		if len(list.Certificates) != 1 || list.Certificates[0].Revocation == nil {
			t.Errorf("the list has %v", list.Certificates)
		}
	})
	t.Run("IssueBatch", func(t *testing.T) {
		r := must(ca.IssueBatch(alice, &certmillv1.IssueBatchRequest{Requests: []*certmillv1.IssueRequest{{Csr: newCSR(t, nil, "b.example.test")}, {Csr: newCSR(t, nil, "b.elsewhere.test")}}}))(t)
		if r.Results[0].GetCertificate() == nil || r.Results[1].GetProblem().GetRule() != "dns_not_allowed" {
			t.Errorf("got %v", r.Results)
		}
	})
	t.Run("Submit and GetOrder", func(t *testing.T) {
		o := must(ca.Submit(alice, &certmillv1.SubmitRequest{Request: &certmillv1.IssueRequest{Csr: newCSR(t, nil, "o.example.test")}}))(t)
		o = must(ca.GetOrder(alice, &certmillv1.GetOrderRequest{Id: o.Id, Wait: durationpb.New(5 * time.Second)}))(t)
		if o.State != certmillv1.Order_STATE_ISSUED {
			t.Errorf("got %v", o)
		}
	})
	t.Run("GetTrustBundle needs no credential", func(t *testing.T) {
		b := must(ca.GetTrustBundle(t.Context(), &certmillv1.GetTrustBundleRequest{}))(t)
		if len(b.Roots) != 1 || len(b.Issuers) != 1 || string(b.Roots[0]) != string(w.pki.root.cert.Raw) || !parseChain(t, []byte(b.Pem))[0].Equal(w.pki.root.cert) {
			t.Errorf("got %v", b)
		}
	})
	t.Run("Operations", func(t *testing.T) {
		token := must(ops.CreateEnrollmentToken(operator, &certmillv1.CreateEnrollmentTokenRequest{Profile: "server", Names: []string{"t.example.test"}}))(t)
		must(ca.Issue(as(t.Context(), token.Secret), &certmillv1.IssueRequest{Csr: newCSR(t, nil, "t.example.test")}))(t)
		if list := must(ops.ListEnrollmentTokens(operator, &certmillv1.ListEnrollmentTokensRequest{}))(t); len(list.Tokens) != 1 || list.Tokens[0].Used != 1 {
			t.Errorf("got %v", list)
		}
		must(ops.DeleteEnrollmentToken(operator, &certmillv1.DeleteEnrollmentTokenRequest{Id: token.Token.Id}))(t)
		if trail := must(ops.ListAudit(as(t.Context(), w.idp.token(t, "auditor")), &certmillv1.ListAuditRequest{}))(t); len(trail.Entries) == 0 {
			t.Error("the audit trail is empty")
		}
	})
	t.Run("health and reflection need no credential", func(t *testing.T) {
		h := healthv1.NewHealthClient(conn)
		eventually(t, "it serves", func() bool {
			r, err := h.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "certmill.v1.CertificateAuthority"})
			return err == nil && r.Status == healthv1.HealthCheckResponse_SERVING
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream := must(reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx))(t)
		must0(t, stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}))
		services := must(stream.Recv())(t).GetListServicesResponse().GetService()
		if len(services) != 5 {
			t.Errorf("it lists %v", services)
		}
	})
	t.Run("every method is guarded or known to be open", func(t *testing.T) {
		for _, d := range []grpc.ServiceDesc{certmillv1.CertificateAuthority_ServiceDesc, certmillv1.Operations_ServiceDesc} {
			var names []string
			for _, m := range d.Methods {
				names = append(names, m.MethodName)
			}
			for _, m := range d.Streams {
				names = append(names, m.StreamName)
			}
			for _, name := range names {
				if m, ok := methods["/"+d.ServiceName+"/"+name]; !ok || m.open != (name == "GetTrustBundle") {
					t.Errorf("%s: %+v %v", name, m, ok)
				}
			}
		}
	})
}

func TestGRPCStatuses(t *testing.T) {
	w := newWorld(t)
	ca := certmillv1.NewCertificateAuthorityClient(w.dial(t))
	alice := as(t.Context(), w.idp.token(t, "alice"))
	good := func() *certmillv1.IssueRequest {
		return &certmillv1.IssueRequest{Csr: newCSR(t, nil, "a.example.test")}
	}
	must(ca.Issue(alice, &certmillv1.IssueRequest{Csr: newCSR(t, nil, "a.example.test"), RequestId: "taken"}))(t)
	for name, c := range map[string]struct {
		ctx     context.Context
		request *certmillv1.IssueRequest
		signer  func(context.Context, *queuev1.SignRequest) error
		code    codes.Code
		want    problem.Error
	}{
		"a bad CSR":                  {alice, &certmillv1.IssueRequest{Csr: []byte("x")}, nil, codes.InvalidArgument, problem.Error{Kind: problem.Invalid, Field: "csr", Rule: "csr_encoding"}},
		"no credential":              {t.Context(), good(), nil, codes.Unauthenticated, problem.Error{Kind: problem.Unauthenticated, Field: "authorization", Rule: "missing"}},
		"a name of somebody else":    {alice, &certmillv1.IssueRequest{Csr: newCSR(t, nil, "a.elsewhere.test")}, nil, codes.PermissionDenied, problem.Error{Kind: problem.Denied, Field: "csr.names", Rule: "dns_not_allowed"}},
		"a key used for another CSR": {alice, &certmillv1.IssueRequest{Csr: newCSR(t, nil, "a.example.test"), RequestId: "taken"}, nil, codes.AlreadyExists, problem.Error{Kind: problem.Conflict, Field: "request_id"}},
		"overload":                   {alice, good(), overload, codes.ResourceExhausted, problem.Error{Kind: problem.Overloaded, Rule: "signers", RetryAfter: 3 * time.Second}},
		"a part that is down":        {alice, good(), func(context.Context, *queuev1.SignRequest) error { return problem.Down("nats", time.Second, errGone) }, codes.Unavailable, problem.Error{Kind: problem.Unavailable, Rule: "nats", RetryAfter: time.Second}},
		"a defect":                   {alice, good(), func(context.Context, *queuev1.SignRequest) error { panic("secret") }, codes.Internal, problem.Error{Kind: problem.Internal}},
		"an unclassified error":      {alice, good(), func(context.Context, *queuev1.SignRequest) error { return errors.New("secret") }, codes.Internal, problem.Error{Kind: problem.Internal}},
	} {
		t.Run(name, func(t *testing.T) {
			w.signer.setRefuse(c.signer)
			defer w.signer.setRefuse(nil)
			_, err := ca.Issue(c.ctx, c.request)
			got := problem.FromStatus(err)
			if status.Code(err) != c.code || !errors.Is(got, &c.want) || got.RetryAfter != c.want.RetryAfter || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v, retry after %s", err, got.RetryAfter)
			}
		})
	}
	t.Run("the caller's deadline is the call's", func(t *testing.T) {
		w.signer.setRefuse(func(ctx context.Context, r *queuev1.SignRequest) error { <-ctx.Done(); return problem.From(ctx.Err()) })
		defer w.signer.setRefuse(nil)
		ctx, cancel := context.WithTimeout(alice, 100*time.Millisecond)
		defer cancel()
		if _, err := ca.Issue(ctx, good()); status.Code(err) != codes.DeadlineExceeded && status.Code(err) != codes.Unavailable {
			t.Errorf("got %v", err)
		}
		eventually(t, "its place is free again", func() bool { return w.gateway.service.inFlight.used.Load() == 0 })
	})
}

func TestIssueStream(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) { c.Limits.StreamConcurrency = 4 })
	ca := certmillv1.NewCertificateAuthorityClient(w.dial(t))
	t.Run("many certificates over one stream, joined by request id", func(t *testing.T) {
		stream := must(ca.IssueStream(as(t.Context(), w.idp.token(t, "alice"))))(t)
		want := map[string]string{}
		for i := range 20 {
			id, name := fmt.Sprintf("s-%d", i), fmt.Sprintf("s%d.example.test", i)
			if i == 7 {
				name = "s.elsewhere.test"
			}
			want[id] = name
			must0(t, stream.Send(&certmillv1.IssueRequest{Csr: newCSR(t, nil, name), RequestId: id}))
		}
		must0(t, stream.CloseSend())
		for range 20 {
			r := must(stream.Recv())(t)
			name := want[r.RequestId]
			delete(want, r.RequestId)
			if name == "s.elsewhere.test" {
				if r.GetProblem().GetRule() != "dns_not_allowed" {
					t.Errorf("got %v", r)
				}
				continue
			}
			if leaf := must(x509.ParseCertificate(r.GetCertificate().GetDer()))(t); leaf.VerifyHostname(name) != nil {
				t.Errorf("%s got %v", name, leaf.DNSNames)
			}
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) || len(want) != 0 {
			t.Errorf("at the end: %v, missing %v", err, want)
		}
	})
	t.Run("a stream does not outlive its credential", func(t *testing.T) {
		stream := must(ca.IssueStream(as(t.Context(), w.idp.token(t, "alice"))))(t)
		ask := func() *certmillv1.IssueResult {
			must0(t, stream.Send(&certmillv1.IssueRequest{Csr: newCSR(t, nil, "x.example.test")}))
			return must(stream.Recv())(t)
		}
		if r := ask(); r.GetCertificate() == nil {
			t.Fatalf("got %v", r)
		}
		w.clock.advance(2 * time.Hour)
		defer w.clock.advance(-2 * time.Hour)
		if r := ask(); r.GetProblem().GetRule() != "expired" {
			t.Errorf("got %v", r)
		}
		must0(t, stream.CloseSend())
	})
	t.Run("a stream without a credential is not opened", func(t *testing.T) {
		stream := must(ca.IssueStream(t.Context()))(t)
		if _, err := stream.Recv(); status.Code(err) != codes.Unauthenticated {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a caller who goes away leaves nothing behind", func(t *testing.T) {
		w.signer.setRefuse(func(ctx context.Context, r *queuev1.SignRequest) error { <-ctx.Done(); return problem.From(ctx.Err()) })
		defer w.signer.setRefuse(nil)
		ctx, cancel := context.WithCancel(as(t.Context(), w.idp.token(t, "alice")))
		stream := must(ca.IssueStream(ctx))(t)
		for range 6 { // more than the stream's concurrency
			must0(t, stream.Send(&certmillv1.IssueRequest{Csr: newCSR(t, nil, "y.example.test")}))
		}
		eventually(t, "four are in work", func() bool { return w.gateway.service.inFlight.used.Load() == 4 })
		cancel()
		eventually(t, "none is", func() bool { return w.gateway.service.inFlight.used.Load() == 0 })
	})
}
