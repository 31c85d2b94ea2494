package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

// PreparerConfig is what a Preparer works with.
type PreparerConfig struct {
	// Issuer is the issuing certificate; Public is its key as the token has it.
	Issuer ledger.Issuer
	Public crypto.PublicKey
	// SignatureAlgorithm is unset for the one that belongs to the key, or
	// x509.SHA256WithRSAPSS.
	SignatureAlgorithm x509.SignatureAlgorithm
	// Profiles of other issuers in the set are left alone.
	Profiles *profile.Set
	// LintShare is the share of certificates that are linted before they are signed, 0 to 1.
	LintShare float64
	// Now and Random are the clock and the CSPRNG; nil means the real ones.
	Now    func() time.Time
	Random io.Reader
	// Tracer makes the span of the check of a signature; nil makes none.
	Tracer trace.Tracer
}

// Preparer turns requests into certificates that lack their signature. It is safe for
// concurrent use. Where profiles or the issuer change, make another.
type Preparer struct {
	issuer    ledger.Issuer
	cert      *x509.Certificate
	scheme    *scheme
	templates map[string]*template
	share     sampler
	now       func() time.Time
	random    io.Reader
	tracer    trace.Tracer
}

// NewPreparer compiles the templates of the issuer's profiles and lints a sample of
// each with each of its key types. It fails where the issuing certificate cannot issue,
// its key is not Public, there is no profile for it, or a sample has a lint error.
func NewPreparer(c PreparerConfig) (*Preparer, error) {
	p := &Preparer{issuer: c.Issuer, now: c.Now, random: c.Random, tracer: c.Tracer, templates: make(map[string]*template)}
	if p.now == nil {
		p.now = time.Now
	}
	if p.random == nil {
		p.random = rand.Reader
	}
	if p.tracer == nil {
		p.tracer = noop.Tracer{}
	}
	var err error
	if p.share, err = newSampler(c.LintShare); err != nil {
		return nil, err
	}
	if p.cert, err = parseIssuer(c.Issuer, c.Public); err != nil {
		return nil, fmt.Errorf("issuer %s: %w", c.Issuer.Name, err)
	}
	if p.scheme, err = newScheme(p.cert.PublicKey, c.SignatureAlgorithm); err != nil {
		return nil, fmt.Errorf("issuer %s: %w", c.Issuer.Name, err)
	}
	var errs []error
	for _, pr := range c.Profiles.All() {
		if pr.IssuedBy(c.Issuer.Name) {
			errs = append(errs, p.addProfile(pr))
		}
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("issuer %s: no profile names it", c.Issuer.Name)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Preparer) addProfile(pr *profile.Profile) error {
	t, err := newTemplate(p.cert, p.issuer, pr, p.scheme)
	if err != nil {
		return err
	}
	p.templates[pr.Name] = t
	return t.lintSamples(p)
}

// parseIssuer checks that a certificate may issue and that the key is its own.
func parseIssuer(issuer ledger.Issuer, public crypto.PublicKey) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(issuer.DER)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("public key of the token: %w", err)
	}
	switch {
	case !bytes.Equal(spki, cert.RawSubjectPublicKeyInfo):
		return nil, errors.New("the key in the token is not that of the issuing certificate")
	case !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, errors.New("the certificate is not a CA's: it lacks cA or keyCertSign")
	case len(cert.SubjectKeyId) == 0:
		return nil, errors.New("the certificate has no subject key identifier, by which its issued certificates name it")
	case len(cert.Subject.Names) == 0:
		return nil, errors.New("the certificate has an empty subject (RFC 5280 section 4.1.2.6)")
	}
	return cert, nil
}

// Prepare enforces the profile on r, whatever a gateway has checked before, and returns
// the certificate that is to be signed. Errors are *problem.Error where the request or
// the issuer's end is the cause.
func (p *Preparer) Prepare(r *profile.Request, epoch uint32) (*Prepared, error) {
	t := p.templates[r.Profile]
	if t == nil {
		return nil, problem.Rejected("profile", "profile_unknown", "issuer %s has no profile %.63q", p.issuer.Name, r.Profile)
	}
	if err := t.profile.Check(r); err != nil {
		return nil, err
	}
	v, err := p.validity(&t.profile.Lifetime, r.Lifetime)
	if err != nil {
		return nil, err
	}
	number, err := serial.New(p.random, epoch, v.notBefore, v.notAfter)
	if err != nil {
		return nil, err
	}
	tbs, err := t.tbs(r, number, v)
	if err != nil {
		return nil, fmt.Errorf("building the certificate: %w", err)
	}
	if p.share.next() {
		if err := t.lint.check(p.scheme, t, tbs); err != nil {
			return nil, err
		}
	}
	return &Prepared{template: t, scheme: p.scheme, tbs: tbs, row: p.row(t, r, number, v), tracer: p.tracer}, nil
}

// validity counts from now, in whole seconds. The jitter shortens and never lengthens,
// and no certificate outlives its issuer or is older than it.
func (p *Preparer) validity(l *profile.Lifetime, asked time.Duration) (validity, error) {
	now := p.now().UTC().Truncate(time.Second)
	jitter, err := p.jitter(asked, l.Jitter)
	if err != nil {
		return validity{}, err
	}
	v := validity{notBefore: now.Add(-l.Backdate.D()), notAfter: now.Add(asked - jitter)}
	if v.notAfter.After(p.cert.NotAfter) {
		v.notAfter = p.cert.NotAfter
	}
	if v.notBefore.Before(p.cert.NotBefore) {
		v.notBefore = p.cert.NotBefore
	}
	if left := v.notAfter.Sub(now); left < min(asked-jitter, l.Min.D()) || now.Before(p.cert.NotBefore) {
		return v, problem.Down("issuer", time.Minute, fmt.Errorf("the certificate of issuer %s is valid from %s to %s", p.issuer.Name, p.cert.NotBefore.Format(time.RFC3339), p.cert.NotAfter.Format(time.RFC3339)))
	}
	return v, nil
}

// jitter returns whole seconds in [0, share of the lifetime], evenly spread.
func (p *Preparer) jitter(lifetime time.Duration, share float64) (time.Duration, error) {
	most := uint64(share * lifetime.Seconds())
	if most == 0 {
		return 0, nil
	}
	var b [8]byte
	if _, err := io.ReadFull(p.random, b[:]); err != nil {
		return 0, fmt.Errorf("reading random bits for the jitter: %w", err)
	}
	// The modulo's bias is below 2^-30 for any lifetime there is.
	return time.Duration(binary.BigEndian.Uint64(b[:])%(most+1)) * time.Second, nil
}

func (p *Preparer) row(t *template, r *profile.Request, number serial.Number, v validity) ledger.Certificate {
	return ledger.Certificate{
		Serial: number, Issuer: p.issuer.ID,
		Profile: t.profile.Name, ProfileVersion: t.profile.Version,
		Names: ledgerNames(r), SPKI: sha256.Sum256(r.SPKI),
		Caller: r.Caller.ID, Owner: r.Owner, Service: r.Service, Environment: r.Environment,
		NotBefore: v.notBefore, NotAfter: v.notAfter, Revocation: t.revocation,
	}
}

// ledgerNames returns the names with their kinds, in the order of the certificate.
func ledgerNames(r *profile.Request) []string {
	names := make([]string, 0, len(r.DNSNames)+len(r.IPAddresses)+len(r.URIs)+len(r.Emails))
	for _, n := range r.DNSNames {
		names = append(names, "dns:"+n)
	}
	for _, ip := range r.IPAddresses {
		names = append(names, "ip:"+ip.String())
	}
	for _, u := range r.URIs {
		names = append(names, "uri:"+u)
	}
	for _, e := range r.Emails {
		names = append(names, "email:"+e)
	}
	return names
}

// ContextSigner is a key whose wait obeys a context; hsm.Key is one. It must be safe
// for concurrent use. With a hash of 0 in opts, digest is the message (Ed25519).
type ContextSigner interface {
	SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// Prepared is a certificate that lacks its signature, and the right to one signature:
// Sign works once. So nothing is signed that Prepare has not let through.
type Prepared struct {
	template *template
	scheme   *scheme
	tbs      []byte
	row      ledger.Certificate
	tracer   trace.Tracer
	redeemed atomic.Bool
}

// ErrRedeemed says that a Prepared was signed, or tried, before.
var ErrRedeemed = errors.New("this prepared certificate has been redeemed already")

// Serial returns the serial number.
func (p *Prepared) Serial() serial.Number { return p.row.Serial }

// Sign has the key sign, checks the signature with the issuer's public key, and returns
// the row for the ledger with the certificate in it. The certificate must not leave
// before the ledger has the row. Errors: ErrRedeemed, ErrBadSignature, the key's own.
func (p *Prepared) Sign(ctx context.Context, key ContextSigner) (ledger.Certificate, error) {
	if p.redeemed.Swap(true) {
		return ledger.Certificate{}, ErrRedeemed
	}
	digest := p.scheme.digest(p.tbs)
	signature, err := key.SignContext(ctx, digest, p.scheme.options)
	if err != nil {
		return ledger.Certificate{}, fmt.Errorf("signing certificate %s: %w", p.row.Serial, err)
	}
	if err := p.check(ctx, digest, signature); err != nil {
		return ledger.Certificate{}, fmt.Errorf("checking certificate %s: %w", p.row.Serial, err)
	}
	row := p.row
	row.DER = p.template.assemble(p.tbs, signature)
	return row, nil
}

// check verifies the signature. It costs more than most signatures in hardware do, so a
// trace shows it beside them.
func (p *Prepared) check(ctx context.Context, digest, signature []byte) error {
	if trace.SpanContextFromContext(ctx).IsSampled() {
		_, span := p.tracer.Start(ctx, "signer.check")
		defer span.End()
	}
	return p.scheme.verify(digest, signature)
}
