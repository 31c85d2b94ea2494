package check

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"
)

// below makes a CA under a, or, without one, a root.
func (a *ca) below(t *testing.T, name string, change func(*x509.Certificate)) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	template.Subject.CommonName = name
	if change != nil {
		change(template)
	}
	if a == nil {
		a = &ca{key, template}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{key, cert}
}

func (a *ca) leaf(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	return a.issued(t, &x509.Certificate{DNSNames: []string{name}})
}

func oid(t *testing.T, s string) x509.OID {
	t.Helper()
	o, err := x509.ParseOID(s)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func (a *ca) issued(t *testing.T, template *x509.Certificate) *x509.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(3)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(1000*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// A chain that was verified is no pass for the next leaf: each of these is asked after
// a right one has made the checker remember the way to the root.
func TestTheWayToTheRootIsVerifiedOnceAndEachLeafStill(t *testing.T) {
	root := newCA(t)
	issuer := root.below(t, "issuer", nil)
	impostor := newCA(t).below(t, "issuer", nil)
	short := root.below(t, "issuer", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(2 * time.Hour) })
	lower := short.below(t, "lower", nil)
	bound := root.below(t, "bound", func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"good.test"} })
	underBound := bound.below(t, "under bound", nil)
	explicit := root.below(t, "explicit", func(c *x509.Certificate) { // requireExplicitPolicy at once
		c.Policies = []x509.OID{oid(t, "2.5.29.32.0")} // anyPolicy
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 36}, Critical: true, Value: []byte{0x30, 3, 0x80, 1, 0}}}
	})
	inPolicy := explicit.issued(t, &x509.Certificate{DNSNames: []string{"a.test"}, Policies: []x509.OID{oid(t, "1.3.6.1.4.1.99999.1")}})
	above := func(cas ...*ca) (der [][]byte) {
		for _, a := range cas {
			der = append(der, a.cert.Raw)
		}
		return der
	}
	now := time.Now()
	for name, tc := range map[string]struct {
		first, leaf *x509.Certificate
		above       [][]byte
		at          time.Time
		remembered  bool
		want        string
	}{
		"right":                          {issuer.leaf(t, "a.test"), issuer.leaf(t, "b.test"), above(issuer), now, true, ""},
		"with the root":                  {issuer.leaf(t, "a.test"), issuer.leaf(t, "b.test"), above(issuer, root), now, true, ""},
		"signed by another":              {issuer.leaf(t, "a.test"), impostor.leaf(t, "b.test"), above(issuer), now, true, "chain"},
		"signed by the root itself":      {issuer.leaf(t, "a.test"), root.leaf(t, "b.test"), above(issuer), now, true, ""},
		"the issuer has expired":         {issuer.leaf(t, "a.test"), issuer.leaf(t, "b.test"), above(issuer), now.Add(101 * time.Hour), true, "chain"},
		"one above it has expired":       {lower.leaf(t, "a.test"), lower.leaf(t, "b.test"), above(lower, short), now.Add(3 * time.Hour), true, "chain"},
		"name constraints of the issuer": {bound.leaf(t, "a.good.test"), bound.leaf(t, "b.test"), above(bound), now, true, "chain"},
		"name constraints above it":      {underBound.leaf(t, "a.good.test"), underBound.leaf(t, "b.test"), above(underBound, bound), now, false, "chain"},
		"policies of the issuer":         {inPolicy, explicit.leaf(t, "b.test"), above(explicit), now, false, "chain"},
		"below a root":                   {root.leaf(t, "a.test"), impostor.leaf(t, "b.test"), nil, now, false, "chain"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChains(root.roots())
			if _, err := c.verify(tc.first, tc.above, now); err != nil {
				t.Fatal(err)
			}
			i, err := c.issuers(tc.above)
			if err != nil {
				t.Fatal(err)
			}
			if (i.verified != nil) != tc.remembered {
				t.Errorf("remembered: %v", i.verified != nil)
			}
			_, err = c.verify(tc.leaf, tc.above, tc.at)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, wanted %q", err, tc.want)
			}
		})
	}
}

// The same octets, divided otherwise, are other certificates, or none.
func TestAChainIsRememberedAsItCame(t *testing.T) {
	root := newCA(t)
	issuer := root.below(t, "issuer", nil)
	leaf := issuer.leaf(t, "a.test")
	c := newChains(root.roots())
	a, b := issuer.cert.Raw, root.cert.Raw
	for i, tc := range []struct {
		above [][]byte
		right bool
	}{
		{[][]byte{a, b}, true}, {[][]byte{append(append([]byte{}, a...), b...)}, false},
		{[][]byte{{}, a, b}, false}, {[][]byte{a[:40], a[40:], b}, false}, {[][]byte{a, b, {}}, false}, {[][]byte{a, b}, true},
	} {
		if _, err := c.verify(leaf, tc.above, time.Now()); (err == nil) != tc.right {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func TestTheIssuersThatAreRememberedAreBounded(t *testing.T) {
	root := newCA(t)
	c := newChains(root.roots())
	for range maxIssuers + 3 {
		issuer := root.below(t, "issuer", nil)
		first, err := c.verify(issuer.leaf(t, "a.test"), [][]byte{issuer.cert.Raw}, time.Now())
		if err != nil || !first.Equal(issuer.cert) {
			t.Fatal(err)
		}
	}
	if len(c.known) != maxIssuers {
		t.Errorf("%d are remembered", len(c.known))
	}
	if _, err := c.verify(root.leaf(t, "a.test"), [][]byte{{0x30, 0}}, time.Now()); err == nil || !strings.Contains(err.Error(), "certificate 2 of the chain") {
		t.Error(err)
	}
}
