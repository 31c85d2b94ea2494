package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	"github.com/certmill/certmill/internal/problem"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// Config says where the CA is and how the caller proves who it is. One credential is
// enough; a token counts before a certificate, which is shown all the same.
type Config struct {
	// Gateway is the host:port of a gateway's gRPC API. A name with several addresses
	// stands for as many gateways.
	Gateway string
	// ServerName is the name in the gateway's certificate; empty means the host of Gateway.
	ServerName string
	// CAFile holds the roots for the gateway's certificate in PEM; empty means the
	// system's. It is read again for every connection.
	CAFile string
	// CertFile and KeyFile hold a client certificate with its chain and its key, in PEM.
	// They are read again for every connection.
	CertFile, KeyFile string
	// TokenFile holds a JSON Web Token or an enrollment token. It is read again for every
	// call, since what projects a token into a file replaces it there.
	TokenFile string
	// Timeout bounds a call with its retries; 0 means 15 s. A context's earlier deadline
	// counts.
	Timeout time.Duration
	// TryTimeout bounds one try of it; 0 means 10 s.
	TryTimeout time.Duration
	// Log is told what is tried again, and by Open what is renewed; nil means nobody.
	Log *slog.Logger
}

const (
	defaultTimeout    = 15 * time.Second
	defaultTryTimeout = 10 * time.Second
	// maxMessage bounds an answer: a page of 1,000 certificates.
	maxMessage = 32 << 20
)

func (c Config) withDefaults() (Config, error) {
	var errs []error
	if _, _, err := net.SplitHostPort(c.Gateway); err != nil {
		errs = append(errs, errors.New("Gateway must be host:port of a gateway's gRPC API"))
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		errs = append(errs, errors.New("CertFile and KeyFile go together"))
	}
	if c.Timeout < 0 || c.TryTimeout < 0 {
		errs = append(errs, errors.New("timeouts must not be negative"))
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	if c.TryTimeout == 0 {
		c.TryTimeout = defaultTryTimeout
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, errors.Join(errs...)
}

// Client is a connection to a gateway. It is safe for concurrent use.
type Client struct {
	// Authority and Operations are the whole API, for calls that have no method here.
	// They do not repeat anything by themselves: see Retry.
	Authority  certmillv1.CertificateAuthorityClient
	Operations certmillv1.OperationsClient

	cfg  Config
	conn *grpc.ClientConn
}

// New prepares a connection; the first call makes it. It fails where the configuration
// is wrong or a file of it cannot be read.
func New(cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	creds := credential{certFile: cfg.CertFile, keyFile: cfg.KeyFile, tokenFile: cfg.TokenFile}
	if err := creds.check(); err != nil {
		return nil, err
	}
	trust := &gatewayTrust{caFile: cfg.CAFile}
	if _, err := trust.roots(); err != nil {
		return nil, err
	}
	return dial(cfg, trust, creds)
}

func dial(cfg Config, trust *gatewayTrust, creds credential) (*Client, error) {
	t := trust.config(cfg.serverName())
	t.GetClientCertificate = creds.clientCertificate
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(t)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), // Retry is the one that repeats
		// A gateway that comes back is not to be found minutes later.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 2, Jitter: 0.5, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
	}
	if creds.tokenFile != "" {
		options = append(options, grpc.WithPerRPCCredentials(tokenFile(creds.tokenFile)))
	}
	conn, err := grpc.NewClient(cfg.Gateway, options...)
	if err != nil {
		return nil, fmt.Errorf("gateway %s: %w", cfg.Gateway, err)
	}
	return &Client{
		Authority: certmillv1.NewCertificateAuthorityClient(conn), Operations: certmillv1.NewOperationsClient(conn),
		cfg: cfg, conn: conn,
	}, nil
}

func (c Config) serverName() string {
	if c.ServerName != "" {
		return c.ServerName
	}
	host, _, _ := net.SplitHostPort(c.Gateway) // withDefaults has tried
	return host
}

// Close ends the connection and the calls on it.
func (c *Client) Close() error { return c.conn.Close() }

// Issue gets one certificate, repeating the request as Retry does. Where the request has
// neither CSR nor key, a new P-256 key is made.
func (c *Client) Issue(ctx context.Context, r Request) (*Certificate, error) {
	p, err := r.prepare()
	if err != nil {
		return nil, err
	}
	return c.issue(ctx, p)
}

func (c *Client) issue(ctx context.Context, p *prepared) (*Certificate, error) {
	var out *certmillv1.IssueResponse
	err := c.Retry(ctx, func(ctx context.Context) (err error) {
		out, err = c.Authority.Issue(ctx, p.message)
		return err
	})
	if err != nil {
		return nil, err
	}
	return p.certificate(out.GetCertificate())
}

// RenewalInfo says anew when the holder of a certificate is advised to renew it. serial
// is hexadecimal.
func (c *Client) RenewalInfo(ctx context.Context, serial string) (*certmillv1.RenewalInfo, error) {
	var out *certmillv1.RenewalInfo
	err := c.Retry(ctx, func(ctx context.Context) (err error) {
		out, err = c.Authority.GetRenewalInfo(ctx, &certmillv1.GetRenewalInfoRequest{Serial: serial})
		return err
	})
	return out, err
}

// TrustBundle returns the roots that the CA's certificates lead to. During the change of
// a root the old one and the new one are both there. It needs no credential.
func (c *Client) TrustBundle(ctx context.Context) (*Bundle, error) {
	var out *certmillv1.TrustBundle
	err := c.Retry(ctx, func(ctx context.Context) (err error) {
		out, err = c.Authority.GetTrustBundle(ctx, &certmillv1.GetTrustBundleRequest{})
		return err
	})
	if err != nil {
		return nil, err
	}
	return newBundle(out.GetRoots())
}

// Problem turns the error of a call that is not repeated into an *Error.
func Problem(err error) error {
	if err == nil {
		return nil
	}
	return problem.FromStatus(err)
}
