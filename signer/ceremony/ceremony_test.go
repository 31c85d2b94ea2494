package ceremony_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/ceremony"
	"github.com/certmill/certmill/signer/hsm"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func openToken(t *testing.T) *hsm.Token {
	t.Helper()
	where := testenv.SoftHSM(t)
	cfg := hsm.DefaultConfig()
	cfg.Module, cfg.TokenLabel, cfg.PINFile = where.Module, where.TokenLabel, where.PINFile
	token, err := hsm.Open(t.Context(), cfg, hsm.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := token.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return token
}

func openLedger(t *testing.T) *ledger.Ledger {
	t.Helper()
	cfg := config.Ledger{URL: testenv.PostgreSQL(t), MaxConnections: 4}
	if err := ledger.Migrate(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	book, err := ledger.Open(t.Context(), cfg, ledger.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(book.Close)
	return book
}

func initCA(t *testing.T, spec ceremony.Spec, token *hsm.Token, book ceremony.Registrar, deps ceremony.Deps) *ceremony.Result {
	t.Helper()
	r, err := ceremony.Init(t.Context(), spec, token, book, deps)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestACeremonyMakesACA(t *testing.T) {
	for _, c := range []struct{ root, issuing hsm.Algorithm }{
		{hsm.ECDSAP384, hsm.ECDSAP256}, {hsm.RSA3072, hsm.RSA2048}, {hsm.Ed25519, hsm.Ed25519},
	} {
		t.Run(string(c.root), func(t *testing.T) {
			token, book := openToken(t), openLedger(t)
			spec := ceremony.DefaultSpec()
			spec.Root.KeyAlgorithm, spec.Issuing.KeyAlgorithm = c.root, c.issuing
			spec.Root.Organization, spec.Root.Country = "Example", "NL"
			spec.Issuing.CRLURL, spec.Issuing.IssuersURL = "http://ca.example/root.crl", "http://ca.example/root.cer"
			r := initCA(t, spec, token, book, ceremony.Deps{})
			verified(t, r)
			opensslVerifies(t, r)
			registered(t, r, book)
		})
	}
}

// verified looks at what the certificates say.
func verified(t *testing.T, r *ceremony.Result) {
	t.Helper()
	root, issuing, delegate := r.Root.Certificate, r.Issuing.Certificate, r.OCSP.Certificate
	if !root.IsCA || root.MaxPathLen != 2 || root.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("the root: CA %v, path length %d, usage %b", root.IsCA, root.MaxPathLen, root.KeyUsage)
	}
	if !issuing.IsCA || issuing.MaxPathLen != 0 || !issuing.MaxPathLenZero || issuing.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("the issuing CA: CA %v, path length %d, usage %b", issuing.IsCA, issuing.MaxPathLen, issuing.KeyUsage)
	}
	if delegate.IsCA || delegate.KeyUsage != x509.KeyUsageDigitalSignature || !slices.Equal(delegate.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}) {
		t.Errorf("the delegate: CA %v, usage %b, purposes %v", delegate.IsCA, delegate.KeyUsage, delegate.ExtKeyUsage)
	}
	if len(delegate.CRLDistributionPoints)+len(delegate.OCSPServer)+len(delegate.IssuingCertificateURL) > 0 {
		t.Error("the delegate's certificate says where to ask for its status")
	}
	if !slices.ContainsFunc(delegate.Extensions, func(e pkix.Extension) bool {
		return e.Id.String() == "1.3.6.1.5.5.7.48.1.5" && bytes.Equal(e.Value, []byte{5, 0}) && !e.Critical
	}) {
		t.Error("the delegate's certificate lacks id-pkix-ocsp-nocheck")
	}
	certs := []*x509.Certificate{root, issuing, delegate}
	for i, a := range certs {
		n, err := serial.FromBig(a.SerialNumber)
		if err != nil || n.Epoch() == 0 {
			t.Errorf("%s: serial %v, epoch %d: %v", a.Subject, a.SerialNumber, n.Epoch(), err)
		}
		for _, b := range certs[:i] {
			if bytes.Equal(a.RawSubject, b.RawSubject) || bytes.Equal(a.SubjectKeyId, b.SubjectKeyId) {
				t.Errorf("%s and %s share a subject or a key identifier", a.Subject, b.Subject)
			}
			if a.NotBefore.Before(b.NotBefore) || a.NotAfter.After(b.NotAfter) {
				t.Errorf("%s is not valid within %s", a.Subject, b.Subject)
			}
		}
	}
}

// opensslVerifies has openssl verify the chain of the delegate.
func opensslVerifies(t *testing.T, r *ceremony.Result) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, cert *x509.Certificate) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	root, issuing, delegate := write("root.pem", r.Root.Certificate), write("issuing.pem", r.Issuing.Certificate), write("ocsp.pem", r.OCSP.Certificate)
	out, err := exec.CommandContext(t.Context(), "openssl", "verify", "-x509_strict", "-purpose", "ocsphelper",
		"-CAfile", root, "-untrusted", issuing, delegate).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ocsp.pem: OK") {
		t.Errorf("openssl verify: %v\n%s", err, out)
	}
}

// registered compares the ledger with what the ceremony says it made.
func registered(t *testing.T, r *ceremony.Result, book *ledger.Ledger) {
	t.Helper()
	issuers, err := book.Issuers(t.Context())
	if err != nil || len(issuers) != 2 {
		t.Fatalf("%d issuers in the ledger, %v", len(issuers), err)
	}
	root, issuing := issuers[0], issuers[1]
	if root.Name != "root" || root.State != ledger.IssuerRetired || len(root.Chain) != 0 || !bytes.Equal(root.DER, r.Root.Certificate.Raw) {
		t.Errorf("the root in the ledger: %+v", root)
	}
	if issuing.Name != "issuing" || issuing.State != ledger.IssuerActive || !bytes.Equal(issuing.DER, r.Issuing.Certificate.Raw) ||
		len(issuing.Chain) != 1 || !bytes.Equal(issuing.Chain[0], root.DER) {
		t.Errorf("the issuing CA in the ledger: %+v", issuing)
	}
	signers, err := book.OCSPSigners(t.Context())
	if err != nil || len(signers) != 1 || signers[0].Issuer != issuing.ID || !bytes.Equal(signers[0].DER, r.OCSP.Certificate.Raw) {
		t.Errorf("the OCSP signers in the ledger: %+v, %v", signers, err)
	}
	epochs, err := book.Epochs(t.Context())
	if err != nil || len(epochs) != 3 {
		t.Fatalf("%d epochs, %v", len(epochs), err)
	}
	for _, e := range epochs {
		if e.Signatures != 1 || !e.Final {
			t.Errorf("epoch %+v: not one signature, final", e)
		}
	}
}

func TestASecondCeremonyFindsWhatIsThere(t *testing.T) {
	token, book := openToken(t), openLedger(t)
	first := initCA(t, ceremony.DefaultSpec(), token, book, ceremony.Deps{})
	second := initCA(t, ceremony.DefaultSpec(), token, book, ceremony.Deps{})
	if second.Root.Made || second.Issuing.Made || second.OCSP.Made {
		t.Error("the second ceremony made something")
	}
	if !second.Issuing.Certificate.Equal(first.Issuing.Certificate) || second.OCSP.Signer.ID != first.OCSP.Signer.ID {
		t.Error("the second ceremony found something else than the first had made")
	}
}

// dying is a ledger whose n-th write fails, before or after it is done.
type dying struct {
	ceremony.Registrar
	left    int
	persist bool
}

var errDied = errors.New("the process died")

func (d *dying) write(do func() error) error {
	if d.left--; d.left != 0 {
		return do()
	}
	if d.persist {
		if err := do(); err != nil {
			return err
		}
	}
	return errDied
}

func (d *dying) PutIssuer(ctx context.Context, i ledger.Issuer) (id int32, err error) {
	err = d.write(func() error { id, err = d.Registrar.PutIssuer(ctx, i); return err })
	return id, err
}

func (d *dying) PutOCSPSigner(ctx context.Context, s ledger.OCSPSigner) (id int32, err error) {
	err = d.write(func() error { id, err = d.Registrar.PutOCSPSigner(ctx, s); return err })
	return id, err
}

func (d *dying) StartEpoch(ctx context.Context, e ledger.Epoch) (id uint32, err error) {
	err = d.write(func() error { id, err = d.Registrar.StartEpoch(ctx, e); return err })
	return id, err
}

func (d *dying) ReportSignatures(ctx context.Context, epoch uint32, n int64, final bool) error {
	return d.write(func() error { return d.Registrar.ReportSignatures(ctx, epoch, n, final) })
}

// writes is how often a whole ceremony writes: an epoch, its report and the row, for
// each of three certificates.
const writes = 9

func TestACeremonyGoesOnAfterADeathAtAnyPoint(t *testing.T) {
	token, book := openToken(t), openLedger(t)
	for _, persist := range []bool{false, true} {
		for n := 1; n <= writes; n++ {
			t.Run(fmt.Sprintf("write %d, persisted %v", n, persist), func(t *testing.T) {
				spec := ceremony.DefaultSpec()
				spec.Root.Name, spec.Issuing.Name = fmt.Sprintf("root-%d-%v", n, persist), fmt.Sprintf("issuing-%d-%v", n, persist)
				d := &dying{Registrar: book, left: n, persist: persist}
				if _, err := ceremony.Init(t.Context(), spec, token, d, ceremony.Deps{}); !errors.Is(err, errDied) {
					t.Fatalf("the write did not fail: %v", err)
				}
				verified(t, initCA(t, spec, token, book, ceremony.Deps{}))
				once(t, spec, book)
			})
		}
	}
	d := &dying{Registrar: book, left: writes + 1}
	initCA(t, ceremony.DefaultSpec(), token, d, ceremony.Deps{})
	if d.left != 1 {
		t.Errorf("a ceremony writes %d times; the test knows of %d", writes+1-d.left, writes)
	}
}

// once fails where the ledger has not exactly one root, one issuing CA and one
// delegate of spec.
func once(t *testing.T, spec ceremony.Spec, book *ledger.Ledger) {
	t.Helper()
	issuers, err := book.Issuers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	signers, err := book.OCSPSigners(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var roots, issuing, delegates int
	for _, i := range issuers {
		switch i.Name {
		case spec.Root.Name:
			roots++
		case spec.Issuing.Name:
			issuing++
			for _, s := range signers {
				if s.Issuer == i.ID {
					delegates++
				}
			}
		}
	}
	if roots != 1 || issuing != 1 || delegates != 1 {
		t.Errorf("the ledger has %d roots, %d issuing CAs, %d delegates", roots, issuing, delegates)
	}
}

func TestACAWhoseKeyIsElsewhereIsNotMadeAgain(t *testing.T) {
	book := openLedger(t)
	first := openToken(t)
	initCA(t, ceremony.DefaultSpec(), first, book, ceremony.Deps{})
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := ceremony.Init(t.Context(), ceremony.DefaultSpec(), openToken(t), book, ceremony.Deps{})
	if problem.KindOf(err) != problem.NotFound {
		t.Errorf("a ceremony on another token: %v, %v; want not found", r, err)
	}
}

func TestTheOCSPSignerIsRenewedInTime(t *testing.T) {
	token, book := openToken(t), openLedger(t)
	spec := ceremony.DefaultSpec()
	now := time.Now()
	deps := ceremony.Deps{Now: func() time.Time { return now }}
	if _, err := ceremony.RenewOCSPSigner(t.Context(), spec, token, book, deps); problem.KindOf(err) != problem.NotFound {
		t.Errorf("renewing where there is no CA: %v", err)
	}
	first := initCA(t, spec, token, book, deps).OCSP
	renew := func() *ceremony.Delegate {
		t.Helper()
		d, err := ceremony.RenewOCSPSigner(t.Context(), spec, token, book, deps)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	now = now.Add(19 * 24 * time.Hour)
	if d := renew(); d.Made || d.Signer.ID != first.Signer.ID {
		t.Error("the signer was renewed too early")
	}
	now = now.Add(2 * 24 * time.Hour)
	second := renew()
	if !second.Made || second.Signer.ID == first.Signer.ID || !second.Certificate.NotAfter.After(first.Certificate.NotAfter) {
		t.Errorf("the signer was not renewed: %+v", second.Signer)
	}
	if !bytes.Equal(second.Certificate.SubjectKeyId, first.Certificate.SubjectKeyId) {
		t.Error("the renewed signer has another key")
	}
	if d := renew(); d.Made {
		t.Error("the signer was renewed twice")
	}
	// At the end of the CA there is nothing left to give.
	now = first.Certificate.NotBefore.Add(spec.Issuing.Lifetime.D()).Add(-24 * time.Hour)
	last := renew()
	if !last.Made || renew().Made {
		t.Error("the last signer of a CA is renewed for ever")
	}
}

func TestASpecIsYAMLAndStrict(t *testing.T) {
	spec := ceremony.DefaultSpec()
	text := "root:\n  name: top\n  common_name: Top\n  key_algorithm: rsa-4096\n  lifetime: 3650d\n"
	if err := yaml.UnmarshalWithOptions([]byte(text), &spec, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	if err := spec.Validate(); err != nil {
		t.Error(err)
	}
	if spec.Root.Name != "top" || spec.Root.Lifetime != profile.Duration(3650*24*time.Hour) || spec.Issuing.Name != "issuing" {
		t.Errorf("read %+v", spec)
	}
}

func TestABadSpecIsRefusedWithEveryError(t *testing.T) {
	spec := ceremony.DefaultSpec()
	spec.Root = ceremony.CASpec{Name: "Root!", Country: "nl", KeyAlgorithm: "dsa", CRLURL: "ldap://x"}
	spec.Issuing.Name, spec.Issuing.CommonName = "Root!", ""
	spec.OCSP.RenewBefore = spec.OCSP.Lifetime
	spec.Backdate = -1
	err := spec.Validate()
	if err == nil {
		t.Fatal("a bad spec passed")
	}
	for _, want := range []string{
		"root.name", "root.country", "root.key_algorithm", "root.lifetime", "root.common_name", "root.crl_url", "root: a root",
		"issuing.name", "issuing.common_name", "issuing.lifetime", "ocsp.renew_before", "backdate",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s in: %v", want, err)
		}
	}
}
