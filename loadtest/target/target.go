// Package target holds what can be put under load, one small file each: certmill's
// own interfaces and those of the CAs that people compare it with.
package target

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/loadtest/engine"
	"github.com/certmill/certmill/loadtest/material"
	"github.com/certmill/certmill/loadtest/wire"
)

// Request is one thing asked for. It is immutable.
type Request struct {
	// ID is the request's own: an idempotency key where the protocol has one.
	ID string
	// CSR is what to sign, for targets that issue.
	CSR *material.CSR
	// Status is what to ask about, for OCSP targets.
	Status *StatusRequest
	// Token is the caller's own bearer token, for targets over gRPC; empty means that of
	// the target.
	Token string
	// Deadline is when the caller gives up.
	Deadline time.Time
}

// Answer is what came back, as far as possible undecoded: it is looked at after the
// clock has stopped for it.
type Answer struct {
	// PEM or DER hold the certificate, leaf first, with its chain.
	PEM []byte
	DER [][]byte
	// OCSP is an OCSPResponse in DER.
	OCSP []byte
	// Phases is where the server says that the time went.
	Phases []engine.Phase
}

// Result is one answer or failure of a batch.
type Result struct {
	Answer Answer
	Err    error
}

// Target is a service under load. It is safe for concurrent use. Errors are *Failure
// wherever the cause is known; Classify tells the rest.
type Target interface {
	// Do asks for one thing and waits until the request's deadline or the end of ctx.
	Do(ctx context.Context, r *Request) (Answer, error)
	Close() error
}

// Batcher is a target whose call asks for several things at once. Results stand in
// the order of the requests; an error is the failure of all.
type Batcher interface {
	DoBatch(ctx context.Context, rs []*Request) ([]Result, error)
}

// Warmer is a target that can open its connections before the clock starts.
type Warmer interface {
	Warm(ctx context.Context) error
}

// Config says where a target is, as whom to call it and what to ask of it.
type Config struct {
	// URL is its address: https://host:port, for gRPC host:port.
	URL string
	// CAFile holds the roots for the server's certificate; empty means the system's.
	CAFile string
	// ServerName is the name in it where it is not the host of URL.
	ServerName string
	// CertFile and KeyFile are our client certificate.
	CertFile, KeyFile string
	// TokenFile holds a bearer token; for Vault and OpenBao a Vault token, for cfssl the
	// hexadecimal key of its authentication.
	TokenFile string
	// Connections bounds the connections; a gRPC target multiplexes on them.
	Connections int
	// Batch is how many certificates one call of a batch target asks for.
	Batch int
	// Profile, Lifetime, Owner, Service and Environment are asked for where the
	// protocol has a place for them; zero values leave it to the server.
	Profile                     string
	Lifetime                    time.Duration
	Owner, Service, Environment string
	// Mount and Role are those of a Vault PKI; Mount is "pki" unless given.
	Mount, Role string
	// Provisioner names step-ca's JWK provisioner, ProvisionerKeyFile holds its private
	// key (JWK, or JWE with the password in ProvisionerPasswordFile).
	Provisioner             string
	ProvisionerKeyFile      string
	ProvisionerPasswordFile string
	// ClusterID is Istio's clusterid header.
	ClusterID string
}

// Subject is what a target gives.
type Subject string

// The subjects.
const (
	Certificates Subject = "certificates"
	Statuses     Subject = "OCSP answers"
)

// Kind describes a target.
type Kind struct {
	Name    string
	Summary string
	Subject Subject
	// Open makes the target; it does not connect yet.
	Open func(Config) (Target, error)
	// Connections is the default bound.
	Connections int
	// Batch is true where one call asks for several.
	Batch bool
	// Multiplexed is true where one connection carries many calls at a time. Elsewhere
	// there is no use in more calls in flight than connections: they would wait for one.
	Multiplexed bool
	// Floor is true for the yardsticks, which `loadtest` starts itself.
	Floor bool
	// Flags are the flags of its own: not every kind reads them.
	Flags []string
}

var kinds = map[string]Kind{
	"rest":       {Summary: "certmill POST /v1/certificates, PEM in and out, HTTPS keep-alive", Subject: Certificates, Open: openREST, Connections: 64, Flags: certmillFlags},
	"grpc":       {Summary: "certmill gRPC Issue, unary", Subject: Certificates, Open: openUnary, Connections: 4, Multiplexed: true, Flags: certmillFlags},
	"stream":     {Summary: "certmill gRPC IssueStream, one stream a connection", Subject: Certificates, Open: openStream, Connections: 4, Multiplexed: true, Flags: certmillFlags},
	"batch":      {Summary: "certmill gRPC IssueBatch", Subject: Certificates, Open: openBatch, Connections: 4, Multiplexed: true, Batch: true, Flags: append([]string{"batch"}, certmillFlags...)},
	"ocsp-get":   {Summary: "OCSP by GET (RFC 6960 appendix A)", Subject: Statuses, Open: openOCSPGet, Connections: 64, Flags: []string{"serials", "issuer"}},
	"ocsp-post":  {Summary: "OCSP by POST", Subject: Statuses, Open: openOCSPPost, Connections: 64, Flags: []string{"serials", "issuer"}},
	"vault":      {Summary: "OpenBao or Vault POST /v1/<mount>/sign/<role>", Subject: Certificates, Open: openVault, Connections: 64, Flags: []string{"token-file", "mount", "role"}},
	"step":       {Summary: "step-ca POST /1.0/sign with a JWK provisioner", Subject: Certificates, Open: openStep, Connections: 64, Flags: []string{"provisioner", "provisioner-key", "provisioner-password-file"}},
	"cfssl":      {Summary: "cfssl POST /api/v1/cfssl/sign or authsign", Subject: Certificates, Open: openCFSSL, Connections: 64, Flags: []string{"token-file", "profile"}},
	"istio":      {Summary: "Istio gRPC CreateCertificate (istio.v1.auth)", Subject: Certificates, Open: openIstio, Connections: 4, Multiplexed: true, Flags: []string{"token-file", "cluster-id"}},
	"floor":      {Summary: "the floor's POST /v1/certificates, the yardstick for issuing (started here)", Subject: Certificates, Open: openREST, Connections: 64, Floor: true, Flags: metadataFlags},
	"floor-get":  {Summary: "the floor's OCSP by GET, the yardstick for responders (started here)", Subject: Statuses, Open: openOCSPGet, Connections: 64, Floor: true},
	"floor-post": {Summary: "the floor's OCSP by POST (started here)", Subject: Statuses, Open: openOCSPPost, Connections: 64, Floor: true},
}

// What certmill is asked for beside the lifetime, and as whom. The floor is asked for the
// same and gives everybody the same, so that one command line serves for both.
var (
	metadataFlags = []string{"profile", "owner", "service", "environment"}
	certmillFlags = append([]string{"token-file"}, metadataFlags...)
)

// Find returns the kind of a name.
func Find(name string) (Kind, error) {
	k, ok := kinds[name]
	if !ok {
		return Kind{}, fmt.Errorf("%q is not a target; there are %s", name, strings.Join(Names(), ", "))
	}
	k.Name = name
	return k, nil
}

// Names returns the names of all kinds.
func Names() []string { return slices.Sorted(maps.Keys(kinds)) }

// Failure is why a request did not get what it asked for.
type Failure struct {
	// Kind is a word from a small set, for counting: a problem's kind, "http_503",
	// "timeout", "connect", "connection", "answer".
	Kind   string
	Detail string
	// Late says that it took too long.
	Late bool
}

func (f *Failure) Error() string { return f.Kind + ": " + f.Detail }

func failure(kind, format string, args ...any) *Failure {
	return &Failure{Kind: kind, Detail: fmt.Sprintf(format, args...)}
}

// Classify returns the failure that err is.
func Classify(err error) *Failure {
	var f *Failure
	var op *net.OpError
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, wire.ErrNoConnection):
		return &Failure{Kind: engine.KindTimeout, Detail: err.Error(), Late: true}
	case errors.As(err, &op) && op.Op == "dial":
		return &Failure{Kind: "connect", Detail: err.Error()}
	default:
		return &Failure{Kind: "connection", Detail: err.Error()}
	}
}

// TLS returns the client's side of TLS.
func (c Config) TLS() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		data, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("--ca: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("--ca: %s holds no certificate in PEM", c.CAFile)
		}
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, errors.New("--cert and --key go together")
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("--cert, --key: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// token returns the secret of TokenFile, or "".
func (c Config) token() (string, error) {
	if c.TokenFile == "" {
		return "", nil
	}
	token, err := config.ReadSecret(c.TokenFile)
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	return token, nil
}

var errConnections = errors.New("--connections must be at least 1")

// http makes the HTTP client and returns the path of URL.
func (c Config) http(headers map[string][]string) (*wire.Client, string, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, "", fmt.Errorf("--url: %w", err)
	}
	t, err := c.TLS()
	if err != nil {
		return nil, "", err
	}
	if c.Connections < 1 {
		return nil, "", errConnections
	}
	client, err := wire.New(u, t, c.Connections, headers)
	if err != nil {
		return nil, "", fmt.Errorf("--url: %w", err)
	}
	return client, strings.TrimSuffix(u.EscapedPath(), "/"), nil
}
