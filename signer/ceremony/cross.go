package ceremony

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

// crossCaller and crossProfile are under what the ledger has cross-certificates.
const (
	crossCaller  = "local:ceremony"
	crossProfile = "cross-certificate"
)

// Cross is a second certificate for the key of a CA, under its own subject, by another
// CA: who trusts that one gets to the CA's certificates by it.
type Cross struct {
	Subject     *CA // whose key it is
	By          *CA // who certified it
	Certificate *x509.Certificate
	// Made says that this ceremony made the certificate.
	Made bool
}

// Name is what files call it: subject-by-issuer.
func (x *Cross) Name() string { return x.Subject.Issuer.Name + "-by-" + x.By.Issuer.Name }

// cross returns the cross-certificate that spec asks for, made where the ledger has none
// that lasts.
func (c *ceremony) cross(ctx context.Context, spec CrossSpec, subject *CA) (*Cross, error) {
	by, err := c.registered(ctx, spec.By)
	if err != nil {
		return nil, err
	}
	if by == nil {
		return nil, problem.New(problem.NotFound, "the ledger has no CA %q to certify %q", spec.By, spec.Subject)
	}
	x := &Cross{Subject: subject, By: by}
	if x.Certificate, err = c.registeredCross(ctx, subject, by); x.Certificate != nil || err != nil {
		return x, err
	}
	if err := allows(by.Certificate, subject.Certificate); err != nil {
		return nil, err
	}
	own := subject.Certificate
	t := &x509.Certificate{
		// The subject as it stands: relying parties find the CA by its bytes.
		RawSubject: own.RawSubject, Subject: own.Subject, KeyUsage: own.KeyUsage,
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: own.MaxPathLen, MaxPathLenZero: own.MaxPathLenZero,
	}
	if spec.IssuersURL != "" {
		t.IssuingCertificateURL = []string{spec.IssuersURL}
	}
	if spec.CRLURL != "" {
		t.CRLDistributionPoints = []string{spec.CRLURL}
	}
	cert, err := c.issue(ctx, request{template: t, public: own.PublicKey, signer: by, issuer: by.Issuer.ID, lifetime: spec.Lifetime.D()})
	if err != nil {
		return nil, err
	}
	x.Certificate, x.Made = cert, true
	return x, c.registerCross(ctx, x)
}

// allows reports whether a CA may have another one below it.
func allows(by, subject *x509.Certificate) error {
	if by.MaxPathLen >= 0 && (subject.MaxPathLen < 0 || by.MaxPathLen < subject.MaxPathLen+1) {
		return problem.Rejected("cross", "path_length", "%s allows %d CA below each other and %s needs %d", by.Subject, by.MaxPathLen, subject.Subject, subject.MaxPathLen+1)
	}
	return nil
}

// registeredCross returns the certificate of a CA's key by another CA that the ledger has,
// nil where it has none that is valid.
func (c *ceremony) registeredCross(ctx context.Context, subject, by *CA) (*x509.Certificate, error) {
	spki := sha256.Sum256(subject.Certificate.RawSubjectPublicKeyInfo)
	token := ""
	for {
		page, next, err := c.book.List(ctx, ledger.Filter{Caller: crossCaller, ExpiresAfter: c.Now()}, token, ledger.MaxPage)
		if err != nil {
			return nil, fmt.Errorf("reading the cross-certificates: %w", err)
		}
		for _, row := range page {
			if row.SPKI == spki && row.Issuer == by.Issuer.ID && row.Profile == crossProfile && row.Revoked == nil {
				cert, err := x509.ParseCertificate(row.DER)
				if err != nil {
					return nil, fmt.Errorf("the ledger's cross-certificate %s: %w", row.Serial, err)
				}
				if bytes.Equal(cert.RawSubject, subject.Certificate.RawSubject) {
					return cert, nil
				}
			}
		}
		if token = next; token == "" {
			return nil, nil
		}
	}
}

// registerCross puts it among the certificates, where it can be found and revoked.
func (c *ceremony) registerCross(ctx context.Context, x *Cross) error {
	number, err := serial.FromBig(x.Certificate.SerialNumber)
	if err != nil {
		return err
	}
	spki := sha256.Sum256(x.Certificate.RawSubjectPublicKeyInfo)
	row := ledger.Certificate{
		Serial: number, Issuer: x.By.Issuer.ID, Profile: crossProfile, ProfileVersion: "1", Names: []string{}, SPKI: spki,
		Caller: crossCaller, Owner: x.Subject.Issuer.Name, Service: x.By.Issuer.Name,
		NotBefore: x.Certificate.NotBefore, NotAfter: x.Certificate.NotAfter, DER: x.Certificate.Raw,
	}
	if len(x.Certificate.CRLDistributionPoints) > 0 {
		row.Revocation = ledger.RevocationCRL
	}
	// The serial is in the key: this one was not asked for before.
	key := ledger.NewRequestKey("cross", number.String())
	result := c.book.CommitBatch(ctx, []ledger.Entry{{Certificate: row, RequestKey: key, CSR: spki, ReuseUntil: c.Now().Add(time.Hour)}})[0]
	if result.Err != nil {
		return fmt.Errorf("committing the cross-certificate: %w", result.Err)
	}
	c.Log.Info("cross-certificate made", "subject", x.Certificate.Subject.String(), "by", x.By.Issuer.Name, "until", x.Certificate.NotAfter)
	return nil
}
