package csr

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/hex"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certmill/certmill/internal/problem"
)

// KeyType names a kind and size of subject key. The set is closed.
type KeyType string

// The key types for which certificates are issued. P-521 is left out: no HSM, proxy or
// mesh asks for it, and its signatures cost ten times those of P-256.
const (
	ECDSAP256 KeyType = "ecdsa-p256"
	ECDSAP384 KeyType = "ecdsa-p384"
	Ed25519   KeyType = "ed25519"
	RSA2048   KeyType = "rsa-2048"
	RSA3072   KeyType = "rsa-3072"
	RSA4096   KeyType = "rsa-4096"
)

// KeyTypes lists every key type.
var KeyTypes = []KeyType{ECDSAP256, ECDSAP384, Ed25519, RSA2048, RSA3072, RSA4096}

const keyField = "csr.public_key"

// DER of the OBJECT IDENTIFIER contents that a SubjectPublicKeyInfo may hold.
var (
	oidECPublicKey   = []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01}             // 1.2.840.10045.2.1
	oidP256          = []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}       // 1.2.840.10045.3.1.7
	oidP384          = []byte{0x2b, 0x81, 0x04, 0x00, 0x22}                         // 1.3.132.0.34
	oidEd25519       = []byte{0x2b, 0x65, 0x70}                                     // 1.3.101.112
	oidRSAEncryption = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01} // 1.2.840.113549.1.1.1
)

// ParseKey reads a SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7) of one of the
// KeyTypes. It accepts exactly one encoding of each key, so the bytes may be copied
// into a certificate. Errors are *problem.Error with the field "csr.public_key".
func ParseKey(spki []byte) (crypto.PublicKey, KeyType, error) {
	input := cryptobyte.String(spki)
	var outer, algorithm, oid cryptobyte.String
	var key []byte
	if !input.ReadASN1(&outer, asn1.SEQUENCE) || !input.Empty() ||
		!outer.ReadASN1(&algorithm, asn1.SEQUENCE) || !outer.ReadASN1BitStringAsBytes(&key) || !outer.Empty() ||
		!algorithm.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) {
		return nil, "", problem.Rejected(keyField, "key_encoding", "the public key is not the DER of a SubjectPublicKeyInfo")
	}
	switch {
	case bytes.Equal(oid, oidECPublicKey):
		return parseECDSA(algorithm, key)
	case bytes.Equal(oid, oidRSAEncryption):
		return parseRSA(algorithm, key)
	case bytes.Equal(oid, oidEd25519):
		if !algorithm.Empty() || len(key) != ed25519.PublicKeySize {
			return nil, "", problem.Rejected(keyField, "key_encoding", "an Ed25519 key has %d bytes and no parameters (RFC 8410 section 4)", ed25519.PublicKeySize)
		}
		if smallOrder(key) {
			return nil, "", problem.Rejected(keyField, "ed25519_order", "the Ed25519 key has a small order: anybody can sign for it")
		}
		return ed25519.PublicKey(key), Ed25519, nil
	}
	return nil, "", problem.Rejected(keyField, "key_type", "keys of this algorithm are not supported; use ECDSA P-256 or P-384, Ed25519, or RSA")
}

// smallOrderY are the y coordinates, little-endian, of the points of order 1, 2, 4 and
// 8, with those that are not reduced. With such a key a signature of R = [k]A and S = 0
// fits one message in eight, so it shows possession of nothing.
var smallOrderY = map[[ed25519.PublicKeySize]byte]bool{}

func init() {
	for _, y := range []string{
		"0100000000000000000000000000000000000000000000000000000000000000", // 1: order 1
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // -1: order 2
		"0000000000000000000000000000000000000000000000000000000000000000", // 0: order 4
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", // order 8
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", // order 8
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p, which is 0
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p + 1, which is 1
	} {
		b, err := hex.DecodeString(y)
		if err != nil {
			panic(err)
		}
		smallOrderY[[ed25519.PublicKeySize]byte(b)] = true
	}
}

// smallOrder looks at y alone: the sign of x is the last octet's highest bit.
func smallOrder(key []byte) bool {
	y := [ed25519.PublicKeySize]byte(key)
	y[len(y)-1] &= 0x7f
	return smallOrderY[y]
}

func parseECDSA(parameters cryptobyte.String, point []byte) (crypto.PublicKey, KeyType, error) {
	var oid cryptobyte.String
	if !parameters.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) || !parameters.Empty() {
		return nil, "", problem.Rejected(keyField, "ec_named_curve", "an EC key must name its curve (RFC 5480 section 2.1.1)")
	}
	var curve elliptic.Curve
	var kind KeyType
	switch {
	case bytes.Equal(oid, oidP256):
		curve, kind = elliptic.P256(), ECDSAP256
	case bytes.Equal(oid, oidP384):
		curve, kind = elliptic.P384(), ECDSAP384
	default:
		return nil, "", problem.Rejected(keyField, "ec_curve", "this curve is not supported; use P-256 or P-384")
	}
	if len(point) == 0 || point[0] != 4 {
		return nil, "", problem.Rejected(keyField, "ec_point_uncompressed", "the EC point must be uncompressed (RFC 5480 section 2.2)")
	}
	public, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, "", problem.Rejected(keyField, "ec_point", "the EC point is not on its curve")
	}
	return public, kind, nil
}

// parseRSA holds to the CA/B Baseline Requirements 6.1.6 where they are narrower than
// the mathematics: an odd exponent from 65537 up. Go's RSA takes one of 31 bits.
func parseRSA(parameters cryptobyte.String, der []byte) (crypto.PublicKey, KeyType, error) {
	var null, key cryptobyte.String
	n, e := new(big.Int), new(big.Int)
	input := cryptobyte.String(der)
	if !parameters.ReadASN1(&null, asn1.NULL) || !null.Empty() || !parameters.Empty() ||
		!input.ReadASN1(&key, asn1.SEQUENCE) || !input.Empty() ||
		!key.ReadASN1Integer(n) || !key.ReadASN1Integer(e) || !key.Empty() {
		return nil, "", problem.Rejected(keyField, "key_encoding", "the RSA key is not the DER of RFC 3279 section 2.3.1")
	}
	switch {
	case n.Sign() <= 0 || n.BitLen() < 2048:
		return nil, "", problem.Rejected(keyField, "rsa_min_2048", "the RSA key has %d bits; at least 2048 are needed", n.BitLen())
	case n.BitLen() > 4096:
		return nil, "", problem.Rejected(keyField, "rsa_max_4096", "the RSA key has %d bits; at most 4096 are accepted", n.BitLen())
	case n.BitLen()%1024 != 0:
		return nil, "", problem.Rejected(keyField, "rsa_size", "the RSA key has %d bits; use 2048, 3072 or 4096", n.BitLen())
	case n.Bit(0) == 0:
		return nil, "", problem.Rejected(keyField, "rsa_modulus", "the RSA modulus is even")
	case e.Sign() <= 0 || e.Bit(0) == 0:
		return nil, "", problem.Rejected(keyField, "rsa_exponent_odd", "the RSA exponent must be positive and odd")
	case e.BitLen() < 17 || e.BitLen() > 31:
		return nil, "", problem.Rejected(keyField, "rsa_exponent_range", "the RSA exponent must be at least 65537 and below 2^31")
	}
	kind := map[int]KeyType{2048: RSA2048, 3072: RSA3072, 4096: RSA4096}[n.BitLen()]
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, kind, nil
}

// KeyTypeOf returns the type of a key that ParseKey has made, and "" for any other.
func KeyTypeOf(public crypto.PublicKey) KeyType {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return ECDSAP256
		case elliptic.P384():
			return ECDSAP384
		}
	case ed25519.PublicKey:
		return Ed25519
	case *rsa.PublicKey:
		switch k.N.BitLen() {
		case 2048:
			return RSA2048
		case 3072:
			return RSA3072
		case 4096:
			return RSA4096
		}
	}
	return ""
}
