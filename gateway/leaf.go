package gateway

import (
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// leaf is what an answer tells about a certificate beside its bytes.
type leaf struct {
	notBefore, notAfter time.Time
	names               []string // with kinds, in the order of the certificate
	spki                [sha256.Size]byte
}

var (
	errLeaf = errors.New("a certificate from a signer cannot be read")

	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// readLeaf reads the few fields of a certificate (RFC 5280 section 4.1) that an
// answer repeats. crypto/x509 would also parse and check the key and every
// extension, at five times the cost, of bytes that the signer has just made and
// checked and the ledger has committed.
func readLeaf(der []byte) (leaf, error) {
	var l leaf
	input := cryptobyte.String(der)
	var cert, tbs, validity, spki cryptobyte.String
	if !input.ReadASN1(&cert, cryptobyte_asn1.SEQUENCE) ||
		!cert.ReadASN1(&tbs, cryptobyte_asn1.SEQUENCE) ||
		!tbs.SkipOptionalASN1(cryptobyte_asn1.Tag(0).Constructed().ContextSpecific()) || // version
		!tbs.SkipASN1(cryptobyte_asn1.INTEGER) || // serial
		!tbs.SkipASN1(cryptobyte_asn1.SEQUENCE) || // signature algorithm
		!tbs.SkipASN1(cryptobyte_asn1.SEQUENCE) || // issuer
		!tbs.ReadASN1(&validity, cryptobyte_asn1.SEQUENCE) ||
		!tbs.SkipASN1(cryptobyte_asn1.SEQUENCE) || // subject
		!tbs.ReadASN1Element(&spki, cryptobyte_asn1.SEQUENCE) ||
		!readTime(&validity, &l.notBefore) || !readTime(&validity, &l.notAfter) {
		return l, errLeaf
	}
	l.spki = sha256.Sum256(spki)
	var ok bool
	l.names, ok = readNames(tbs)
	if !ok {
		return l, errLeaf
	}
	return l, nil
}

func readTime(s *cryptobyte.String, t *time.Time) bool {
	if s.PeekASN1Tag(cryptobyte_asn1.UTCTime) {
		return s.ReadASN1UTCTime(t)
	}
	return s.ReadASN1GeneralizedTime(t)
}

// readNames finds the subject alternative names in what follows the key.
func readNames(tbs cryptobyte.String) ([]string, bool) {
	var wrapped, extensions cryptobyte.String
	tag := cryptobyte_asn1.Tag(3).Constructed().ContextSpecific()
	for !tbs.Empty() && !tbs.PeekASN1Tag(tag) { // unique identifiers of old
		var skipped cryptobyte.String
		if !tbs.ReadAnyASN1(&skipped, nil) {
			return nil, false
		}
	}
	if tbs.Empty() {
		return nil, true
	}
	if !tbs.ReadASN1(&wrapped, tag) || !wrapped.ReadASN1(&extensions, cryptobyte_asn1.SEQUENCE) {
		return nil, false
	}
	for !extensions.Empty() {
		var extension, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !extensions.ReadASN1(&extension, cryptobyte_asn1.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&oid) ||
			!extension.SkipOptionalASN1(cryptobyte_asn1.BOOLEAN) || !extension.ReadASN1(&value, cryptobyte_asn1.OCTET_STRING) {
			return nil, false
		}
		if oid.Equal(oidSubjectAltName) {
			return readGeneralNames(value)
		}
	}
	return nil, true
}

func readGeneralNames(value cryptobyte.String) ([]string, bool) {
	var list cryptobyte.String
	if !value.ReadASN1(&list, cryptobyte_asn1.SEQUENCE) {
		return nil, false
	}
	var names []string
	for !list.Empty() {
		var name cryptobyte.String
		var tag cryptobyte_asn1.Tag
		if !list.ReadAnyASN1(&name, &tag) {
			return nil, false
		}
		switch tag {
		case cryptobyte_asn1.Tag(1).ContextSpecific():
			names = append(names, "email:"+string(name))
		case cryptobyte_asn1.Tag(2).ContextSpecific():
			names = append(names, "dns:"+string(name))
		case cryptobyte_asn1.Tag(6).ContextSpecific():
			names = append(names, "uri:"+string(name))
		case cryptobyte_asn1.Tag(7).ContextSpecific():
			ip, ok := netip.AddrFromSlice(name)
			if !ok {
				return nil, false
			}
			names = append(names, "ip:"+ip.String())
		}
	}
	return names, true
}
