package signer

import (
	"errors"
	"strings"
	"testing"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
)

// lintAll returns the lints of the profile's sources that an issued certificate breaks
// or comes near to breaking: warnings too, and those that judge the signature.
func lintAll(t testing.TB, der []byte, p *profile.Profile) (broken []string) {
	t.Helper()
	cert, err := zx509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	var sources lint.SourceList
	for _, name := range p.Lint.Sources {
		sources = append(sources, lint.LintSource(name))
	}
	registry, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: sources, ExcludeNames: p.Lint.Ignore})
	if err != nil {
		t.Fatal(err)
	}
	result := zlint.LintCertificateEx(cert, registry)
	passed := 0
	for name, r := range result.Results {
		if r.Status >= lint.Warn {
			broken = append(broken, name+": "+r.Details)
		}
		if r.Status == lint.Pass {
			passed++
		}
	}
	if passed < 20 {
		t.Errorf("only %d lints applied, so the result says little", passed)
	}
	return broken
}

func TestAProfileThatLintsBadlyIsRefused(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	for name, c := range map[string]struct {
		change func(*profile.Spec)
		want   string
	}{
		"a purpose that the key usage contradicts": {func(s *profile.Spec) {
			s.KeyUsage, s.ExtendedKeyUsage = []string{"nonRepudiation"}, []string{"serverAuth"}
		}, "e_key_usage_and_extended_key_usage_inconsistent"},
		"keyEncipherment on an EC key, where RSA keys are allowed too": {func(s *profile.Spec) {
			s.KeyTypes, s.KeyUsage = []csr.KeyType{csr.RSA2048, csr.ECDSAP256}, []string{"digitalSignature", "keyEncipherment"}
		}, "ecdsa-p256"},
		"public names under the Baseline Requirements": {func(s *profile.Spec) {
			s.Lint.Sources, s.ExtendedKeyUsage = []string{"CABF_BR"}, []string{"serverAuth"}
		}, "e_"},
		"an unknown source":       {func(s *profile.Spec) { s.Lint.Sources = []string{"RFC1"} }, "lint.sources"},
		"an unknown lint ignored": {func(s *profile.Spec) { s.Lint.Ignore = []string{"e_nonsense"} }, "lint.ignore"},
	} {
		t.Run(name, func(t *testing.T) {
			config := ca.config(t)
			config.Profiles = oneProfile(t, c.change)
			_, err := NewPreparer(config)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "profile any") {
				t.Errorf("got %v, want an error of profile any about %s", err, c.want)
			}
		})
	}
}

func TestLintsCanBeLeftOut(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	for name, change := range map[string]func(*profile.Spec){
		"one by one": func(s *profile.Spec) {
			s.Lint.Ignore = []string{"e_key_usage_and_extended_key_usage_inconsistent"}
		},
		"all": func(s *profile.Spec) { s.Lint.Sources = []string{} },
	} {
		t.Run(name, func(t *testing.T) {
			p := ca.preparer(t, func(c *PreparerConfig) {
				c.Profiles = oneProfile(t, func(s *profile.Spec) {
					s.KeyUsage, s.ExtendedKeyUsage = []string{"nonRepudiation"}, []string{"serverAuth"}
					change(s)
				})
			})
			ca.issue(t, p, asking(t, nil))
		})
	}
}

// TestALintStopsACertificate: what the samples did not show, one certificate may.
func TestALintStopsACertificate(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	tlds, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeNames: []string{"e_dnsname_not_valid_tld"}})
	if err != nil {
		t.Fatal(err)
	}
	for share, want := range map[float64]bool{1: true, 0: false} {
		p := ca.preparer(t, func(c *PreparerConfig) {
			c.LintShare = share
			c.Profiles = oneProfile(t, func(s *profile.Spec) { s.ExtendedKeyUsage = []string{"serverAuth"} })
		})
		p.templates["any"].lint = &linter{registry: tlds}
		if _, err := p.Prepare(asking(t, func(r *profile.Request) { r.DNSNames = []string{"a.example.com"} }), 5); err != nil {
			t.Errorf("a name of a TLD that exists: %v", err)
		}
		_, err := p.Prepare(asking(t, nil), 5)
		if refused := errors.Is(err, &problem.Error{Kind: problem.Invalid, Field: "certificate", Rule: "lint"}); refused != want {
			t.Errorf("a share of %v: got %v", share, err)
		}
	}
}

// TestBlindLintsAreThere: a name that zlint drops or changes would leave a lint in that
// passes without looking.
func TestBlindLintsAreThere(t *testing.T) {
	for _, name := range blindLints {
		if lint.GlobalRegistry().CertificateLints().ByName(name) == nil {
			t.Errorf("zlint has no lint %s", name)
		}
	}
}

func TestSampler(t *testing.T) {
	for share, want := range map[float64]int{0: 0, 1: 1000, 0.5: 500, 0.01: 10, 0.333: 333, 0.0005: 0} {
		s, err := newSampler(share)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for range 1000 {
			if s.next() {
				n++
			}
		}
		if n != want {
			t.Errorf("a share of %v picks %d of 1000, want %d", share, n, want)
		}
	}
	for _, bad := range []float64{-0.1, 1.1} {
		if _, err := newSampler(bad); err == nil {
			t.Errorf("a share of %v is accepted", bad)
		}
	}
}

func TestSampleKeysCoverEveryType(t *testing.T) {
	keys, err := sampleKeys()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range csr.KeyTypes {
		if keys[k] == nil {
			t.Errorf("no sample key of type %s", k)
		}
	}
}
