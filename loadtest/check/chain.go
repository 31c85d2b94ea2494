package check

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"
)

// chains verifies certificates up to a root. What stands above the leaf is the same in
// nearly every answer, so its signatures are verified once: one by a P-384 root costs
// ten times as much as the leaf's by a P-256 CA, which would be the load generator's
// work taken from the service on the same machine. It is safe for concurrent use.
type chains struct {
	roots *x509.CertPool // nil: signatures are not verified

	mu    sync.Mutex
	known map[string]*issuers // by what stands above the leaf, in DER
}

// maxIssuers is how many different chains are remembered; others are verified anew
// each time.
const maxIssuers = 64

// issuers are the certificates above a leaf as an answer has them.
type issuers struct {
	first *x509.Certificate // the leaf's issuer by their order; nil if there is none
	pool  *x509.CertPool

	// verified, once the path from the leaf's issuer to a root has been, holds that
	// issuer as an anchor for other leaves until the first certificate of the path
	// expires. It stays nil where that would lose what a CA lays upon its leaves.
	mu       sync.Mutex
	verified *x509.CertPool
	until    time.Time
}

func newChains(roots *x509.CertPool) *chains {
	return &chains{roots: roots, known: map[string]*issuers{}}
}

// verify verifies leaf under what came with it, in DER, and returns its issuer, if it
// is known.
func (c *chains) verify(leaf *x509.Certificate, above [][]byte, at time.Time) (*x509.Certificate, error) {
	i, err := c.issuers(above)
	if err != nil || c.roots == nil {
		return i.first, err
	}
	if err := i.verify(leaf, c.roots, at); err != nil {
		return i.first, fmt.Errorf("the chain does not verify: %w", err)
	}
	return i.first, nil
}

// issuers parses certificates, or returns those parsed before.
func (c *chains) issuers(above [][]byte) (*issuers, error) {
	var framed []byte // with lengths: what is no certificate is not taken for parts of some
	for _, der := range above {
		framed = append(binary.BigEndian.AppendUint32(framed, uint32(len(der))), der...)
	}
	key := string(framed)
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := c.known[key]; i != nil {
		return i, nil
	}
	i := &issuers{pool: x509.NewCertPool()}
	for k, der := range above {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return &issuers{}, fmt.Errorf("certificate %d of the chain cannot be parsed: %w", k+2, err)
		}
		if k == 0 {
			i.first = cert
		}
		i.pool.AddCert(cert)
	}
	if len(c.known) < maxIssuers {
		c.known[key] = i
	}
	return i, nil
}

func (i *issuers) verify(leaf *x509.Certificate, roots *x509.CertPool, at time.Time) error {
	opts := x509.VerifyOptions{Roots: roots, Intermediates: i.pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if anchor := i.anchor(at); anchor != nil {
		opts.Roots, opts.Intermediates = anchor, nil
		if _, err := leaf.Verify(opts); err == nil {
			return nil
		}
		// By another path, perhaps; and if not, its error says more.
		opts.Roots, opts.Intermediates = roots, i.pool
	}
	found, err := leaf.Verify(opts)
	if err != nil {
		return err
	}
	i.remember(found[0])
	return nil
}

func (i *issuers) anchor(at time.Time) *x509.CertPool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if at.After(i.until) {
		return nil
	}
	return i.verified
}

// remember keeps a leaf's issuer as an anchor once its path to a root is verified.
func (i *issuers) remember(path []*x509.Certificate) {
	if len(path) < 3 || binds(path[2:], nameConstraints) || binds(path[1:], policies...) {
		return // nothing is saved, or something lost
	}
	anchor := x509.NewCertPool()
	anchor.AddCert(path[1])
	until := path[1].NotAfter
	for _, cert := range path[2:] {
		if cert.NotAfter.Before(until) {
			until = cert.NotAfter
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.verified, i.until = anchor, until
}

// The extensions by which a CA binds all certificates below it (RFC 5280 sections 4.2.1.10,
// 4.2.1.5, 4.2.1.11, 4.2.1.14). crypto/x509 heeds name constraints of an anchor, too, but
// not its policies.
var (
	nameConstraints = asn1.ObjectIdentifier{2, 5, 29, 30}
	policies        = []asn1.ObjectIdentifier{{2, 5, 29, 33}, {2, 5, 29, 36}, {2, 5, 29, 54}}
)

// binds reports whether one of the CAs has one of the extensions.
func binds(cas []*x509.Certificate, extensions ...asn1.ObjectIdentifier) bool {
	return slices.ContainsFunc(cas, func(ca *x509.Certificate) bool {
		return slices.ContainsFunc(ca.Extensions, func(e pkix.Extension) bool {
			return slices.ContainsFunc(extensions, e.Id.Equal)
		})
	})
}
