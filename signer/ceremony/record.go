package ceremony

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/hsm"
)

// The acts that a transcript is about. It stands in the first step, after the time.
const (
	ActInit         = "init"
	ActPrepare      = "rollover prepare"
	ActActivate     = "rollover activate"
	ActClose        = "rollover close"
	ActIntermediate = "intermediate"
)

// byIssuer are the acts that need no root: the issuing CA that issues after them signs.
var byIssuer = []string{ActActivate, ActClose}

// record begins a transcript of what is signed by a CA whose key is at hand.
func record(act string, signer *CA, witnesses []string, deps Deps) (*Transcript, error) {
	if signer.key == nil {
		return nil, errors.New("only the ceremony that has the key of the CA can write its transcript")
	}
	t := &Transcript{}
	t.add(StepBegin, deps.withDefaults().Now().UTC().Format(time.RFC3339)+" "+act, nil)
	t.add(StepToken, signer.key.Serial(), nil)
	for _, w := range witnesses {
		if strings.TrimSpace(w) == "" {
			return nil, problem.Rejected("witness", "required", "a witness has a name")
		}
		t.add(StepWitness, w, nil)
	}
	return t, nil
}

// sign ends a transcript.
func (t *Transcript) sign(ctx context.Context, signer *CA) (*Transcript, error) {
	message, options, _ := t.toSign(signer.Certificate)
	var err error
	if t.Signature, err = signer.key.sign(ctx, message, options); err != nil {
		return nil, fmt.Errorf("signing the transcript: %w", err)
	}
	return t, nil
}

func (t *Transcript) addIssuer(ca *CA, ocsp *Delegate) {
	t.add(StepIssuing, stepText(ca.Made, ca.Issuer.KeyURI), ca.Certificate.Raw)
	t.add(StepOCSP, stepText(ocsp.Made, ocsp.Signer.KeyURI), ocsp.Certificate.Raw)
}

// Transcript writes down a ceremony and has its root sign that.
func (r *Result) Transcript(ctx context.Context, witnesses []string, deps Deps) (*Transcript, error) {
	t, err := record(ActInit, &r.Root, witnesses, deps)
	if err != nil {
		return nil, err
	}
	t.add(StepRoot, stepText(r.Root.Made, r.Root.Issuer.KeyURI), r.Root.Certificate.Raw)
	for _, i := range r.Issuers() {
		t.addIssuer(&i.CA, &i.OCSP)
	}
	for _, x := range r.Cross {
		t.add(StepBy, x.By.Issuer.Name+"; key "+x.By.Issuer.KeyURI, x.By.Certificate.Raw)
		t.add(StepCross, stepText(x.Made, x.Subject.Issuer.KeyURI), x.Certificate.Raw)
	}
	for _, c := range r.CRLs {
		t.addCRL(fmt.Sprintf("of %s, number %s, %d entries, until %s", c.CA.Issuer.Name, c.List.Number, len(c.List.RevokedCertificateEntries), c.List.NextUpdate.UTC().Format(time.RFC3339)), c.List.Raw)
	}
	return t.sign(ctx, &r.Root)
}

// Transcript writes down what Prepare or Activate did. The root signs the former; the new
// generation the latter, for which the root is not needed.
func (n *Next) Transcript(ctx context.Context, witnesses []string, deps Deps) (*Transcript, error) {
	act, signer := ActActivate, &n.CA
	if n.CA.Issuer.State == ledger.IssuerPrepared {
		act, signer = ActPrepare, n.root
	}
	if signer == nil {
		return nil, problem.New(problem.Conflict, "the root's key is needed for a transcript of what is prepared, and the token lacks it")
	}
	t, err := record(act, signer, witnesses, deps)
	if err != nil {
		return nil, err
	}
	t.add(StepRoot, "of generation "+fmt.Sprint(n.CA.Issuer.ID), rootOf(n.CA.Issuer))
	t.add(StepBefore, fmt.Sprintf("generation %d", n.Before.ID), n.Before.DER)
	t.addIssuer(&n.CA, &n.OCSP)
	return t.sign(ctx, signer)
}

// Transcript writes down that the root has signed an intermediate.
func (i *Intermediate) Transcript(ctx context.Context, witnesses []string, deps Deps) (*Transcript, error) {
	t, err := record(ActIntermediate, i.root, witnesses, deps)
	if err != nil {
		return nil, err
	}
	t.add(StepRoot, stepText(false, i.root.Issuer.KeyURI), i.root.Certificate.Raw)
	t.add(StepIntermediate, i.detail, i.Certificate.Raw)
	return t.sign(ctx, i.root)
}

// CloseTranscript writes down that a generation was closed. The active generation of its
// issuer signs, whose key must be in the token; the generation must be closed.
func CloseTranscript(ctx context.Context, generation int32, witnesses []string, token *hsm.Token, book Registrar, deps Deps) (*Transcript, error) {
	rows, err := book.Issuers(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the issuers: %w", err)
	}
	k := slices.IndexFunc(rows, func(i ledger.Issuer) bool { return i.ID == generation && i.State == ledger.IssuerClosed })
	if k < 0 {
		return nil, problem.New(problem.NotFound, "generation %d is not closed", generation)
	}
	closed := rows[k]
	c := &ceremony{Deps: deps.withDefaults(), token: token, book: book}
	g, err := c.generations(ctx, closed.Name)
	if err != nil {
		return nil, err
	}
	signer, err := c.open(ctx, *g.active)
	if err != nil {
		return nil, err
	}
	t, err := record(ActClose, signer, witnesses, deps)
	if err != nil {
		return nil, err
	}
	t.add(StepRoot, "of generation "+fmt.Sprint(signer.Issuer.ID), rootOf(signer.Issuer))
	t.add(StepClosed, fmt.Sprintf("generation %d; key %s", closed.ID, closed.KeyURI), closed.DER)
	t.add(StepIssuing, stepText(false, signer.Issuer.KeyURI), signer.Certificate.Raw)
	return t.sign(ctx, signer)
}

// rootOf is the end of a CA's chain.
func rootOf(i ledger.Issuer) []byte {
	if len(i.Chain) == 0 {
		return i.DER
	}
	return i.Chain[len(i.Chain)-1]
}

// verifier checks the steps of a transcript that was signed, one by one: every
// certificate must come from one that stands before it.
type verifier struct {
	root   *x509.Certificate
	cas    []*x509.Certificate // the root, and what it or others have certified as CAs
	roots  []*x509.Certificate // the root, and those who cross-certify
	issuer *x509.Certificate   // the last issuing CA
	seen   []string
}

var errNoCertificate = errors.New("it lacks its certificate")

// step checks one step after those before it.
func (v *verifier) step(s *Step) error {
	v.seen = append(v.seen, s.Kind)
	switch s.Kind {
	case StepBegin, StepToken, StepWitness:
		if v.root != nil && len(v.roots) > 0 {
			return errors.New("it stands after the root")
		}
		return nil
	case StepCRL:
		list, err := x509.ParseRevocationList(s.CRL)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(v.roots, func(c *x509.Certificate) bool { return list.CheckSignatureFrom(c) == nil }) {
			return errors.New("no CA of this transcript has signed it")
		}
		return nil
	}
	if len(s.Certificate) == 0 {
		return errNoCertificate
	}
	cert, err := x509.ParseCertificate(s.Certificate)
	if err != nil {
		return err
	}
	return v.certificate(s.Kind, cert)
}

func (v *verifier) certificate(kind string, cert *x509.Certificate) error {
	if kind != StepRoot && len(v.roots) == 0 {
		return errors.New("it stands before the root")
	}
	switch kind {
	case StepRoot:
		if !cert.Equal(v.root) || len(v.roots) > 0 {
			return errors.New("its root is another one")
		}
		v.roots, v.cas = []*x509.Certificate{cert}, []*x509.Certificate{cert}
	case StepBy:
		v.roots = append(v.roots, cert)
	case StepIssuing:
		v.cas, v.issuer = append(v.cas, cert), cert
		return check(cert, v.root)
	case StepBefore, StepClosed:
		// A generation may have stood below another root.
		if check(cert, v.root) != nil && !cert.IsCA {
			return errors.New("it is not a CA's certificate")
		}
	case StepIntermediate:
		return check(cert, v.root)
	case StepOCSP:
		if v.issuer == nil {
			return errors.New("it stands before its issuing CA")
		}
		return check(cert, v.issuer)
	case StepCross:
		if !slices.ContainsFunc(v.cas, func(ca *x509.Certificate) bool {
			return string(ca.RawSubject) == string(cert.RawSubject) && string(ca.RawSubjectPublicKeyInfo) == string(cert.RawSubjectPublicKeyInfo)
		}) {
			return errors.New("it is for the key of no CA of this transcript")
		}
		return check(cert, v.roots[len(v.roots)-1])
	default:
		return fmt.Errorf("there is no such step")
	}
	return nil
}

// whole reports whether the transcript has what its act makes.
func (v *verifier) whole(act string) error {
	need := map[string][]string{
		ActInit: {StepRoot, StepIssuing, StepOCSP}, ActPrepare: {StepRoot, StepBefore, StepIssuing, StepOCSP},
		ActActivate: {StepRoot, StepBefore, StepIssuing, StepOCSP}, ActClose: {StepRoot, StepClosed, StepIssuing},
		ActIntermediate: {StepRoot, StepIntermediate},
	}[act]
	if need == nil {
		return fmt.Errorf("it is about %q", act)
	}
	for _, kind := range append([]string{StepBegin, StepToken}, need...) {
		if !slices.Contains(v.seen, kind) {
			return fmt.Errorf("it has no step %q", kind)
		}
	}
	return nil
}
