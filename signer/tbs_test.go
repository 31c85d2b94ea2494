package signer

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/profile"
)

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// Lengths have one to four octets; crypto/x509 refuses those that are not the shortest.
func TestLengthsOfEverySize(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	p := ca.preparer(t, func(c *PreparerConfig) {
		c.Profiles = oneProfile(t, func(s *profile.Spec) { s.Names.DNS.Allow = []string{"**.test"} })
	})
	label := strings.Repeat("a", 60)
	for _, names := range []int{1, 2, 3, 4, 15, 60, 100} {
		for cut := range 60 {
			list := make([]string, names)
			for i := range list {
				list[i] = fmt.Sprintf("%s.n%d.test", strings.Repeat(label+".", 2)+label[cut:], i)
			}
			prepared, err := p.Prepare(asking(t, func(r *profile.Request) { r.DNSNames = list }), 5)
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(prepared.template.assemble(prepared.tbs, bytes.Repeat([]byte{1}, 70)))
			if err != nil {
				t.Fatalf("%d names, cut %d: %v", names, cut, err)
			}
			if !slices.Equal(cert.DNSNames, list) || !bytes.Equal(cert.RawTBSCertificate, prepared.tbs) {
				t.Fatalf("%d names, cut %d: other names, or bytes behind", names, cut)
			}
		}
	}
}

func extensionOf(c *x509.Certificate, oid asn1.ObjectIdentifier) (value []byte, critical, found bool) {
	for _, e := range c.Extensions {
		if e.Id.Equal(oid) {
			return e.Value, e.Critical, true
		}
	}
	return nil, false, false
}

func TestTheProfileSaysWhatElseStandsInTheSubject(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	p := ca.preparer(t, func(c *PreparerConfig) {
		c.Profiles = oneProfile(t, func(s *profile.Spec) { s.Subject.Organization, s.Subject.Country = "Köln & Co", "DE" })
	})
	for cn, want := range map[string]string{"": "O=Köln & Co,C=DE", "x": "CN=x,O=Köln & Co,C=DE"} {
		_, cert := ca.issue(t, p, asking(t, func(r *profile.Request) { r.CommonName = cn }))
		if _, critical, _ := extensionOf(cert, oidSubjectAltName); cert.Subject.String() != want || critical {
			t.Errorf("subject %s, names critical %v; want %s and not", cert.Subject, critical, want)
		}
	}
}

// The signer holds a profile of kind spiffe to its kind, whatever the queue says.
func TestTheSignerRefusesWhatIsNoSVID(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	p := ca.preparer(t, func(c *PreparerConfig) { c.Profiles = defaultProfiles(t) })
	for what, change := range map[string]func(*profile.Request){
		"another trust domain": func(r *profile.Request) { r.Caller.Identity = "spiffe://certmill.test/ns/a/sa/b" },
		"another path":         func(r *profile.Request) { r.Caller.Identity = "spiffe://cluster.local/operator/b" },
		"no SPIFFE ID":         func(r *profile.Request) { r.Caller.Identity = "spiffe://cluster.local/ns/a/sa/b?x" },
		"a DNS name":           func(r *profile.Request) { r.DNSNames = []string{"a.test"} },
	} {
		r := asking(t, func(r *profile.Request) {
			r.Profile, r.DNSNames, r.Caller.Identity = "mesh", nil, "spiffe://cluster.local/ns/a/sa/b"
			change(r)
		})
		if prepared, err := p.Prepare(r, 5); err == nil {
			t.Errorf("%s: signed as %v", what, prepared.row.Names)
		}
	}
}

func TestNamesAndTheirCriticality(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	p := ca.preparer(t, func(c *PreparerConfig) { c.Profiles = oneProfile(t, nil) })
	for name, c := range map[string]struct {
		change   func(*profile.Request)
		san      string // DER of the extension's value
		critical bool
	}{
		"DNS":                   {func(r *profile.Request) {}, "\x30\x08\x82\x06a.test", true},
		"DNS and a common name": {func(r *profile.Request) { r.CommonName = "x" }, "\x30\x08\x82\x06a.test", false},
		"a wildcard":            {func(r *profile.Request) { r.DNSNames = []string{"*.a.test"} }, "\x30\x0a\x82\x08*.a.test", true},
		"IPv4": {func(r *profile.Request) {
			r.DNSNames, r.IPAddresses = nil, []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		}, "\x30\x06\x87\x04\xc0\x00\x02\x01", true},
		"IPv6": {func(r *profile.Request) {
			r.DNSNames, r.IPAddresses = nil, []netip.Addr{netip.MustParseAddr("2001:db8::1")}
		}, "\x30\x12\x87\x10\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01", true},
		"URI":   {func(r *profile.Request) { r.DNSNames, r.URIs = nil, []string{"spiffe://a.test/x"} }, "\x30\x13\x86\x11spiffe://a.test/x", true},
		"email": {func(r *profile.Request) { r.DNSNames, r.Emails = nil, []string{"x@a.test"} }, "\x30\x0a\x81\x08x@a.test", true},
		"all, in order": {func(r *profile.Request) {
			r.IPAddresses, r.URIs, r.Emails, r.CommonName = []netip.Addr{netip.MustParseAddr("10.0.0.1")}, []string{"spiffe://a.test/x"}, []string{"x@a.test"}, "Zoë"
		}, "\x30\x2b\x82\x06a.test\x87\x04\x0a\x00\x00\x01\x86\x11spiffe://a.test/x\x81\x08x@a.test", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := asking(t, c.change)
			_, cert := ca.issue(t, p, r)
			value, critical, _ := extensionOf(cert, oidSubjectAltName)
			if string(value) != c.san || critical != c.critical {
				t.Errorf("names %x, critical %v; want %x, %v", value, critical, c.san, c.critical)
			}
			if cert.Subject.CommonName != r.CommonName || len(cert.Subject.Names) > 1 {
				t.Errorf("subject %s", cert.Subject)
			}
		})
	}
}

func TestACommonNameWithoutOtherNames(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	p := ca.preparer(t, func(c *PreparerConfig) {
		c.Profiles = oneProfile(t, func(s *profile.Spec) {
			s.Names, s.Subject.CommonName = profile.Names{}, profile.CommonNameRequired
		})
	})
	_, cert := ca.issue(t, p, asking(t, func(r *profile.Request) { r.DNSNames, r.CommonName = nil, "device 7" }))
	if _, _, found := extensionOf(cert, oidSubjectAltName); found || cert.Subject.CommonName != "device 7" {
		t.Errorf("names extension %v, subject %s", found, cert.Subject)
	}
}

func TestTheOtherExtensions(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	p := ca.preparer(t, func(c *PreparerConfig) {
		c.Profiles = oneProfile(t, func(s *profile.Spec) {
			s.KeyUsage = []string{"keyAgreement", "digitalSignature"}
			s.ExtendedKeyUsage = []string{"serverAuth", "clientAuth", "1.3.6.1.4.1.311.20.2.2"}
			s.Policies = []string{"1.2.3.4", "2.23.140.1.2.1"}
			s.IssuersURL = "http://ca.test/issuing.cer"
			s.Revocation = profile.Revocation{Mode: profile.RevocationBoth, OCSPURL: "http://ocsp.test/", CRLURL: "http://crl.test/{issuer}.crl"}
			s.ExtraExtensions = []profile.Extension{{OID: "1.3.6.1.5.5.7.1.24", Value: "MAMCAQU="}, {OID: "1.3.6.1.4.1.99999.1", Value: "BQA="}}
		})
	})
	_, cert := ca.issue(t, p, asking(t, nil))
	for _, c := range []struct {
		name     string
		oid      asn1.ObjectIdentifier
		critical bool
		value    string
	}{
		{"key usage", oidKeyUsage, true, "\x03\x02\x03\x88"},
		{"basic constraints", oidBasicConstraints, true, "\x30\x00"},
		{"must-staple", asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}, false, "\x30\x03\x02\x01\x05"},
		{"an extension of one's own", asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, false, "\x05\x00"},
	} {
		value, critical, found := extensionOf(cert, c.oid)
		if !found || critical != c.critical || string(value) != c.value {
			t.Errorf("%s: %x, critical %v", c.name, value, critical)
		}
	}
	if _, _, found := extensionOf(cert, oidNoRevAvail); found {
		t.Error("noRevAvail beside OCSP and CRL")
	}
	if !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) || len(cert.UnknownExtKeyUsage) != 1 ||
		len(cert.PolicyIdentifiers) != 2 || !slices.Equal(cert.IssuingCertificateURL, []string{"http://ca.test/issuing.cer"}) ||
		!slices.Equal(cert.OCSPServer, []string{"http://ocsp.test/"}) || !slices.Equal(cert.CRLDistributionPoints, []string{"http://crl.test/issuing-7.crl"}) {
		t.Errorf("read back: %v %v %v %v %v %v", cert.ExtKeyUsage, cert.UnknownExtKeyUsage, cert.PolicyIdentifiers, cert.IssuingCertificateURL, cert.OCSPServer, cert.CRLDistributionPoints)
	}
	if !bytes.Equal(cert.AuthorityKeyId, ca.cert.SubjectKeyId) || !bytes.Equal(cert.RawIssuer, ca.cert.RawSubject) {
		t.Error("the issuer is not named by its subject and key identifier, byte for byte")
	}
	point, err := fixedKey(t, "subject").PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(point); !bytes.Equal(cert.SubjectKeyId, sum[:20]) {
		t.Errorf("subject key identifier %x is not RFC 7093's method 1", cert.SubjectKeyId)
	}
}

func TestTheSerialChoosesTheCRL(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	p := ca.preparer(t, func(c *PreparerConfig) {
		c.Profiles = oneProfile(t, func(s *profile.Spec) {
			s.Revocation = profile.Revocation{Mode: profile.RevocationCRL, CRLURL: "http://crl.test/{issuer}/{shard}.crl", CRLShards: 4}
		})
		c.Random = nil // serials must differ
	})
	seen := map[string]bool{}
	for range 64 {
		row, cert := ca.issue(t, p, asking(t, nil))
		want := fmt.Sprintf("http://crl.test/issuing-7/4-%d.crl", row.Serial[14]>>6)
		if !slices.Equal(cert.CRLDistributionPoints, []string{want}) {
			t.Fatalf("%s has %v, want %s", row.Serial, cert.CRLDistributionPoints, want)
		}
		seen[want] = true
	}
	if len(seen) != 4 {
		t.Errorf("64 certificates have %d of 4 CRLs", len(seen))
	}
}

func TestNoRevocationIsSaid(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	_, cert := ca.issue(t, ca.preparer(t, func(c *PreparerConfig) { c.Profiles = oneProfile(t, nil) }), asking(t, nil))
	value, critical, found := extensionOf(cert, oidNoRevAvail)
	if !found || critical || string(value) != "\x05\x00" {
		t.Errorf("noRevAvail: %x, critical %v, found %v", value, critical, found)
	}
}

func TestEveryKeyTypeStandsAsItCame(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	p := ca.preparer(t, func(c *PreparerConfig) {
		c.Profiles = oneProfile(t, func(s *profile.Spec) { s.KeyTypes = csr.KeyTypes })
	})
	keys, err := sampleKeys()
	if err != nil {
		t.Fatal(err)
	}
	for kind, spki := range keys {
		public, _, err := csr.ParseKey(spki)
		if err != nil {
			t.Fatal(err)
		}
		_, cert := ca.issue(t, p, asking(t, func(r *profile.Request) { r.SPKI, r.PublicKey = spki, public }))
		if !bytes.Equal(cert.RawSubjectPublicKeyInfo, spki) {
			t.Errorf("%s: the key differs", kind)
		}
	}
}

func TestTimesAfter2049AreGeneralized(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	p := ca.preparer(t, func(c *PreparerConfig) { c.Profiles = oneProfile(t, nil) })
	tmpl := p.templates["any"]
	for _, c := range []struct {
		notAfter time.Time
		want     string
	}{
		{time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC), "\x17\x0d491231235959Z"},
		{time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC), "\x18\x0f20500101000000Z"},
		{time.Date(2050, 1, 1, 1, 0, 0, 0, time.FixedZone("", 7200)), "\x17\x0d491231230000Z"},
	} {
		tbs, err := tmpl.tbs(asking(t, nil), [16]byte{0x10, 0, 0, 0, 0, 1}, validity{noon, c.notAfter})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(tbs, []byte("\x17\x0d261120120000Z"+c.want)) {
			t.Errorf("%s is not encoded as %q", c.notAfter, c.want)
		}
	}
}

// FuzzTBS: whatever the profile lets through, crypto/x509 reads back as it was asked.
func FuzzTBS(f *testing.F) {
	f.Add("Zoë", "a.test", "spiffe://a.test/x", "x@a.test", []byte{10, 0, 0, 1}, int64(3600))
	f.Add("", "*.a.test", "", "", []byte{}, int64(60))
	ca := newIssuingCA(f, fixedKey(f, "issuing"))
	p := ca.preparer(f, func(c *PreparerConfig) { c.Profiles, c.LintShare = oneProfile(f, nil), 0 })
	f.Fuzz(func(t *testing.T, cn, dns, uri, email string, ip []byte, seconds int64) {
		r := asking(t, func(r *profile.Request) {
			r.CommonName, r.DNSNames, r.Lifetime = cn, nil, time.Duration(seconds)*time.Second
			if dns != "" {
				r.DNSNames = []string{dns}
			}
			if uri != "" {
				r.URIs = []string{uri}
			}
			if email != "" {
				r.Emails = []string{email}
			}
			if a, ok := netip.AddrFromSlice(ip); ok {
				r.IPAddresses = []netip.Addr{a}
			}
		})
		prepared, err := p.Prepare(r, 5)
		if err != nil {
			return
		}
		row, err := prepared.Sign(t.Context(), ca)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(row.DER)
		if err != nil {
			t.Fatalf("crypto/x509 cannot read the certificate: %v", err)
		}
		var names []string
		for _, n := range cert.DNSNames {
			names = append(names, "dns:"+n)
		}
		for _, n := range cert.IPAddresses {
			names = append(names, "ip:"+n.String())
		}
		if len(cert.URIs) != len(r.URIs) {
			t.Errorf("URIs %v", cert.URIs)
		}
		for range cert.URIs {
			names = append(names, "uri:"+uri)
		}
		for _, n := range cert.EmailAddresses {
			names = append(names, "email:"+n)
		}
		if strings.Join(names, " ") != strings.Join(row.Names, " ") || cert.Subject.CommonName != cn || cert.IsCA {
			t.Errorf("asked for %+v, read back %q and subject %q", r, names, cert.Subject)
		}
	})
}
