package material

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
)

func TestCSRsAreValidAndSayWhatTheyClaim(t *testing.T) {
	p, err := Make(t.Context(), Config{Types: []KeyType{P256, Ed25519, RSA2048}, Keys: 2, CSRs: 12, Name: "w{n}.load.test", CommonName: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if csrs, keys := p.Size(); csrs != 12 || keys != 6 {
		t.Errorf("%d CSRs of %d keys, want 12 of 6", csrs, keys)
	}
	spkis, names, kinds := map[string]bool{}, map[string]bool{}, map[x509.PublicKeyAlgorithm]int{}
	for i := range int64(12) {
		c := p.Get(i)
		req, err := x509.ParseCertificateRequest(c.DER)
		if err != nil {
			t.Fatal(err)
		}
		if err := req.CheckSignature(); err != nil {
			t.Errorf("CSR %d: %v", i, err)
		}
		if block, _ := pem.Decode(c.PEM); block == nil || !bytes.Equal(block.Bytes, c.DER) {
			t.Errorf("CSR %d: PEM and DER differ", i)
		}
		if !bytes.Equal(req.RawSubjectPublicKeyInfo, c.SPKI) || len(req.DNSNames) != 1 || req.DNSNames[0] != c.DNSNames[0] || req.Subject.CommonName != c.CommonName {
			t.Errorf("CSR %d does not hold what it claims", i)
		}
		spkis[string(c.SPKI)], names[c.DNSNames[0]] = true, true
		kinds[req.PublicKeyAlgorithm]++
	}
	if len(spkis) != 6 || len(names) != 12 || kinds[x509.RSA] != 4 || kinds[x509.Ed25519] != 4 {
		t.Errorf("%d keys, %d names, kinds %v", len(spkis), len(names), kinds)
	}
	if p.Get(0) != p.Get(12) {
		t.Error("the 13th request does not use the first CSR again")
	}
}

func TestURIsBecomeURIs(t *testing.T) {
	p, err := Make(t.Context(), Config{CSRs: 1, Name: "spiffe://load.test/ns/a/sa/w{n}"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c := p.Get(0); len(c.URIs) != 1 || c.URIs[0] != "spiffe://load.test/ns/a/sa/w0" || len(c.DNSNames) != 0 || c.CommonName != "" {
		t.Errorf("%+v", c)
	}
}

func TestReuseIsBounded(t *testing.T) {
	p, err := Make(t.Context(), Config{Planned: 3_000_000, MaxReuse: 1500, Name: "a.test"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if csrs, _ := p.Size(); csrs != 2000 || p.MaxRequests() != 3_000_000 {
		t.Errorf("%d CSRs for at most %d requests", csrs, p.MaxRequests())
	}
	for want, cfg := range map[string]Config{
		"would use each": {Planned: 1001, CSRs: 10, MaxReuse: 100, Name: "a.test"},
		"(--csrs)":       {Planned: 1001, CSRs: 10, MaxReuse: 100, Name: "b.test"},
		`--key-type: "d`: {Types: []KeyType{"dsa"}, Name: "a.test"},
		`--key-type: ""`: {Types: []KeyType{P256, ""}, Name: "a.test"},
		"--name":         {CSRs: 1},
		"--csrs must":    {CSRs: MaxCSRs + 1, Name: "a.test"},
		"--csrs must be": {CSRs: -1, Name: "a.test"},
		"--keys":         {Keys: -1, Name: "a.test"},
		"--max-reuse":    {MaxReuse: -1, Name: "a.test"},
	} {
		if _, err := Make(t.Context(), cfg, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want one about %q", cfg, err, want)
		}
	}
}
