package meshtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// bundle fetches a trust domain's bundle as a federated SPIFFE implementation does.
func (s *service) bundle(t testing.TB, domain string) (*x509bundle.Bundle, error) {
	t.Helper()
	roots := x509.NewCertPool()
	rootPEM, err := os.ReadFile(s.data("root.pem"))
	if err != nil || !roots.AppendCertsFromPEM(rootPEM) {
		t.Fatalf("root.pem: %v", err)
	}
	td, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		t.Fatal(err)
	}
	address := "https://localhost:" + s.https[strings.LastIndex(s.https, ":")+1:]
	b, err := federation.FetchBundle(t.Context(), td, address+"/v1/spiffe-bundles/"+domain, federation.WithWebPKIRoots(roots))
	if err != nil {
		return nil, err
	}
	if hint, ok := b.RefreshHint(); !ok || hint != 5*time.Minute {
		t.Errorf("refresh hint %s, %v", hint, ok)
	}
	if n, ok := b.SequenceNumber(); !ok || n == 0 {
		t.Errorf("sequence %d, %v", n, ok)
	}
	return b.X509Bundle(), nil
}

func TestGoSPIFFEAcceptsOurSVIDsByTheFederatedBundle(t *testing.T) {
	s := shared
	s.gateway(t)
	const id = "spiffe://cluster.local/ns/shop/sa/svid"
	request, _ := csr(t, id)
	chain, err := s.agent(t, s.grpc, s.token(t, "shop", "svid", time.Hour)).CSRSign(request, 3600)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := s.bundle(t, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	svid := certificates(t, chain[0]+chain[1])
	got, _, err := x509svid.Verify(svid, bundle)
	if err != nil || got.String() != id {
		t.Errorf("%s, %v", got, err)
	}
	// Another trust domain's bundle does not speak for it.
	other := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("other.test"), bundle.X509Authorities())
	if _, _, err := x509svid.Verify(svid, other); err == nil {
		t.Error("the bundle of another trust domain verifies it")
	}
	if _, err := s.bundle(t, "elsewhere.test"); err == nil {
		t.Error("a bundle of a trust domain that is not ours")
	}
}

func TestGoSPIFFERefusesHostileSVIDs(t *testing.T) {
	s := shared
	s.gateway(t)
	bundle, err := s.bundle(t, "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	hostile := newTestCA(t, "hostile")
	trusted := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("cluster.local"), []*x509.Certificate{hostile.cert})
	if _, _, err := x509svid.Verify([]*x509.Certificate{hostile.svid(t, nil)}, trusted); err != nil {
		t.Fatalf("the control is refused: %v", err)
	}
	if _, _, err := x509svid.Verify([]*x509.Certificate{hostile.svid(t, nil)}, bundle); err == nil {
		t.Error("another CA's certificate passes by our bundle")
	}
	// What go-spiffe refuses even of a CA that it trusts is what a profile of kind spiffe
	// cannot make.
	for what, change := range map[string]func(*x509.Certificate){
		"two URIs":    func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		"no URI":      func(c *x509.Certificate) { c.URIs = nil; c.DNSNames = []string{"a.test"} },
		"a CA":        func(c *x509.Certificate) { c.IsCA = true },
		"keyCertSign": func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign },
		"cRLSign":     func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign },
		"no SPIFFE":   func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "https", Host: "cluster.local", Path: "/a"}} },
		"expired":     func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) },
	} {
		if _, _, err := x509svid.Verify([]*x509.Certificate{hostile.svid(t, change)}, trusted); err == nil {
			t.Errorf("%s: go-spiffe accepts it", what)
		}
	}
}

// testCA is a CA that is not certmill's.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(t testing.TB, name string) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &testCA{key: key}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	c.cert = c.sign(t, template, template, key)
	return c
}

func (c *testCA) sign(t testing.TB, template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (c *testCA) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
}

// svid is a good X.509-SVID, spoilt by change.
func (c *testCA) svid(t testing.TB, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/a/sa/b"}},
	}
	if change != nil {
		change(template)
	}
	return c.sign(t, template, c.cert, key)
}
