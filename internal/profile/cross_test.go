package profile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

func TestCrossCertificatesAreChecked(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	made := func(ca bool, subject, issuer string) string {
		cert := func(name string) *x509.Certificate {
			return &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: ca, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
		}
		der, err := x509.CreateCertificate(rand.Reader, cert(subject), cert(issuer), key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	good := made(true, "issuing", "old root")
	for want, text := range map[string]string{
		"":                                 good,
		"cross_certificates: CN=leaf is":   made(false, "leaf", "old root"),
		"is a root":                        made(true, "root", "root"),
		"something that is no PEM":         good + "more",
		`it holds a block "PRIVATE KEY"`:   string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}})),
		"cross_certificates: x509: malfor": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}})),
		"17 certificates; at most 16":      strings.Repeat(good, 17),
	} {
		_, err := Parse([]byte(base + "cross_certificates: |\n  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ") + "\n"))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
