package ceremony_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/ceremony"
	"github.com/certmill/certmill/signer/hsm"
)

// pemFile writes certificates or CRLs as PEM, for openssl, and returns the file's name.
func pemFile(t *testing.T, kind string, ders ...[]byte) string {
	t.Helper()
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	name := filepath.Join(t.TempDir(), "x.pem")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// opensslChecks verifies a certificate with all CRLs of its chain.
func opensslChecks(t *testing.T, root, between, cert *x509.Certificate, crls ...*x509.RevocationList) (string, error) {
	t.Helper()
	var lists [][]byte
	for _, l := range crls {
		lists = append(lists, l.Raw)
	}
	const kind = "CERTIFICATE"
	out, err := exec.Command("openssl", "verify", "-crl_check_all", "-no-CApath", "-x509_strict", "-CAfile", pemFile(t, kind, root.Raw),
		"-untrusted", pemFile(t, kind, between.Raw), "-CRLfile", pemFile(t, "X509 CRL", lists...), pemFile(t, kind, cert.Raw)).CombinedOutput()
	return string(out), err
}

// leafOf has an issuing CA sign a certificate and a CRL, as signers do.
func leafOf(t *testing.T, token *hsm.Token, ca *ceremony.CA) (*x509.Certificate, *x509.RevocationList) {
	t.Helper()
	key, err := token.Key(t.Context(), ca.Issuer.KeyURI)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: "leaf"}, DNSNames: []string{"leaf.test"}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: ca.Certificate.NotBefore, NotAfter: now.Add(time.Hour), BasicConstraintsValid: true,
	}, ca.Certificate, newKey(t).Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: ca.Certificate.NotBefore, NextUpdate: now.Add(time.Hour)}, ca.Certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	crl, err := x509.ParseRevocationList(list)
	if err != nil {
		t.Fatal(err)
	}
	return cert, crl
}

// wholeSpec has everything that a ceremony can make, beside the old root "old".
func wholeSpec() ceremony.Spec {
	spec := ceremony.DefaultSpec()
	more := ceremony.Elements()[0].(ceremony.CASpec)
	more.Name, more.CommonName = "issuing-us", "certmill issuing CA US"
	spec.More = []ceremony.CASpec{more}
	spec.Cross = []ceremony.CrossSpec{{Subject: "issuing", By: "old", Lifetime: profile.Duration(365 * 24 * time.Hour), CRLURL: "http://ca.test/old.crl"}}
	spec.CRL.NextUpdate = profile.Duration(90 * 24 * time.Hour)
	return spec
}

func TestACeremonyMakesSeveralIssuersACrossCertificateAndCRLs(t *testing.T) {
	testenv.Program(t, "openssl", "openssl")
	token, book := openToken(t), openLedger(t)
	old := ceremony.DefaultSpec()
	old.Root.Name, old.Root.CommonName, old.Issuing.Name, old.Issuing.CommonName = "old", "the old root", "old-issuing", "the old issuing CA"
	oldCA := initCA(t, old, token, book, ceremony.Deps{})

	// The dry run shows all of it.
	spec := wholeSpec()
	plan, err := ceremony.Plan(t.Context(), spec, token, book, ceremony.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range plan {
		if names = append(names, p.Name); !p.Make {
			t.Errorf("%s stands already", p.Name)
		}
	}
	if got := strings.Join(names, ", "); got != "root, issuing, ocsp signer, issuing-us, ocsp signer of issuing-us, issuing-by-old, CRL of root, CRL of old" {
		t.Errorf("the plan is %s", got)
	}
	made := initCA(t, spec, token, book, ceremony.Deps{})
	if len(made.Issuers()) != 2 || len(made.Cross) != 1 || len(made.CRLs) != 2 || !made.Cross[0].Made {
		t.Fatalf("%d issuers, %d cross-certificates, %d CRLs", len(made.Issuers()), len(made.Cross), len(made.CRLs))
	}
	verified(t, &ceremony.Result{Root: made.Root, Issuing: made.More[0].CA, OCSP: made.More[0].OCSP})
	opensslVerifies(t, &ceremony.Result{Root: made.Root, Issuing: made.More[0].CA, OCSP: made.More[0].OCSP})

	// A certificate stands under both roots.
	leaf, crl := leafOf(t, token, &made.Issuing)
	cross := made.Cross[0].Certificate
	if !bytes.Equal(cross.RawSubject, made.Issuing.Certificate.RawSubject) || !bytes.Equal(cross.SubjectKeyId, made.Issuing.Certificate.SubjectKeyId) {
		t.Error("the cross-certificate is not for the issuing CA's name and key")
	}
	newRoot, oldRoot := made.CRLs[0].List, made.CRLs[1].List
	for what, chain := range map[string]struct {
		root, between *x509.Certificate
		list          *x509.RevocationList
	}{"the new root": {made.Root.Certificate, made.Issuing.Certificate, newRoot}, "the old root": {oldCA.Root.Certificate, cross, oldRoot}} {
		if out, err := opensslChecks(t, chain.root, chain.between, leaf, chain.list, crl); err != nil {
			t.Errorf("under %s: %v\n%s", what, err, out)
		}
	}

	// Again: what stands is found, and the CRLs are made anew. Now both certificates of the
	// issuing CA are revoked: one by the spec, one in the ledger.
	spec.CRL.Revoked = []ceremony.RevokedSpec{{Serial: serialText(t, made.Issuing.Certificate), At: time.Now(), Reason: "superseded"}}
	number, err := serial.FromBig(cross.SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := book.Revoke(t.Context(), ledger.Revocation{Serial: number, Reason: 4, RevokedBy: "local:ada"}); err != nil {
		t.Fatal(err)
	}
	spec.Cross = append(spec.Cross, ceremony.CrossSpec{Subject: "issuing-us", By: "old", Lifetime: profile.Duration(365 * 24 * time.Hour)})
	spec.Cross[0].Subject, spec.Cross[1].Subject = "issuing-us", "issuing"
	again := initCA(t, spec, token, book, ceremony.Deps{})
	if again.Root.Made || again.Issuing.Made || again.More[0].CA.Made || again.CRLs[0].List.Number.Cmp(newRoot.Number) <= 0 {
		t.Errorf("a second ceremony: %+v", again)
	}
	if again.Cross[1].Certificate.Equal(cross) {
		t.Error("a cross-certificate that was revoked is taken for one that stands")
	}
	for what, chain := range map[string]struct {
		root, between *x509.Certificate
		list          *x509.RevocationList
	}{"the new root": {made.Root.Certificate, made.Issuing.Certificate, again.CRLs[0].List}, "the old root": {oldCA.Root.Certificate, cross, again.CRLs[1].List}} {
		if out, err := opensslChecks(t, chain.root, chain.between, leaf, chain.list, crl); err == nil || !strings.Contains(out, "certificate revoked") {
			t.Errorf("under %s, with its issuing CA revoked: %v\n%s", what, err, out)
		}
	}
	third := initCA(t, spec, token, book, ceremony.Deps{})
	if third.Cross[0].Made || third.Cross[1].Made {
		t.Error("cross-certificates that stand were made again")
	}
	forgeries(t, third)
}

func serialText(t *testing.T, cert *x509.Certificate) string {
	t.Helper()
	n, err := serial.FromBig(cert.SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	return n.String()
}

// forgeries checks a transcript of the whole, and those that are not quite it but whose
// chain of hashes was made anew: the signature must not be all that stands against them.
func forgeries(t *testing.T, made *ceremony.Result) {
	t.Helper()
	read := transcribed(t, made, "Ada")
	signer, err := read().Verify(made.Root.Certificate)
	if err != nil || !signer.Equal(made.Root.Certificate) || read().Act() != ceremony.ActInit {
		t.Fatalf("the transcript of %s: %v", read().Act(), err)
	}
	var kinds []string
	for _, s := range read().Steps {
		kinds = append(kinds, s.Kind)
	}
	if got := strings.Join(kinds, ", "); got != "begin, token, witness, root, issuing, ocsp signer, issuing, ocsp signer, certified by, cross, certified by, cross, crl, crl" {
		t.Errorf("its steps are %s", got)
	}
	for what, forge := range map[string]func(*ceremony.Transcript){
		"another CRL":       func(tr *ceremony.Transcript) { tr.Steps[12].CRL = bytes.Clone(tr.Steps[13].CRL) },
		"no CRL":            func(tr *ceremony.Transcript) { tr.Steps[12].CRL = nil },
		"the OCSP of two":   func(tr *ceremony.Transcript) { tr.Steps[7].Certificate = tr.Steps[5].Certificate },
		"a cross of others": func(tr *ceremony.Transcript) { tr.Steps[9].Certificate = tr.Steps[4].Certificate },
	} {
		tr := read()
		forge(tr)
		if _, err := tr.Verify(made.Root.Certificate); problem.KindOf(err) != problem.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestRolloversAndIntermediatesHaveTranscripts(t *testing.T) {
	token, book := openToken(t), openLedger(t)
	spec := wholeSpec()
	spec.Cross = nil
	made := initCA(t, spec, token, book, ceremony.Deps{})
	check := func(act string, signer *x509.Certificate, written *ceremony.Transcript, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		got, err := written.Verify(made.Root.Certificate)
		if err != nil || written.Act() != act || !got.Equal(signer) {
			t.Errorf("the transcript of %q (%q): %v", act, written.Act(), err)
		}
		if _, err := written.Verify(made.More[0].CA.Certificate); problem.KindOf(err) != problem.Invalid {
			t.Errorf("%s against another root: %v", act, err)
		}
		written.Steps[0].Detail += " more"
		if _, err := written.Verify(made.Root.Certificate); problem.KindOf(err) != problem.Invalid {
			t.Errorf("%s with another beginning: %v", act, err)
		}
	}
	us, err := spec.For("issuing-us")
	if err != nil {
		t.Fatal(err)
	}
	next, err := ceremony.Prepare(t.Context(), us, "local:ada", token, book, ceremony.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	written, err := next.Transcript(t.Context(), []string{"Ada"}, ceremony.Deps{})
	check(ceremony.ActPrepare, made.Root.Certificate, written, err)
	if next, err = ceremony.Activate(t.Context(), us, 0, "local:ada", token, book, ceremony.Deps{}); err != nil {
		t.Fatal(err)
	}
	if next.Before.ID != made.More[0].CA.Issuer.ID {
		t.Errorf("generation %d was replaced, not that of issuing-us", next.Before.ID)
	}
	written, err = next.Transcript(t.Context(), nil, ceremony.Deps{})
	check(ceremony.ActActivate, next.CA.Certificate, written, err)

	if _, err := ceremony.CloseTranscript(t.Context(), next.Before.ID, nil, token, book, ceremony.Deps{}); problem.KindOf(err) != problem.NotFound {
		t.Errorf("a transcript of a closing that was none: %v", err)
	}
	if err := book.CloseIssuer(t.Context(), next.Before.ID, "local:ada", false); err != nil {
		t.Fatal(err)
	}
	written, err = ceremony.CloseTranscript(t.Context(), next.Before.ID, []string{"Ada"}, token, book, ceremony.Deps{})
	check(ceremony.ActClose, next.CA.Certificate, written, err)

	mesh, err := ceremony.SignIntermediate(t.Context(), spec, istioSpec(), requestFor(t, newKey(t)), "local:ada", token, book, ceremony.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	written, err = mesh.Transcript(t.Context(), []string{"Ada"}, ceremony.Deps{})
	check(ceremony.ActIntermediate, made.Root.Certificate, written, err)

	if _, err := spec.For("nobody"); problem.KindOf(err) != problem.Invalid {
		t.Errorf("a rollover of a CA that the spec lacks: %v", err)
	}
}

func TestASpecOfTheWholeIsChecked(t *testing.T) {
	for want, change := range map[string]func(*ceremony.Spec){
		"more[0].name: is another CA's":        func(s *ceremony.Spec) { s.More[0].Name = "issuing" },
		"more[0].common_name: is another CA's": func(s *ceremony.Spec) { s.More[0].CommonName = s.Root.CommonName },
		"more[0].lifetime: is longer":          func(s *ceremony.Spec) { s.More[0].Lifetime = 2 * s.Root.Lifetime },
		"more[0].path_length":                  func(s *ceremony.Spec) { s.More[0].PathLength = 1 },
		"ocsp.key_file: needs {issuer}":        func(s *ceremony.Spec) { s.OCSP.KeyFile = "/ocsp.key" },
		"cross[0].subject":                     func(s *ceremony.Spec) { s.Cross[0].Subject = "nobody" },
		"cross[0].by":                          func(s *ceremony.Spec) { s.Cross[0].By = "root" },
		"cross[0].lifetime":                    func(s *ceremony.Spec) { s.Cross[0].Lifetime = 0 },
		"cross[0].crl_url":                     func(s *ceremony.Spec) { s.Cross[0].CRLURL = "https://ca.test/x.crl" },
		"crl.next_update: must be 0":           func(s *ceremony.Spec) { s.CRL.NextUpdate = 1 },
		"crl.revoked[0].serial": func(s *ceremony.Spec) {
			s.CRL.Revoked = []ceremony.RevokedSpec{{Serial: "x", Reason: "superseded", At: time.Now()}}
		},
		"crl.revoked[0].reason": func(s *ceremony.Spec) { s.CRL.Revoked = []ceremony.RevokedSpec{{Reason: "certificateHold"}} },
		"crl.revoked[0].at":     func(s *ceremony.Spec) { s.CRL.Revoked = []ceremony.RevokedSpec{{Reason: "superseded"}} },
	} {
		s := wholeSpec()
		change(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if err := wholeSpec().Validate(); err != nil {
		t.Error(err)
	}
}
