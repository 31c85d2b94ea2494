package csr

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	encoding "encoding/asn1"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// A forge makes requests that no honest client would: every part can be replaced.
type forge struct {
	key       crypto.Signer
	spki      []byte // default: the key's
	version   int
	subject   []byte // content of the Name
	extension [][]byte
	// attributes replaces the content of the attributes; default: one extensionRequest.
	attributes []byte
	algorithm  []byte // default: ecdsa-with-SHA256
	hash       crypto.Hash
	opts       crypto.SignerOpts
	// spoil changes the signature.
	spoil func([]byte) []byte
	// infoTail and tail follow the attributes and the signature.
	infoTail, tail []byte
}

func p256(t testing.TB) *ecdsa.PrivateKey { return generate(t, elliptic.P256()) }

func generate(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// der encodes one element around its parts.
func der(tag asn1.Tag, parts ...[]byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tag, func(b *cryptobyte.Builder) {
		for _, p := range parts {
			b.AddBytes(p)
		}
	})
	return b.BytesOrPanic()
}

func oid(arc ...int) []byte { return []byte(derOID(arc...)) }

func bitString(b []byte) []byte { return der(asn1.BIT_STRING, []byte{0}, b) }

func attribute(id []byte, values ...[]byte) []byte {
	return der(asn1.SEQUENCE, id, der(asn1.SET, values...))
}

var (
	extensionRequest = oid(1, 2, 840, 113549, 1, 9, 14)
	sanOID           = oid(2, 5, 29, 17)
	null             = []byte{5, 0}
)

func extension(id []byte, value []byte) []byte {
	return der(asn1.SEQUENCE, id, der(asn1.OCTET_STRING, value))
}

func critical(id []byte, value []byte) []byte {
	return der(asn1.SEQUENCE, id, []byte{1, 1, 0xff}, der(asn1.OCTET_STRING, value))
}

// san encodes names that are pairs of tag number and content.
func san(names ...[]byte) []byte { return extension(sanOID, der(asn1.SEQUENCE, names...)) }

func name(tag uint8, s string) []byte { return der(asn1.Tag(tag).ContextSpecific(), []byte(s)) }

func dns(s string) []byte { return name(2, s) }

// rdn is one attribute of a subject.
func rdn(id []byte, tag asn1.Tag, s string) []byte {
	return der(asn1.SET, der(asn1.SEQUENCE, id, der(tag, []byte(s))))
}

func cn(s string) []byte { return rdn(oid(2, 5, 4, 3), asn1.UTF8String, s) }

func (f forge) make(t testing.TB) []byte {
	t.Helper()
	if f.key == nil {
		f.key = p256(t)
	}
	if f.spki == nil {
		var err error
		if f.spki, err = x509.MarshalPKIXPublicKey(f.key.Public()); err != nil {
			t.Fatal(err)
		}
	}
	if f.attributes == nil && f.extension != nil {
		f.attributes = attribute(extensionRequest, der(asn1.SEQUENCE, f.extension...))
	}
	if f.algorithm == nil {
		f.algorithm = der(asn1.SEQUENCE, oid(1, 2, 840, 10045, 4, 3, 2))
	}
	if f.hash == 0 {
		f.hash = crypto.SHA256
	}
	if f.opts == nil {
		f.opts = f.hash
	}
	version, err := encoding.Marshal(f.version)
	if err != nil {
		t.Fatal(err)
	}
	info := der(asn1.SEQUENCE, version, der(asn1.SEQUENCE, f.subject), f.spki,
		der(asn1.Tag(0).Constructed().ContextSpecific(), f.attributes), f.infoTail)
	digest := info
	if f.opts.HashFunc() != 0 {
		h := f.hash.New()
		h.Write(info)
		digest = h.Sum(nil)
	}
	signature, err := f.key.Sign(rand.Reader, digest, f.opts)
	if err != nil {
		t.Fatal(err)
	}
	if f.spoil != nil {
		signature = f.spoil(signature)
	}
	return der(asn1.SEQUENCE, info, f.algorithm, bitString(signature), f.tail)
}
