package csr

import (
	"net/netip"
	"net/url"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/certmill/certmill/internal/problem"
)

// The longest names: RFC 1035 section 2.3.4, SPIFFE-ID section 2.3, RFC 5321 section 4.5.3.1.
const (
	maxDNS   = 253
	maxLabel = 63
	maxURI   = 2048
	maxEmail = 254
	maxLocal = 64
)

func badName(rule, format string, args ...any) error {
	return problem.Rejected(namesField, rule, format, args...)
}

// checkOctets refuses what is wrong in every kind of name: NUL and its kin, with which
// one reader sees another name than the next, and anything that is not ASCII.
func checkOctets(kind, s string) error {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == 0:
			return badName("embedded_nul", "a name holds a NUL character")
		case c >= utf8.RuneSelf:
			return badName(kind+"_idn", "a name holds characters outside ASCII; send the A-label form (xn--…, RFC 5890)")
		case c <= ' ' || c == 0x7f:
			return badName(kind+"_syntax", "the name %.80q holds a space or a control character", s)
		}
	}
	return nil
}

// CheckDNS reports, as a *problem.Error, why s cannot be a dNSName. Accepted are the
// preferred name syntax of RFC 1034 section 3.5 as changed by RFC 1123, in lower case
// and without the final dot, A-labels that are valid under IDNA 2008, and "*" as the
// whole first label before at least two others (RFC 9525 section 6.3).
func CheckDNS(s string) error {
	if err := checkOctets("dns", s); err != nil {
		return err
	}
	if len(s) > maxDNS {
		return badName("dns_length", "the DNS name %.80q… has %d characters; at most %d are allowed", s, len(s), maxDNS)
	}
	rest, wildcard := strings.CutPrefix(s, "*.")
	labels, last := 0, ""
	for more := true; more; labels++ {
		last, rest, more = strings.Cut(rest, ".")
		if err := checkLabel(last, s); err != nil {
			return err
		}
	}
	if wildcard && labels < 2 {
		return badName("dns_wildcard", "the wildcard name %.80q needs at least two labels after \"*.\"", s)
	}
	if strings.Trim(last, "0123456789") == "" {
		return badName("dns_numeric", "the DNS name %.80q ends in a number; an address belongs in an IP name", s)
	}
	return nil
}

func checkLabel(label, name string) error {
	switch {
	case label == "":
		return badName("dns_empty_label", "the DNS name %.80q has an empty label or a final dot", name)
	case len(label) > maxLabel:
		return badName("dns_label_length", "a label of the DNS name %.80q… is longer than %d characters", name, maxLabel)
	case label[0] == '-' || label[len(label)-1] == '-':
		return badName("dns_syntax", "a label of the DNS name %.80q starts or ends with a hyphen", name)
	}
	for i := 0; i < len(label); i++ {
		switch c := label[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-':
		case c == '*':
			return badName("dns_wildcard", "the DNS name %.80q has a \"*\" that is not its whole first label", name)
		default:
			return badName("dns_syntax", "the DNS name %.80q holds the character %q; letters (in lower case), digits and hyphens are allowed", name, c)
		}
	}
	if len(label) >= 4 && label[2:4] == "--" {
		return checkALabel(label, name)
	}
	return nil
}

// checkALabel: labels with "--" in the third and fourth place are reserved (RFC 5890
// section 2.3.1), and an "xn--" label must be the valid encoding of a name.
func checkALabel(label, name string) error {
	if u, err := idna.Lookup.ToUnicode(label); err == nil && u != label {
		return nil
	}
	return badName("dns_a_label", "the label %.63q of the DNS name %.80q is reserved or not a valid A-label (RFC 5891)", label, name)
}

// CheckURI reports, as a *problem.Error, why s cannot be a uniformResourceIdentifier:
// it must be absolute, with a host and without user information, dot segments or
// fragment (RFC 3986); a "spiffe" one must be a SPIFFE ID. "urn:" names have no host.
func CheckURI(s string) error {
	if err := checkOctets("uri", s); err != nil {
		return err
	}
	if len(s) > maxURI {
		return badName("uri_length", "a URI has %d characters; at most %d are allowed", len(s), maxURI)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || strings.ContainsAny(s, "\"<>\\^`{|}*"):
		return badName("uri_syntax", "the URI %.80q is not valid (RFC 3986)", s)
	case u.Scheme == "":
		return badName("uri_scheme", "the URI %.80q has no scheme", s)
	case u.Scheme == "spiffe":
		return checkSPIFFE(s)
	case u.User != nil || u.Fragment != "" || strings.HasSuffix(s, "#"):
		return badName("uri_syntax", "the URI %.80q has user information or a fragment", s)
	case u.Scheme == "urn" && u.Opaque != "":
		return nil
	case u.Host == "":
		return badName("uri_syntax", "the URI %.80q has no host", s)
	}
	if err := checkHost(u.Hostname(), s); err != nil {
		return err
	}
	for segment := range strings.SplitSeq(u.Path, "/") {
		if segment == "." || segment == ".." {
			return badName("uri_dot_segment", "the URI %.80q has a dot segment", s)
		}
	}
	return nil
}

// checkHost: a fully qualified name or an address (RFC 5280 section 4.2.1.6).
func checkHost(host, uri string) error {
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	if strings.HasPrefix(host, "*") || CheckDNS(lowerASCII(host)) != nil {
		return badName("uri_host", "the host of the URI %.80q is neither a DNS name nor an address", uri)
	}
	return nil
}

// checkSPIFFE holds to SPIFFE-ID section 2: a trust domain of lower-case letters,
// digits, ".", "-" and "_", and a path of non-empty segments without percent-encoding.
func checkSPIFFE(s string) error {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	domain, path, slash := strings.Cut(rest, "/")
	if !ok || domain == "" || len(domain) > 255 || !all(domain, trustDomainChar) {
		return badName("spiffe_id", "the trust domain of %.80q is not valid (SPIFFE-ID section 2.1)", s)
	}
	if !slash {
		return badName("spiffe_id", "the SPIFFE ID %.80q has no path, so it names no workload", s)
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || !all(segment, spiffePathChar) {
			return badName("spiffe_id", "the path of the SPIFFE ID %.80q is not valid (SPIFFE-ID section 2.2)", s)
		}
	}
	return nil
}

func trustDomainChar(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_'
}

func spiffePathChar(c byte) bool { return trustDomainChar(c) || 'A' <= c && c <= 'Z' }

func all(s string, ok func(byte) bool) bool {
	for i := 0; i < len(s); i++ {
		if !ok(s[i]) {
			return false
		}
	}
	return true
}

// CheckEmail reports, as a *problem.Error, why s cannot be an rfc822Name: it must be a
// dot-string, "@" and a DNS name in lower case (RFC 5280 section 4.2.1.6). Quoted local
// parts and internationalised ones (RFC 9598) are refused.
func CheckEmail(s string) error {
	if err := checkOctets("email", s); err != nil {
		return err
	}
	local, domain, ok := strings.Cut(s, "@")
	if !ok || len(s) > maxEmail || len(local) > maxLocal {
		return badName("email_syntax", "the email address %.80q has no \"@\" or is too long", s)
	}
	for atom := range strings.SplitSeq(local, ".") {
		if atom == "" || !all(atom, atomChar) {
			return badName("email_syntax", "the local part of the email address %.80q is not a dot-string (RFC 5321 section 4.1.2)", s)
		}
	}
	if strings.HasPrefix(domain, "*") || CheckDNS(domain) != nil {
		return badName("email_domain", "the domain of the email address %.80q is not a DNS name in lower case", s)
	}
	return nil
}

func atomChar(c byte) bool {
	return spiffePathChar(c) && c != '.' || strings.IndexByte("!#$%&'*+/=?^`{|}~", c) >= 0
}

// lowerDomain folds the domain of an email address, in which case does not count. In
// the local part it does.
func lowerDomain(s string) string {
	at := strings.LastIndexByte(s, '@')
	return s[:at+1] + lowerASCII(s[at+1:])
}

// lowerASCII folds A–Z and nothing else: strings.ToLower turns U+212A, the Kelvin
// sign, into "k", and a stranger's name into another's.
func lowerASCII(s string) string {
	for i := 0; i < len(s); i++ {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// CheckIP reports, as a *problem.Error, why a cannot be an iPAddress: an IPv4 address
// must stand in its 4 bytes, and a zone has no place in a certificate.
func CheckIP(a netip.Addr) error {
	switch {
	case !a.IsValid() || a.Zone() != "":
		return badName("ip_syntax", "an IP address is not valid or has a zone")
	case a.Is4In6():
		return badName("ip_mapped", "the address %s is IPv4 in 16 bytes; send the 4 bytes", a)
	}
	return nil
}
