package p256x8

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"math/big"
	"math/rand/v2"
	"testing"

	"filippo.io/nistec"
)

// xOf returns x of u1·G + u2·Q, or 0 for the point at infinity.
func xOf(t *testing.T, u1, u2 *big.Int, q *nistec.P256Point) *big.Int {
	t.Helper()
	var b [octets]byte
	first, err := nistec.NewP256Point().ScalarBaseMult(u1.FillBytes(b[:]))
	if err != nil {
		t.Fatal(err)
	}
	second, err := nistec.NewP256Point().ScalarMult(q, u2.FillBytes(b[:]))
	if err != nil {
		t.Fatal(err)
	}
	x, err := first.Add(first, second).BytesX()
	if err != nil {
		return new(big.Int)
	}
	return new(big.Int).SetBytes(x)
}

func scalarOfNumber(v *big.Int) scalar {
	var b [octets]byte
	return scalarOf((*[octets]byte)(v.FillBytes(b[:])))
}

// Scalars and keys at their ends, against nistec. A sum that is known must be right; all
// but those that a test of its own is for must be known.
func TestSums(t *testing.T) {
	needsLanes(t)
	r := rand.New(rand.NewPCG(11, 12))
	g := nistec.NewP256Point().SetGenerator()
	keys := []*nistec.P256Point{g, negated(g), multiple(g, 2), multiple(g, 17), multiple(g, 512), random(t, r), random(t, r)}
	number := func() *big.Int {
		v := new(big.Int)
		switch r.IntN(5) {
		case 0:
			v.SetInt64(int64(r.IntN(40)))
		case 1:
			v.Sub(order, big.NewInt(int64(1+r.IntN(40))))
		case 2:
			v.Lsh(big.NewInt(1), uint(r.IntN(256)))
		default:
			for range 4 {
				v.Lsh(v, 64).Or(v, new(big.Int).SetUint64(r.Uint64()))
			}
		}
		return v.Mod(v, order)
	}
	tables := map[*nistec.P256Point][]row{}
	for _, key := range keys {
		rows, err := digitRows(key)
		if err != nil {
			t.Fatal(err)
		}
		tables[key] = rows
	}
	w := newWorkspace()
	for range 200 {
		var queries [width]query
		var want, wrong uint64
		var fixed [width]bool
		for i := range queries {
			key := keys[r.IntN(len(keys))]
			u1, u2 := number(), number()
			x := xOf(t, u1, u2, key)
			b := key.Bytes()
			queries[i] = query{x: wordsOf(b[1:]), y: wordsOf(b[1+octets:]), u1: scalarOfNumber(u1), u2: scalarOfNumber(u2), r: split(x)}
			if x.Sign() != 0 {
				want |= 1 << i
			}
			if r.IntN(4) == 0 {
				queries[i].r[r.IntN(4)] ^= 1 << r.IntN(52)
				wrong |= 1 << i
			}
			var err error
			if fixed[i], err = newWorkspace().verifyFixed(tables[key], &queries[i].u1, &queries[i].u2, queries[i].r); err != nil {
				t.Fatal(err)
			}
			if fixed[i] != (want&^wrong>>i&1 == 1) {
				t.Fatalf("a fixed key says %v: u1 %x, u2 %x, x %x, wrong %v", fixed[i], u1, u2, x, wrong>>i&1 == 1)
			}
		}
		n := 1 + r.IntN(width)
		known, err := w.verify(queries[:n])
		if err != nil {
			t.Fatal(err)
		}
		if known != want&^wrong&(1<<n-1) {
			t.Fatalf("%d queries: %08b, not %08b", n, known, want&^wrong&(1<<n-1))
		}
	}
}

// keyOf makes the key whose secret number is k.
func keyOf(t *testing.T, k *big.Int) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), k.FillBytes(make([]byte, octets)))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// A key that is the point at which sums start, or its inverse, meets what the formulas do
// not hold for at its first digit: crypto/ecdsa decides.
func TestAKeyThatTheFormulasDoNotTake(t *testing.T) {
	needsLanes(t)
	seed := sha256.Sum256(binary.BigEndian.AppendUint64([]byte("certmill p256x8 "), 0))
	k := new(big.Int).SetBytes(seed[:])
	for name, key := range map[string]*ecdsa.PrivateKey{"start": keyOf(t, k.Mod(k, order)), "inverse": keyOf(t, new(big.Int).Sub(order, k))} {
		var all []*Signature
		for i := 0; len(all) < width; i++ {
			s := sign(t, key, digestOf(i))
			j, ok := newJob(s)
			if !ok {
				t.Fatal("no job")
			}
			_, u2 := multipliers(j.E, j.R, new(big.Int).ModInverse(j.S, order))
			var digits [keyDigits]int16
			if u2.recode(digits[:], keyBits); digits[keyDigits-1] == 1 {
				all = append(all, s)
			}
		}
		same(t, all, len(all))
		for i, valid := range Valid(copies(all)) {
			if valid {
				t.Errorf("%s: %d is known, but the sum cannot be", name, i)
			}
		}
		all[3].Digest = digestOf(-1)
		same(t, all, len(all))
	}
}

func copies(all []*Signature) (out []Signature) {
	for _, s := range all {
		out = append(out, *s)
	}
	return out
}

// x = r·z² is 0 = 0 where z is 0, in each form that 0 has, and nothing is known then.
func TestASumWithoutZIsNotCompared(t *testing.T) {
	needsLanes(t)
	zeros := []words{{}, primeWords, split2(t, new(big.Int).Lsh(prime, 1))}
	w := newWorkspace()
	for _, x := range zeros {
		for _, z := range zeros {
			for _, r := range []words{{}, {1}, {12345, 6, 7, 8, 9}} {
				w.sum.x, w.sum.z, w.r = all(x), all(z), all(r)
				toMontgomery(&w.r)
				if equal := w.compare(); equal != 0 {
					t.Fatalf("x %x, z %x, r %x: %08b", x, z, r, equal)
				}
			}
		}
	}
	w.sum.x, w.sum.z, w.r = all(words{5}), unit, all(words{5})
	toMontgomery(&w.sum.x)
	toMontgomery(&w.r)
	if equal := w.compare(); equal != every {
		t.Errorf("5 and 5: %08b", equal)
	}
}

// split2 is split for a number of at most 260 bits.
func split2(t *testing.T, v *big.Int) (w words) {
	t.Helper()
	v = new(big.Int).Set(v)
	for i := range w {
		w[i] = new(big.Int).And(v, big.NewInt(limb)).Uint64()
		v.Rsh(v, 52)
	}
	if v.Sign() != 0 {
		t.Fatal("too long")
	}
	return w
}

// A fixed key of which a lane's first addition is a point to itself: the lane of the
// lowest digits starts at a point whose number is known, so that a key can be made of it.
func TestAFixedKeyThatTheFormulasDoNotTake(t *testing.T) {
	needsLanes(t)
	for lane := range width {
		seed := sha256.Sum256(binary.BigEndian.AppendUint64([]byte("certmill p256x8 "), uint64(lane)+1))
		// The lane adds u1's digit of this number first; 0 there, u2's is next: 1 times
		// 2^(7·lane) times the key must be its start.
		k := new(big.Int).ModInverse(new(big.Int).Lsh(big.NewInt(1), uint(fixedBits*lane)), order)
		k.Mul(k, new(big.Int).SetBytes(seed[:])).Mod(k, order)
		b, err := keyOf(t, k).PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		key, err := nistec.NewP256Point().SetBytes(b)
		if err != nil {
			t.Fatal(err)
		}
		rows, err := digitRows(key)
		if err != nil {
			t.Fatal(err)
		}
		u1, u2 := new(big.Int), new(big.Int).Lsh(big.NewInt(1), uint(fixedBits*lane))
		x := xOf(t, u1, u2, key)
		one, two := scalarOfNumber(u1), scalarOfNumber(u2)
		for _, r := range []words{split(x), {}, {1}} {
			known, err := newWorkspace().verifyFixed(rows, &one, &two, r)
			if err != nil || known {
				t.Errorf("lane %d, r %x: known %v, %v", lane, r, known, err)
			}
		}
	}
}

func BenchmarkFixedKey(b *testing.B) {
	needsLanes(b)
	key := newKey(b, elliptic.P256())
	s := sign(b, key, digestOf(1))
	b.Run("make", func(b *testing.B) {
		for b.Loop() {
			if _, err := NewFixedKey(s.Key); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("verify", func(b *testing.B) {
		k, err := NewFixedKey(s.Key)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if !k.known(s.Digest, s.Value) {
				b.Fatal("not known")
			}
		}
	})
}
