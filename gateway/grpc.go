package gateway

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/certmill/certmill/internal/problem"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
	istioauth "github.com/certmill/certmill/proto/istio/v1/auth"
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
	certmillv1.CertificateAuthority_GetRenewalInfo_FullMethodName:   {route: routeRenewalInfo},
	certmillv1.CertificateAuthority_GetTrustBundle_FullMethodName:   {route: routeTrustBundle, open: true},
	certmillv1.Operations_CreateEnrollmentToken_FullMethodName:      {route: routeCreateToken},
	certmillv1.Operations_ListEnrollmentTokens_FullMethodName:       {route: routeListTokens},
	certmillv1.Operations_DeleteEnrollmentToken_FullMethodName:      {route: routeDeleteToken},
	certmillv1.Operations_ListAudit_FullMethodName:                  {route: routeAudit},
	certmillv1.Operations_RenewEarly_FullMethodName:                 {route: routeRenewEarly},
	certmillv1.Operations_ListEarlyRenewals_FullMethodName:          {route: routeListEarlyRenewals},
	certmillv1.Operations_EndEarlyRenewal_FullMethodName:            {route: routeEndEarlyRenewal},
	// It takes no place in flight: operators must see a service that is full.
	certmillv1.Operations_GetStatus_FullMethodName:                     {route: routeStatus, unbounded: true},
	istioauth.IstioCertificateService_CreateCertificate_FullMethodName: {route: routeMesh},
	certmillv1.Operations_OpenConsole_FullMethodName:                   {route: routeOpenConsole, unbounded: true},
}

// grpcAPI guards the gRPC server: the same walk as httpAPI's, as interceptors.
type grpcAPI struct {
	service  *service
	auth     *authenticator
	observer *observer
	// unguarded counts the calls of methods that are not listed.
	unguarded *limiter
}

// streamWindow is what a caller may send before anybody reads, per stream: the least
// that gRPC allows, which holds most requests. connWindow is what may be on its way to
// a whole connection, whose bytes are taken off the wire whether somebody reads or not.
const (
	streamWindow = 64 << 10
	connWindow   = 1 << 20
)

// newGRPCServer makes the server with all its services. Its health says NOT_SERVING
// until the gateway is ready.
func newGRPCServer(a *grpcAPI, tls credentials.TransportCredentials) (*grpc.Server, *health.Server) {
	l := &a.service.cfg.Limits
	a.unguarded = newLimiter("unguarded", maxUnguarded, l.RetryAfter)
	server := grpc.NewServer(
		grpc.Creds(tls),
		grpc.InTapHandle(a.tap),
		grpc.StreamInterceptor(a.stream),
		grpc.MaxRecvMsgSize(int(l.MaxBatchBytes)),
		grpc.MaxSendMsgSize(64<<20), // a batch of 256 with chains
		grpc.MaxConcurrentStreams(uint32(l.MaxConcurrentStreams)),
		grpc.MaxHeaderListSize(uint32(l.MaxHeaderBytes)),
		// A message is held whole only once its caller is known; until then a stream
		// holds this much, which does not grow.
		grpc.StaticStreamWindowSize(streamWindow), grpc.StaticConnWindowSize(connWindow),
		grpc.ConnectionTimeout(l.HeaderTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: l.IdleTimeout, Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	h := health.NewServer()
	h.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	a.register(server, &healthv1.Health_ServiceDesc, h)
	a.register(server, &certmillv1.CertificateAuthority_ServiceDesc, &authorityServer{api: a})
	a.register(server, &certmillv1.Operations_ServiceDesc, &operationsServer{service: a.service})
	if a.service.cfg.Istio.enabled() {
		a.register(server, &istioauth.IstioCertificateService_ServiceDesc, &istioServer{api: a})
	}
	reflection.Register(server)
	return server, h
}

// maxUnguarded bounds the calls of health and reflection, whose messages are taken in
// for anybody.
const maxUnguarded = 100

// tap refuses at the in-flight bound before a message is read or a goroutine started.
// It only looks; the interceptor takes the place. Unguarded calls have places of their
// own, which end with the stream.
func (a *grpcAPI) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	m, ok := methods[info.FullMethodName]
	switch {
	case !ok:
		if err := a.unguarded.acquire(1); err != nil {
			a.observer.metrics.refuse(err)
			return nil, problem.ToStatus(err).Err()
		}
		context.AfterFunc(ctx, func() { a.unguarded.release(1) })
	case !m.unbounded && a.service.inFlight.full():
		refusal := a.service.inFlight.refusal()
		a.observer.metrics.observe(ctx, m.route, problem.Overloaded, 0)
		a.observer.metrics.refuse(refusal)
		return nil, problem.ToStatus(refusal).Err()
	}
	ctx, cancel := context.WithCancel(ctx) // ends with the stream's own
	return context.WithValue(ctx, lateKey{}, &late{cancel}), nil
}

type exchangeKey struct{}

// exchangeOf returns the call's exchange. Every guarded method has one.
func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// register adds a service. Its methods of one message are added as streams, which on
// the wire is the same: grpc-go would read a whole message, of 2 MiB if it must be,
// before the first interceptor hears of the call, and anybody could make it hold as
// many as there are streams.
func (a *grpcAPI) register(server *grpc.Server, service *grpc.ServiceDesc, implementation any) {
	d := *service
	d.Methods, d.Streams = nil, slices.Clone(service.Streams)
	for _, m := range service.Methods {
		d.Streams = append(d.Streams, grpc.StreamDesc{StreamName: m.MethodName, Handler: a.oneMessage(m), ServerStreams: true, ClientStreams: true})
	}
	server.RegisterService(&d, implementation)
}

// oneMessage serves a method that takes one message and answers with one. It runs
// inside of stream, which has the caller's place and name.
func (a *grpcAPI) oneMessage(m grpc.MethodDesc) grpc.StreamHandler {
	return func(server any, stream grpc.ServerStream) error {
		ctx := stream.Context()
		out, err := m.Handler(server, ctx, func(in any) error { return a.receive(stream, in) }, nil)
		if x, ok := ctx.Value(exchangeKey{}).(*exchange); ok {
			_ = stream.SetHeader(metadata.Pairs("request-id", x.requestID)) // fails only when it was sent
		}
		if err != nil {
			return err
		}
		return stream.SendMsg(out)
	}
}

// receive reads the message of a call, within the time that a body over HTTP has.
func (a *grpcAPI) receive(stream grpc.ServerStream, in any) error {
	ctx := stream.Context()
	l, _ := ctx.Value(lateKey{}).(*late)
	if l == nil { // no tap: not from a connection
		return stream.RecvMsg(in)
	}
	timer := time.AfterFunc(a.service.cfg.Limits.ReadTimeout, l.cancel)
	err := stream.RecvMsg(in)
	onTime := timer.Stop()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		return problem.Rejected("message", "required", "the call ended without a message")
	case !onTime:
		return &problem.Error{Kind: problem.Invalid, Field: "message", Rule: "read_timeout", Detail: "the message came too slowly", Cause: err}
	case ctx.Err() != nil:
		return ctx.Err()
	}
	// gRPC has answered already: too large, or not decodable. This is for the log.
	return &problem.Error{Kind: problem.Invalid, Field: "message", Rule: "unreadable", Detail: "the message is too large or not of the method's type", Cause: err}
}

// late ends a stream whose message does not come. Only the stream's own context, made
// before the handler has it, ends a wait for a message.
type late struct{ cancel context.CancelFunc }

type lateKey struct{}

func (a *grpcAPI) begin(ctx context.Context, r route) (context.Context, *exchange) {
	traceparent := ""
	if v := metadata.ValueFromIncomingContext(ctx, "traceparent"); len(v) > 0 {
		traceparent = v[0]
	}
	ctx, x := a.observer.begin(ctx, r, traceparent)
	return context.WithValue(ctx, exchangeKey{}, x), x
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
	if v := metadata.ValueFromIncomingContext(ctx, "clusterid"); len(v) == 1 {
		c.cluster = v[0]
	}
	return a.auth.authenticate(ctx, c)
}

// stream serves every guarded call.
func (a *grpcAPI) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	m, ok := methods[info.FullMethod]
	if !ok {
		return toStatus(handler(server, &timedStream{stream, a}))
	}
	ctx, x := a.begin(stream.Context(), m.route)
	err := a.serve(ctx, x, m, server, stream, handler)
	x.end(ctx, err)
	return toStatus(err)
}

// timedStream is an unguarded stream, whose messages must not keep us waiting.
type timedStream struct {
	grpc.ServerStream
	api *grpcAPI
}

func (s *timedStream) RecvMsg(in any) error {
	err := s.api.receive(s.ServerStream, in)
	if p, ok := errors.AsType[*problem.Error](err); ok && p.Rule == "required" {
		return io.EOF // the ordinary end of a stream
	}
	return err
}

func toStatus(err error) error {
	if _, ok := status.FromError(err); ok { // nil too
		return err
	}
	return problem.ToStatus(err).Err()
}

// serve is the walk of a call: place in flight → deadline → caller → message.
func (a *grpcAPI) serve(ctx context.Context, x *exchange, m method, server any, stream grpc.ServerStream, handler grpc.StreamHandler) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked(v)
		}
	}()
	places, held := a.placesFor(m)
	if places != nil {
		if err := places.acquire(1); err != nil {
			return err
		}
		defer places.release(1)
	}
	if m.route != routeStream { // whose requests have deadlines of their own
		var cancel context.CancelFunc
		ctx, cancel = a.withDeadline(ctx, m.route)
		defer cancel()
	}
	if !m.open {
		if x.caller, err = a.authenticate(ctx); err != nil {
			return err
		}
		if held != nil {
			leave, err := a.service.admission.admit(ctx, held, x.caller, 1)
			if err != nil {
				return err
			}
			defer leave()
		}
	}
	return handler(server, &streamWithContext{stream, ctx})
}

// placesFor returns where a call takes its place, and how callers share it; nil where
// its handler sees to that.
func (a *grpcAPI) placesFor(m method) (*limiter, *shares) {
	switch {
	case m.route == routeStream: // its items take places in flight
		return a.service.streams, a.service.admission.streams
	case m.unbounded:
		return nil, nil
	}
	return a.service.inFlight, a.service.admission.calls
}

type streamWithContext struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *streamWithContext) Context() context.Context { return s.ctx }
