package target

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/loadtest/engine"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// grpcTarget is what the targets over gRPC share: a few connections, used in turn.
type grpcTarget struct {
	conns []*grpc.ClientConn
	next  atomic.Uint64
}

// maxMessage bounds an answer: a batch of 256 certificates with their chains.
const maxMessage = 16 << 20

func (c Config) grpc(options ...grpc.DialOption) (*grpcTarget, error) {
	if err := requireURL(c, "127.0.0.1:9443"); err != nil {
		return nil, err
	}
	if c.Connections < 0 {
		return nil, errConnections
	}
	t, err := c.TLS()
	if err != nil {
		return nil, err
	}
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	options = append(options,
		grpc.WithTransportCredentials(credentials.NewTLS(t)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), // a retry would hide a failure
	)
	if token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(token)))
	}
	g := &grpcTarget{}
	for range max(c.Connections, 1) {
		conn, err := grpc.NewClient(c.URL, options...)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("--url: %w", err), g.Close())
		}
		g.conns = append(g.conns, conn)
	}
	return g, nil
}

func (g *grpcTarget) conn() *grpc.ClientConn {
	return g.conns[g.next.Add(1)%uint64(len(g.conns))]
}

// Warm connects.
func (g *grpcTarget) Warm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, c := range g.conns {
		c.Connect()
		for s := c.GetState(); s != connectivity.Ready; s = c.GetState() {
			if s == connectivity.TransientFailure {
				return failure("connect", "no gRPC server answers at %s", c.Target())
			}
			if !c.WaitForStateChange(ctx, s) {
				return ctx.Err()
			}
		}
	}
	return nil
}

// Close ends the connections.
func (g *grpcTarget) Close() error {
	var errs []error
	for _, c := range g.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// authorized adds the request's own token.
func (r *Request) authorized(ctx context.Context) context.Context {
	if r.Token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+r.Token)
}

type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// grpcFailure classifies the error of a call: certmill's kinds where it is certmill,
// else the status code.
func grpcFailure(err error) error {
	s, ok := status.FromError(err)
	if !ok {
		return Classify(err)
	}
	if s.Code() == codes.DeadlineExceeded {
		return &Failure{Kind: engine.KindTimeout, Detail: s.Message(), Late: true}
	}
	if len(s.Details()) == 0 {
		return failure("grpc_"+s.Code().String(), "%s", s.Message())
	}
	return problemFailure(problem.FromStatus(err))
}

func problemFailure(p *problem.Error) *Failure {
	return failure(string(p.Kind), "%s %s %s", p.Field, p.Rule, p.Detail)
}

// issueRequest makes certmill's message.
func (c Config) issueRequest(r *Request) *certmillv1.IssueRequest {
	m := &certmillv1.IssueRequest{Csr: r.CSR.DER, Profile: c.Profile, RequestId: r.ID}
	if c.Lifetime > 0 {
		m.Lifetime = durationpb.New(c.Lifetime)
	}
	if c.Owner != "" || c.Service != "" || c.Environment != "" {
		m.Metadata = &certmillv1.Metadata{Owner: c.Owner, Service: c.Service, Environment: c.Environment}
	}
	return m
}

func answerOf(c *certmillv1.Certificate) (Answer, error) {
	if len(c.GetDer()) == 0 {
		return Answer{}, failure("answer", "no certificate in the answer")
	}
	return Answer{DER: append([][]byte{c.GetDer()}, c.GetChain()...)}, nil
}

func resultOf(r *certmillv1.IssueResult) (Answer, error) {
	if p := r.GetProblem(); p != nil {
		f := failure("answer", "%s %s %s", p.GetField(), p.GetRule(), p.GetDetail())
		for _, k := range problem.Kinds {
			if k.Type() == p.GetType() {
				f.Kind = string(k)
			}
		}
		return Answer{}, f
	}
	return answerOf(r.GetCertificate())
}

// unary is certmill's Issue.
type unary struct {
	*grpcTarget
	cfg Config
}

func openUnary(c Config) (Target, error) {
	g, err := c.grpc()
	return &unary{g, c}, err
}

func (t *unary) Do(ctx context.Context, r *Request) (Answer, error) {
	ctx, cancel := context.WithDeadline(ctx, r.Deadline)
	defer cancel()
	ctx = r.authorized(ctx)
	var header metadata.MD
	res, err := certmillv1.NewCertificateAuthorityClient(t.conn()).Issue(ctx, t.cfg.issueRequest(r), grpc.Header(&header))
	if err != nil {
		return Answer{}, grpcFailure(err)
	}
	a, err := answerOf(res.GetCertificate())
	a.Phases = serverTiming(header.Get("server-timing"))
	return a, err
}
