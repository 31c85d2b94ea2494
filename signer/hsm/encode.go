package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// The Edwards curves came with PKCS#11 v3.0 (section 2.3.1); miekg/pkcs11 has v2.40.
const (
	ckkECEdwards           = 0x00000040
	ckmECEdwardsKeyPairGen = 0x00001055
	ckmEdDSA               = 0x00001057
)

// operation is one signature as PKCS#11 wants it.
type operation struct {
	mechanism *pkcs11.Mechanism
	input     []byte
	size      int // of the signature that the token makes, in octets
	encode    func(raw []byte) ([]byte, error)
}

// alike reports whether a and b may stand in one call of SignEach, with the same key.
func (a operation) alike(b operation) bool {
	return a.mechanism.Mechanism == b.mechanism.Mechanism && bytes.Equal(a.mechanism.Parameter, b.mechanism.Parameter)
}

// newOperation chooses mechanism, input and output encoding. Its errors are the caller's.
func newOperation(public crypto.PublicKey, digest []byte, opts crypto.SignerOpts) (operation, error) {
	hash := crypto.Hash(0)
	if opts != nil {
		hash = opts.HashFunc()
	}
	if hash != 0 && len(digest) != hash.Size() {
		return operation{}, fmt.Errorf("%w: a digest of %d octets is not of %s", errRefused, len(digest), hash)
	}
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		return ecdsaOperation(public, digest), nil
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			return pssOperation(public, hash, digest, pss)
		}
		return pkcs1Operation(public, hash, digest)
	case ed25519.PublicKey:
		if hash != 0 {
			return operation{}, fmt.Errorf("%w: Ed25519 signs the message, not its digest", errRefused)
		}
		return exactly(pkcs11.NewMechanism(ckmEdDSA, nil), digest, ed25519.SignatureSize), nil
	default:
		return operation{}, fmt.Errorf("%w: no signatures with a %T", errRefused, public)
	}
}

// ecdsaOperation signs the leftmost bits of the digest, as many as the order has
// (FIPS 186-5 section 6.4.1); some tokens refuse a longer one.
func ecdsaOperation(public *ecdsa.PublicKey, digest []byte) operation {
	size := (public.Params().BitSize + 7) / 8
	if len(digest) > size {
		digest = digest[:size]
	}
	return operation{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil), digest, 2 * size, func(raw []byte) ([]byte, error) { return ecdsaASN1(raw, size) }}
}

// ecdsaASN1 turns r‖s (v2.40 mechanisms, section 2.3.1) into an ECDSA-Sig-Value
// (RFC 3279 section 2.2.3).
func ecdsaASN1(raw []byte, size int) ([]byte, error) {
	if len(raw) != 2*size {
		return nil, fmt.Errorf("%w: an ECDSA signature of %d octets, not %d", errWrongSignature, len(raw), 2*size)
	}
	b := append(make([]byte, 0, 2*size+8), byte(asn1.SEQUENCE), 0)
	b = appendUint(appendUint(b, raw[:size]), raw[size:])
	b[1] = byte(len(b) - 2) // 102 at most, with P-384
	return b, nil
}

// appendUint appends an unsigned big-endian number of at most 48 octets as an INTEGER.
func appendUint(b, n []byte) []byte {
	n = bytes.TrimLeft(n, "\x00")
	if len(n) == 0 || n[0]&0x80 != 0 {
		b = append(b, byte(asn1.INTEGER), byte(len(n)+1), 0)
	} else {
		b = append(b, byte(asn1.INTEGER), byte(len(n)))
	}
	return append(b, n...)
}

// digestInfo is the DER in front of the digest in PKCS#1 v1.5 (RFC 8017 section 9.2, note 1).
var digestInfo = map[crypto.Hash][]byte{
	crypto.SHA256: {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20},
	crypto.SHA384: {0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0x04, 0x30},
	crypto.SHA512: {0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05, 0x00, 0x04, 0x40},
}

func pkcs1Operation(public *rsa.PublicKey, hash crypto.Hash, digest []byte) (operation, error) {
	prefix, ok := digestInfo[hash]
	if !ok {
		return operation{}, fmt.Errorf("%w: RSA signs SHA-256, SHA-384 or SHA-512, not %s", errRefused, hash)
	}
	input := append(bytes.Clone(prefix), digest...)
	return exactly(pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil), input, public.Size()), nil
}

var pssHashes = map[crypto.Hash]struct{ hash, mgf uint }{
	crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
	crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
	crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
}

func pssOperation(public *rsa.PublicKey, hash crypto.Hash, digest []byte, opts *rsa.PSSOptions) (operation, error) {
	h, ok := pssHashes[hash]
	if !ok {
		return operation{}, fmt.Errorf("%w: RSA signs SHA-256, SHA-384 or SHA-512, not %s", errRefused, hash)
	}
	salt := opts.SaltLength
	if salt == rsa.PSSSaltLengthAuto || salt == rsa.PSSSaltLengthEqualsHash {
		salt = hash.Size() // RFC 4055 section 3.1
	}
	if salt < 0 {
		return operation{}, fmt.Errorf("%w: a PSS salt of %d octets", errRefused, salt)
	}
	params := pkcs11.NewPSSParams(h.hash, h.mgf, uint(salt))
	return exactly(pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_PSS, params), digest, public.Size()), nil
}

// exactly is an operation whose signature needs no encoding; its length is checked.
func exactly(m *pkcs11.Mechanism, input []byte, size int) operation {
	return operation{m, input, size, func(raw []byte) ([]byte, error) {
		if len(raw) != size {
			return nil, fmt.Errorf("%w: it has %d octets, not %d", errWrongSignature, len(raw), size)
		}
		return raw, nil
	}}
}

// testHash is the hash of test signatures; 0 for Ed25519.
func testHash(public crypto.PublicKey) crypto.Hash {
	if _, ok := public.(ed25519.PublicKey); ok {
		return 0
	}
	return crypto.SHA256
}

// Verify checks a signature made by SignContext with the same digest and opts.
func Verify(public crypto.PublicKey, digest, sig []byte, opts crypto.SignerOpts) error {
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(public, digest, sig) {
			return errors.New("the ECDSA signature is wrong")
		}
		return nil
	case *rsa.PublicKey:
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(public, pss.HashFunc(), digest, sig, pss)
		}
		return rsa.VerifyPKCS1v15(public, opts.HashFunc(), digest, sig)
	case ed25519.PublicKey:
		if !ed25519.Verify(public, digest, sig) {
			return errors.New("the Ed25519 signature is wrong")
		}
		return nil
	default:
		return fmt.Errorf("no signatures with a %T", public)
	}
}

func samePublic(a, b crypto.PublicKey) bool {
	x, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && x.Equal(b)
}

// The curves by their DER object identifiers (RFC 5480 section 2.1.1.1).
var curves = []struct {
	oid   []byte
	curve elliptic.Curve
}{
	{[]byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}, elliptic.P256()},
	{[]byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22}, elliptic.P384()},
}

// ed25519Params are the parameters of an Ed25519 key: a curve name (PKCS#11 v3.0
// section 2.3.10) as SoftHSM wants it. Tokens give either this or the identifier.
var (
	ed25519Params = []byte("\x13\x0cedwards25519")
	ed25519OID    = []byte{0x06, 0x03, 0x2b, 0x65, 0x70}
)

// ecPublic reads CKA_EC_PARAMS and CKA_EC_POINT. The point is an OCTET STRING with
// the encoded point inside (v2.40 section 2.3.3); some tokens leave the wrapping out.
func ecPublic(params, point []byte) (*ecdsa.PublicKey, error) {
	for _, c := range curves {
		if !bytes.Equal(params, c.oid) {
			continue
		}
		return ecdsa.ParseUncompressedPublicKey(c.curve, unwrap(point, 1+2*((c.curve.Params().BitSize+7)/8)))
	}
	return nil, fmt.Errorf("%w: EC parameters %x; P-256 and P-384 are used", errRefused, params)
}

func ed25519Public(params, point []byte) (ed25519.PublicKey, error) {
	if !bytes.Equal(params, ed25519Params) && !bytes.Equal(params, ed25519OID) {
		return nil, fmt.Errorf("%w: Edwards curve parameters %x; Ed25519 is used", errRefused, params)
	}
	raw := unwrap(point, ed25519.PublicKeySize)
	if len(raw) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("an Ed25519 point of %d octets", len(raw))
	}
	return ed25519.PublicKey(bytes.Clone(raw)), nil
}

// unwrap returns the inside of an OCTET STRING, unless point has the raw size already.
func unwrap(point []byte, size int) []byte {
	if len(point) == size {
		return point
	}
	in := cryptobyte.String(point)
	var inside cryptobyte.String
	if in.ReadASN1(&inside, asn1.OCTET_STRING) && in.Empty() {
		return inside
	}
	return point
}

func rsaPublic(modulus, exponent []byte) (*rsa.PublicKey, error) {
	n, e := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
	if n.BitLen() < 2048 || n.BitLen() > 4096 || !e.IsInt64() || e.Int64() < 3 || e.Int64() >= 1<<31 {
		return nil, fmt.Errorf("%w: an RSA key of %d bits with the exponent %s; 2048 to 4096 are used", errRefused, n.BitLen(), e)
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}
