package ledger

import (
	"crypto/sha256"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// A row need not say twice what it says once. In a mesh the caller is the certificate's
// name, and the hash of the key follows from the certificate for whoever reads it: such
// a caller is stored as its kind alone ("mtls:"), such a hash as nothing. Only programs
// of the schema migrations.ShortRows read this, so only from that schema on is it written.

// identityOf returns what stands behind the kind of a name or a caller: of
// "uri:spiffe://a/b" and "mtls:spiffe://a/b" the same. SQL says it as
// substr(name, strpos(name, ':') + 1).
func identityOf(s string) string { return s[strings.IndexByte(s, ':')+1:] }

// kindAlone reports whether a caller ends with its first colon: a stored one is short
// then, and one that asks cannot be told from that.
func kindAlone(caller string) bool {
	i := strings.IndexByte(caller, ':')
	return i >= 0 && i == len(caller)-1
}

// shortCaller returns the caller as a row with this first name stores it.
func shortCaller(caller, name string) string {
	if i := strings.IndexByte(caller, ':'); i >= 0 && strings.IndexByte(name, ':') >= 0 && caller[i+1:] == identityOf(name) {
		return caller[:i+1]
	}
	return caller
}

// fullCaller undoes shortCaller.
func fullCaller(stored, name string) string {
	if kindAlone(stored) {
		return stored + identityOf(name)
	}
	return stored
}

// spkiHash returns the SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 5280 section
// 4.1). ok is false where der is no certificate.
func spkiHash(der []byte) (hash [sha256.Size]byte, ok bool) {
	input := cryptobyte.String(der)
	var certificate, tbs, spki cryptobyte.String
	if !input.ReadASN1(&certificate, asn1.SEQUENCE) || !certificate.ReadASN1(&tbs, asn1.SEQUENCE) ||
		!tbs.SkipOptionalASN1(asn1.Tag(0).ContextSpecific().Constructed()) || // version
		!tbs.SkipASN1(asn1.INTEGER) || // serialNumber
		!tbs.SkipASN1(asn1.SEQUENCE) || // signature
		!tbs.SkipASN1(asn1.SEQUENCE) || // issuer
		!tbs.SkipASN1(asn1.SEQUENCE) || // validity
		!tbs.SkipASN1(asn1.SEQUENCE) || // subject
		!tbs.ReadASN1Element(&spki, asn1.SEQUENCE) {
		return hash, false
	}
	return sha256.Sum256(spki), true
}
