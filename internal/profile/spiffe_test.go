package profile

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
)

const svid = `
name: p
kind: spiffe
spiffe: {trust_domains: [example.test, b.test], paths: ["/ns/*/sa/*"]}
issuer: ca
key_types: [ecdsa-p256]
`

func TestAProfileOfKindSPIFFENeedsLittle(t *testing.T) {
	p := parse(t, svid)
	if !slices.Equal(p.Names.URI.Allow, []string{"spiffe://example.test/ns/*/sa/*", "spiffe://b.test/ns/*/sa/*"}) || p.Names.URI.Source != SourceIdentity || p.Names.URI.Others != OthersIgnore ||
		!slices.Equal(p.KeyUsage, []string{"digitalSignature"}) || !slices.Equal(p.ExtendedKeyUsage, []string{"serverAuth", "clientAuth"}) ||
		p.Lifetime.Default.D() != time.Hour || p.Lifetime.Max.D() != 24*time.Hour || p.Revocation.Mode != RevocationNone || p.Subject.CommonName != CommonNameEmpty {
		t.Errorf("defaults are %+v", p.Spec)
	}
	if p := parse(t, svid+"extended_key_usage: []\nlifetime: {max: 30m}\n"); len(p.ExtendedKeyUsage) != 0 || p.Lifetime.Default.D() != 30*time.Minute {
		t.Errorf("%q, %s", p.ExtendedKeyUsage, p.Lifetime.Default)
	}
}

func TestProfilesThatBreakTheSVIDStandardAreRefused(t *testing.T) {
	for changes, key := range map[string]string{
		"kind: svid": "kind",
		"spiffe: {}": "spiffe.trust_domains",
		"spiffe: {trust_domains: [Example.test]}":            "spiffe.trust_domains[0]",
		"spiffe: {trust_domains: [a.test, a.test]}":          "spiffe.trust_domains",
		"spiffe: {trust_domains: [a.test], paths: [ns]}":     "spiffe.paths[0]",
		"spiffe: {trust_domains: [a.test], paths: ['/{x}']}": "spiffe.paths[0]",
		"names: {uri: {allow: ['spiffe://c.test/**']}}":      "names.uri.allow",
		"names: {uri: {max: 2}}":                             "names.uri",
		"key_usage: [keyEncipherment]":                       "key_usage",
		"key_usage: [digitalSignature, dataEncipherment]":    "key_usage",
		"key_usage: [digitalSignature, keyCertSign]":         "key_usage",
		"extended_key_usage: [serverAuth]":                   "extended_key_usage",
		"extended_key_usage: [clientAuth, codeSigning]":      "extended_key_usage",
		"subject: {country: nl}":                             "subject.country",
		"subject: {organization: \"a\\x00\"}":                "subject.organization",
	} {
		text := svid
		key, name := key, strings.SplitN(changes, ":", 2)[0]
		var kept []string
		for _, line := range strings.Split(text, "\n") {
			if !strings.HasPrefix(line, name+":") {
				kept = append(kept, line)
			}
		}
		_, err := Parse([]byte(strings.Join(kept, "\n") + changes + "\n"))
		if err == nil || !strings.Contains(err.Error(), key+": ") {
			t.Errorf("%s: got %v, want an error of %s", changes, err, key)
		}
	}
	if _, err := Parse([]byte(with(t, "spiffe: {trust_domains: [a.test]}"))); err == nil {
		t.Error("a profile of no kind has a section spiffe")
	}
}

// Whatever a gateway has let through, this is what a signer checks.
func TestOnlyOneSPIFFEIDOfTheProfileIsIssued(t *testing.T) {
	fromIdentity := parse(t, svid)
	fromCSR := parse(t, svid+"names: {uri: {source: csr}, dns: {allow: ['**.test']}}\n")
	asks := func(identity string, uris ...string) *Request {
		return request(func(r *Request) { r.DNSNames, r.Caller.Identity, r.URIs = nil, identity, uris })
	}
	const good = "spiffe://example.test/ns/a/sa/b"
	for _, c := range []struct {
		p    *Profile
		r    *Request
		kind problem.Kind
		rule string
	}{
		{fromIdentity, asks(good, "spiffe://example.test/ns/x/sa/y", "https://z.test/"), "", ""},
		{fromIdentity, asks("spiffe://example.test/ns/a"), problem.Denied, "uri_not_allowed"},
		{fromIdentity, asks("spiffe://c.test/ns/a/sa/b"), problem.Denied, "uri_not_allowed"},
		{fromIdentity, asks("alice"), problem.Invalid, "spiffe_id"},
		{fromIdentity, asks("spiffe://example.test/ns/a/sa/b/"), problem.Invalid, "spiffe_id"},
		{fromIdentity, asks("spiffe://example.test:1/ns/a/sa/b"), problem.Invalid, "spiffe_id"},
		{fromIdentity, asks("spiffe://example.test/ns/../sa/b"), problem.Invalid, "spiffe_id"},
		{fromIdentity, asks(""), problem.Denied, "identity_required"},
		{fromCSR, asks("x", good), "", ""},
		{fromCSR, asks("x", good, "spiffe://example.test/ns/a/sa/c"), problem.Invalid, "spiffe_id"},
		{fromCSR, asks("x", "spiffe://example.test/ns/a%2f/sa/b"), problem.Invalid, "spiffe_id"},
		{fromCSR, asks("x"), problem.Invalid, "spiffe_id"},
	} {
		err := c.p.Check(c.r)
		if problem.KindOf(err) != c.kind || c.kind != "" && !errors.Is(err, &problem.Error{Kind: c.kind, Rule: c.rule}) {
			t.Errorf("%q with %q: got %v, want %s %s", c.r.Caller.Identity, c.r.URIs, err, c.kind, c.rule)
		}
		if err == nil && !slices.Equal(c.r.URIs, []string{good}) {
			t.Errorf("names are %q", c.r.URIs)
		}
	}
}
