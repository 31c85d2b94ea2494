package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/problem"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// maxMessage bounds an answer: a page of 1,000 certificates.
const maxMessage = 32 << 20

// Client is a connection to a gateway. It is safe for concurrent use.
type Client struct {
	certmillv1.CertificateAuthorityClient
	Operations certmillv1.OperationsClient
	timeout    time.Duration
	conn       *grpc.ClientConn
}

// Dial prepares a connection; the first call makes it.
func (c Context) Dial() (*Client, error) {
	tlsConfig, err := c.TLS()
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	}
	if c.TokenFile != "" {
		token, err := config.ReadSecret(c.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("reading the token: %w", err)
		}
		options = append(options, grpc.WithPerRPCCredentials(bearer(token)))
	}
	conn, err := grpc.NewClient(c.Gateway, options...)
	if err != nil {
		return nil, fmt.Errorf("gateway %s: %w", c.Gateway, err)
	}
	return &Client{
		CertificateAuthorityClient: certmillv1.NewCertificateAuthorityClient(conn),
		Operations:                 certmillv1.NewOperationsClient(conn),
		timeout:                    c.Timeout, conn: conn,
	}, nil
}

// TLS returns the client's side of TLS.
func (c Context) TLS() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: c.ServerName}
	if c.CAFile != "" {
		roots, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading the gateway's roots: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(roots) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", c.CAFile)
		}
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading our client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Retry calls until it succeeds, fails for good, or the context's timeout has passed.
// Only Overloaded and Unavailable are tried again, after the time that the gateway
// advises, else 100 ms doubling to 2 s, with jitter. call must be safe to repeat.
func (c *Client) Retry(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	wait := 100 * time.Millisecond
	for {
		err := call(ctx)
		if err == nil {
			return nil
		}
		p := problem.FromStatus(err)
		if p.Kind != problem.Overloaded && p.Kind != problem.Unavailable {
			return p
		}
		pause := max(wait, p.RetryAfter)
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return p
		case <-timer.C:
		}
		wait = min(2*wait, 2*time.Second)
	}
}

// bearer puts a token into every call; only over TLS.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// Problem turns the error of a call that is not repeated into its problem.
func Problem(err error) error { return problem.FromStatus(err) }
