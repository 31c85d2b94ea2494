package signer

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net/url"
	"testing"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
)

func workload(t testing.TB) *profile.Request {
	return asking(t, func(r *profile.Request) {
		r.Profile, r.URIs, r.DNSNames = "workload", []string{"spiffe://certmill.test/ns/shop/sa/pay"}, []string{"pay.shop.svc"}
	})
}

// BenchmarkPrepare is what a signer does for a request before the HSM: check, serial, TBS.
func BenchmarkPrepare(b *testing.B) {
	ca := newIssuingCA(b, fixedKey(b, "issuing"))
	for name, share := range map[string]float64{"unlinted": 0, "linted": 1} {
		p := ca.preparer(b, func(c *PreparerConfig) { c.LintShare = share })
		r := workload(b)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Prepare(r, 5); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkTBS(b *testing.B) {
	ca := newIssuingCA(b, fixedKey(b, "issuing"))
	p, r := ca.preparer(b, nil), workload(b)
	v := validity{noon, noon.Add(24 * 3600e9)}
	number, err := serial.New(rand.Reader, 5, v.notBefore, v.notAfter)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.templates["workload"].tbs(r, number, v); err != nil {
			b.Fatal(err)
		}
	}
}

// memoryKey signs with randomness, as tokens and x509.CreateCertificate do.
type memoryKey struct{ crypto.Signer }

func (k memoryKey) SignContext(_ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.Sign(rand.Reader, digest, opts)
}

// BenchmarkSign is TBS in hand, key in memory: signature, its check, assembly.
func BenchmarkSign(b *testing.B) {
	ca := newIssuingCA(b, fixedKey(b, "issuing"))
	p, r := ca.preparer(b, func(c *PreparerConfig) { c.LintShare = 0 }), workload(b)
	key := memoryKey{ca.key}
	b.ReportAllocs()
	for b.Loop() {
		prepared, err := p.Prepare(r, 5)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := prepared.Sign(b.Context(), key); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCreateCertificate is the standard library's way to the same certificate, to
// compare BenchmarkSign with.
func BenchmarkCreateCertificate(b *testing.B) {
	ca := newIssuingCA(b, fixedKey(b, "issuing"))
	uri, err := url.Parse("spiffe://certmill.test/ns/shop/sa/pay")
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1 << 62), NotBefore: noon, NotAfter: noon.Add(24 * 3600e9),
		URIs: []*url.URL{uri}, DNSNames: []string{"pay.shop.svc"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	public := fixedKey(b, "subject").Public()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key); err != nil {
			b.Fatal(err)
		}
	}
}
