// Command _asm writes the assembly of internal/p256x8: arithmetic on eight points of
// P-256 at a time, one in each 64-bit lane of the 512-bit registers, by AVX-512 IFMA.
//
// # Numbers
//
// A field element has five limbs of 52 bits (radix 2^52), each below 2^52, and stands for
// its value in Montgomery form with R = 2^260. Its value is below 3·2^256, not below the
// prime p: with x, y < 3·2^256, x·y/R < 9/16·2^256, so that mul returns less than 2·2^256
// without a comparison. lin returns less than 2·2^256 + 2^230.
//
// # Points
//
// Jacobian coordinates, with formulas that do not hold where a point is added to itself,
// to its inverse, or to the point at infinity. All of them give Z = 0 then, and what has
// Z = 0 keeps it through every further step: the callers take it as "not known".
package main

import (
	"math/big"
	"strings"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

const (
	limbs   = 5
	vector  = 64             // octets of a register
	element = limbs * vector // octets of eight field elements
)

// The types of the package, by which avo finds parameters.
const (
	elementType = "[5][8]uint64"
	affineType  = "struct{ x, y " + elementType + " }"
	pointType   = "struct{ x, y, z " + elementType + " }"
	scratchType = "[10]" + elementType
)

// Constants that all functions keep in registers.
var (
	mask52 = Z31
	two44  = Z30
	two36  = Z29
	p4     = Z28
)

// at is a field element in memory.
type at struct {
	base Register
	off  int
}

func (a at) limb(i int) Mem { return Mem{Base: a.base, Disp: a.off + i*vector} }

// z are the registers of a function's body.
var z = []VecPhysical{Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z8, Z9, Z10, Z11, Z12, Z13, Z14, Z15, Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z24, Z25, Z26, Z27}

var prime, _ = new(big.Int).SetString("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff", 16)

// constants is the data that functions read.
type constants struct {
	mask52, two44, two36, p4, mask48, bit48 Mem
	// eightP is 8·p in limbs, less 2^48 in the highest.
	eightP [limbs]Mem
}

var c constants

func data() {
	base := GLOBL("constants", RODATA|NOPTR)
	off := 0
	word := func(v uint64) Mem {
		DATA(off, U64(v))
		off += 8
		return base.Offset(off - 8)
	}
	c.mask52, c.two44, c.two36 = word(1<<52-1), word(1<<44), word(1<<36)
	c.p4, c.mask48, c.bit48 = word(1<<48-1<<16), word(1<<48-1), word(1<<48)
	v := new(big.Int).Lsh(prime, 3)
	for i := range limbs {
		low := new(big.Int).And(v, big.NewInt(1<<52-1)).Uint64()
		v.Rsh(v, 52)
		if i == limbs-1 {
			low |= v.Uint64() << 52
			low -= 1 << 48
		}
		c.eightP[i] = word(low)
	}
}

func loadConstants() {
	VPBROADCASTQ(c.mask52, mask52)
	VPBROADCASTQ(c.two44, two44)
	VPBROADCASTQ(c.two36, two36)
	VPBROADCASTQ(c.p4, p4)
}

// mul: dst = x·y/R mod p.
func mul(dst, x, y at) {
	a, b := z[0:5], z[5:10]
	low, high := z[10:19], z[19:28] // low[k] and high[k-1] are of weight 2^(52k)
	for i := range limbs {
		VMOVDQU64(x.limb(i), a[i])
		VMOVDQU64(y.limb(i), b[i])
	}
	for k := range low {
		VPXORQ(low[k], low[k], low[k])
		VPXORQ(high[k], high[k], high[k])
	}
	for i := range limbs {
		for j := range limbs {
			VPMADD52LUQ(b[j], a[i], low[i+j])
			VPMADD52HUQ(b[j], a[i], high[i+j])
		}
	}
	for k := 1; k < len(low); k++ {
		VPADDQ(high[k-1], low[k], low[k])
	}
	reduce(dst, append(append([]VecPhysical{}, low...), high[8]))
}

// sqr: dst = x²/R mod p.
func sqr(dst, x at) {
	a := z[0:5]
	low, high := z[10:19], z[19:28]
	for i := range limbs {
		VMOVDQU64(x.limb(i), a[i])
	}
	for k := range low {
		VPXORQ(low[k], low[k], low[k])
		VPXORQ(high[k], high[k], high[k])
	}
	for i := range limbs {
		for j := i + 1; j < limbs; j++ {
			VPMADD52LUQ(a[j], a[i], low[i+j])
			VPMADD52HUQ(a[j], a[i], high[i+j])
		}
	}
	// Each of these products stands twice in the square.
	for k := 1; k < len(low); k++ {
		VPADDQ(high[k-1], low[k], low[k])
		VPADDQ(low[k], low[k], low[k])
	}
	all := append(append([]VecPhysical{}, low...), high[8])
	for i := range limbs {
		VPMADD52LUQ(a[i], a[i], all[2*i])
		VPMADD52HUQ(a[i], a[i], all[2*i+1])
	}
	reduce(dst, all)
}

// reduce is the Montgomery reduction of a product in ten limbs t, each below 2^60.
//
// p = 2^256 - 2^224 + 2^192 + 2^96 - 1 is -1 modulo 2^52, so the multiple of p that clears
// a limb is the limb's own value q, and t + q·p is, from that limb on,
// (t >> 52)·2^52 + q·2^96 + q·2^192 + q·(2^48 - 2^16)·2^208.
func reduce(dst at, t []VecPhysical) {
	q, carry := z[0], z[1]
	for i := range limbs {
		VPANDQ(t[i], mask52, q)
		VPSRLQ(Imm(52), t[i], carry)
		VPADDQ(carry, t[i+1], t[i+1])
		VPMADD52LUQ(two44, q, t[i+1])
		VPMADD52HUQ(two44, q, t[i+2])
		VPMADD52LUQ(two36, q, t[i+3])
		VPMADD52HUQ(two36, q, t[i+4])
		VPMADD52LUQ(p4, q, t[i+4])
		VPMADD52HUQ(p4, q, t[i+5])
	}
	normalise(dst, t[5:])
}

// normalise carries what is beyond 52 bits of each limb, which may be negative, to the
// next, and stores.
func normalise(dst at, t []VecPhysical) {
	carry := z[5]
	for i := range limbs - 1 {
		VPSRAQ(Imm(52), t[i], carry)
		VPADDQ(carry, t[i+1], t[i+1])
		VPANDQ(t[i], mask52, t[i])
		VMOVDQU64(t[i], dst.limb(i))
	}
	VMOVDQU64(t[limbs-1], dst.limb(limbs-1))
}

// term is a part of a sum: factor (±1, ±2, ±4 or 3) times x. With signs, it is added in
// the lanes of mask and subtracted in the others.
type term struct {
	factor int
	x      at
	signs  []Register // where to add, where to subtract
}

// lin: dst = the sum of terms mod p, of which at most 8·2^256 - 2^230 may be subtracted
// and 16·2^256 added.
func lin(dst at, terms ...term) {
	t, x, twice := z[0:5], z[6], z[7]
	for i := range limbs {
		VPBROADCASTQ(c.eightP[i], t[i])
		for _, s := range terms {
			VMOVDQU64(s.x.limb(i), x)
			switch {
			case s.signs != nil:
				VPADDQ(x, t[i], s.signs[0], t[i])
				VPSUBQ(x, t[i], s.signs[1], t[i])
				continue
			case s.factor == 3:
				VPADDQ(x, x, twice)
				VPADDQ(twice, x, x)
			case s.factor == 2 || s.factor == -2:
				VPADDQ(x, x, x)
			case s.factor == 4 || s.factor == -4:
				VPSLLQ(Imm(2), x, x)
			}
			if s.factor > 0 {
				VPADDQ(x, t[i], t[i])
			} else {
				VPSUBQ(x, t[i], t[i])
			}
		}
	}
	// The sum v is at least 0. With h = floor(v/2^256) - 1, which the highest limb tells but
	// for a carry that may be missing, v - h·p is between 2^256 - 2^225 and 2·2^256 + 2^230.
	// That limb lacks the 2^48 that h lacks the 1 for.
	h, part := z[8], z[9]
	VPSRAQ(Imm(48), t[4], h)
	VPBROADCASTQ(c.mask48, part)
	VPANDQ(part, t[4], t[4])
	VPBROADCASTQ(c.bit48, part)
	VPORQ(part, t[4], t[4])
	VPADDQ(h, t[0], t[0])
	VPSLLQ(Imm(44), h, part)
	VPSUBQ(part, t[1], t[1])
	VPSLLQ(Imm(36), h, part)
	VPSUBQ(part, t[3], t[3])
	VPSLLQ(Imm(16), h, part)
	VPADDQ(part, t[4], t[4])
	normalise(dst, t)
}

func plus(x at) term              { return term{factor: 1, x: x} }
func minus(x at) term             { return term{factor: -1, x: x} }
func times(factor int, x at) term { return term{factor: factor, x: x} }

// point is a point in memory: x, y and, unless it is affine, z.
func point(base Register) (x, y, z at) {
	return at{base, 0}, at{base, element}, at{base, 2 * element}
}

// scratch are elements that a function may write.
func scratch(base Register, n int) []at {
	s := make([]at, n)
	for i := range s {
		s[i] = at{base, i * element}
	}
	return s
}

func pointer(name string) Register { return Load(Param(name), GP64()) }

func begin(name, signature, doc string) {
	TEXT(name, NOSPLIT, signature)
	Pragma("noescape")
	Doc(strings.Split(doc, "\n")...)
}

func field() {
	begin("mul", "func(z, x, y *"+elementType+")", "mul sets z = x·y/R.")
	zp, xp, yp := pointer("z"), pointer("x"), pointer("y")
	loadConstants()
	mul(at{zp, 0}, at{xp, 0}, at{yp, 0})
	VZEROUPPER()
	RET()

	begin("sqr", "func(z, x *"+elementType+")", "sqr sets z = x²/R.")
	zp, xp = pointer("z"), pointer("x")
	loadConstants()
	sqr(at{zp, 0}, at{xp, 0})
	VZEROUPPER()
	RET()

	begin("sub", "func(z, x, y *"+elementType+")", "sub sets z = x - y.")
	zp, xp, yp = pointer("z"), pointer("x"), pointer("y")
	loadConstants()
	lin(at{zp, 0}, plus(at{xp, 0}), minus(at{yp, 0}))
	VZEROUPPER()
	RET()
}

// double is dbl-2001-b of the Explicit-Formulas Database for a = -3, with Z3 = 2·Y·Z.
func double() {
	begin("double", "func(p *"+pointType+", n uint64, s *"+scratchType+")", "double doubles p n times, at least once.")
	p, n, sp := pointer("p"), Load(Param("n"), GP64()), pointer("s")
	x, y, zz := point(p)
	s := scratch(sp, 6)
	delta, y2, gamma2, b2, t, alpha := s[0], s[1], s[2], s[3], s[4], s[5]
	loadConstants()
	Label("next")
	sqr(delta, zz)
	lin(y2, times(2, y))
	lin(t, plus(x), minus(delta))
	lin(alpha, times(3, x), times(3, delta))
	mul(gamma2, y2, y)             // 2γ
	mul(zz, y2, zz)                // Z3
	mul(alpha, alpha, t)           // α = 3(X-δ)(X+δ)
	mul(b2, x, gamma2)             // 2β
	sqr(gamma2, gamma2)            // 4γ²
	sqr(t, alpha)                  // α²
	lin(x, plus(t), times(-4, b2)) // X3
	lin(t, times(2, b2), minus(x))
	mul(t, t, alpha)
	lin(y, plus(t), times(-2, gamma2)) // Y3
	DECQ(n)
	JNZ(LabelRef("next"))
	VZEROUPPER()
	RET()
}

// add adds q to p, with one multiplication after the other as in add-1998-cmo-2 or, for an
// affine q, madd. With negative, it is -q that is added.
func add(name, signature, doc string, affine bool) {
	begin(name, signature, doc)
	p, q, sp := pointer("p"), pointer("q"), pointer("s")
	apply, negative := K1, []Register{K2, K3}
	m := Load(Param("apply"), GP64())
	KMOVW(m.(GPVirtual).As32(), apply)
	m = Load(Param("negative"), GP64())
	KMOVW(m.(GPVirtual).As32(), K3)
	KNOTW(K3, K2)
	x1, y1, z1 := point(p)
	x2, y2, z2 := point(q)
	s := scratch(sp, 10)
	zz, r2, v, hhh, s1, s2, h, r, hh, x3 := s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9]
	u1, y3 := x1, v
	loadConstants()
	sqr(zz, z1)
	mul(hhh, x2, zz) // U2
	mul(s2, z1, zz)
	mul(s2, y2, s2)
	if affine {
		s1 = y1
	} else {
		u1 = v
		sqr(r2, z2)
		mul(v, x1, r2) // U1
		mul(s1, z2, r2)
		mul(s1, y1, s1)
	}
	lin(h, plus(hhh), minus(u1))
	lin(r, minus(s1), term{x: s2, signs: negative})
	sqr(hh, h)
	mul(hhh, h, hh)
	mul(v, u1, hh)
	z3 := zz
	if affine {
		mul(z3, z1, h)
	} else {
		mul(z3, z1, z2)
		mul(z3, z3, h)
	}
	sqr(r2, r)
	mul(s[4], s1, hhh)
	lin(x3, plus(r2), minus(hhh), times(-2, v))
	lin(v, plus(v), minus(x3))
	mul(v, v, r)
	lin(y3, plus(v), minus(s[4]))
	for _, out := range []struct{ from, to at }{{x3, x1}, {y3, y1}, {z3, z1}} {
		for i := range limbs {
			VMOVDQU64(out.from.limb(i), z[i])
			VMOVDQU64(z[i], apply, out.to.limb(i))
		}
	}
	VZEROUPPER()
	RET()
}

// gather collects words of eight table entries.
func gather() {
	begin("gather", "func(dst *[8]uint64, base *uint64, offsets *[8]uint64, stride, n uint64)",
		"gather sets the n limbs from dst on, one at least, in each lane to what stands\noffset + i·stride octets after base.")
	dst, base, offsets := pointer("dst"), pointer("base"), pointer("offsets")
	stride, n := Load(Param("stride"), GP64()), Load(Param("n"), GP64())
	VMOVDQU64(Mem{Base: offsets}, z[0])
	Label("limb")
	KXNORW(K1, K1, K1)
	VPGATHERQQ(Mem{Base: base, Index: z[0], Scale: 1}, K1, z[1])
	VMOVDQU64(z[1], Mem{Base: dst})
	ADDQ(Imm(vector), dst)
	ADDQ(stride, base)
	DECQ(n)
	JNZ(LabelRef("limb"))
	VZEROUPPER()
	RET()
}

func main() {
	ConstraintExpr("amd64")
	data()
	field()
	double()
	add("add", "func(p, q *"+pointType+", apply, negative uint64, s *"+scratchType+")",
		"add adds q, or -q in the lanes of negative, to p in the lanes of apply.", false)
	add("addAffine", "func(p *"+pointType+", q *"+affineType+", apply, negative uint64, s *"+scratchType+")",
		"addAffine adds q, or -q in the lanes of negative, to p in the lanes of apply.", true)
	gather()
	Generate()
}
