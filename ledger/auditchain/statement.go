// Package auditchain makes the audit trail evident to tampering by who can write the
// database: the statement that an issuer's key signs about the head of the chain, the
// check of a chain against such heads, online or from an exported file, and the sentry
// that runs beside a signer and has heads signed.
package auditchain

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // for crypto.SHA384
	"crypto/x509"
	"encoding/binary"
	"errors"

	"github.com/certmill/certmill/ledger"
)

// domain opens every statement. All that a CA key signs otherwise is DER of a SEQUENCE
// (TBSCertificate, TBSCertList, ResponseData, CertificationRequestInfo), which begins
// with the octet 0x30, and what TLS signs begins with 0x20: a text that begins with "c"
// can be taken for none of them, nor one of them for this.
const domain = "certmill audit head v1\x00"

// Statement returns what is signed about a head: the domain, the sequence and the time
// in microseconds since 1970, both as 64 bits with the high octet first, the hash of the
// row, and the SHA-256 of the issuer's certificate, so that the statement is one of this
// certificate's key only.
func Statement(h ledger.SignedHead, issuer *x509.Certificate) []byte {
	b := make([]byte, 0, len(domain)+2*8+2*sha256.Size)
	b = append(b, domain...)
	b = binary.BigEndian.AppendUint64(b, uint64(h.Sequence))
	b = binary.BigEndian.AppendUint64(b, uint64(h.SignedAt.UnixMicro()))
	b = append(b, h.Hash[:]...)
	of := sha256.Sum256(issuer.Raw)
	return append(b, of[:]...)
}

// ErrSignature says that a head was not signed by the issuer that it names.
var ErrSignature = errors.New("the signature of the head is not the issuer's")

// CheckSignature verifies a signed head. RSA signatures are PKCS #1 v1.5 with SHA-256,
// those of P-384 are over SHA-384, as the signer makes them.
func CheckSignature(h ledger.SignedHead, issuer *x509.Certificate) error {
	statement := Statement(h, issuer)
	valid := false
	switch k := issuer.PublicKey.(type) {
	case *ecdsa.PublicKey:
		hash := crypto.SHA256
		if k.Curve == elliptic.P384() {
			hash = crypto.SHA384
		}
		valid = ecdsa.VerifyASN1(k, digest(hash, statement), h.Signature)
	case ed25519.PublicKey:
		valid = ed25519.Verify(k, statement, h.Signature)
	case *rsa.PublicKey:
		valid = rsa.VerifyPKCS1v15(k, crypto.SHA256, digest(crypto.SHA256, statement), h.Signature) == nil
	}
	if !valid {
		return ErrSignature
	}
	return nil
}

// digest returns what a key signs: the hash of the message, or itself for a hash of 0.
func digest(hash crypto.Hash, message []byte) []byte {
	if hash == 0 {
		return message
	}
	h := hash.New()
	h.Write(message)
	return h.Sum(nil)
}
