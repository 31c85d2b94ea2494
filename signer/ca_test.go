package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/certmill/certmill/deploy/profiles"
	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/ledger"
)

// noon is when the tests of preparing take place.
var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// An issuingCA is a root and an issuing CA below it, with keys in memory.
type issuingCA struct {
	root, cert *x509.Certificate
	key        crypto.Signer
	now        time.Time
}

// newIssuingCA makes a CA whose certificates are valid for two years from an hour
// before noon.
func newIssuingCA(t testing.TB, key crypto.Signer) *issuingCA { return newIssuingCAAt(t, key, noon) }

func newIssuingCAAt(t testing.TB, key crypto.Signer, now time.Time) *issuingCA {
	t.Helper()
	rootKey := fixedKey(t, "root")
	ca := &issuingCA{key: key, now: now}
	template := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name, Organization: []string{"Certmill Test"}},
			NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(2, 0, 0),
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	make := func(c, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, c, parent, public, rootKey)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	root := template(1, "Test Root")
	ca.root = make(root, root, rootKey.Public())
	ca.cert = make(template(2, "Test Issuing CA"), ca.root, key.Public())
	return ca
}

// fixedKey derives a P-256 key from a word, for certificates that are always the same.
func fixedKey(t testing.TB, word string) *ecdsa.PrivateKey {
	t.Helper()
	scalar := sha256.Sum256([]byte(word))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar[:])
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (ca *issuingCA) issuer() ledger.Issuer {
	return ledger.Issuer{ID: 7, Name: "issuing", State: "active", DER: ca.cert.Raw, Chain: [][]byte{ca.root.Raw}}
}

// SignContext signs ECDSA without randomness (RFC 6979), so that goldens hold.
func (ca *issuingCA) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var random io.Reader = rand.Reader
	if _, ok := ca.key.(*ecdsa.PrivateKey); ok {
		random = nil
	}
	return ca.key.Sign(random, digest, opts)
}

// config is a PreparerConfig at that time with the profiles that certmill comes with.
func (ca *issuingCA) config(t testing.TB) PreparerConfig {
	t.Helper()
	return PreparerConfig{Issuer: ca.issuer(), Public: ca.key.Public(), Profiles: defaultProfiles(t), LintShare: 1, Now: func() time.Time { return ca.now }}
}

func (ca *issuingCA) preparer(t testing.TB, change func(*PreparerConfig)) *Preparer {
	t.Helper()
	c := ca.config(t)
	if change != nil {
		change(&c)
	}
	p, err := NewPreparer(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func defaultProfiles(t testing.TB) *profile.Set {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, profiles.FS); err != nil {
		t.Fatal(err)
	}
	set, err := profile.LoadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// oneProfile is a set of one profile for any name, changed by the test.
func oneProfile(t testing.TB, change func(*profile.Spec)) *profile.Set {
	t.Helper()
	s := profile.Spec{
		Name: "any", Issuer: "issuing", KeyTypes: []csr.KeyType{csr.ECDSAP256}, KeyUsage: []string{"digitalSignature"},
		Subject: profile.Subject{CommonName: profile.CommonNameOptional, Allow: []string{"**"}},
		Names: profile.Names{
			DNS: profile.NameRule{Allow: []string{"**"}, Wildcard: true}, IP: profile.NameRule{Allow: []string{"0.0.0.0/0", "::/0"}},
			URI: profile.NameRule{Allow: []string{"spiffe://a.test/**"}}, Email: profile.NameRule{Allow: []string{"*@a.test"}},
		},
		Lifetime:   profile.Lifetime{Default: profile.Duration(time.Hour), Max: profile.Duration(100 * time.Hour), Min: profile.Duration(time.Minute)},
		Revocation: profile.Revocation{Mode: profile.RevocationNone},
	}
	if change != nil {
		change(&s)
	}
	p, err := profile.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	set, err := profile.NewSet(p)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// asking is a request for profile "any" with a P-256 key.
func asking(t testing.TB, change func(*profile.Request)) *profile.Request {
	t.Helper()
	key := fixedKey(t, "subject")
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	r := &profile.Request{
		Profile: "any", Caller: profile.Caller{ID: "local:test", Kind: profile.KindLocal, Identity: "test"},
		DNSNames: []string{"a.test"}, SPKI: spki, PublicKey: key.Public(), Owner: "team", Service: "web", Environment: "dev",
	}
	if change != nil {
		change(r)
	}
	return r
}

// issue prepares and signs.
func (ca *issuingCA) issue(t testing.TB, p *Preparer, r *profile.Request) (ledger.Certificate, *x509.Certificate) {
	t.Helper()
	prepared, err := p.Prepare(r, 5)
	if err != nil {
		t.Fatal(err)
	}
	row, err := prepared.Sign(context.Background(), ca)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(row.DER)
	if err != nil {
		t.Fatal(err)
	}
	return row, cert
}

// counter is a Random that can be told beforehand.
type counter byte

func (c *counter) Read(b []byte) (int, error) {
	for i := range b {
		*c++
		b[i] = byte(*c)
	}
	return len(b), nil
}

func newRSAKey(t testing.TB) crypto.Signer {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newEd25519Key(t testing.TB) crypto.Signer {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newP384Key(t testing.TB) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func writePEM(t testing.TB, file string, certs ...*x509.Certificate) {
	t.Helper()
	var b bytes.Buffer
	for _, c := range certs {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func output(t testing.TB, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return string(out)
}
