package fixedkey_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"fmt"
	"math/big"
	"testing"

	"github.com/certmill/certmill/internal/fixedkey"
)

type signature struct{ R, S *big.Int }

// judges decide in both ways, with lanes where there are some and without.
type judges struct{ natural, table *fixedkey.P256 }

func (j judges) Verify(digest, signature []byte) bool {
	ok := j.natural.Verify(digest, signature)
	if j.table.Verify(digest, signature) != ok {
		panic(fmt.Sprintf("the table does not say %v: digest %x, signature %x", ok, digest, signature))
	}
	return ok
}

func newKey(t testing.TB) (*ecdsa.PrivateKey, judges) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	v, err := fixedkey.NewP256(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	table, err := fixedkey.NewP256Table(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, judges{v, table}
}

func sign(t testing.TB, key *ecdsa.PrivateKey, digest []byte) []byte {
	t.Helper()
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func TestGoodSignaturesVerifyAndNoOtherDoes(t *testing.T) {
	for range 4 {
		key, v := newKey(t)
		for range 250 {
			digest := make([]byte, 32)
			rand.Read(digest)
			sig := sign(t, key, digest)
			if !v.Verify(digest, sig) {
				t.Fatalf("a good signature %x over %x is refused", sig, digest)
			}
			bad := bytes.Clone(sig)
			bit := int(digest[0])<<8 | int(digest[1])
			bad[bit/8%len(bad)] ^= 1 << (bit % 8)
			if v.Verify(digest, bad) != ecdsa.VerifyASN1(&key.PublicKey, digest, bad) {
				t.Fatalf("%x over %x is judged otherwise than by crypto/ecdsa", bad, digest)
			}
			digest[bit%32] ^= 0x10
			if v.Verify(digest, sig) {
				t.Fatal("a signature over something else verifies")
			}
		}
	}
}

// The cases of other people's bugs: scalars out of range, encodings that are not DER,
// digests of other lengths, sums that are the point at infinity.
func TestItJudgesAsCryptoECDSADoes(t *testing.T) {
	key, v := newKey(t)
	n := elliptic.P256().Params().N
	digest := sha256.Sum256([]byte("x"))
	good := signature{}
	if _, err := asn1.Unmarshal(sign(t, key, digest[:]), &good); err != nil {
		t.Fatal(err)
	}
	encode := func(r, s *big.Int) []byte {
		b, err := asn1.Marshal(signature{r, s})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	add := func(a, b *big.Int) *big.Int { return new(big.Int).Add(a, b) }
	zero, one := new(big.Int), big.NewInt(1)
	der := encode(good.R, good.S)
	// r = x(kQ) mod n and e = 0, s = r·k^-1: verifies for the digest 0 with u1 = 0.
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	d := new(big.Int).SetBytes(scalar)
	qr := new(big.Int).SetBytes(point[1:33])
	qr.Mod(qr, n)
	// e = -r·d makes the sum the point at infinity.
	infinite := new(big.Int).Mod(new(big.Int).Neg(new(big.Int).Mul(good.R, d)), n)
	for name, c := range map[string]struct{ digest, sig []byte }{
		"good":             {digest[:], der},
		"negated s":        {digest[:], encode(good.R, new(big.Int).Sub(n, good.S))},
		"r plus n":         {digest[:], encode(add(good.R, n), good.S)},
		"s plus n":         {digest[:], encode(good.R, add(good.S, n))},
		"r 0":              {digest[:], encode(zero, good.S)},
		"s 0":              {digest[:], encode(good.R, zero)},
		"both 0":           {digest[:], encode(zero, zero)},
		"r n":              {digest[:], encode(n, good.S)},
		"s n":              {digest[:], encode(good.R, n)},
		"negative r":       {digest[:], encode(new(big.Int).Neg(good.R), good.S)},
		"negative s":       {digest[:], encode(good.R, new(big.Int).Neg(good.S))},
		"1 and 1":          {digest[:], encode(one, one)},
		"digest 0, u1 0":   {make([]byte, 32), encode(qr, qr)},
		"infinity":         {infinite.FillBytes(make([]byte, 32)), encode(good.R, good.S)},
		"empty":            {digest[:], nil},
		"trailing octet":   {digest[:], append(bytes.Clone(der), 0)},
		"truncated":        {digest[:], der[:len(der)-1]},
		"long length":      {digest[:], append([]byte{0x30, 0x81, der[1]}, der[2:]...)},
		"no sequence":      {digest[:], der[2:]},
		"empty digest":     {nil, der},
		"short digest":     {digest[:20], sign(t, key, digest[:20])},
		"long digest":      {append(digest[:], 1, 2, 3), sign(t, key, append(digest[:], 9))},
		"digest above n":   {bytes.Repeat([]byte{0xff}, 32), sign(t, key, bytes.Repeat([]byte{0xff}, 32))},
		"digest 0, signed": {make([]byte, 32), sign(t, key, make([]byte, 32))},
	} {
		want := ecdsa.VerifyASN1(&key.PublicKey, c.digest, c.sig)
		if got := v.Verify(c.digest, c.sig); got != want {
			t.Errorf("%s: %v, and crypto/ecdsa says %v", name, got, want)
		}
	}
}

func TestOtherKeysAreRefused(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, make := range []func(*ecdsa.PublicKey) (*fixedkey.P256, error){fixedkey.NewP256, fixedkey.NewP256Table} {
		if _, err := make(&p384.PublicKey); err == nil {
			t.Error("a key on P-384 is taken")
		}
	}
}

func FuzzVerify(f *testing.F) {
	key, v := newKey(f)
	digest := sha256.Sum256([]byte("seed"))
	f.Add(digest[:], sign(f, key, digest[:]))
	f.Add([]byte{}, []byte{0x30, 0})
	f.Fuzz(func(t *testing.T, digest, sig []byte) {
		if v.Verify(digest, sig) != ecdsa.VerifyASN1(&key.PublicKey, digest, sig) {
			t.Errorf("digest %x, signature %x", digest, sig)
		}
	})
}

// BenchmarkVerify is the check of a signature with the multiples and without.
func BenchmarkVerify(b *testing.B) {
	key, v := newKey(b)
	digest := sha256.Sum256([]byte("x"))
	sig := sign(b, key, digest[:])
	for name, judge := range map[string]*fixedkey.P256{"fixed": v.natural, "table": v.table} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if !judge.Verify(digest[:], sig) {
					b.Fatal("refused")
				}
			}
		})
	}
	b.Run("crypto-ecdsa", func(b *testing.B) {
		for b.Loop() {
			if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], sig) {
				b.Fatal("refused")
			}
		}
	})
	b.Run("make", func(b *testing.B) {
		for b.Loop() {
			if _, err := fixedkey.NewP256(&key.PublicKey); err != nil {
				b.Fatal(err)
			}
		}
	})
}
