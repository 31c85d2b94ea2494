package p256x8

import (
	"math/big"
	"math/rand/v2"
	"testing"

	"filippo.io/nistec"
)

// needsLanes skips a test where the processor cannot work in lanes. There is no program to
// install for it.
func needsLanes(t testing.TB) {
	t.Helper()
	if !Supported() {
		t.Skip(ErrUnsupported)
	}
}

// below3 makes numbers below 3·2^256, as the assembly takes them, of which many are at an
// end of a limb or of the range.
func below3(r *rand.Rand) (e element) {
	for lane := range width {
		var v words
		for i := range v {
			top := uint64(limb)
			if i == 4 {
				top = 3<<48 - 1
			}
			switch r.IntN(6) {
			case 0:
			case 1:
				v[i] = top
			case 2:
				v[i] = 1 << r.IntN(48)
			case 3:
				v[i] = top - 1<<r.IntN(48)
			default:
				v[i] = r.Uint64N(top + 1)
			}
		}
		if r.IntN(16) == 0 {
			v = primeWords
		}
		set(&e, lane, v)
	}
	return e
}

func TestTheFieldsArithmetic(t *testing.T) {
	needsLanes(t)
	r := rand.New(rand.NewPCG(1, 2))
	inverse := new(big.Int).ModInverse(power(260), prime)
	most := new(big.Int).Lsh(big.NewInt(2), 256)
	most.Add(most, new(big.Int).Lsh(big.NewInt(1), 230))
	for range 4_000 {
		x, y := below3(r), below3(r)
		var product, squared, difference element
		mul(&product, &x, &y)
		sqr(&squared, &x)
		sub(&difference, &x, &y)
		same := x
		mul(&same, &same, &same)
		for lane := range width {
			a, b := number(get(&x, lane)), number(get(&y, lane))
			for name, c := range map[string]struct {
				got  words
				want *big.Int
			}{
				"x·y":            {get(&product, lane), new(big.Int).Mul(new(big.Int).Mul(a, b), inverse)},
				"x²":             {get(&squared, lane), new(big.Int).Mul(new(big.Int).Mul(a, a), inverse)},
				"x·x, in place":  {get(&same, lane), new(big.Int).Mul(new(big.Int).Mul(a, a), inverse)},
				"the difference": {get(&difference, lane), new(big.Int).Sub(a, b)},
			} {
				got := number(c.got)
				if got.Cmp(most) >= 0 {
					t.Fatalf("%s of %x and %x is %x, above the bound", name, a, b, got)
				}
				for i, w := range c.got {
					if w > limb {
						t.Fatalf("%s of %x and %x: limb %d has more than 52 bits: %x", name, a, b, i, w)
					}
				}
				if got.Mod(got, prime).Cmp(c.want.Mod(c.want, prime)) != 0 {
					t.Fatalf("%s of %x and %x is %x, not %x", name, a, b, got, c.want)
				}
			}
		}
	}
}

// coordinates returns x and y of a lane as the curve's standard writes them.
func coordinates(t *testing.T, p *point, lane int) (x, y *big.Int) {
	t.Helper()
	z := p.z
	fromMontgomery(&z)
	inverse := new(big.Int).ModInverse(number(get(&z, lane)), prime)
	if inverse == nil {
		t.Fatal("z is 0")
	}
	squared := new(big.Int).Mul(inverse, inverse)
	a, b := p.x, p.y
	fromMontgomery(&a)
	fromMontgomery(&b)
	x = new(big.Int).Mul(number(get(&a, lane)), squared)
	y = new(big.Int).Mul(number(get(&b, lane)), squared.Mul(squared, inverse))
	return x.Mod(x, prime), y.Mod(y, prime)
}

func onCurve(t *testing.T, p *nistec.P256Point) (x, y *big.Int) {
	t.Helper()
	b := p.Bytes()
	if len(b) != 65 {
		t.Fatal("the point at infinity")
	}
	return new(big.Int).SetBytes(b[1:33]), new(big.Int).SetBytes(b[33:])
}

func random(t testing.TB, r *rand.Rand) *nistec.P256Point {
	t.Helper()
	var k [octets]byte
	for i := range k {
		k[i] = byte(r.Uint32())
	}
	p, err := nistec.NewP256Point().ScalarBaseMult(k[:])
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Every lane has another point, and some lanes are left alone or take the negative.
func TestPointsAreAddedAndDoubled(t *testing.T) {
	needsLanes(t)
	r := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		var ps, qs [width]*nistec.P256Point
		var p, q affine
		for lane := range width {
			ps[lane], qs[lane] = random(t, r), random(t, r)
			for a, v := range map[*affine]*nistec.P256Point{&p: ps[lane], &q: qs[lane]} {
				if err := place(a, lane, v); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, e := range []*element{&p.x, &p.y, &q.x, &q.y} {
			toMontgomery(e)
		}
		var s scratch
		apply, negative := uint64(r.UintN(256)), uint64(r.UintN(256))
		sum := point{p.x, p.y, unit}
		addAffine(&sum, &q, apply, negative, &s)
		// 8·q has a z that is not 1.
		eight := point{q.x, q.y, unit}
		double(&eight, 3, &s)
		both := sum
		add(&both, &eight, apply, negative, &s)
		for lane := range width {
			want := nistec.NewP256Point().Set(ps[lane])
			further := nistec.NewP256Point().Set(want)
			if apply>>lane&1 == 1 {
				by, by8 := qs[lane], multiple(qs[lane], 8)
				if negative>>lane&1 == 1 {
					by, by8 = negated(by), negated(by8)
				}
				want.Add(want, by)
				further.Add(want, by8)
			}
			for name, c := range map[string]struct {
				got  *point
				want *nistec.P256Point
			}{"addAffine": {&sum, want}, "add": {&both, further}, "double": {&eight, multiple(qs[lane], 8)}} {
				x, y := coordinates(t, c.got, lane)
				if wx, wy := onCurve(t, c.want); x.Cmp(wx) != 0 || y.Cmp(wy) != 0 {
					t.Fatalf("%s, lane %d, apply %08b, negative %08b: (%x, %x), not (%x, %x)", name, lane, apply, negative, x, y, wx, wy)
				}
			}
		}
	}
}

// What the formulas do not hold for gives z = 0, and it stays so.
func TestWhatCannotBeAddedIsSeen(t *testing.T) {
	needsLanes(t)
	r := rand.New(rand.NewPCG(5, 6))
	q := random(t, r)
	for name, p := range map[string]*nistec.P256Point{"to itself": q, "to its inverse": negated(q)} {
		var a, b affine
		for lane := range width {
			if err := place(&a, lane, p); err != nil {
				t.Fatal(err)
			}
			if err := place(&b, lane, q); err != nil {
				t.Fatal(err)
			}
		}
		for _, e := range []*element{&a.x, &a.y, &b.x, &b.y} {
			toMontgomery(e)
		}
		var s scratch
		sum, other := point{a.x, a.y, unit}, point{b.x, b.y, unit}
		alike := sum
		addAffine(&sum, &b, every, 0, &s)
		add(&alike, &other, every, 0, &s)
		for name2, v := range map[string]point{"affine": sum, "Jacobian": alike} {
			further := v
			double(&further, 2, &s)
			addAffine(&further, &b, every, 0, &s)
			add(&further, &other, every, 0, &s)
			for _, z := range []element{v.z, further.z} {
				fromMontgomery(&z)
				if z != (element{}) {
					t.Errorf("a point added %s, %s: z is %x", name, name2, z)
				}
			}
		}
	}
}

func TestTablesHoldMultiples(t *testing.T) {
	needsLanes(t)
	is := func(name string, e entry, want *nistec.P256Point) {
		t.Helper()
		var a affine
		set(&a.x, 0, e.x)
		set(&a.y, 0, e.y)
		x, y := coordinates(t, &point{a.x, a.y, unit}, 0)
		if wx, wy := onCurve(t, want); x.Cmp(wx) != 0 || y.Cmp(wy) != 0 {
			t.Fatalf("%s: (%x, %x), not (%x, %x)", name, x, y, wx, wy)
		}
	}
	base, err := generator()
	if err != nil {
		t.Fatal(err)
	}
	g := nistec.NewP256Point().SetGenerator()
	for i := range base {
		is("the generator's", base[i], multiple(g, i+1))
	}
	p := random(t, rand.New(rand.NewPCG(7, 8)))
	rows, err := digitRows(p)
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		for k := range rows[i] {
			is("a key's", rows[i][k], multiple(p, k+1))
		}
		for range fixedBits {
			p.Double(p)
		}
	}
}

func TestDigitsMakeTheScalar(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	scalars := []scalar{{}, {1}, {^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}, {0, 0, 0, 1 << 63}}
	for range 1000 {
		scalars = append(scalars, scalar{r.Uint64(), r.Uint64(), r.Uint64(), r.Uint64()})
	}
	for _, k := range scalars {
		want := new(big.Int)
		for i := len(k) - 1; i >= 0; i-- {
			want.Lsh(want, 64).Or(want, new(big.Int).SetUint64(k[i]))
		}
		for bits, n := range map[int]int{keyBits: keyDigits, baseBits: baseDigits, fixedBits: fixedDigits} {
			digits := make([]int16, n)
			k.recode(digits, bits)
			got := new(big.Int)
			for i := n - 1; i >= 0; i-- {
				if d := int(digits[i]); d > 1<<(bits-1) || d <= -1<<(bits-1) {
					t.Fatalf("%x: digit %d of %d bits is %d", want, i, bits, d)
				}
				got.Lsh(got, uint(bits)).Add(got, big.NewInt(int64(digits[i])))
			}
			if got.Cmp(want) != 0 {
				t.Fatalf("%d bits: %x, not %x", bits, got, want)
			}
		}
	}
}

// BenchmarkField is for eight lanes each.
func BenchmarkField(b *testing.B) {
	needsLanes(b)
	r := rand.New(rand.NewPCG(1, 2))
	p, q := point{below3(r), below3(r), below3(r)}, point{below3(r), below3(r), below3(r)}
	var s scratch
	for name, f := range map[string]func(){
		"mul":       func() { mul(&p.x, &p.x, &q.x) },
		"sqr":       func() { sqr(&p.x, &p.x) },
		"double":    func() { double(&p, 1, &s) },
		"add":       func() { add(&p, &q, every, 0, &s) },
		"addAffine": func() { addAffine(&p, &affine{q.x, q.y}, every, 0, &s) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				f()
			}
		})
	}
}
