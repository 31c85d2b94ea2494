package gateway

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/certmill/certmill/internal/problem"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// authorityServer is certmill.v1.CertificateAuthority. Its errors become statuses in
// the interceptors.
type authorityServer struct {
	certmillv1.UnimplementedCertificateAuthorityServer
	api *grpcAPI
}

func (a *authorityServer) Issue(ctx context.Context, in *certmillv1.IssueRequest) (*certmillv1.IssueResponse, error) {
	x := exchangeOf(ctx)
	x.about(in)
	i, err := a.api.service.issue(ctx, x.caller, x.requestID, in)
	if err != nil {
		return nil, err
	}
	x.issued = i
	_ = grpc.SetHeader(ctx, metadata.Pairs("server-timing", serverTiming(i.result, time.Since(x.started)))) // fails only when it was sent
	return &certmillv1.IssueResponse{Certificate: i.message()}, nil
}

func (a *authorityServer) IssueBatch(ctx context.Context, in *certmillv1.IssueBatchRequest) (*certmillv1.IssueBatchResponse, error) {
	x := exchangeOf(ctx)
	x.items = len(in.Requests)
	results, err := a.api.service.issueMany(ctx, x.caller, in.Requests)
	if err != nil {
		return nil, err
	}
	return &certmillv1.IssueBatchResponse{Results: results}, nil
}

// IssueStream serves many requests at one time, up to stream_concurrency; then the
// next is not read, and HTTP/2's flow control holds the caller back.
func (a *authorityServer) IssueStream(stream grpc.BidiStreamingServer[certmillv1.IssueRequest, certmillv1.IssueResult]) error {
	s := &issueStream{api: a.api, stream: stream, places: make(chan struct{}, a.api.service.cfg.Limits.StreamConcurrency)}
	defer s.wait.Wait()
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			s.wait.Wait()
			return s.failure()
		}
		if err != nil {
			return &problem.Error{Kind: problem.Unavailable, Rule: "canceled", Detail: "the stream ended", Cause: err}
		}
		if err := s.failure(); err != nil {
			return err
		}
		s.places <- struct{}{} // freed by a worker, whose time is bounded
		s.wait.Go(func() {
			defer func() { <-s.places }()
			s.serve(in)
		})
	}
}

type issueStream struct {
	api    *grpcAPI
	stream grpc.BidiStreamingServer[certmillv1.IssueRequest, certmillv1.IssueResult]
	places chan struct{}
	wait   sync.WaitGroup

	mu  sync.Mutex // one Send at a time; guards err
	err error
}

func (s *issueStream) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// serve answers one request of the stream. The credential is judged anew each time:
// a stream may outlive it.
func (s *issueStream) serve(in *certmillv1.IssueRequest) {
	a := s.api
	ctx, x := a.begin(s.stream.Context(), routeStreamItem)
	result, err := s.issue(ctx, x, in)
	x.end(ctx, err)
	if err != nil {
		result = &certmillv1.IssueResult{RequestId: x.requestID, Outcome: &certmillv1.IssueResult_Problem{Problem: problemMessage(err, x.requestID)}}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = s.stream.Send(result)
	}
}

func (s *issueStream) issue(ctx context.Context, x *exchange, in *certmillv1.IssueRequest) (_ *certmillv1.IssueResult, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked(v)
		}
	}()
	a := s.api
	x.about(in)
	if err := a.service.inFlight.acquire(1); err != nil {
		return nil, err
	}
	defer a.service.inFlight.release(1)
	ctx, cancel := context.WithTimeout(ctx, a.service.cfg.Limits.CallTimeout)
	defer cancel()
	if x.caller, err = a.authenticate(ctx); err != nil {
		return nil, err
	}
	leave, err := a.service.admission.admit(ctx, a.service.admission.calls, x.caller, 1)
	if err != nil {
		return nil, err
	}
	defer leave()
	if x.issued, err = a.service.issue(ctx, x.caller, x.requestID, in); err != nil {
		return nil, err
	}
	return &certmillv1.IssueResult{RequestId: x.requestID, Outcome: &certmillv1.IssueResult_Certificate{Certificate: x.issued.message()}}, nil
}

func (a *authorityServer) Submit(ctx context.Context, in *certmillv1.SubmitRequest) (*certmillv1.Order, error) {
	x := exchangeOf(ctx)
	r := in.Request
	if r == nil {
		r = &certmillv1.IssueRequest{}
	}
	x.about(r)
	return a.api.service.submit(ctx, x.caller, r)
}

func (a *authorityServer) GetOrder(ctx context.Context, in *certmillv1.GetOrderRequest) (*certmillv1.Order, error) {
	return a.api.service.getOrder(ctx, exchangeOf(ctx).caller, in)
}

func (a *authorityServer) Revoke(ctx context.Context, in *certmillv1.RevokeRequest) (*certmillv1.Revocation, error) {
	return a.api.service.revoke(ctx, exchangeOf(ctx).caller, in)
}

func (a *authorityServer) GetCertificate(ctx context.Context, in *certmillv1.GetCertificateRequest) (*certmillv1.Certificate, error) {
	return a.api.service.getCertificate(ctx, exchangeOf(ctx).caller, in)
}

func (a *authorityServer) ListCertificates(ctx context.Context, in *certmillv1.ListCertificatesRequest) (*certmillv1.ListCertificatesResponse, error) {
	return a.api.service.listCertificates(ctx, exchangeOf(ctx).caller, in)
}

func (a *authorityServer) GetRenewalInfo(ctx context.Context, in *certmillv1.GetRenewalInfoRequest) (*certmillv1.RenewalInfo, error) {
	return a.api.service.renewalInfo(ctx, exchangeOf(ctx).caller, in)
}

func (a *authorityServer) GetTrustBundle(context.Context, *certmillv1.GetTrustBundleRequest) (*certmillv1.TrustBundle, error) {
	return a.api.service.trustBundle()
}

// operationsServer is certmill.v1.Operations.
type operationsServer struct {
	certmillv1.UnimplementedOperationsServer
	service *service
}

func (o *operationsServer) CreateEnrollmentToken(ctx context.Context, in *certmillv1.CreateEnrollmentTokenRequest) (*certmillv1.CreateEnrollmentTokenResponse, error) {
	return o.service.createToken(ctx, exchangeOf(ctx).caller, in)
}

func (o *operationsServer) ListEnrollmentTokens(ctx context.Context, in *certmillv1.ListEnrollmentTokensRequest) (*certmillv1.ListEnrollmentTokensResponse, error) {
	return o.service.listTokens(ctx, exchangeOf(ctx).caller, in)
}

func (o *operationsServer) DeleteEnrollmentToken(ctx context.Context, in *certmillv1.DeleteEnrollmentTokenRequest) (*certmillv1.DeleteEnrollmentTokenResponse, error) {
	return o.service.deleteToken(ctx, exchangeOf(ctx).caller, in)
}

func (o *operationsServer) ListAudit(ctx context.Context, in *certmillv1.ListAuditRequest) (*certmillv1.ListAuditResponse, error) {
	return o.service.listAudit(ctx, exchangeOf(ctx).caller, in)
}

func (o *operationsServer) RenewEarly(ctx context.Context, in *certmillv1.RenewEarlyRequest) (*certmillv1.EarlyRenewal, error) {
	return o.service.renewEarly(ctx, exchangeOf(ctx).caller, in)
}

func (o *operationsServer) ListEarlyRenewals(ctx context.Context, _ *certmillv1.ListEarlyRenewalsRequest) (*certmillv1.ListEarlyRenewalsResponse, error) {
	return o.service.listEarlyRenewals(ctx, exchangeOf(ctx).caller)
}

func (o *operationsServer) EndEarlyRenewal(ctx context.Context, in *certmillv1.EndEarlyRenewalRequest) (*certmillv1.EndEarlyRenewalResponse, error) {
	return o.service.endEarlyRenewal(ctx, exchangeOf(ctx).caller, in)
}

func (o *operationsServer) GetStatus(ctx context.Context, _ *certmillv1.GetStatusRequest) (*certmillv1.ServiceStatus, error) {
	return o.service.getStatus(ctx, exchangeOf(ctx).caller)
}

func (o *operationsServer) OpenConsole(ctx context.Context, _ *certmillv1.OpenConsoleRequest) (*certmillv1.OpenConsoleResponse, error) {
	return o.service.openConsole(ctx, exchangeOf(ctx).caller)
}
