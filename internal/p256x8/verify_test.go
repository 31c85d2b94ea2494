package p256x8

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"testing"
)

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, key *ecdsa.PrivateKey, digest []byte) *Signature {
	t.Helper()
	value, err := ecdsa.SignASN1(rand.Reader, key, digest)
	if err != nil {
		t.Fatal(err)
	}
	return &Signature{Key: &key.PublicKey, Digest: digest, Value: value}
}

func digestOf(n int) []byte {
	d := sha256.Sum256(fmt.Append(nil, n))
	return d[:]
}

func encoded(t testing.TB, r, s *big.Int) []byte {
	t.Helper()
	der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func decoded(t testing.TB, value []byte) (r, s *big.Int) {
	t.Helper()
	var v struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(value, &v); err != nil {
		t.Fatal(err)
	}
	return v.R, v.S
}

// same compares Valid, and FixedKey, with crypto/ecdsa, and returns what that says. What is
// known to be valid must be; all that is valid must be known but where the lanes are not
// used, and those of which there are leave to be unknown.
func same(t *testing.T, all []*Signature, leave int) (right []bool) {
	t.Helper()
	values := make([]Signature, len(all))
	lanes, unknown := 0, 0
	for i, s := range all {
		values[i] = *s
		if _, ok := Parse(s.Digest, s.Value); ok && s.Key.Curve == elliptic.P256() {
			lanes++
		}
	}
	for i, known := range Valid(values) {
		s := all[i]
		want := ecdsa.VerifyASN1(s.Key, s.Digest, s.Value)
		right = append(right, want)
		if known && !want {
			t.Fatalf("%d of %d is said to be valid: digest %x, signature %x", i, len(all), s.Digest, s.Value)
		}
		if want && !known && s.Key.Curve == elliptic.P256() {
			unknown++
		}
		if !Supported() || s.Key.Curve != elliptic.P256() {
			continue
		}
		k, err := NewFixedKey(s.Key)
		if err != nil {
			t.Fatal(err)
		}
		if k.Verify(s.Digest, s.Value) != want {
			t.Fatalf("a fixed key does not say %v: digest %x, signature %x", want, s.Digest, s.Value)
		}
	}
	if lanes%Width == 1 {
		leave++ // one that is left over is not worth it
	}
	if Supported() && unknown > leave {
		t.Fatalf("%d of %d that are valid are not known", unknown, len(all))
	}
	return right
}

// Groups of every size, with right signatures and wrong ones in every place, of keys on
// several curves.
func TestWhatIsKnownToBeValidIs(t *testing.T) {
	keys := []*ecdsa.PrivateKey{newKey(t, elliptic.P256()), newKey(t, elliptic.P256()), newKey(t, elliptic.P256()), newKey(t, elliptic.P384())}
	for n := range 2*Width + 3 {
		all := make([]*Signature, n)
		for i := range all {
			all[i] = sign(t, keys[(i+n)%len(keys)], digestOf(i))
		}
		for i, right := range same(t, all, 0) {
			if !right {
				t.Fatalf("%d of %d is wrong", i, n)
			}
		}
		for i := range all {
			was := *all[i]
			all[i] = sign(t, keys[i%len(keys)], digestOf(i+1))
			all[i].Digest = was.Digest
			for k, right := range same(t, all, 0) {
				if right != (k != i) {
					t.Fatalf("%d of %d is wrong, and %d is found to be %v", i, n, k, right)
				}
			}
			all[i] = &was
		}
	}
}

// What nobody signs: numbers out of range, encodings that are not DER, digests of all
// lengths.
func TestHostileSignatures(t *testing.T) {
	key := newKey(t, elliptic.P256())
	digest := digestOf(1)
	good := sign(t, key, digest)
	r, s := decoded(t, good.Value)
	n := elliptic.P256().Params().N
	zero, one := new(big.Int), big.NewInt(1)
	all := []*Signature{good}
	add := func(digest, value []byte) {
		all = append(all, &Signature{Key: &key.PublicKey, Digest: digest, Value: value})
	}
	for _, v := range []*big.Int{zero, one, new(big.Int).Neg(one), new(big.Int).Sub(n, one), n, new(big.Int).Add(n, one),
		new(big.Int).Add(n, r), new(big.Int).Sub(n, s), new(big.Int).Neg(s), elliptic.P256().Params().P, new(big.Int).Lsh(one, 256), new(big.Int).Lsh(one, 5000)} {
		add(digest, encoded(t, v, s))
		add(digest, encoded(t, r, v)) // n - s is a signature too
		add(digest, encoded(t, v, v))
	}
	add(digest, nil)
	add(digest, []byte{0x30})
	add(digest, append(slices.Clone(good.Value), 0))
	add(digest, good.Value[:len(good.Value)-1])
	add(digest, append([]byte{0x30, 0x81, byte(len(good.Value) - 2)}, good.Value[2:]...)) // a length that is not minimal
	for size := range 70 {
		d := sha512.Sum512([]byte{1})
		long := append(d[:], d[:]...)[:size]
		if size == 0 {
			add(long, good.Value)
			continue
		}
		value, err := ecdsa.SignASN1(rand.Reader, key, long)
		if err != nil {
			t.Fatal(err)
		}
		add(long, value)
		add(long, good.Value)
	}
	zeros := sign(t, key, make([]byte, 32)).Value // u1 is 0
	add(make([]byte, 32), zeros)
	add(nil, zeros)
	same(t, all, 0)
}

// lifted makes a signature over a digest from the point that its r comes from, and a key for it.
func lifted(t *testing.T, x, y, a, b *big.Int) *Signature {
	t.Helper()
	curve := elliptic.P256()
	n := curve.Params().N
	//lint:ignore SA1019 points that are no multiples of the generator's known to anybody
	ax, ay := curve.ScalarBaseMult(new(big.Int).Sub(n, a).Bytes())
	//lint:ignore SA1019 as above
	qx, qy := curve.Add(x, y, ax, ay)
	inverse := new(big.Int).ModInverse(b, n)
	//lint:ignore SA1019 as above
	qx, qy = curve.ScalarMult(qx, qy, inverse.Bytes())
	r := new(big.Int).Mod(x, n)
	s := new(big.Int).Mul(r, inverse)
	s.Mod(s, n)
	e := new(big.Int).Mul(a, s)
	e.Mod(e, n)
	point := make([]byte, 65)
	point[0] = 4
	qx.FillBytes(point[1:33])
	qy.FillBytes(point[33:])
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		t.Fatal(err)
	}
	return &Signature{Key: key, Digest: e.FillBytes(make([]byte, 32)), Value: encoded(t, r, s)}
}

// The x coordinate of a point may be the order of the curve or more; r is its remainder.
func TestAnRThatIsARemainder(t *testing.T) {
	p := elliptic.P256().Params()
	var all []*Signature
	for x := new(big.Int).Set(p.N); len(all) < Width && x.Cmp(p.P) < 0; x.Add(x, big.NewInt(1)) {
		// y² = x³ - 3x + b
		y := new(big.Int).Exp(x, big.NewInt(3), p.P)
		y.Sub(y, new(big.Int).Mul(big.NewInt(3), x)).Add(y, p.B).Mod(y, p.P)
		if y.ModSqrt(y, p.P) == nil || new(big.Int).Mod(x, p.N).Sign() == 0 {
			continue
		}
		all = append(all, lifted(t, x, y, big.NewInt(int64(1000+len(all))), big.NewInt(77)))
	}
	for i, right := range same(t, all, len(all)) {
		if !right {
			t.Errorf("%x is right", all[i].Value)
		}
	}
}

func TestManyAtATime(t *testing.T) {
	key := newKey(t, elliptic.P256())
	var wait sync.WaitGroup
	for w := range 8 {
		wait.Go(func() {
			for i := range 20 {
				all := make([]Signature, 2+(w+i)%(Width-1))
				for k := range all {
					all[k] = *sign(t, key, digestOf(k))
				}
				bad := i % len(all)
				all[bad].Digest = digestOf(1000)
				for k, valid := range Valid(all) {
					if Supported() && valid == (k == bad) {
						t.Errorf("%d of %d is found to be %v", k, len(all), valid)
					}
				}
			}
		})
	}
	wait.Wait()
}

func TestKeysThatAreNone(t *testing.T) {
	if _, err := NewFixedKey(&newKey(t, elliptic.P384()).PublicKey); err == nil {
		t.Error("a key on P-384 was taken")
	}
	//lint:ignore SA1019 no other way makes a key that is not on its curve
	off := &ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)}
	if _, err := NewFixedKey(off); err == nil {
		t.Error("a point that is not on the curve was taken")
	}
	key := newKey(t, elliptic.P256())
	good, bad := sign(t, key, digestOf(1)), sign(t, key, digestOf(1))
	bad.Key = off
	valid := Valid([]Signature{*good, *bad, *sign(t, key, digestOf(2))})
	if valid[1] || Supported() && (!valid[0] || !valid[2]) {
		t.Error(valid)
	}
}

// FuzzValid lets signatures of one group be damaged, and compares with crypto/ecdsa.
func FuzzValid(f *testing.F) {
	keys := []*ecdsa.PrivateKey{newKey(f, elliptic.P256()), newKey(f, elliptic.P256()), newKey(f, elliptic.P256())}
	f.Add(uint8(8), []byte{0, 1, 2, 3}, []byte("x"))
	f.Add(uint8(3), []byte{2, 40, 255, 0, 9}, []byte{})
	f.Add(uint8(1), []byte{}, []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, n uint8, damage, digest []byte) {
		all := make([]Signature, n%(2*Width)+1)
		for i := range all {
			all[i] = *sign(t, keys[i%len(keys)], append(slices.Clone(digest), byte(i)))
		}
		untouched := len(damage) < 3 // damage may change how many are worth the lanes
		for len(damage) >= 3 {
			s := &all[int(damage[0])%len(all)]
			s.Value[int(damage[1])%len(s.Value)] ^= damage[2]
			damage = damage[3:]
		}
		for i, valid := range Valid(all) {
			s := all[i]
			want := ecdsa.VerifyASN1(s.Key, s.Digest, s.Value)
			if valid && !want || Supported() && want && !valid && len(all)%Width != 1 && untouched {
				t.Fatalf("%d of %d: %v, not %v: %x over %x", i, len(all), valid, want, s.Value, s.Digest)
			}
		}
	})
}

func BenchmarkValid(b *testing.B) {
	key := newKey(b, elliptic.P256())
	for _, n := range []int{2, Width} {
		all := make([]Signature, n)
		for i := range all {
			all[i] = *sign(b, key, digestOf(i))
		}
		b.Run(fmt.Sprintf("together=%d", n), func(b *testing.B) {
			for b.Loop() {
				if valid := Valid(all); Supported() && !valid[n-1] {
					b.Fatal("not known")
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/signature")
		})
	}
	b.Run("crypto-ecdsa", func(b *testing.B) {
		s := sign(b, key, digestOf(1))
		for b.Loop() {
			if !ecdsa.VerifyASN1(s.Key, s.Digest, s.Value) {
				b.Fatal("not right")
			}
		}
	})
}
