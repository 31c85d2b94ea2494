package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"
)

// FuzzECDSASignature compares the encoding with encoding/asn1's.
func FuzzECDSASignature(f *testing.F) {
	f.Add(bytes.Repeat([]byte{0xff}, 64))
	f.Add(make([]byte, 64))
	f.Add(append([]byte{0, 0, 0x80}, make([]byte, 61)...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		der, err := ecdsaASN1(raw, 32)
		if len(raw) != 64 {
			if !errors.Is(err, errWrongSignature) {
				t.Fatalf("%d octets: %v", len(raw), err)
			}
			return
		}
		want, errWant := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])})
		if err != nil || errWant != nil || !bytes.Equal(der, want) {
			t.Fatalf("%x: %x, %v; want %x", raw, der, err, want)
		}
	})
}

func TestECPointsAreReadWrappedAndBare(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		bare, err := key.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		wrapped, err := asn1.Marshal(bare)
		if err != nil {
			t.Fatal(err)
		}
		params := curves[0].oid
		if curve == elliptic.P384() {
			params = curves[1].oid
		}
		for _, point := range [][]byte{bare, wrapped} {
			if got, err := ecPublic(params, point); err != nil || !got.Equal(&key.PublicKey) {
				t.Errorf("%s: %v, %v", curve.Params().Name, got, err)
			}
		}
		wrapped[len(wrapped)-1] ^= 1
		if _, err := ecPublic(params, wrapped); err == nil {
			t.Errorf("%s: a point off the curve was taken", curve.Params().Name)
		}
	}
	if _, err := ecPublic([]byte{6, 1, 1}, nil); !errors.Is(err, errRefused) {
		t.Errorf("an unknown curve: %v", err)
	}
}

func TestRSAKeysOutOfRangeAreRefused(t *testing.T) {
	modulus := func(bits uint) []byte { return new(big.Int).Lsh(big.NewInt(1), bits-1).Bytes() }
	for _, c := range []struct {
		bits     uint
		exponent []byte
		ok       bool
	}{{2048, []byte{1, 0, 1}, true}, {4096, []byte{3}, true}, {1024, []byte{1, 0, 1}, false}, {8192, []byte{1, 0, 1}, false},
		{2048, []byte{1}, false}, {2048, bytes.Repeat([]byte{1}, 9), false}, {2048, nil, false}} {
		if _, err := rsaPublic(modulus(c.bits), c.exponent); (err == nil) != c.ok {
			t.Errorf("%d bits, exponent %x: %v", c.bits, c.exponent, err)
		}
	}
}

func TestWhatATokenCannotSignIsRefusedBeforeIt(t *testing.T) {
	small := &rsa.PublicKey{N: big.NewInt(0).Lsh(big.NewInt(1), 2047), E: 3}
	for _, c := range []struct {
		public crypto.PublicKey
		digest int
		opts   crypto.SignerOpts
	}{
		{small, 20, crypto.SHA1},
		{small, 32, &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: -5}},
		{small, 20, &rsa.PSSOptions{Hash: crypto.SHA1}},
		{small, 31, crypto.SHA256},
		{"no key", 32, crypto.SHA256},
	} {
		if _, err := newOperation(c.public, make([]byte, c.digest), c.opts); !errors.Is(err, errRefused) {
			t.Errorf("%T with %v: %v", c.public, c.opts, err)
		}
	}
}
