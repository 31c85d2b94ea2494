// Package p256x8 verifies ECDSA signatures on P-256 with the 512-bit registers of
// processors that have AVX-512 IFMA (Intel since Ice Lake, AMD since Zen 4): eight points
// are worked on at a time, at about the cost of one.
//
// [Valid] takes signatures by eights, which take as long as one or two by crypto/ecdsa.
// [FixedKey] verifies signatures of one key, whose multiples are computed once, and
// spreads one verification over the lanes.
//
// Where the processor has no such registers, and for whatever is not known to be valid
// after the work in lanes, crypto/ecdsa decides. So a wrong signature is refused by it
// alone, and costs what it costs there and more. All that is handled here is public;
// nothing takes constant time.
package p256x8

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"math/big"

	"filippo.io/nistec"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Width is how many signatures [Valid] takes at a time.
const Width = 8

// octets is the size of a coordinate, of a scalar and of what is used of a digest.
const octets = 32

// order is that of the curve (SP 800-186 section 3.2.1.3).
var order = elliptic.P256().Params().N

// Signature is an ASN.1 ECDSA-Sig-Value (RFC 3279 section 2.2.3) that may be one of a key
// over a digest.
type Signature struct {
	Key           *ecdsa.PublicKey
	Digest, Value []byte
}

// Valid returns which of the signatures are known to be valid, [Width] of them being found
// out at a time. About the others [ecdsa.VerifyASN1] decides: most likely they are not,
// but a few are, and so may be all where there are too few to be worth it, of keys on
// other curves, and where [Supported] says false.
func Valid(all []Signature) []bool {
	valid := make([]bool, len(all))
	if Supported() {
		inLanes(all, valid)
	}
	return valid
}

// ErrUnsupported says that the processor lacks AVX-512 IFMA.
var ErrUnsupported = errors.New("the processor has no AVX-512 IFMA")

// Values are the numbers of a signature and its digest (SEC 1 section 4.1.4).
type Values struct{ R, S, E *big.Int }

// Parse reads a signature. It fails for what [ecdsa.VerifyASN1] refuses, too.
func Parse(digest, signature []byte) (v Values, ok bool) {
	v = Values{new(big.Int), new(big.Int), new(big.Int).SetBytes(digest[:min(octets, len(digest))])}
	input := cryptobyte.String(signature)
	var inner cryptobyte.String
	ok = input.ReadASN1(&inner, asn1.SEQUENCE) && input.Empty() &&
		inner.ReadASN1Integer(v.R) && inner.ReadASN1Integer(v.S) && inner.Empty() &&
		v.R.Sign() > 0 && v.R.Cmp(order) < 0 && v.S.Sign() > 0 && v.S.Cmp(order) < 0
	return v, ok
}

// Point returns the point of a key. It fails for a key on another curve, or that is no
// point of P-256.
func Point(key *ecdsa.PublicKey) (*nistec.P256Point, error) {
	if key.Curve != elliptic.P256() {
		return nil, errors.New("the key is not on P-256")
	}
	encoded, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding the key: %w", err)
	}
	p, err := nistec.NewP256Point().SetBytes(encoded)
	if err != nil {
		return nil, fmt.Errorf("the key is no point of P-256: %w", err)
	}
	return p, nil
}
