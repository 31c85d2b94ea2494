// Package ocsptest makes CAs, certificates and a ledger in memory for the tests and
// benchmarks of the OCSP parts.
package ocsptest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/serial"
)

// CA is an issuing CA that signs its own certificate.
type CA struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// NewCA makes a CA with a P-256 key that is valid from a day ago for ten years.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	noError(t, err)
	now := time.Now().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return &CA{Certificate: create(t, template, template, key.Public(), key), Key: key}
}

// Key makes a key: "p256", "p384", "rsa" (2048 bits) or "ed25519".
func Key(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "p256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "rsa":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		t.Fatalf("no key of kind %q", kind)
	}
	noError(t, err)
	return key
}

// oidNoCheck is id-pkix-ocsp-nocheck (RFC 6960 section 4.2.2.2.1).
var oidNoCheck = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}

// Delegate issues an OCSP signing certificate for a key, valid for an hour back and
// lifetime ahead.
func (ca *CA) Delegate(t testing.TB, key crypto.Signer, lifetime time.Duration) *x509.Certificate {
	t.Helper()
	now := time.Now().Truncate(time.Second)
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	noError(t, err)
	template := &x509.Certificate{
		SerialNumber: n, Subject: pkix.Name{CommonName: ca.Certificate.Subject.CommonName + " OCSP"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		ExtraExtensions: []pkix.Extension{{Id: oidNoCheck, Value: []byte{5, 0}}},
	}
	return create(t, template, ca.Certificate, key.Public(), ca.Key)
}

// Leaf issues a certificate for localhost with a serial of the epoch, and its key.
func (ca *CA) Leaf(t testing.TB, epoch uint32, notBefore, notAfter time.Time, ocspURL ...string) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := Key(t, "p256")
	template := &x509.Certificate{
		SerialNumber: Serial(t, epoch, notBefore, notAfter).Big(), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: notBefore, NotAfter: notAfter, DNSNames: []string{"localhost"}, OCSPServer: ocspURL,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	return create(t, template, ca.Certificate, key.Public(), ca.Key), key
}

// Serial makes a serial.
func Serial(t testing.TB, epoch uint32, notBefore, notAfter time.Time) serial.Number {
	t.Helper()
	n, err := serial.New(rand.Reader, epoch, notBefore, notAfter)
	noError(t, err)
	return n
}

// WriteCertificate writes certificates as PEM into the test's folder.
func WriteCertificate(t testing.TB, name string, certificates ...*x509.Certificate) (path string) {
	t.Helper()
	var text []byte
	for _, c := range certificates {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return write(t, name, text)
}

// WriteKey writes a key as PKCS #8 in PEM into the test's folder.
func WriteKey(t testing.TB, name string, key crypto.Signer) (path string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	noError(t, err)
	return write(t, name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func write(t testing.TB, name string, text []byte) string {
	path := filepath.Join(t.TempDir(), name)
	noError(t, os.WriteFile(path, text, 0o600))
	return path
}

func create(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	noError(t, err)
	c, err := x509.ParseCertificate(der)
	noError(t, err)
	return c
}

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
