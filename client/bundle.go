package client

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
)

// Bundle is a set of roots. It is immutable.
type Bundle struct {
	// Roots are the trust anchors.
	Roots []*x509.Certificate
	pool  *x509.CertPool
}

func newBundle(ders [][]byte) (*Bundle, error) {
	b := &Bundle{pool: x509.NewCertPool()}
	for _, der := range ders {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("reading the trust bundle: %w", err)
		}
		b.Roots = append(b.Roots, root)
		b.pool.AddCert(root)
	}
	if len(b.Roots) == 0 {
		return nil, errors.New("the trust bundle is empty")
	}
	return b, nil
}

// Pool returns the roots as crypto/tls wants them. It must not be changed.
func (b *Bundle) Pool() *x509.CertPool { return b.pool }

// PEM returns the roots as PEM.
func (b *Bundle) PEM() []byte {
	var out bytes.Buffer
	for _, r := range b.Roots {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: r.Raw}) // a buffer never fails
	}
	return out.Bytes()
}

func (b *Bundle) has(der []byte) bool {
	for _, r := range b.Roots {
		if bytes.Equal(r.Raw, der) {
			return true
		}
	}
	return false
}

// gatewayTrust is whom we believe to be a gateway: the roots in CAFile, as it is now.
// Where those were roots of the CA itself, what the CA's bundle has later is believed
// too: so a client outlives the change of a root although its file was forgotten.
type gatewayTrust struct {
	caFile string
	more   atomic.Pointer[Bundle] // nil: the file alone
}

// config returns a client's side of TLS that looks at the roots at every handshake.
func (g *gatewayTrust) config(serverName string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: serverName,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies, by the roots of the moment
		VerifyConnection: func(cs tls.ConnectionState) error {
			pool, err := g.roots()
			if err != nil {
				return err
			}
			return verify(cs, pool, x509.ExtKeyUsageServerAuth, serverName)
		},
	}
}

// roots returns nil for the system's.
func (g *gatewayTrust) roots() (*x509.CertPool, error) {
	if g.caFile == "" {
		return nil, nil
	}
	given, err := g.file()
	if err != nil {
		return nil, err
	}
	if more := g.more.Load(); more != nil {
		for _, r := range more.Roots {
			given.pool.AddCert(r)
		}
	}
	return given.pool, nil
}

func (g *gatewayTrust) file() (*Bundle, error) {
	data, err := os.ReadFile(g.caFile)
	if err != nil {
		return nil, fmt.Errorf("reading the gateway's roots: %w", err)
	}
	var ders [][]byte
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			ders = append(ders, block.Bytes)
		}
	}
	b, err := newBundle(ders)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", g.caFile, err)
	}
	return b, nil
}

// follow takes the CA's bundle. It came from a gateway that was believed already.
func (g *gatewayTrust) follow(b *Bundle) {
	if g.caFile == "" {
		return
	}
	if g.more.Load() == nil {
		given, err := g.file()
		if err != nil {
			return
		}
		for _, r := range given.Roots {
			if !b.has(r.Raw) {
				return // another PKI's: the CA's word does not count for it
			}
		}
	}
	g.more.Store(b)
}

// verify checks a peer's chain, and its host name unless that is empty.
func verify(cs tls.ConnectionState, roots *x509.CertPool, usage x509.ExtKeyUsage, name string) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the peer shows no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, DNSName: name, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	return err
}
