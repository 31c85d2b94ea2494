package crl

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/crldp"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// softKey is an issuer's key in memory.
type softKey struct {
	crypto.Signer
	algorithm []byte
	hash      crypto.Hash
}

func (k softKey) Algorithm() []byte { return k.algorithm }
func (k softKey) Hash() crypto.Hash { return k.hash }
func (k softKey) Sign(_ context.Context, digest []byte) ([]byte, error) {
	return k.Signer.Sign(rand.Reader, digest, k.hash)
}

var algorithms = map[string]softKey{
	"p256":    {algorithm: []byte("\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02"), hash: crypto.SHA256},
	"p384":    {algorithm: []byte("\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03"), hash: crypto.SHA384},
	"rsa":     {algorithm: []byte("\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00"), hash: crypto.SHA256},
	"ed25519": {algorithm: []byte("\x30\x05\x06\x03\x2b\x65\x70")},
}

// ca is an issuing CA with a root, so that programs can verify a chain.
type ca struct {
	cert *x509.Certificate
	key  softKey
}

func newCA(t testing.TB, kind, name string) *ca {
	t.Helper()
	key := algorithms[kind]
	key.Signer = ocsptest.Key(t, kind)
	now := time.Now().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key.Signer)
	noError(t, err)
	cert, err := x509.ParseCertificate(der)
	noError(t, err)
	return &ca{cert, key}
}

// leaf issues a certificate that names its CRL by the serial.
func (ca *ca) leaf(t testing.TB, life time.Duration, point crldp.Point) *x509.Certificate {
	t.Helper()
	notBefore := time.Now().Add(-time.Hour).Truncate(time.Second)
	notAfter := time.Now().Add(life).Truncate(time.Second)
	n := ocsptest.Serial(t, 1, notBefore, notAfter)
	template := &x509.Certificate{
		SerialNumber: n.Big(), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: notBefore, NotAfter: notAfter,
		DNSNames: []string{"localhost"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		CRLDistributionPoints: []string{point.Shard(crldp.Of(n, point.Shards))},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, ocsptest.Key(t, "p256").Public(), ca.key.Signer)
	noError(t, err)
	cert, err := x509.ParseCertificate(der)
	noError(t, err)
	return cert
}

func (ca *ca) header(c Count, point string) *Header {
	now := time.Now().UTC().Truncate(time.Second)
	return &Header{
		Issuer: ca.cert.RawSubject, AuthorityKeyID: ca.cert.SubjectKeyId, Algorithm: ca.key.algorithm, Number: 7,
		ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour), DistributionPoint: point, Count: c,
	}
}

func countOf(entries []ledger.CRLEntry) (c Count) {
	for _, e := range entries {
		c.Entries++
		if e.Reason == 0 {
			c.Unspecified++
		}
		if late(e.RevokedAt) {
			c.Late++
		}
	}
	return c
}

func each(entries []ledger.CRLEntry) Entries {
	return func(add func(ledger.CRLEntry) error) error {
		for _, e := range entries {
			if err := add(e); err != nil {
				return err
			}
		}
		return nil
	}
}

// write makes a CRL of the entries, and puts its pieces together.
func (ca *ca) write(t testing.TB, entries []ledger.CRLEntry, point string) ([]byte, Made) {
	t.Helper()
	pieces := map[int][]byte{}
	made, err := Write(t.Context(), ca.header(countOf(entries), point), ca.key, each(entries), func(chunk int, der []byte) error {
		if pieces[chunk] != nil {
			t.Errorf("piece %d comes twice", chunk)
		}
		pieces[chunk] = slices.Clone(der)
		return nil
	})
	noError(t, err)
	var whole bytes.Buffer
	for i := range made.Chunks {
		whole.Write(pieces[i])
	}
	if len(pieces) != made.Chunks || int64(whole.Len()) != made.Bytes {
		t.Errorf("%d pieces of %d bytes; it says %d of %d", len(pieces), whole.Len(), made.Chunks, made.Bytes)
	}
	return whole.Bytes(), made
}

// revocations makes entries of all reasons.
func revocations(t testing.TB, n int, at time.Time) []ledger.CRLEntry {
	t.Helper()
	reasons := []int16{0, 1, 2, 3, 4, 5, 9, 10}
	out := make([]ledger.CRLEntry, n)
	for i := range out {
		out[i] = ledger.CRLEntry{Serial: ocsptest.Serial(t, 3, at, at.Add(time.Hour)), RevokedAt: at.UTC().Truncate(time.Second), Reason: reasons[i%len(reasons)]}
	}
	return out
}
