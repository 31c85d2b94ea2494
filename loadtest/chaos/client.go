package chaos

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/loadtest/chaos/judge"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// A caller makes calls to one gateway, by REST or gRPC, and nothing more: no retries.
// It is safe for concurrent use.
type caller struct {
	node, via string
	http      *http.Client
	base      string
	grpc      certmillv1.CertificateAuthorityClient
	conn      *grpc.ClientConn
}

// clientTLS is the operator's certificate.
func (s *stack) clientTLS() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(s.dir.Path("caller.pem"), s.dir.Path("caller.key"))
	if err != nil {
		return nil, err
	}
	root, err := os.ReadFile(s.dir.Path("root.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(root) {
		return nil, errors.New("root.pem holds no certificate")
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// callers makes a caller for each gateway and protocol.
func (s *stack) callers() (all []*caller, err error) {
	conf, err := s.clientTLS()
	if err != nil {
		return nil, err
	}
	for _, n := range s.of("gateway") {
		rest := &caller{node: n.name, via: "rest", base: "https://" + net.JoinHostPort(n.ip, restPort), http: &http.Client{Transport: &http.Transport{
			TLSClientConfig: conf.Clone(), MaxIdleConnsPerHost: 64, IdleConnTimeout: 10 * time.Second,
			DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext, TLSHandshakeTimeout: 2 * time.Second,
		}}}
		conn, err := grpc.NewClient(net.JoinHostPort(n.ip, grpcPort),
			grpc.WithTransportCredentials(credentials.NewTLS(conf.Clone())), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
			grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 2 * time.Second}),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 2 * time.Second}))
		if err != nil {
			return nil, err
		}
		all = append(all, rest, &caller{node: n.name, via: "grpc", grpc: certmillv1.NewCertificateAuthorityClient(conn), conn: conn})
	}
	return all, nil
}

func (c *caller) close() {
	if c.conn != nil {
		_ = c.conn.Close()
	} else {
		c.http.CloseIdleConnections()
	}
}

func (c *caller) issue(ctx context.Context, r *certmillv1.IssueRequest) (*certmillv1.Certificate, error) {
	if c.grpc != nil {
		out, err := c.grpc.Issue(ctx, r)
		return out.GetCertificate(), err
	}
	out := &certmillv1.IssueResponse{}
	err := c.rest(ctx, http.MethodPost, "/v1/certificates", r, out)
	return out.GetCertificate(), err
}

func (c *caller) submit(ctx context.Context, r *certmillv1.IssueRequest) (*certmillv1.Order, error) {
	if c.grpc != nil {
		return c.grpc.Submit(ctx, &certmillv1.SubmitRequest{Request: r})
	}
	out := &certmillv1.Order{}
	return out, c.rest(ctx, http.MethodPost, "/v1/orders", r, out)
}

func (c *caller) order(ctx context.Context, id string) (*certmillv1.Order, error) {
	if c.grpc != nil {
		return c.grpc.GetOrder(ctx, &certmillv1.GetOrderRequest{Id: id, Wait: durationpb.New(time.Second)})
	}
	out := &certmillv1.Order{}
	return out, c.rest(ctx, http.MethodGet, "/v1/orders/"+id+"?wait=1s", nil, out)
}

func (c *caller) revoke(ctx context.Context, serial string) error {
	reason := certmillv1.RevocationReason_REVOCATION_REASON_SUPERSEDED
	if c.grpc != nil {
		_, err := c.grpc.Revoke(ctx, &certmillv1.RevokeRequest{Serial: serial, Reason: reason})
		return err
	}
	return c.rest(ctx, http.MethodPost, "/v1/certificates/"+serial+"/revoke", &certmillv1.RevokeRequest{Reason: reason}, &certmillv1.Revocation{})
}

// statusError is an answer of HTTP that is no success.
type statusError struct {
	code int
	text string
}

// Error gives the code and the problem's text.
func (e *statusError) Error() string { return fmt.Sprintf("HTTP %d: %s", e.code, e.text) }

func (c *caller) rest(ctx context.Context, method, path string, in, out proto.Message) error {
	var body io.Reader
	key := ""
	if r, ok := in.(*certmillv1.IssueRequest); ok {
		// In the header, which tells Go's client too that the call may be repeated on
		// another connection when the server closes this one.
		key = r.RequestId
		in = &certmillv1.IssueRequest{Csr: r.Csr, Profile: r.Profile}
	}
	if in != nil {
		data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "application/json")
	if key != "" {
		request.Header.Set("Idempotency-Key", key)
	}
	if end, ok := ctx.Deadline(); ok {
		request.Header.Set("Prefer", fmt.Sprintf("wait=%d", max(1, int(time.Until(end).Seconds()))))
	}
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		return &statusError{response.StatusCode, string(data[:min(len(data), 300)])}
	}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, out)
}

// outcome names what became of a call.
func outcome(ctx context.Context, err error) string {
	if err == nil {
		return judge.OK
	}
	if ctx.Err() != nil {
		return judge.Timeout
	}
	var http *statusError
	if errors.As(err, &http) {
		return kindOfStatus(http.code)
	}
	if s, ok := status.FromError(err); ok {
		switch s.Code() {
		case codes.DeadlineExceeded:
			return judge.Timeout
		case codes.Unavailable:
			// The transport says so too.
			return string(problem.Unavailable)
		default:
			return string(problem.FromStatus(err).Kind)
		}
	}
	return judge.Broken
}

func kindOfStatus(code int) string {
	for _, k := range problem.Kinds {
		if k.HTTPStatus() == code {
			return string(k)
		}
	}
	if code == 504 {
		return judge.Timeout
	}
	return string(problem.Internal)
}

// again reports whether an outcome is one after which a client repeats its request.
func again(outcome string) bool {
	switch outcome {
	case judge.Timeout, judge.Broken, string(problem.Unavailable), string(problem.Overloaded):
		return true
	}
	return false
}
