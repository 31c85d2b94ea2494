package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
)

// mtlsAuth makes callers of client certificates. The TLS handshake has verified the
// chain; what can change afterwards, on a connection that lives long, is checked at
// every request: the certificate's end, and for our own its revocation.
type mtlsAuth struct {
	issuers   *issuerCache
	ledger    Certificates
	operators []Operator
	now       func() time.Time
	ttl       time.Duration
	// good remembers until when a serial need not be asked again.
	good   *lru[serial.Number, time.Time]
	flight singleflight.Group
}

func (a *mtlsAuth) caller(ctx context.Context, state *tls.ConnectionState) (*Caller, error) {
	leaf := state.PeerCertificates[0]
	if len(state.VerifiedChains) == 0 {
		return nil, unauthenticated("certificate", "the client certificate was not verified")
	}
	if now := a.now(); now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		return nil, unauthenticated("expired", "the client certificate is outside its validity")
	}
	c := &Caller{Caller: profile.Caller{Kind: kindMTLS}}
	var err error
	if c.ID, c.Identity, err = certificateIdentity(leaf); err != nil {
		return nil, err
	}
	ours, err := a.ours(state.VerifiedChains)
	if err != nil {
		return nil, err
	}
	if !ours {
		c.ID = "mtls:" + caPrefix(anchor(state.VerifiedChains)) + strings.TrimPrefix(c.ID, "mtls:")
	} else {
		if c.Serial, err = a.checkOwn(ctx, leaf); err != nil {
			return nil, err
		}
		c.Renewal = true
		c.held = newHeld(leaf)
	}
	c.Roles = rolesOf(a.operators, c.ID)
	return c, nil
}

// holding returns the caller of a token together with the valid certificate of ours that
// came on the same connection, if one did. It proves nothing about the caller, and so
// is not looked up in the ledger: it only puts a request behind those that have none.
func (a *mtlsAuth) holding(c *Caller, state *tls.ConnectionState) *Caller {
	if len(state.VerifiedChains) == 0 {
		return c
	}
	leaf := state.PeerCertificates[0]
	if ours, err := a.ours(state.VerifiedChains); err != nil || !ours || a.now().After(leaf.NotAfter) {
		return c
	}
	with := *c // callers are shared
	with.held = newHeld(leaf)
	return &with
}

// ours reports whether the certificate was signed by one of our issuers. A chain
// that reaches one of them through a CA below it is refused: that CA answers for
// its own certificates and may put any name in them.
func (a *mtlsAuth) ours(chains [][]*x509.Certificate) (bool, error) {
	known := a.issuers.current()
	below := false
	for _, chain := range chains {
		if len(chain) > 1 && known.byDER[string(chain[1].Raw)] != nil {
			return true, nil
		}
		below = below || known.byDER[string(chain[len(chain)-1].Raw)] != nil
	}
	if below {
		return false, unauthenticated("subordinate_ca", "the client certificate comes from a CA below ours, which is not trusted here")
	}
	return false, nil
}

// anchor returns the CA that answers for a client certificate of another CA: the one
// of client_ca_files that its chain ends in; of several, by cross-signing, the oldest,
// so that a CA that is added later changes nobody's name.
func anchor(chains [][]*x509.Certificate) *x509.Certificate {
	var oldest *x509.Certificate
	for _, chain := range chains {
		root := chain[len(chain)-1]
		if oldest == nil || root.NotBefore.Before(oldest.NotBefore) ||
			root.NotBefore.Equal(oldest.NotBefore) && bytes.Compare(root.Raw, oldest.Raw) < 0 {
			oldest = root
		}
	}
	return oldest
}

// caPrefix stands in the ids of callers whose certificates come from another CA than
// ours: two CAs that give out the same name have not named the same caller. It is the
// CA's key, so it outlives a renewed root. No character of it but the slashes, which
// "*" in operators does not match, can end it.
func caPrefix(ca *x509.Certificate) string {
	key := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return "ca/" + hex.EncodeToString(key[:16]) + "/"
}

// checkOwn refuses a certificate of ours that is revoked, or that the ledger does
// not know. Where the ledger cannot be asked, nobody is let in on an old answer.
func (a *mtlsAuth) checkOwn(ctx context.Context, leaf *x509.Certificate) (serial.Number, error) {
	n, err := serial.FromBig(leaf.SerialNumber)
	if err != nil {
		return n, unauthenticated("unknown_certificate", "the client certificate names our issuer and is not in the ledger")
	}
	return n, a.notRevoked(ctx, n)
}

// notRevoked refuses a certificate that is revoked or not in the ledger.
func (a *mtlsAuth) notRevoked(ctx context.Context, n serial.Number) error {
	if until, ok := a.good.get(n); ok && a.now().Before(until) {
		return nil
	}
	// The look-up is shared, so it must not end with the one caller who started it.
	done := a.flight.DoChan(string(n[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return nil, a.lookUp(ctx, n)
	})
	select {
	case r := <-done:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *mtlsAuth) lookUp(ctx context.Context, n serial.Number) error {
	asked := a.now()
	_, revocation, err := a.ledger.Certificate(ctx, n)
	switch {
	case errors.Is(err, &problem.Error{Kind: problem.NotFound}):
		return unauthenticated("unknown_certificate", "the client certificate names our issuer and is not in the ledger")
	case err != nil:
		return fmt.Errorf("looking up a client certificate: %w", err)
	case revocation != nil:
		a.good.remove(n)
		return unauthenticated("revoked", "the client certificate is revoked")
	}
	a.good.put(n, asked.Add(a.ttl))
	return nil
}

// certificateIdentity takes the first URI SAN, else the first DNS SAN, else the
// common name. The id tells the three apart, so that a CA which lets its clients
// choose a common name does not let them choose a SPIFFE ID.
func certificateIdentity(leaf *x509.Certificate) (id, identity string, err error) {
	switch {
	case len(leaf.URIs) > 0:
		uri := leaf.URIs[0].String()
		return "mtls:" + uri, uri, nil
	case len(leaf.DNSNames) > 0:
		return "mtls:dns:" + leaf.DNSNames[0], leaf.DNSNames[0], nil
	case leaf.Subject.CommonName != "":
		cn := leaf.Subject.CommonName
		if strings.Contains(cn, "://") || !printable(cn, 256) {
			return "", "", unauthenticated("identity", "the client certificate's common name cannot be used as an identity")
		}
		return "mtls:cn:" + cn, cn, nil
	}
	return "", "", unauthenticated("identity", "the client certificate names nobody: it has no URI, no DNS name and no common name")
}

// printable reports whether s is 1 to limit bytes of printable ASCII.
func printable(s string, limit int) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
