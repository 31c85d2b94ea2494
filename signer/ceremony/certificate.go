package ceremony

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/hsm"
)

// tagSize is how many octets of a key's identifier stand in names.
const tagSize = 4

// noCheck is id-pkix-ocsp-nocheck (RFC 6960 section 4.2.2.2.1) with its value NULL:
// clients do not ask for the delegate's own status.
var noCheck = pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: asn1.NullBytes}

// keyID is the key identifier of RFC 7093 section 2 method 1: the first 160 bits of
// the SHA-256 of the key's bits.
func keyID(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(spki.Key.RightAlign())
	return sum[:20], nil
}

// caTemplate is a CA certificate. A root may have CAs below it, an issuing CA none.
func caTemplate(spec CASpec, isRoot bool) *x509.Certificate {
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: spec.CommonName},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	if spec.Organization != "" {
		t.Subject.Organization = []string{spec.Organization}
	}
	if spec.Country != "" {
		t.Subject.Country = []string{spec.Country}
	}
	if isRoot {
		t.MaxPathLen = spec.PathLength
		return t
	}
	t.MaxPathLenZero = true
	if spec.IssuersURL != "" {
		t.IssuingCertificateURL = []string{spec.IssuersURL}
	}
	if spec.CRLURL != "" {
		t.CRLDistributionPoints = []string{spec.CRLURL}
	}
	return t
}

// ocspTemplate is a delegate's certificate: for OCSP answers only, without AIA or
// CRLDP since nobody is to ask for its status (RFC 5019 section 2.2.2, kept by RFC 9919).
func ocspTemplate(issuing *x509.Certificate) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{
			CommonName: "OCSP signer", Organization: issuing.Subject.Organization, Country: issuing.Subject.Country,
		},
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		ExtraExtensions: []pkix.Extension{noCheck},
	}
}

// request is a certificate to be made.
type request struct {
	template *x509.Certificate // without names' tags, key, times and serial
	public   crypto.PublicKey
	signer   *CA   // its certificate is nil for a root, which signs itself
	issuer   int32 // the signer's id in the ledger; 0 for a root, which has none yet
	lifetime time.Duration
}

// issue signs a certificate in an epoch of its own and checks it. It is not in the
// ledger yet: until the caller has put it there, nobody else may see it.
func (c *ceremony) issue(ctx context.Context, r request) (*x509.Certificate, error) {
	t := r.template
	var err error
	if t.SubjectKeyId, err = keyID(r.public); err != nil {
		return nil, err
	}
	if t.RawSubject == nil {
		t.Subject.CommonName += fmt.Sprintf(" %x", t.SubjectKeyId[:tagSize])
	}
	if t.NotBefore, t.NotAfter, err = c.validity(r.lifetime, r.signer.Certificate); err != nil {
		return nil, err
	}
	epoch, err := c.book.StartEpoch(ctx, ledger.Epoch{Signer: "ceremony", Issuer: r.issuer, Token: r.signer.key.Serial()})
	if err != nil {
		return nil, fmt.Errorf("starting an epoch: %w", err)
	}
	number, err := serial.New(rand.Reader, epoch, t.NotBefore, t.NotAfter)
	if err != nil {
		return nil, err
	}
	t.SerialNumber = number.Big()
	parent := r.signer.Certificate
	if parent == nil {
		parent = t
		// A root may leave it out (RFC 5280 section 4.2.1.1); with it, the draft that is
		// linted needs no exception.
		t.AuthorityKeyId = t.SubjectKeyId
	}
	cert, err := create(ctx, t, parent, r.public, r.signer.key)
	if err != nil {
		return nil, err
	}
	return cert, c.book.ReportSignatures(ctx, epoch, 1, true)
}

// create lints the certificate under a throw-away key, has the token sign it, and
// checks what came out.
func create(ctx context.Context, t, parent *x509.Certificate, public crypto.PublicKey, key caKey) (*x509.Certificate, error) {
	if err := lintFirst(t, parent, public); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, public, signer{ctx, key})
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", t.Subject, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading back %s: %w", t.Subject, err)
	}
	return cert, check(cert, parent)
}

// caKey signs for a CA.
type caKey interface {
	Public() crypto.PublicKey
	// Serial is that of the token, for the epoch.
	Serial() string
	// sign returns a signature that has been verified with the CA's key.
	sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// tokenKey is a key in a token that is at hand. A wrong signature takes the token out
// of service.
type tokenKey struct{ *hsm.Key }

func (k tokenKey) Serial() string { return k.Token().Info().Serial }

func (k tokenKey) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := k.SignContext(ctx, digest, opts)
	if err != nil {
		return nil, err
	}
	if err := hsm.Verify(k.Public(), digest, sig, opts); err != nil {
		k.Token().Condemn(err)
		return nil, err
	}
	return sig, nil
}

// signer makes a caKey a crypto.Signer that obeys a context.
type signer struct {
	ctx context.Context
	caKey
}

func (s signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.sign(s.ctx, digest, opts)
}

// lints returns zlint's lints for certificates of any PKI; the CA/Browser Forum's are for
// public ones.
func lints() (lint.Registry, error) {
	return lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: lint.SourceList{
		lint.RFC3279, lint.RFC5280, lint.RFC5480, lint.RFC6960, lint.RFC8813, lint.Community,
	}})
}

// lintFirst lints the certificate before the token signs it: afterwards it exists.
func lintFirst(t, parent *x509.Certificate, public crypto.PublicKey) error {
	throwAway, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	fake := *parent
	fake.PublicKey, fake.PublicKeyAlgorithm = throwAway.Public(), x509.ECDSA
	der, err := x509.CreateCertificate(rand.Reader, t, &fake, public, throwAway)
	if err != nil {
		return fmt.Errorf("drafting %s: %w", t.Subject, err)
	}
	cert, err := zx509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("drafting %s: %w", t.Subject, err)
	}
	registry, err := lints()
	if err != nil {
		return err
	}
	var errs []error
	for name, result := range zlint.LintCertificateEx(cert, registry).Results {
		if result.Status == lint.Error || result.Status == lint.Fatal {
			errs = append(errs, fmt.Errorf("zlint %s: %s", name, result.Details))
		}
	}
	return errors.Join(errs...)
}
