package signer

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

func TestTheRowSaysWhatTheCertificateSays(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	set := oneProfile(t, func(s *profile.Spec) {
		s.Revocation = profile.Revocation{Mode: profile.RevocationBoth, OCSPURL: "http://ocsp.test/", CRLURL: "http://crl.test/{issuer}.crl"}
	})
	p := ca.preparer(t, func(c *PreparerConfig) { c.Profiles = set })
	r := asking(t, func(r *profile.Request) {
		r.IPAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		r.URIs, r.Emails = []string{"spiffe://a.test/x"}, []string{"x@a.test"}
	})
	row, cert := ca.issue(t, p, r)
	any, err := set.Get("any")
	if err != nil {
		t.Fatal(err)
	}
	number, err := serial.FromBig(cert.SerialNumber)
	if err != nil {
		t.Fatal(err)
	}
	if number != row.Serial || number.Epoch() != 5 {
		t.Errorf("serial %s in the certificate, %s in the row, epoch %d", number, row.Serial, number.Epoch())
	}
	if !cert.NotBefore.Equal(row.NotBefore) || !cert.NotAfter.Equal(row.NotAfter) {
		t.Errorf("validity %s–%s in the certificate, %s–%s in the row", cert.NotBefore, cert.NotAfter, row.NotBefore, row.NotAfter)
	}
	if got := strings.Join(row.Names, " "); got != "dns:a.test ip:192.0.2.1 uri:spiffe://a.test/x email:x@a.test" {
		t.Errorf("names %s", got)
	}
	if row.SPKI != sha256.Sum256(cert.RawSubjectPublicKeyInfo) || row.Issuer != 7 || row.Profile != "any" || row.ProfileVersion != any.Version ||
		row.Caller != "local:test" || row.Owner != "team" || row.Service != "web" || row.Environment != "dev" ||
		row.Revocation != ledger.RevocationOCSP|ledger.RevocationCRL {
		t.Errorf("row %+v", row)
	}
	if cert.OCSPServer[0] != "http://ocsp.test/" || cert.CRLDistributionPoints[0] != "http://crl.test/issuing-7.crl" {
		t.Errorf("status at %q and %q", cert.OCSPServer, cert.CRLDistributionPoints)
	}
}

// TestPrepareEnforcesTheProfile: whatever a gateway let through, or somebody put into
// the queue by hand.
func TestPrepareEnforcesTheProfile(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	p := ca.preparer(t, nil)
	p384 := newP384Key(t)
	for name, c := range map[string]struct {
		change      func(*profile.Request)
		field, rule string
	}{
		"an unknown profile":            {func(r *profile.Request) { r.Profile = "root" }, "profile", "profile_unknown"},
		"a caller without the role":     {func(r *profile.Request) { r.Profile, r.Caller.Kind = "gateway-tls", profile.KindMTLS }, "profile", "caller_not_allowed"},
		"a name outside the profile":    {func(r *profile.Request) { r.DNSNames = []string{"www.example.com"} }, "csr.names", "dns_not_allowed"},
		"a wildcard":                    {func(r *profile.Request) { r.DNSNames = []string{"*.shop.test"} }, "csr.names", "wildcard_not_allowed"},
		"a lifetime beyond the maximum": {func(r *profile.Request) { r.Lifetime = 91 * 24 * time.Hour }, "lifetime", "lifetime_max"},
		"an operator's identity": {func(r *profile.Request) {
			r.Profile, r.DNSNames, r.URIs = "workload", nil, []string{"spiffe://certmill.test/operator/eve"}
		}, "csr.names", "uri_not_allowed"},
		"another key type": {func(r *profile.Request) {
			r.Profile, r.PublicKey = "gateway-tls", crypto.PublicKey(p384.Public())
			r.PublicKey = nil
		}, "csr.public_key", "key_type_not_allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			prepared, err := p.Prepare(asking(t, func(r *profile.Request) { r.Profile = "server"; c.change(r) }), 5)
			var e *problem.Error
			if prepared != nil || !errors.As(err, &e) || e.Field != c.field || e.Rule != c.rule {
				t.Errorf("got %v, want %s (%s)", err, c.field, c.rule)
			}
		})
	}
	if _, err := p.Prepare(asking(t, func(r *profile.Request) { r.Profile = "server" }), 0); err == nil {
		t.Error("epoch 0 is accepted")
	}
}

func TestAnIssuerSignsOnlyForProfilesThatNameIt(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	shared := func(names ...string) *profile.Set {
		return oneProfile(t, func(s *profile.Spec) {
			s.Issuer, s.IssuersURL = "", "http://ca.test/{issuer}.cer"
			for _, n := range names {
				s.Issuers = append(s.Issuers, profile.WeightedIssuer{Name: n})
			}
		})
	}
	p := ca.preparer(t, func(c *PreparerConfig) { c.Profiles = shared("other", ca.issuer().Name) })
	if _, cert := ca.issue(t, p, asking(t, nil)); cert.IssuingCertificateURL[0] != "http://ca.test/issuing-7.cer" {
		t.Errorf("the issuer is at %q", cert.IssuingCertificateURL)
	}
	// A message for this issuer under a profile of others alone: no template, no signature.
	own, others := oneProfile(t, nil).All()[0], shared("other", "another").All()[0]
	others.Name = "others"
	set, err := profile.NewSet(own, others)
	if err != nil {
		t.Fatal(err)
	}
	p = ca.preparer(t, func(c *PreparerConfig) { c.Profiles = set })
	_, err = p.Prepare(asking(t, func(r *profile.Request) { r.Profile = "others" }), 5)
	if !errors.Is(err, &problem.Error{Kind: problem.Invalid, Rule: "profile_unknown"}) {
		t.Errorf("a profile of other issuers: %v", err)
	}
}

func TestAPreparedCertificateIsSignedOnce(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	p := ca.preparer(t, func(c *PreparerConfig) { c.Profiles = oneProfile(t, nil) })
	prepared, err := p.Prepare(asking(t, nil), 5)
	if err != nil {
		t.Fatal(err)
	}
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := prepared.Sign(canceled, ca); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the key's own error", err)
	}
	// The key may have signed although it said that it did not.
	if row, err := prepared.Sign(context.Background(), ca); !errors.Is(err, ErrRedeemed) || row.DER != nil {
		t.Errorf("a second try gives %v", err)
	}
	if prepared.Serial() == (serial.Number{}) {
		t.Error("no serial")
	}
}

// TestValidity holds the properties of the validity over many lifetimes, jitters and
// distances to the issuer's end.
func TestValidity(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	random := mathrand.New(mathrand.NewPCG(1, 2))
	p := ca.preparer(t, func(c *PreparerConfig) { c.Profiles = oneProfile(t, nil) })
	shortened := 0
	for range 20_000 {
		l := &profile.Lifetime{Min: profile.Duration(time.Minute), Backdate: profile.Duration(time.Duration(random.IntN(7200)) * time.Second), Jitter: random.Float64() / 2}
		asked := time.Minute + time.Duration(random.IntN(400*24*3600))*time.Second
		now := ca.cert.NotBefore.Add(time.Duration(random.Int64N(int64(ca.cert.NotAfter.Sub(ca.cert.NotBefore) - time.Hour))))
		p.now = func() time.Time { return now }
		v, err := p.validity(l, asked)
		if err != nil {
			t.Fatal(err)
		}
		whole := now.Truncate(time.Second)
		least := whole.Add(asked - time.Duration(l.Jitter*float64(asked)) - time.Second)
		if least.After(ca.cert.NotAfter) {
			least = ca.cert.NotAfter
		}
		if v.notBefore.Before(ca.cert.NotBefore) || v.notBefore.After(whole) || v.notBefore.Before(whole.Add(-l.Backdate.D())) ||
			v.notAfter.After(ca.cert.NotAfter) || v.notAfter.After(whole.Add(asked)) || v.notAfter.Before(least) ||
			v.notBefore.Nanosecond() != 0 || v.notAfter.Nanosecond() != 0 {
			t.Fatalf("at %s for %s with %+v: %s to %s", now, asked, l, v.notBefore, v.notAfter)
		}
		if v.notAfter.Before(whole.Add(asked)) {
			shortened++
		}
	}
	if shortened < 15_000 {
		t.Errorf("jitter shortened %d of 20,000", shortened)
	}
}

func TestJitterSpreadsEvenly(t *testing.T) {
	p := &Preparer{random: mathrand.NewChaCha8([32]byte{1})}
	var buckets [10]int
	for range 10_000 {
		j, err := p.jitter(24*time.Hour, 0.1) // 0 to 8,640 s
		if err != nil {
			t.Fatal(err)
		}
		if j < 0 || j > 8640*time.Second || j%time.Second != 0 {
			t.Fatalf("jitter %s", j)
		}
		buckets[min(int(j/(864*time.Second)), 9)]++
	}
	for i, n := range buckets {
		if n < 850 || n > 1150 {
			t.Errorf("tenth %d has %d of 10,000", i, n)
		}
	}
	if j, err := p.jitter(time.Hour, 0); j != 0 || err != nil {
		t.Errorf("no jitter asked for, got %s, %v", j, err)
	}
}

func TestAnIssuerNearItsEndStopsIssuing(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	for name, c := range map[string]struct {
		at time.Time
		ok bool
	}{
		"before its beginning":         {ca.cert.NotBefore.Add(-time.Second), false},
		"at its beginning":             {ca.cert.NotBefore, true},
		"the profile's minimum before": {ca.cert.NotAfter.Add(-time.Minute), true},
		"less than that":               {ca.cert.NotAfter.Add(-59 * time.Second), false},
		"after its end":                {ca.cert.NotAfter.Add(time.Hour), false},
	} {
		t.Run(name, func(t *testing.T) {
			p := ca.preparer(t, func(p *PreparerConfig) { p.Profiles = oneProfile(t, nil) })
			p.now = func() time.Time { return c.at }
			_, err := p.Prepare(asking(t, nil), 5)
			if c.ok && err != nil || !c.ok && !errors.Is(err, &problem.Error{Kind: problem.Unavailable}) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestNoRandomnessNoCertificate(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	dry := errors.New("dry")
	for name, random := range map[string]io.Reader{"none": iotest.ErrReader(dry), "for the jitter only": io.LimitReader(new(counter), 8)} {
		p := ca.preparer(t, func(c *PreparerConfig) {
			c.Random = random
			c.Profiles = oneProfile(t, func(s *profile.Spec) { s.Lifetime.Jitter = 0.1 })
		})
		if _, err := p.Prepare(asking(t, nil), 5); err == nil {
			t.Errorf("%s: a certificate was prepared", name)
		}
	}
}

func TestNewPreparerRefuses(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	leafRow, _ := ca.issue(t, ca.preparer(t, func(c *PreparerConfig) { c.Profiles = oneProfile(t, nil) }), asking(t, nil))
	for name, c := range map[string]struct {
		change func(*PreparerConfig)
		want   string
	}{
		"no certificate":            {func(c *PreparerConfig) { c.Issuer.DER = nil }, "issuer issuing"},
		"another key in the token":  {func(c *PreparerConfig) { c.Public = fixedKey(t, "other").Public() }, "not that of the issuing certificate"},
		"a leaf as issuer":          {func(c *PreparerConfig) { c.Issuer.DER, c.Public = leafRow.DER, fixedKey(t, "subject").Public() }, "not a CA's"},
		"no profile for the issuer": {func(c *PreparerConfig) { c.Issuer.Name = "other" }, "no profile names it"},
		"a wrong algorithm":         {func(c *PreparerConfig) { c.SignatureAlgorithm = x509.SHA256WithRSA }, "does not belong"},
		"a share beyond 1":          {func(c *PreparerConfig) { c.LintShare = 2 }, "share"},
	} {
		t.Run(name, func(t *testing.T) {
			config := ca.config(t)
			c.change(&config)
			if _, err := NewPreparer(config); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error about %q", err, c.want)
			}
		})
	}
}

func TestSerialsDiffer(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	p := ca.preparer(t, func(c *PreparerConfig) { c.Profiles, c.LintShare = oneProfile(t, nil), 0 })
	seen := make(map[serial.Number]bool)
	for i := range 1000 {
		prepared, err := p.Prepare(asking(t, func(r *profile.Request) { r.DNSNames = []string{fmt.Sprintf("n%d.test", i)} }), 5)
		if err != nil {
			t.Fatal(err)
		}
		seen[prepared.Serial()] = true
	}
	if len(seen) != 1000 {
		t.Errorf("%d serials of 1,000 differ", len(seen))
	}
}
