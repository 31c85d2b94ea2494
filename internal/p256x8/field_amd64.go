package p256x8

import (
	"crypto/elliptic"
	"encoding/binary"
	"math/big"
)

// width is how many points are worked on at a time: the 64-bit lanes of a 512-bit register.
const width = Width

// These are the types of the assembly; _asm/main.go says how numbers are represented.
type (
	// element is a field element in each lane: limbs of 52 bits, the lowest first.
	element = [5][width]uint64
	// point is a point in Jacobian coordinates in each lane.
	point = struct{ x, y, z element }
	// affine is a point in each lane whose z is 1.
	affine = struct{ x, y element }
	// lanes is a word in each lane.
	lanes = [width]uint64
	// scratch is memory that the assembly writes intermediate results to.
	scratch = [10]element
	// words are one lane's field element.
	words = [5]uint64
)

// every is the mask of all lanes.
const every = 1<<width - 1

const limb = 1<<52 - 1

var (
	// prime is the field's.
	prime = elliptic.P256().Params().P

	primeWords = split(prime)
	// one is 1 and unit its Montgomery form, R mod p; square is R² mod p.
	one    = all(words{1})
	unit   = all(split(power(260)))
	square = all(split(power(520)))
)

// power returns 2^n mod p.
func power(n uint) *big.Int {
	v := new(big.Int).Lsh(big.NewInt(1), n)
	return v.Mod(v, prime)
}

// split returns the limbs of a number of at most 256 bits.
func split(v *big.Int) words {
	var b [octets]byte
	return wordsOf(v.FillBytes(b[:]))
}

// wordsOf returns the limbs of a big-endian number of 32 octets.
func wordsOf(b []byte) words {
	v3, v2, v1, v0 := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:])
	return words{v0 & limb, (v0>>52 | v1<<12) & limb, (v1>>40 | v2<<24) & limb, (v2>>28 | v3<<36) & limb, v3 >> 16}
}

// number is the inverse of split.
func number(v words) *big.Int {
	n := new(big.Int)
	for i := len(v) - 1; i >= 0; i-- {
		n.Lsh(n, 52).Or(n, new(big.Int).SetUint64(v[i]))
	}
	return n
}

// all returns an element that is v in every lane.
func all(v words) (e element) {
	for lane := range width {
		set(&e, lane, v)
	}
	return e
}

func set(e *element, lane int, v words) {
	for i := range v {
		e[i][lane] = v[i]
	}
}

func get(e *element, lane int) (v words) {
	for i := range v {
		v[i] = e[i][lane]
	}
	return v
}

// toMontgomery puts numbers into Montgomery form.
func toMontgomery(e *element) { mul(e, e, &square) }

// fromMontgomery takes numbers out of Montgomery form and reduces them fully: what the
// multiplication by 1 returns is at most p.
func fromMontgomery(e *element) {
	mul(e, e, &one)
	for lane := range width {
		if get(e, lane) == primeWords {
			set(e, lane, words{})
		}
	}
}
