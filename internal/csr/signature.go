package csr

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.Hash
	_ "crypto/sha512"
	encoding "encoding/asn1"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certmill/certmill/internal/problem"
)

const signatureField = "csr.signature"

// scheme is one way to sign a request.
type scheme struct {
	key  byte // 'e' ECDSA, 'r' RSA, 'd' Ed25519
	hash crypto.Hash
	pss  bool
}

// schemes maps the DER of each AlgorithmIdentifier that is accepted. A map of whole
// encodings leaves no parameter unread.
var schemes = buildSchemes()

// weak are the algorithms refused for their hash, by the DER of their OID element.
var weak = map[string]string{
	derOID(1, 2, 840, 113549, 1, 1, 4): "MD5",
	derOID(1, 2, 840, 113549, 1, 1, 2): "MD2",
	derOID(1, 2, 840, 113549, 1, 1, 5): "SHA-1",
	derOID(1, 3, 14, 3, 2, 29):         "SHA-1",
	derOID(1, 2, 840, 10045, 4, 1):     "SHA-1",
	derOID(1, 2, 840, 10040, 4, 3):     "SHA-1",
}

func derOID(arc ...int) string {
	b, err := encoding.Marshal(encoding.ObjectIdentifier(arc))
	if err != nil {
		panic(err) // a constant of this file is wrong
	}
	return string(b)
}

func buildSchemes() map[string]scheme {
	null, none := "\x05\x00", ""
	seq := func(parts ...string) string {
		var b cryptobyte.Builder
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, p := range parts {
				b.AddBytes([]byte(p))
			}
		})
		return string(b.BytesOrPanic())
	}
	explicit := func(tag byte, part string) string { return string([]byte{0xa0 | tag, byte(len(part))}) + part }

	m := map[string]scheme{seq(derOID(1, 3, 101, 112)): {key: 'd'}}
	for i, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		m[seq(derOID(1, 2, 840, 10045, 4, 3, 2+i))] = scheme{key: 'e', hash: h}
		m[seq(derOID(1, 2, 840, 113549, 1, 1, 11+i), null)] = scheme{key: 'r', hash: h}
		// RSASSA-PSS (RFC 4055): MGF1 with the same hash, a salt as long as the hash. The
		// hash's own parameters are NULL or absent; both are in use.
		oid := derOID(2, 16, 840, 1, 101, 3, 4, 2, 1+i)
		for _, p := range []string{null, none} {
			for _, q := range []string{null, none} {
				m[seq(derOID(1, 2, 840, 113549, 1, 1, 10), seq(
					explicit(0, seq(oid, p)),
					explicit(1, seq(derOID(1, 2, 840, 113549, 1, 1, 8), seq(oid, q))),
					explicit(2, string([]byte{2, 1, byte(h.Size())})),
				))] = scheme{key: 'r', hash: h, pss: true}
			}
		}
	}
	return m
}

// digest returns what the signature is over: the hash of the CertificationRequestInfo,
// or for Ed25519 itself. It fails where the algorithm is not one of the key.
func (p *parts) digest(public crypto.PublicKey) ([]byte, error) {
	if len(p.signature) == 0 {
		return nil, problem.Rejected(signatureField, "signature_missing", "the request has no signature")
	}
	match := false
	switch public.(type) {
	case *ecdsa.PublicKey:
		match = p.scheme.key == 'e'
	case ed25519.PublicKey:
		match = p.scheme.key == 'd'
	case *rsa.PublicKey:
		match = p.scheme.key == 'r'
	}
	if !match {
		return nil, problem.Rejected(signatureField, "signature_algorithm", "the signature algorithm does not belong to the key")
	}
	if p.scheme.hash == 0 {
		return p.info, nil
	}
	h := p.scheme.hash.New()
	h.Write(p.info)
	return h.Sum(nil), nil
}

// signed is the proof of possession (RFC 2986 section 3): is the signature one of the
// key over digest?
func (p *parts) signed(public crypto.PublicKey, digest []byte) bool {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, digest, p.signature)
	case ed25519.PublicKey:
		return ed25519.Verify(k, digest, p.signature)
	case *rsa.PublicKey:
		if p.scheme.pss {
			return rsa.VerifyPSS(k, p.scheme.hash, digest, p.signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}
		return rsa.VerifyPKCS1v15(k, p.scheme.hash, digest, p.signature) == nil
	}
	return false
}

func findScheme(algorithm []byte) (scheme, error) {
	if s, ok := schemes[string(algorithm)]; ok {
		return s, nil
	}
	input := cryptobyte.String(algorithm)
	var content, oid cryptobyte.String
	if input.ReadASN1(&content, asn1.SEQUENCE) && content.ReadASN1Element(&oid, asn1.OBJECT_IDENTIFIER) {
		if hash, ok := weak[string(oid)]; ok {
			return scheme{}, problem.Rejected(signatureField, "signature_hash", "the request is signed with %s; sign with SHA-256 or better", hash)
		}
	}
	return scheme{}, problem.Rejected(signatureField, "signature_algorithm", "the signature algorithm is not supported; use ECDSA or RSA with SHA-256, SHA-384 or SHA-512, or Ed25519")
}
