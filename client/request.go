package client

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// Request says what certificate is wanted.
type Request struct {
	// Profile names the certificate profile; empty means the gateway's default.
	Profile string
	// URIs, DNSNames and IPAddresses are the names asked for. A profile that takes the
	// name from the caller's identity needs none.
	URIs        []string
	DNSNames    []string
	IPAddresses []net.IP
	// Lifetime is in whole seconds; 0 means the profile's default.
	Lifetime time.Duration
	// Owner, Service and Environment are metadata, which a profile may require.
	Owner, Service, Environment string
	// NewKey makes the key; nil means P-256. Open asks it for a new one for each renewal.
	NewKey func() (crypto.Signer, error)
	// CSR, for Issue alone, is a request made elsewhere (PKCS #10, DER or PEM), in place
	// of the names and the key.
	CSR []byte
	// RequestID, for Issue alone, is the idempotency key: the same one returns the same
	// certificate. Empty means a new one for each Issue, kept over its retries.
	RequestID string
}

// Certificate is what was issued.
type Certificate struct {
	// Serial is hexadecimal.
	Serial string
	// TLS holds the chain without the root, the leaf parsed, and the key; no key where
	// the request brought a CSR.
	TLS tls.Certificate
	// PEM is the chain.
	PEM string
	// RenewAt is when the CA advises to renew; in the past: now.
	RenewAt time.Time
}

// Leaf returns the certificate itself.
func (c *Certificate) Leaf() *x509.Certificate { return c.TLS.Leaf }

// prepared is a request with its key and the idempotency key that its retries keep.
type prepared struct {
	message *certmillv1.IssueRequest
	key     crypto.Signer
}

func (r *Request) prepare() (*prepared, error) {
	p := &prepared{message: &certmillv1.IssueRequest{
		Csr: r.CSR, Profile: r.Profile, RequestId: r.RequestID,
		Metadata: &certmillv1.Metadata{Owner: r.Owner, Service: r.Service, Environment: r.Environment},
	}}
	if p.message.RequestId == "" {
		p.message.RequestId = rand.Text()
	}
	if r.Lifetime != 0 {
		p.message.Lifetime = durationpb.New(r.Lifetime)
	}
	if r.CSR != nil {
		return p, nil
	}
	template := &x509.CertificateRequest{DNSNames: r.DNSNames, IPAddresses: r.IPAddresses}
	for _, text := range r.URIs {
		u, err := url.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("the name %q: %w", text, err)
		}
		template.URIs = append(template.URIs, u)
	}
	newKey := r.NewKey
	if newKey == nil {
		newKey = func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }
	}
	var err error
	if p.key, err = newKey(); err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	if p.message.Csr, err = x509.CreateCertificateRequest(rand.Reader, template, p.key); err != nil {
		return nil, fmt.Errorf("making a CSR: %w", err)
	}
	return p, nil
}

var errOtherKey = errors.New("the certificate in the answer is not for the key that was asked for")

func (p *prepared) certificate(m *certmillv1.Certificate) (*Certificate, error) {
	leaf, err := x509.ParseCertificate(m.GetDer())
	if err != nil {
		return nil, fmt.Errorf("the certificate in the answer: %w", err)
	}
	out := &Certificate{Serial: m.GetSerial(), PEM: m.GetPem(), RenewAt: m.GetRenewAt().AsTime()}
	out.TLS.Certificate = append([][]byte{m.GetDer()}, m.GetChain()...)
	out.TLS.Leaf = leaf
	if p.key == nil {
		return out, nil
	}
	spki, err := x509.MarshalPKIXPublicKey(p.key.Public())
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(spki, leaf.RawSubjectPublicKeyInfo) {
		return nil, errOtherKey
	}
	out.TLS.PrivateKey = p.key
	return out, nil
}
