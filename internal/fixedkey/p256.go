// Package fixedkey verifies ECDSA signatures of one public key, again and again.
//
// crypto/ecdsa multiplies an unknown point anew for every signature, which is most of
// its work. A CA checks each signature that its own key has made, so the point is always
// the same one, and multiples of it computed once make the check about twice as fast; in
// the lanes of AVX-512 registers ([p256x8]), about seven times.
// All that is handled here is public, so nothing has to take constant time.
package fixedkey

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"math/big"

	"filippo.io/nistec"
	"github.com/certmill/certmill/internal/p256x8"
)

const (
	// size of a scalar, a coordinate and what is used of a digest, in octets.
	size = 32
	// window is how many bits of a scalar make a digit. More make fewer additions, and
	// more memory that has to be fetched into the processor's caches each time.
	window = 7
	// digits is how many values but 0 a digit has.
	digits = 1<<window - 1
	// places is how many digits a scalar has.
	places = (8*size + window - 1) / window
)

// P256 verifies signatures of one key on P-256. It is safe for concurrent use.
type P256 struct {
	lanes *p256x8.FixedKey // where the processor has them, else
	table *table
}

// NewP256 computes the multiples of key, in some milliseconds. It fails for a key on
// another curve, or that is no point of it.
func NewP256(key *ecdsa.PublicKey) (*P256, error) {
	v := &P256{}
	var err error
	if v.lanes, err = p256x8.NewFixedKey(key); errors.Is(err, p256x8.ErrUnsupported) {
		v.table, err = newTable(key)
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

// Verify reports whether signature, an ASN.1 ECDSA-Sig-Value (RFC 3279 section 2.2.3),
// is one of the key over digest. It decides as ecdsa.VerifyASN1 does.
func (v *P256) Verify(digest, signature []byte) bool {
	if v.lanes != nil {
		return v.lanes.Verify(digest, signature)
	}
	return v.table.verify(digest, signature)
}

// table holds 451 KB of multiples of a key's point.
type table struct {
	order *big.Int
	// multiples[i][d-1] is d·2^(i·window)·Q.
	multiples *[places][digits]nistec.P256Point
}

func newTable(key *ecdsa.PublicKey) (*table, error) {
	base, err := p256x8.Point(key)
	if err != nil {
		return nil, err
	}
	v := &table{order: elliptic.P256().Params().N, multiples: new([places][digits]nistec.P256Point)}
	for i := range v.multiples {
		row := &v.multiples[i]
		row[0].Set(base)
		for d := 1; d < digits; d++ {
			row[d].Add(&row[d-1], base)
		}
		base.Add(&row[digits-1], base)
	}
	return v, nil
}

func (v *table) verify(digest, signature []byte) bool {
	sig, ok := p256x8.Parse(digest, signature)
	if !ok {
		return false
	}
	// SEC 1 section 4.1.4, from step 3 on.
	w := new(big.Int).ModInverse(sig.S, v.order)
	u1 := sig.E.Mul(sig.E, w)
	u1.Mod(u1, v.order)
	u2 := w.Mul(sig.R, w)
	u2.Mod(u2, v.order)

	var octets [size]byte
	sum, err := nistec.NewP256Point().ScalarBaseMult(u1.FillBytes(octets[:]))
	if err != nil {
		return false
	}
	u2.FillBytes(octets[:])
	// All are fetched before the first is used, so that the waits for memory overlap.
	var terms [places]nistec.P256Point
	n := 0
	for i := range v.multiples {
		if d := digit(&octets, i); d != 0 {
			terms[n] = v.multiples[i][d-1]
			n++
		}
	}
	for i := range n {
		sum.Add(sum, &terms[i])
	}
	x, err := sum.BytesX()
	if err != nil { // the point at infinity
		return false
	}
	left := new(big.Int).SetBytes(x)
	return left.Mod(left, v.order).Cmp(sig.R) == 0
}

// digit returns the i-th digit of a scalar, the lowest being the first.
func digit(scalar *[size]byte, i int) int {
	bit := i * window
	at := size - 1 - bit/8
	two := int(scalar[at])
	if at > 0 {
		two |= int(scalar[at-1]) << 8
	}
	return two >> (bit % 8) & digits
}
