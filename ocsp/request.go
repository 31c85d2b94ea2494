package ocsp

import (
	"bytes"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Bounds of a request. An ordinary one has 70 to 120 octets and one CertID.
const (
	// MaxRequestBytes bounds an OCSPRequest in DER; it leaves room for a requestorName
	// and a signature with a certificate or two.
	MaxRequestBytes = 10 << 10
	// MaxCertIDs bounds the CertIDs of a request.
	MaxCertIDs = 32
	// maxNonce is the longest nonce (RFC 9654 section 2.1); an empty one is malformed.
	maxNonce = 128
)

// Errors of Request.Parse, which become the error answers of RFC 6960 section 2.3.
var (
	// ErrMalformed: not an OCSPRequest, or beyond the bounds.
	ErrMalformed = errors.New("malformed OCSP request")
	// ErrUnsupported: well-formed, but it insists on an extension that we do not know.
	ErrUnsupported = errors.New("critical extension in an OCSP request")
)

// Hash is the hash algorithm of a CertID.
type Hash uint8

// The hashes for which answers are signed. A CertID with another one finds nothing.
const (
	SHA1 Hash = iota
	SHA256
	// Hashes is the number of them.
	Hashes
	otherHash = Hashes
)

// Algorithm identifiers and extensions by the content octets of their OIDs.
var (
	oidSHA1     = []byte{0x2b, 0x0e, 0x03, 0x02, 0x1a}
	oidSHA256   = []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01}
	oidNonce    = []byte{0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x02} // id-pkix-ocsp-nonce
	oidResponse = []byte{0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x04} // id-pkix-ocsp-response
	oidPrefSig  = []byte{0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x08} // id-pkix-ocsp-pref-sig-algs
)

// CertID names a certificate (RFC 6960 section 4.1.1). Its slices lie in the request.
type CertID struct {
	Hash     Hash
	NameHash []byte
	KeyHash  []byte
	Serial   []byte // content octets of the INTEGER
}

// Request is a parsed OCSPRequest. It may be used again for another Parse.
type Request struct {
	// CertIDs lie in the bytes that were parsed.
	CertIDs []CertID
	// Nonce tells that there was one; answers signed beforehand carry none
	// (RFC 9919 section 3.1.1).
	Nonce bool

	space [2]CertID
}

// Parse reads one OCSPRequest and nothing after it. Version 1 alone is taken; a
// requestorName, a signature and unknown extensions that are not critical are passed
// over (RFC 6960 section 4.1). It returns ErrMalformed or ErrUnsupported.
func (r *Request) Parse(der []byte) error {
	r.CertIDs, r.Nonce = r.space[:0], false
	if len(der) > MaxRequestBytes {
		return ErrMalformed
	}
	in := cryptobyte.String(der)
	var request, tbs cryptobyte.String
	if !in.ReadASN1(&request, asn1.SEQUENCE) || !in.Empty() || !request.ReadASN1(&tbs, asn1.SEQUENCE) {
		return ErrMalformed
	}
	// optionalSignature [0]: RFC 6960 lets a responder ignore it.
	if !request.SkipOptionalASN1(asn1.Tag(0).ContextSpecific().Constructed()) || !request.Empty() {
		return ErrMalformed
	}
	return r.parseTBS(tbs)
}

func (r *Request) parseTBS(tbs cryptobyte.String) error {
	var version, list cryptobyte.String
	var present bool
	if !tbs.ReadOptionalASN1(&version, &present, asn1.Tag(0).ContextSpecific().Constructed()) {
		return ErrMalformed
	}
	if present {
		var v int64
		if !version.ReadASN1Integer(&v) || !version.Empty() || v != 0 {
			return ErrMalformed
		}
	}
	// requestorName [1] is a GeneralName, which does not concern us.
	if !tbs.SkipOptionalASN1(asn1.Tag(1).ContextSpecific().Constructed()) ||
		!tbs.ReadASN1(&list, asn1.SEQUENCE) || list.Empty() {
		return ErrMalformed
	}
	if err := r.parseExtensions(&tbs, 2, true); err != nil {
		return err
	}
	if !tbs.Empty() {
		return ErrMalformed
	}
	for !list.Empty() {
		var one cryptobyte.String
		if len(r.CertIDs) == MaxCertIDs || !list.ReadASN1(&one, asn1.SEQUENCE) {
			return ErrMalformed
		}
		id, ok := parseCertID(&one)
		if !ok {
			return ErrMalformed
		}
		if err := r.parseExtensions(&one, 0, false); err != nil {
			return err
		}
		if !one.Empty() {
			return ErrMalformed
		}
		r.CertIDs = append(r.CertIDs, id)
	}
	return nil
}

func parseCertID(in *cryptobyte.String) (id CertID, ok bool) {
	var body, algorithm, oid, nameHash, keyHash, serial cryptobyte.String
	if !in.ReadASN1(&body, asn1.SEQUENCE) ||
		!body.ReadASN1(&algorithm, asn1.SEQUENCE) ||
		!algorithm.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) ||
		!body.ReadASN1(&nameHash, asn1.OCTET_STRING) ||
		!body.ReadASN1(&keyHash, asn1.OCTET_STRING) ||
		!body.ReadASN1(&serial, asn1.INTEGER) || len(serial) == 0 || !body.Empty() {
		return CertID{}, false
	}
	// The parameters are NULL or absent; both are in use (RFC 5754 section 2).
	if !algorithm.Empty() {
		var null cryptobyte.String
		if !algorithm.ReadASN1(&null, asn1.NULL) || len(null) != 0 || !algorithm.Empty() {
			return CertID{}, false
		}
	}
	id = CertID{Hash: otherHash, NameHash: nameHash, KeyHash: keyHash, Serial: serial}
	switch {
	case bytes.Equal(oid, oidSHA1):
		id.Hash = SHA1
	case bytes.Equal(oid, oidSHA256):
		id.Hash = SHA256
	}
	return id, true
}

// parseExtensions reads optional Extensions under the context tag given.
func (r *Request) parseExtensions(in *cryptobyte.String, tag uint8, ofRequest bool) error {
	var outer, list cryptobyte.String
	var present bool
	if !in.ReadOptionalASN1(&outer, &present, asn1.Tag(tag).ContextSpecific().Constructed()) {
		return ErrMalformed
	}
	if !present {
		return nil
	}
	if !outer.ReadASN1(&list, asn1.SEQUENCE) || !outer.Empty() {
		return ErrMalformed
	}
	for !list.Empty() {
		var extension, oid, value cryptobyte.String
		critical := false
		if !list.ReadASN1(&extension, asn1.SEQUENCE) ||
			!extension.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) ||
			extension.PeekASN1Tag(asn1.BOOLEAN) && !extension.ReadASN1Boolean(&critical) ||
			!extension.ReadASN1(&value, asn1.OCTET_STRING) || !extension.Empty() {
			return ErrMalformed
		}
		switch {
		case ofRequest && bytes.Equal(oid, oidNonce):
			if !goodNonce(value) {
				return ErrMalformed
			}
			r.Nonce = true
		case bytes.Equal(oid, oidResponse), bytes.Equal(oid, oidPrefSig):
			// Known, and answered by what there is: one basic response, one signature.
		case critical:
			return ErrUnsupported
		}
	}
	return nil
}

// goodNonce checks the length of a nonce (RFC 9654 section 2.1). Old clients put the
// octets into the extension without the inner OCTET STRING.
func goodNonce(value cryptobyte.String) bool {
	raw := value
	var nonce cryptobyte.String
	if !value.ReadASN1(&nonce, asn1.OCTET_STRING) || !value.Empty() {
		nonce = raw
	}
	return len(nonce) >= 1 && len(nonce) <= maxNonce
}
