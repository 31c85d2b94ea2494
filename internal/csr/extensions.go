package csr

import (
	"bytes"
	"net/netip"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certmill/certmill/internal/problem"
)

const (
	extensionsField = "csr.extensions"
	namesField      = "csr.names"
)

var oidExtensionRequest = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e} // 1.2.840.113549.1.9.14

// The extensions that are read or known, by the content of their OID (2.5.29.x).
const (
	oidSubjectKeyID     = "\x55\x1d\x0e"
	oidKeyUsage         = "\x55\x1d\x0f"
	oidSubjectAltName   = "\x55\x1d\x11"
	oidBasicConstraints = "\x55\x1d\x13"
	oidExtKeyUsage      = "\x55\x1d\x25"
)

// readAttributes finds the extensionRequest (RFC 2985 section 5.4.2) and drops the others.
func readAttributes(r *Request, attributes cryptobyte.String) error {
	var seen [maxAttributes][]byte
	for n := 0; !attributes.Empty(); n++ {
		if n == maxAttributes {
			return problem.Rejected("csr.attributes", "attribute_count", "the request has more than %d attributes", maxAttributes)
		}
		var attribute, oid, values cryptobyte.String
		if !attributes.ReadASN1(&attribute, asn1.SEQUENCE) || !attribute.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) || len(oid) == 0 ||
			!attribute.ReadASN1(&values, asn1.SET) || !attribute.Empty() {
			return malformed("an attribute")
		}
		if contains(seen[:n], oid) {
			return problem.Rejected("csr.attributes", "attribute_duplicate", "the request has the same attribute twice")
		}
		seen[n] = oid
		if !bytes.Equal(oid, oidExtensionRequest) {
			continue
		}
		var extensions cryptobyte.String
		if !values.ReadASN1(&extensions, asn1.SEQUENCE) || !values.Empty() {
			return malformed("extensionRequest")
		}
		if err := readExtensions(r, extensions); err != nil {
			return err
		}
	}
	return nil
}

func contains(seen [][]byte, oid []byte) bool {
	for _, s := range seen {
		if bytes.Equal(s, oid) {
			return true
		}
	}
	return false
}

func readExtensions(r *Request, extensions cryptobyte.String) error {
	var seen [maxExtensions][]byte
	for n := 0; !extensions.Empty(); n++ {
		if n == maxExtensions {
			return problem.Rejected(extensionsField, "extension_count", "the request asks for more than %d extensions", maxExtensions)
		}
		var extension, oid, value cryptobyte.String
		var critical bool
		if !extensions.ReadASN1(&extension, asn1.SEQUENCE) || !extension.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) || len(oid) == 0 ||
			extension.PeekASN1Tag(asn1.BOOLEAN) && !extension.ReadASN1Boolean(&critical) ||
			!extension.ReadASN1(&value, asn1.OCTET_STRING) || !extension.Empty() {
			return malformed("an extension")
		}
		if contains(seen[:n], oid) {
			return problem.Rejected(extensionsField, "extension_duplicate", "the request asks for the same extension twice")
		}
		seen[n] = oid
		if err := readExtension(r, string(oid), critical, value); err != nil {
			return err
		}
	}
	return nil
}

func readExtension(r *Request, oid string, critical bool, value cryptobyte.String) error {
	switch oid {
	case oidSubjectAltName:
		return readNames(r, value)
	case oidBasicConstraints:
		return checkBasicConstraints(value)
	case oidKeyUsage:
		return checkKeyUsage(value)
	case oidExtKeyUsage, oidSubjectKeyID:
		return nil // the profile sets them
	}
	if critical {
		return problem.Rejected(extensionsField, "extension_critical", "the request asks for a critical extension that no profile grants")
	}
	return nil
}

func checkBasicConstraints(value cryptobyte.String) error {
	var constraints cryptobyte.String
	var ca bool
	if !value.ReadASN1(&constraints, asn1.SEQUENCE) || !value.Empty() ||
		constraints.PeekASN1Tag(asn1.BOOLEAN) && !constraints.ReadASN1Boolean(&ca) ||
		!constraints.SkipOptionalASN1(asn1.INTEGER) || !constraints.Empty() { // pathLenConstraint
		return malformed("basicConstraints")
	}
	if ca {
		return problem.Rejected(extensionsField, "ca_false", "the request asks for CA:TRUE; only end-entity certificates are issued")
	}
	return nil
}

func checkKeyUsage(value cryptobyte.String) error {
	const keyCertSign, cRLSign = 0x04, 0x02 // bits 5 and 6 of the first octet
	var bits []byte
	if !value.ReadASN1(&value, asn1.BIT_STRING) || len(value) < 1 || value[0] > 7 {
		return malformed("keyUsage")
	}
	if bits = value[1:]; len(bits) > 0 && bits[0]&(keyCertSign|cRLSign) != 0 {
		return problem.Rejected(extensionsField, "key_usage_ca", "the request asks for keyCertSign or cRLSign; only end-entity certificates are issued")
	}
	return nil
}

// The GeneralName choices that are accepted (RFC 5280 section 4.2.1.6).
var (
	tagEmail = asn1.Tag(1).ContextSpecific()
	tagDNS   = asn1.Tag(2).ContextSpecific()
	tagURI   = asn1.Tag(6).ContextSpecific()
	tagIP    = asn1.Tag(7).ContextSpecific()
)

// readNames takes the names, checks the form of each and drops repetitions.
func readNames(r *Request, value cryptobyte.String) error {
	var names cryptobyte.String
	if !value.ReadASN1(&names, asn1.SEQUENCE) || !value.Empty() {
		return malformed("subjectAltName")
	}
	if names.Empty() {
		return problem.Rejected(namesField, "names_empty", "the subject alternative name extension is empty")
	}
	for n := 0; !names.Empty(); n++ {
		if n == MaxNames {
			return problem.Rejected(namesField, "names_max", "the request asks for more than %d names", MaxNames)
		}
		var name cryptobyte.String
		var tag asn1.Tag
		if !names.ReadAnyASN1(&name, &tag) {
			return malformed("subjectAltName")
		}
		if err := readName(r, name, tag); err != nil {
			return err
		}
	}
	return nil
}

func readName(r *Request, name []byte, tag asn1.Tag) error {
	switch tag {
	case tagDNS:
		s := lowerASCII(string(name))
		if err := CheckDNS(s); err != nil {
			return err
		}
		r.DNSNames = appendNew(r.DNSNames, s)
	case tagURI:
		if err := CheckURI(string(name)); err != nil {
			return err
		}
		r.URIs = appendNew(r.URIs, string(name))
	case tagEmail:
		s := lowerDomain(string(name))
		if err := CheckEmail(s); err != nil {
			return err
		}
		r.Emails = appendNew(r.Emails, s)
	case tagIP:
		addr, ok := netip.AddrFromSlice(name)
		if !ok {
			return problem.Rejected(namesField, "ip_length", "an IP address has 4 or 16 bytes, not %d", len(name))
		}
		if err := CheckIP(addr); err != nil {
			return err
		}
		r.IPAddresses = appendNew(r.IPAddresses, addr)
	default:
		return problem.Rejected(namesField, "names_kind", "the request asks for a name of a kind other than DNS, IP, URI and email")
	}
	return nil
}

func appendNew[T comparable](list []T, v T) []T {
	if slices.Contains(list, v) {
		return list
	}
	return append(list, v)
}
