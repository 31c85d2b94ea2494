package csr

import (
	"errors"
	"strings"
	"testing"

	"github.com/certmill/certmill/internal/problem"
)

func checkNames(t *testing.T, check func(string) error, cases map[string]string) {
	t.Helper()
	for name, rule := range cases {
		err := check(name)
		if rule == "" && err != nil {
			t.Errorf("%.60q: %v", name, err)
		}
		if rule != "" && !errors.Is(err, &problem.Error{Kind: problem.Invalid, Field: "csr.names", Rule: rule}) {
			t.Errorf("%.60q: got %v, want rule %s", name, err, rule)
		}
	}
}

func TestCheckDNS(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	checkNames(t, CheckDNS, map[string]string{
		"localhost": "", "a.b.test": "", "1a.test": "", "a-b.test": "", "a--b.test": "", "*.a.test": "",
		"xn--bcher-kva.test": "", "*.xn--bcher-kva.test": "", label63 + ".test": "",
		strings.Repeat(label63+".", 3) + strings.Repeat("a", 61): "",

		"": "dns_empty_label", ".": "dns_empty_label", "a.": "dns_empty_label", ".a": "dns_empty_label", "a..b": "dns_empty_label", "*.": "dns_empty_label",
		"A.test": "dns_syntax", "a_b.test": "dns_syntax", "-a.test": "dns_syntax", "a-.test": "dns_syntax", "a b.test": "dns_syntax", "a/b": "dns_syntax",
		"a\tb.test": "dns_syntax", "a\x7f.test": "dns_syntax", "a:80": "dns_syntax",
		"*": "dns_wildcard", "*.test": "dns_wildcard", "a.*.test": "dns_wildcard", "a*.b.test": "dns_wildcard", "*.*.test": "dns_wildcard", "**.a.test": "dns_wildcard",
		"192.0.2.1": "dns_numeric", "a.1": "dns_numeric", "1": "dns_numeric",
		"xn--a.test": "dns_a_label", "xn--.test": "dns_syntax", "ab--c.test": "dns_a_label", "xn--bcher-kva-.test": "dns_syntax", "xn--abc-.test": "dns_syntax",
		"xn--zzzzzz.test": "dns_a_label",
		"bücher.test":     "dns_idn", "a\x00b": "embedded_nul",
		label63 + "a.test": "dns_label_length",
		strings.Repeat(label63+".", 3) + strings.Repeat("a", 62): "dns_length",
	})
}

func TestCheckURI(t *testing.T) {
	checkNames(t, CheckURI, map[string]string{
		"https://a.test": "", "https://A.test:8443/b?c=d": "", "http://192.0.2.1/": "", "http://[2001:db8::1]/x": "", "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6": "",
		"spiffe://a.test/b": "", "spiffe://a_b.test/ns/X/sa/y.z": "",

		"": "uri_scheme", "a.test/b": "uri_scheme", "//a.test": "uri_scheme", "https:///x": "uri_syntax", "https:x": "uri_syntax", "mailto:a@b.test": "uri_syntax",
		"https://u:p@a.test/": "uri_syntax", "https://a.test/#f": "uri_syntax", "https://a.test/#": "uri_syntax", "https://a.test/%zz": "uri_syntax",
		"https://a.test/<x>": "uri_syntax", "https://a.test/*": "uri_syntax", "https://a b.test/": "uri_syntax", "1https://a.test": "uri_syntax",
		"https://*.a.test/": "uri_syntax", "https://a_b.test/": "uri_host", "https://a..test/": "uri_host",
		"https://a.test/../b": "uri_dot_segment", "https://a.test/./b": "uri_dot_segment", "https://a.test/%2e%2e/b": "uri_dot_segment",
		"spiffe://a.test": "spiffe_id", "spiffe://a.test/": "spiffe_id", "spiffe://a.test/b/": "spiffe_id", "spiffe://a.test//b": "spiffe_id",
		"spiffe://a.test/../b": "spiffe_id", "spiffe://a.test/b%20c": "spiffe_id", "spiffe://a.test/b?c": "spiffe_id", "spiffe://a.test:1/b": "spiffe_id",
		"spiffe://u@a.test/b": "spiffe_id", "spiffe://A.test/b": "spiffe_id", "spiffe:///b": "spiffe_id", "spiffe:a": "spiffe_id", "SPIFFE://a.test/b": "spiffe_id",
		"https://bücher.test/": "uri_idn", "https://a.test/\x00": "embedded_nul", "https://a.test/" + strings.Repeat("a", 2048): "uri_length",
	})
}

func TestCheckEmail(t *testing.T) {
	checkNames(t, CheckEmail, map[string]string{
		"a@b.test": "", "A.b+c@d.test": "", "o'x@d.test": "",

		"": "email_syntax", "a": "email_syntax", "@b.test": "email_syntax", ".a@b.test": "email_syntax", "a..b@c.test": "email_syntax", `"a b"@c.test`: "email_syntax",
		"a b@c.test": "email_syntax", strings.Repeat("a", 65) + "@b.test": "email_syntax", "a,b@c.test": "email_syntax",
		"a@": "email_domain", "a@B.test": "email_domain", "a@b@c.test": "email_domain", "a@*.b.test": "email_domain", "a@[192.0.2.1]": "email_domain", "a@192.0.2.1": "email_domain",
		"é@b.test": "email_idn", "a@b.test\x00": "embedded_nul",
	})
}
