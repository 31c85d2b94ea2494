package ceremony

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/hsm"
)

// CA is a CA as it stands in the ledger and in the token.
type CA struct {
	Issuer      ledger.Issuer
	Certificate *x509.Certificate
	// Made says that this ceremony made the certificate.
	Made bool

	key caKey
}

// Delegate is a delegated OCSP signer as it stands in the ledger and in the token.
type Delegate struct {
	Signer      ledger.OCSPSigner
	Certificate *x509.Certificate
	// Made says that this ceremony made the certificate.
	Made bool
}

// Issuer is an issuing CA with its OCSP signer.
type Issuer struct {
	CA   CA
	OCSP Delegate
}

// Result is a whole CA.
type Result struct {
	Root, Issuing CA
	OCSP          Delegate
	// More are the issuing CAs beside Issuing.
	More  []Issuer
	Cross []Cross
	// CRLs are made anew by every ceremony whose spec asks for them.
	CRLs []CRL
}

// Issuers are all issuing CAs.
func (r *Result) Issuers() []Issuer { return append([]Issuer{{r.Issuing, r.OCSP}}, r.More...) }

// ca returns the CA of this name.
func (r *Result) ca(name string) *CA {
	if r.Root.Issuer.Name == name {
		return &r.Root
	}
	issuers := r.Issuers()
	for i := range issuers {
		if issuers[i].CA.Issuer.Name == name {
			return &issuers[i].CA
		}
	}
	return nil
}

// ceremony is one run.
type ceremony struct {
	Deps
	spec  Spec
	token *hsm.Token
	book  Registrar
}

// Init makes what is missing of the CA that spec describes, and returns the whole.
// What is there already is taken as it is, even where spec says otherwise now. It
// fails where the ledger knows a CA whose key the token does not hold: a second key
// under its name is made by nobody unasked.
func Init(ctx context.Context, spec Spec, token *hsm.Token, book Registrar, deps Deps) (*Result, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	c := &ceremony{Deps: deps.withDefaults(), spec: spec, token: token, book: book}
	// Step 1: the root.
	root, err := c.ca(ctx, spec.Root, nil)
	if err != nil {
		return nil, fmt.Errorf("making the root CA: %w", err)
	}
	// Step 2: the issuing CAs, each with its OCSP delegate.
	r := &Result{Root: *root}
	_, issuers := spec.issuers()
	for _, ca := range issuers {
		i, err := c.issuer(ctx, ca, root)
		if err != nil {
			return nil, err
		}
		r.More = append(r.More, *i)
	}
	r.Issuing, r.OCSP, r.More = r.More[0].CA, r.More[0].OCSP, r.More[1:]
	// Step 3: the cross-certificates.
	for _, x := range spec.Cross {
		made, err := c.cross(ctx, x, r.ca(x.Subject))
		if err != nil {
			return nil, fmt.Errorf("certifying %q by %q: %w", x.Subject, x.By, err)
		}
		r.Cross = append(r.Cross, *made)
	}
	// Step 4: the CRLs of those who have signed here.
	return r, c.crls(ctx, r)
}

// issuer returns an issuing CA with its OCSP delegate, each made where it is missing.
func (c *ceremony) issuer(ctx context.Context, spec CASpec, root *CA) (*Issuer, error) {
	ca, err := c.ca(ctx, spec, root)
	if err != nil {
		return nil, fmt.Errorf("making the issuing CA %q: %w", spec.Name, err)
	}
	delegate, err := c.delegate(ctx, ca)
	if err != nil {
		return nil, fmt.Errorf("making the OCSP signer of %q: %w", spec.Name, err)
	}
	return &Issuer{*ca, *delegate}, nil
}

// crls makes the CRLs of the root and of those who cross-certify, if the spec asks for them.
func (c *ceremony) crls(ctx context.Context, r *Result) error {
	if c.spec.CRL.NextUpdate == 0 {
		return nil
	}
	cas := []*CA{&r.Root}
	for i := range r.Cross {
		by := r.Cross[i].By
		if !slices.ContainsFunc(cas, func(ca *CA) bool { return ca.Issuer.ID == by.Issuer.ID }) {
			cas = append(cas, by)
		}
	}
	for _, ca := range cas {
		list, err := c.crl(ctx, ca)
		if err != nil {
			return err
		}
		r.CRLs = append(r.CRLs, *list)
	}
	return nil
}

// RenewOCSPSigner makes a new certificate for the OCSP delegate of spec.Issuing where the present one ends within spec.OCSP.RenewBefore, and returns the one to use.
func RenewOCSPSigner(ctx context.Context, spec Spec, token *hsm.Token, book Registrar, deps Deps) (*Delegate, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	c := &ceremony{Deps: deps.withDefaults(), spec: spec, token: token, book: book}
	issuing, err := c.registered(ctx, spec.Issuing.Name)
	if err != nil {
		return nil, err
	}
	if issuing == nil {
		return nil, problem.New(problem.NotFound, "the ledger has no issuing CA %q; make it with \"certmill ca init\"", spec.Issuing.Name)
	}
	d, err := c.delegate(ctx, issuing)
	if err != nil {
		return nil, fmt.Errorf("renewing the OCSP signer: %w", err)
	}
	return d, nil
}

// ca returns the CA that spec names, made where the ledger does not have it. A nil
// parent makes it a root.
func (c *ceremony) ca(ctx context.Context, spec CASpec, parent *CA) (*CA, error) {
	there, err := c.registered(ctx, spec.Name)
	if there != nil || err != nil {
		return there, err
	}
	// The root serves no requests: its generation is never the active one of a signer.
	state := ledger.IssuerRetired
	if parent != nil {
		state = ledger.IssuerActive
	}
	return c.generation(ctx, spec, spec.Name, state, parent)
}

// generation makes a CA's certificate for the key with this label and registers it.
func (c *ceremony) generation(ctx context.Context, spec CASpec, label, state string, parent *CA) (*CA, error) {
	key, err := c.key(ctx, label, spec.KeyAlgorithm)
	if err != nil {
		return nil, err
	}
	row := ledger.Issuer{Name: spec.Name, State: state, KeyURI: key.URI()}
	own := tokenKey{key}
	signer := &CA{key: own}
	var signerID int32
	if parent != nil {
		signer, signerID = parent, parent.Issuer.ID
		row.Chain = append([][]byte{parent.Issuer.DER}, parent.Issuer.Chain...)
	}
	cert, err := c.issue(ctx, request{
		template: caTemplate(spec, parent == nil), public: key.Public(), signer: signer, issuer: signerID, lifetime: spec.Lifetime.D(),
	})
	if err != nil {
		return nil, err
	}
	row.DER = cert.Raw
	if row.ID, err = c.book.PutIssuer(ctx, row); err != nil {
		return nil, fmt.Errorf("registering %q: %w", spec.Name, err)
	}
	c.Log.Info("CA made", "name", spec.Name, "subject", cert.Subject.String(), "until", cert.NotAfter, "id", row.ID)
	return &CA{Issuer: row, Certificate: cert, Made: true, key: own}, nil
}

// registered returns the newest generation of a CA that the ledger knows, the active
// one before all, with its key; nil where there is none.
func (c *ceremony) registered(ctx context.Context, name string) (*CA, error) {
	rows, err := c.book.Issuers(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the issuers: %w", err)
	}
	var row *ledger.Issuer
	for i := range rows {
		r := &rows[i]
		if r.Name == name && (row == nil || r.State == ledger.IssuerActive || row.State != ledger.IssuerActive && r.ID > row.ID) {
			row = r
		}
	}
	if row == nil {
		return nil, nil
	}
	return c.open(ctx, *row)
}

// open finds the key of a CA in the token.
func (c *ceremony) open(ctx context.Context, row ledger.Issuer) (*CA, error) {
	cert, err := x509.ParseCertificate(row.DER)
	if err != nil {
		return nil, fmt.Errorf("the ledger's certificate of %q: %w", row.Name, err)
	}
	key, err := c.token.KeyFor(ctx, row.KeyURI, cert.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("the key of %q, which the ledger knows: %w", row.Name, err)
	}
	return &CA{Issuer: row, Certificate: cert, key: tokenKey{key}}, nil
}

// key returns the key with this label, made where the token does not have it: a
// ceremony that was ended before it could register the key left it there.
func (c *ceremony) key(ctx context.Context, label string, algorithm hsm.Algorithm) (*hsm.Key, error) {
	key, err := c.token.Key(ctx, hsm.URI{Object: label}.String())
	if problem.KindOf(err) != problem.NotFound {
		return key, err
	}
	return c.token.GenerateKey(ctx, hsm.KeySpec{Label: label, Algorithm: algorithm})
}

// delegate returns the OCSP signer of the issuing CA, with a new certificate where
// there is none or it ends soon. The key stays the same.
func (c *ceremony) delegate(ctx context.Context, issuing *CA) (*Delegate, error) {
	there, err := c.newestDelegate(ctx, issuing.Issuer.ID)
	if err != nil {
		return nil, err
	}
	if there != nil && !c.spec.OCSP.due(there.Certificate, issuing.Certificate, c.Now()) {
		return there, nil
	}
	public, uri, err := c.delegateKey(ctx, issuing)
	if err != nil {
		return nil, err
	}
	return c.makeDelegate(ctx, issuing, public, uri)
}

// due reports whether a delegate is to be made anew. One that is as long-lived as its
// CA is not: there is nothing to renew it to.
func (o OCSPSpec) due(delegate, issuing *x509.Certificate, now time.Time) bool {
	return !now.Before(delegate.NotAfter.Add(-o.RenewBefore.D())) && delegate.NotAfter.Before(issuing.NotAfter)
}

// makeDelegate has the issuing CA certify a delegate's key, and registers it.
func (c *ceremony) makeDelegate(ctx context.Context, issuing *CA, public crypto.PublicKey, uri string) (*Delegate, error) {
	cert, err := c.issue(ctx, request{
		template: ocspTemplate(issuing.Certificate), public: public,
		signer: issuing, issuer: issuing.Issuer.ID, lifetime: c.spec.OCSP.Lifetime.D(),
	})
	if err != nil {
		return nil, err
	}
	row := ledger.OCSPSigner{Issuer: issuing.Issuer.ID, DER: cert.Raw, KeyURI: uri}
	if row.ID, err = c.book.PutOCSPSigner(ctx, row); err != nil {
		return nil, fmt.Errorf("registering the OCSP signer: %w", err)
	}
	c.Log.Info("OCSP signer made", "issuer", issuing.Issuer.Name, "until", cert.NotAfter, "id", row.ID)
	return &Delegate{Signer: row, Certificate: cert, Made: true}, nil
}

// delegateLabel names the delegate's key by the generation of its issuer, so that
// every generation has its own.
func delegateLabel(issuing *CA) string {
	return fmt.Sprintf("%s ocsp %x", issuing.Issuer.Name, issuing.Certificate.SubjectKeyId[:tagSize])
}

// newestDelegate returns the delegate of an issuer that is valid for longest, nil where
// it has none.
func (c *ceremony) newestDelegate(ctx context.Context, issuer int32) (*Delegate, error) {
	rows, err := c.book.OCSPSigners(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the OCSP signers: %w", err)
	}
	var newest *Delegate
	for _, row := range rows {
		if row.Issuer != issuer {
			continue
		}
		cert, err := x509.ParseCertificate(row.DER)
		if err != nil {
			return nil, fmt.Errorf("the ledger's OCSP signer %d: %w", row.ID, err)
		}
		if newest == nil || cert.NotAfter.After(newest.Certificate.NotAfter) {
			newest = &Delegate{Signer: row, Certificate: cert}
		}
	}
	return newest, nil
}

// validity returns the times of a certificate that begins at now and lies within its
// issuer's. A nil issuer bounds nothing.
func (c *ceremony) validity(lifetime time.Duration, issuer *x509.Certificate) (notBefore, notAfter time.Time, err error) {
	now := c.Now().UTC().Truncate(time.Second)
	notBefore, notAfter = now.Add(-c.spec.Backdate.D()), now.Add(lifetime)
	if issuer != nil {
		notBefore = slices.MaxFunc([]time.Time{notBefore, issuer.NotBefore}, time.Time.Compare)
		notAfter = slices.MinFunc([]time.Time{notAfter, issuer.NotAfter}, time.Time.Compare)
	}
	if !notAfter.After(now) {
		return notBefore, notAfter, errors.New("the issuer's certificate has expired")
	}
	return notBefore, notAfter, nil
}
