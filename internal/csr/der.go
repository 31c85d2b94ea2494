package csr

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certmill/certmill/internal/problem"
)

// parts are the pieces of a CertificationRequest (RFC 2986 section 4), as DER.
type parts struct {
	info       []byte // certificationRequestInfo, what is signed
	subject    cryptobyte.String
	spki       []byte
	attributes cryptobyte.String
	algorithm  []byte // AlgorithmIdentifier with its header
	scheme     scheme // what algorithm says
	signature  []byte
}

func malformed(what string) error {
	return problem.Rejected("csr", "der", "the request is not the DER of a PKCS #10 CertificationRequest: %s is damaged or cut short", what)
}

func split(der []byte) (*parts, error) {
	input := cryptobyte.String(der)
	var outer, info cryptobyte.String
	if !input.ReadASN1(&outer, asn1.SEQUENCE) {
		return nil, malformed("the outer SEQUENCE")
	}
	if !input.Empty() {
		if input[0] == derSequence {
			return nil, problem.Rejected("csr", "one_csr", "the body goes on after the request with what looks like another; send one")
		}
		return nil, problem.Rejected("csr", "trailing_data", "%d bytes follow the request", len(input))
	}
	p := new(parts)
	var element cryptobyte.String
	if !outer.ReadASN1Element(&element, asn1.SEQUENCE) {
		return nil, malformed("certificationRequestInfo")
	}
	p.info = element
	if !outer.ReadASN1Element(&element, asn1.SEQUENCE) {
		return nil, malformed("signatureAlgorithm")
	}
	p.algorithm = element
	if !outer.ReadASN1BitStringAsBytes(&p.signature) {
		return nil, problem.Rejected("csr.signature", "signature_missing", "the request has no signature")
	}
	if !outer.Empty() {
		return nil, problem.Rejected("csr", "trailing_data", "%d bytes follow the signature", len(outer))
	}

	element = p.info
	var version int
	var spki cryptobyte.String
	switch {
	case !element.ReadASN1(&info, asn1.SEQUENCE):
		return nil, malformed("certificationRequestInfo")
	case !info.ReadASN1Integer(&version):
		return nil, malformed("version")
	case version != 0:
		return nil, problem.Rejected("csr", "csr_version", "the request has version %d; PKCS #10 knows 0 only", version)
	case !info.ReadASN1(&p.subject, asn1.SEQUENCE):
		return nil, malformed("subject")
	case !info.ReadASN1Element(&spki, asn1.SEQUENCE):
		return nil, malformed("subjectPKInfo")
	case !info.ReadASN1(&p.attributes, asn1.Tag(0).Constructed().ContextSpecific()):
		return nil, malformed("attributes")
	case !info.Empty():
		return nil, problem.Rejected("csr", "trailing_data", "%d bytes follow the attributes", len(info))
	}
	p.spki = spki
	return p, nil
}

const oidCommonName = "\x55\x04\x03" // 2.5.4.3

// readSubject returns the common name. The other attributes are checked for their
// form and dropped.
func readSubject(subject cryptobyte.String) (string, error) {
	var name string
	seen := false
	for !subject.Empty() {
		var set cryptobyte.String
		if !subject.ReadASN1(&set, asn1.SET) || set.Empty() {
			return "", malformed("subject")
		}
		for !set.Empty() {
			var attribute, oid, value cryptobyte.String
			var tag asn1.Tag
			if !set.ReadASN1(&attribute, asn1.SEQUENCE) || !attribute.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) || len(oid) == 0 ||
				!attribute.ReadAnyASN1(&value, &tag) || !attribute.Empty() {
				return "", malformed("subject")
			}
			if err := checkString(value, tag); err != nil {
				return "", err
			}
			if string(oid) != oidCommonName {
				continue
			}
			if seen {
				return "", problem.Rejected("csr.subject", "cn_single", "the subject has more than one common name")
			}
			name, seen = string(value), true
		}
	}
	if !seen {
		return "", nil
	}
	return name, CheckCommonName(name)
}

// checkString checks an attribute value for the string types that are in use (RFC
// 5280 section 4.1.2.4 names the first two; IA5String is for domainComponent and email).
func checkString(value []byte, tag asn1.Tag) error {
	switch tag {
	case asn1.UTF8String:
		if utf8.Valid(value) {
			return nil
		}
	case asn1.PrintableString:
		if isAll(value, printable) {
			return nil
		}
	case asn1.IA5String:
		if isAll(value, func(c byte) bool { return c < utf8.RuneSelf }) {
			return nil
		}
	default:
		return problem.Rejected("csr.subject", "subject_string", "a subject attribute has string type %d; use UTF8String or PrintableString", tag)
	}
	return problem.Rejected("csr.subject", "subject_string", "a subject attribute holds bytes that its string type does not allow")
}

func isAll(b []byte, ok func(byte) bool) bool {
	for _, c := range b {
		if !ok(c) {
			return false
		}
	}
	return true
}

func printable(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(" '()+,-./:=?", c) >= 0
}

// CheckCommonName reports, as a *problem.Error, why s cannot be a common name: it
// must be 1 to 64 characters of UTF-8 without control or formatting characters (an
// embedded NUL, a change of writing direction) and without outer spaces.
func CheckCommonName(s string) error {
	switch {
	case s == "":
		return problem.Rejected("csr.subject", "cn_empty", "the common name is empty; leave it out or fill it in")
	case !utf8.ValidString(s):
		return problem.Rejected("csr.subject", "cn_encoding", "the common name is not UTF-8")
	case utf8.RuneCountInString(s) > MaxCommonName:
		return problem.Rejected("csr.subject", "cn_max_64", "the common name has %d characters; at most %d are allowed", utf8.RuneCountInString(s), MaxCommonName)
	case s[0] == ' ' || s[len(s)-1] == ' ':
		return problem.Rejected("csr.subject", "cn_spaces", "the common name starts or ends with a space")
	}
	for _, c := range s {
		if !unicode.IsPrint(c) {
			return problem.Rejected("csr.subject", "cn_control", "the common name holds the unprintable character %U", c)
		}
	}
	return nil
}
