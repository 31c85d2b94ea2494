package gateway

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/ledger"
)

// crossOf has another CA certify a CA's name and key.
func crossOf(t *testing.T, ca, by *authority, notAfter time.Time) []byte {
	t.Helper()
	return must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(3), RawSubject: ca.cert.RawSubject, SubjectKeyId: ca.cert.SubjectKeyId, NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: ca.cert.KeyUsage,
	}, by.cert, ca.cert.PublicKey, by.key))(t)
}

// crossedProfile asks for cross-certificates.
func crossedProfile(t *testing.T, ders ...[]byte) *profile.Profile {
	t.Helper()
	const text = `{name: server, issuer: issuing, key_types: [ecdsa-p256], names: {dns: {allow: ["**"]}},
		lifetime: {default: 1h, max: 1h}, key_usage: [digitalSignature], revocation: {mode: none}, cross_certificates: %q}`
	quoted := strings.ReplaceAll(pemsOf(ders), "\n", `\n`)
	return must(profile.Parse([]byte(strings.Replace(text, "%q", `"`+quoted+`"`, 1))))(t)
}

func TestAProfileDeliversCrossCertificatesBehindTheChain(t *testing.T) {
	p := newPKI(t)
	i := must(newIssuer(ledger.Issuer{ID: 1, Name: "issuing", DER: p.issuing.cert.Raw, Chain: [][]byte{p.root.cert.Raw}}))(t)
	later := time.Now().Add(24 * time.Hour)
	cross := crossOf(t, p.issuing, p.foreign, later)
	crossRoot := crossOf(t, p.root, p.twin, later)
	strangers := crossOf(t, p.server, p.foreign, later)
	got := i.crossed(crossedProfile(t, cross, strangers, crossRoot, crossOf(t, p.issuing, p.server, time.Now().Add(-time.Minute))), time.Now())
	if len(got.chain) != 3 || strings.Count(got.chainPEM, "BEGIN CERTIFICATE") != 3 || len(i.chain) != 1 {
		t.Fatalf("%d certificates are delivered, %d without cross-certificates", len(got.chain), len(i.chain))
	}
	if again := i.crossed(crossedProfile(t), time.Now()); again != i {
		t.Error("a profile that asks for nothing gets another chain")
	}
	// What is delivered leads to every root.
	pool := x509.NewCertPool()
	rest := []byte(got.chainPEM)
	for block, more := pem.Decode(rest); block != nil; block, more = pem.Decode(more) {
		pool.AddCert(must(x509.ParseCertificate(block.Bytes))(t))
	}
	leaf := p.issuing.issue(t, &x509.Certificate{DNSNames: []string{"a.test"}})
	for name, root := range map[string]*authority{"our root": p.root, "the issuer's other CA": p.foreign, "the root's other CA": p.twin} {
		roots := x509.NewCertPool()
		roots.AddCert(root.cert)
		if _, err := must(x509.ParseCertificate(leaf.Certificate[0]))(t).Verify(x509.VerifyOptions{Roots: roots, Intermediates: pool}); err != nil {
			t.Errorf("with %s: %v", name, err)
		}
	}
}
