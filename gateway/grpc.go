package gateway

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/tap"

	"github.com/certmill/certmill/internal/problem"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// method says how a gRPC method is guarded. Methods that are not listed, those of
// health and reflection, tell nothing that is not public and are not guarded.
type method struct {
	route route
	// open needs no credential; unbounded takes no place in flight.
	open, unbounded bool
}

var methods = map[string]method{
	certmillv1.CertificateAuthority_Issue_FullMethodName:            {route: routeIssue},
	certmillv1.CertificateAuthority_IssueBatch_FullMethodName:       {route: routeBatch},
	certmillv1.CertificateAuthority_IssueStream_FullMethodName:      {route: routeStream, unbounded: true}, // its items are
	certmillv1.CertificateAuthority_Submit_FullMethodName:           {route: routeSubmit},
	certmillv1.CertificateAuthority_GetOrder_FullMethodName:         {route: routeGetOrder, unbounded: true},
	certmillv1.CertificateAuthority_Revoke_FullMethodName:           {route: routeRevoke},
	certmillv1.CertificateAuthority_GetCertificate_FullMethodName:   {route: routeGetCertificate},
	certmillv1.CertificateAuthority_ListCertificates_FullMethodName: {route: routeListCertificates},
	certmillv1.CertificateAuthority_GetTrustBundle_FullMethodName:   {route: routeTrustBundle, open: true},
	certmillv1.Operations_CreateEnrollmentToken_FullMethodName:      {route: routeCreateToken},
	certmillv1.Operations_ListEnrollmentTokens_FullMethodName:       {route: routeListTokens},
	certmillv1.Operations_DeleteEnrollmentToken_FullMethodName:      {route: routeDeleteToken},
	certmillv1.Operations_ListAudit_FullMethodName:                  {route: routeAudit},
}

// grpcAPI guards the gRPC server: the same walk as httpAPI's, as interceptors.
type grpcAPI struct {
	service  *service
	auth     *authenticator
	observer *observer
}

// newGRPCServer makes the server with all its services. Its health says NOT_SERVING
// until the gateway is ready.
func newGRPCServer(a *grpcAPI, tls credentials.TransportCredentials) (*grpc.Server, *health.Server) {
	l := &a.service.cfg.Limits
	server := grpc.NewServer(
		grpc.Creds(tls),
		grpc.InTapHandle(a.tap),
		grpc.UnaryInterceptor(a.unary),
		grpc.StreamInterceptor(a.stream),
		grpc.MaxRecvMsgSize(int(l.MaxBatchBytes)),
		grpc.MaxSendMsgSize(64<<20), // a batch of 256 with chains
		grpc.MaxConcurrentStreams(uint32(l.MaxConcurrentStreams)),
		grpc.MaxHeaderListSize(uint32(l.MaxHeaderBytes)),
		grpc.ConnectionTimeout(l.HeaderTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: l.IdleTimeout, Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	h := health.NewServer()
	h.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	healthv1.RegisterHealthServer(server, h)
	certmillv1.RegisterCertificateAuthorityServer(server, &authorityServer{api: a})
	certmillv1.RegisterOperationsServer(server, &operationsServer{service: a.service})
	reflection.Register(server)
	return server, h
}

// tap refuses at the in-flight bound before a message is read or a goroutine started.
// It only looks; the interceptor takes the place.
func (a *grpcAPI) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	m, ok := methods[info.FullMethodName]
	if !ok || m.unbounded || !a.service.inFlight.full() {
		return ctx, nil
	}
	a.observer.metrics.observe(m.route, problem.Overloaded, 0)
	return nil, problem.ToStatus(a.service.inFlight.refusal()).Err()
}

type exchangeKey struct{}

// exchangeOf returns the call's exchange. Every guarded method has one.
func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

func (a *grpcAPI) unary(ctx context.Context, in any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (out any, err error) {
	m, ok := methods[info.FullMethod]
	if !ok {
		return handler(ctx, in)
	}
	ctx, x := a.begin(ctx, m.route)
	out, err = a.serveUnary(ctx, x, m, in, handler)
	x.end(ctx, err)
	_ = grpc.SetHeader(ctx, metadata.Pairs("request-id", x.requestID)) // fails only when it was sent
	if err != nil {
		return nil, problem.ToStatus(err).Err()
	}
	return out, nil
}

func (a *grpcAPI) begin(ctx context.Context, r route) (context.Context, *exchange) {
	traceparent := ""
	if v := metadata.ValueFromIncomingContext(ctx, "traceparent"); len(v) > 0 {
		traceparent = v[0]
	}
	ctx, x := a.observer.begin(ctx, r, traceparent)
	return context.WithValue(ctx, exchangeKey{}, x), x
}

func (a *grpcAPI) serveUnary(ctx context.Context, x *exchange, m method, in any, handler grpc.UnaryHandler) (out any, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked(v)
		}
	}()
	if !m.unbounded {
		if err := a.service.inFlight.acquire(1); err != nil {
			return nil, err
		}
		defer a.service.inFlight.release(1)
	}
	ctx, cancel := a.withDeadline(ctx, m.route)
	defer cancel()
	if !m.open {
		if x.caller, err = a.authenticate(ctx); err != nil {
			return nil, err
		}
	}
	return handler(ctx, in)
}

// withDeadline bounds a call that brings no deadline, or one too far away.
func (a *grpcAPI) withDeadline(ctx context.Context, r route) (context.Context, context.CancelFunc) {
	l := &a.service.cfg.Limits
	timeout := l.MaxCallTimeout
	if _, ok := ctx.Deadline(); !ok {
		timeout = l.CallTimeout
	}
	if r == routeGetOrder {
		timeout = max(timeout, maxOrderWait+5*time.Second)
	}
	return context.WithTimeout(ctx, timeout)
}

func (a *grpcAPI) authenticate(ctx context.Context) (*Caller, error) {
	var c authCredentials
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			c.tls = &info.State
		}
	}
	if v := metadata.ValueFromIncomingContext(ctx, "authorization"); len(v) > 0 {
		c.authorization = v[0]
	}
	return a.auth.authenticate(ctx, c)
}

func (a *grpcAPI) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	m, ok := methods[info.FullMethod]
	if !ok {
		return handler(server, stream)
	}
	ctx, x := a.begin(stream.Context(), m.route)
	err := a.serveStream(x, server, &streamWithContext{stream, ctx}, handler)
	x.end(ctx, err)
	if err != nil {
		return problem.ToStatus(err).Err()
	}
	return nil
}

func (a *grpcAPI) serveStream(x *exchange, server any, stream grpc.ServerStream, handler grpc.StreamHandler) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked(v)
		}
	}()
	if x.caller, err = a.authenticate(stream.Context()); err != nil {
		return err
	}
	return handler(server, stream)
}

type streamWithContext struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *streamWithContext) Context() context.Context { return s.ctx }
