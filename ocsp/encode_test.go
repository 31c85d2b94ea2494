package ocsp

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

// bench is a CA with an OCSP signer of a kind of key.
type rig struct {
	ca       *ocsptest.CA
	issuer   *Issuer
	key      crypto.Signer
	template *Template
}

func newRig(t testing.TB, kind string) *rig {
	t.Helper()
	r := &rig{ca: ocsptest.NewCA(t, "Test CA "+kind), key: ocsptest.Key(t, kind)}
	var err error
	if r.issuer, err = NewIssuer(1, r.ca.Certificate); err != nil {
		t.Fatal(err)
	}
	if r.template, err = NewTemplate(7, r.issuer, r.ca.Delegate(t, r.key, 48*time.Hour)); err != nil {
		t.Fatal(err)
	}
	return r
}

// record signs a status for both hashes.
func (r *rig) record(t testing.TB, n serial.Number, s Status) Record {
	t.Helper()
	rec := Record{Status: s, Signer: r.template.SignerID}
	for h := range Hashes {
		input, hash := r.template.SigningInput(r.template.AppendData(nil, h, n, &s))
		sig, err := r.key.Sign(rand.Reader, input, hash)
		if err != nil {
			t.Fatal(err)
		}
		if rec.Signatures[h], err = r.template.CompactSignature(sig); err != nil {
			t.Fatal(err)
		}
	}
	return rec
}

func encode(t testing.TB, rec *Record) string {
	t.Helper()
	b, err := rec.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	testNow   = time.Now().Truncate(time.Second)
	testGood  = Status{ProducedAt: testNow.Unix(), ThisUpdate: testNow.Unix() - 300, NextUpdate: testNow.Unix() + 86400}
	testEpoch = uint32(3)
)

func testSerial(t testing.TB) serial.Number {
	return ocsptest.Serial(t, testEpoch, testNow.Add(-time.Hour), testNow.Add(90*24*time.Hour))
}

func revoked(s Status, reason uint8) Status {
	s.Revoked, s.RevokedAt, s.Reason = true, s.ProducedAt-3600, reason
	return s
}

var statuses = map[string]Status{
	"good": testGood, "revoked, reason unspecified": revoked(testGood, 0), "revoked, key compromise": revoked(testGood, 1),
}

func TestResponsesAreReadAndVerifiedByXCrypto(t *testing.T) {
	for _, kind := range []string{"p256", "p384", "rsa"} {
		r := newRig(t, kind)
		for name, status := range statuses {
			for h, hash := range map[Hash]crypto.Hash{SHA1: crypto.SHA1, SHA256: crypto.SHA256} {
				t.Run(kind+"/"+name+"/"+hash.String(), func(t *testing.T) {
					n := testSerial(t)
					rec := r.record(t, n, status)
					der, err := r.template.AppendResponse(nil, h, n, &rec)
					if err != nil {
						t.Fatal(err)
					}
					got, err := xocsp.ParseResponseForCert(der, &x509.Certificate{SerialNumber: n.Big()}, r.ca.Certificate)
					if err != nil {
						t.Fatal(err)
					}
					want := xocsp.Good
					if status.Revoked {
						want = xocsp.Revoked
					}
					if got.Status != want || got.IssuerHash != hash || got.ThisUpdate.Unix() != status.ThisUpdate ||
						got.NextUpdate.Unix() != status.NextUpdate || got.ProducedAt.Unix() != status.ProducedAt {
						t.Errorf("read %+v, want %+v", got, status)
					}
					if status.Revoked && (got.RevokedAt.Unix() != status.RevokedAt || got.RevocationReason != int(status.Reason)) {
						t.Errorf("revoked at %s for %d", got.RevokedAt, got.RevocationReason)
					}
					if got.ResponderKeyHash == nil || got.RawResponderName != nil {
						t.Error("the responder is not named by its key")
					}
					if err := r.template.Check(h, n, &rec.Status, rec.Signatures[h]); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

// Go's parser takes RSA and ECDSA only, so Ed25519 is verified by hand.
func TestEd25519Signatures(t *testing.T) {
	r := newRig(t, "ed25519")
	n := testSerial(t)
	rec := r.record(t, n, testGood)
	if err := r.template.Check(SHA1, n, &rec.Status, rec.Signatures[SHA1]); err != nil {
		t.Error(err)
	}
	if err := r.template.Check(SHA1, n, &rec.Status, rec.Signatures[SHA256]); err == nil {
		t.Error("the signature for the other hash passes")
	}
}

// The DER is that of encoding/asn1: no field is at a wrong place, no length is padded.
func TestResponseIsStrictDER(t *testing.T) {
	type response struct {
		Status asn1.Enumerated
		Bytes  struct {
			Type     asn1.ObjectIdentifier
			Response []byte
		} `asn1:"explicit,tag:0"`
	}
	type basic struct {
		Data         asn1.RawValue
		Algorithm    asn1.RawValue
		Signature    asn1.BitString
		Certificates []asn1.RawValue `asn1:"explicit,tag:0"`
	}
	r := newRig(t, "p256")
	for range 200 { // signatures of 70 to 72 octets, with short integers now and then
		n := testSerial(t)
		rec := r.record(t, n, testGood)
		der, err := r.template.AppendResponse(nil, SHA1, n, &rec)
		if err != nil {
			t.Fatal(err)
		}
		var outer response
		if rest, err := asn1.Unmarshal(der, &outer); err != nil || len(rest) != 0 {
			t.Fatalf("%v, %d octets left", err, len(rest))
		}
		if again, err := asn1.Marshal(outer); err != nil || !bytes.Equal(again, der) {
			t.Fatalf("encoded again it is another: %v", err)
		}
		var inner basic
		if rest, err := asn1.Unmarshal(outer.Bytes.Response, &inner); err != nil || len(rest) != 0 {
			t.Fatalf("%v, %d octets left", err, len(rest))
		}
		if len(inner.Certificates) != 1 || !bytes.Equal(inner.Certificates[0].FullBytes, r.template.Signer.Raw) {
			t.Error("certs does not hold the signer's certificate alone")
		}
		if !bytes.Equal(inner.Data.FullBytes, r.template.AppendData(nil, SHA1, n, &rec.Status)) {
			t.Error("the ResponseData is not what was signed")
		}
	}
}

func TestCompactSignatureKeepsShortIntegers(t *testing.T) {
	r := newRig(t, "p256")
	for _, c := range []struct{ r, s *big.Int }{
		{big.NewInt(1), big.NewInt(127)}, {big.NewInt(128), big.NewInt(0xff00)},
		{new(big.Int).Lsh(big.NewInt(1), 255), new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 256), big.NewInt(1))},
	} {
		der, err := asn1.Marshal(struct{ R, S *big.Int }{c.r, c.s})
		if err != nil {
			t.Fatal(err)
		}
		compact, err := r.template.CompactSignature(der)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := r.template.appendSignature(nil, compact); err != nil || !bytes.Equal(back, der) {
			t.Errorf("%x became %x (%v)", der, back, err)
		}
	}
	for name, bad := range map[string][]byte{
		"empty": {}, "trailing": {0x30, 6, 2, 1, 1, 2, 1, 1, 0}, "too long": append([]byte{0x30, 38, 2, 33, 0x7f}, append(make([]byte, 32), 2, 1, 1)...),
	} {
		if _, err := r.template.CompactSignature(bad); err == nil {
			t.Errorf("%s is taken for a signature", name)
		}
	}
}

func TestTemplateRefusesStrangers(t *testing.T) {
	r, other := newRig(t, "p256"), newRig(t, "p256")
	if _, err := NewTemplate(1, r.issuer, other.template.Signer); err == nil {
		t.Error("a signer of another CA is taken")
	}
	leaf, _ := r.ca.Leaf(t, testEpoch, testNow, testNow.Add(time.Hour))
	if _, err := NewTemplate(1, r.issuer, leaf); err == nil {
		t.Error("a certificate without OCSPSigning is taken")
	}
}

func TestRecompositionDoesNotAllocate(t *testing.T) {
	r := newRig(t, "p256")
	n := testSerial(t)
	rec := r.record(t, n, testGood)
	encoded := encode(t, &rec)
	buf := make([]byte, 0, 4096)
	if allocs := testing.AllocsPerRun(100, func() {
		got, err := DecodeRecord(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if buf, err = r.template.AppendResponse(buf[:0], SHA256, n, &got); err != nil {
			t.Fatal(err)
		}
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func BenchmarkSign(b *testing.B) {
	r := newRig(b, "p256")
	n := testSerial(b)
	b.Run("certmill", func(b *testing.B) { // one answer; a record has two
		b.ReportAllocs()
		for b.Loop() {
			input, hash := r.template.SigningInput(r.template.AppendData(nil, SHA1, n, &testGood))
			sig, err := r.key.Sign(rand.Reader, input, hash)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := r.template.CompactSignature(sig); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("xcrypto", func(b *testing.B) {
		b.ReportAllocs()
		template := xocsp.Response{Status: xocsp.Good, SerialNumber: n.Big(), ThisUpdate: testNow, NextUpdate: testNow.Add(time.Hour), Certificate: r.template.Signer}
		for b.Loop() {
			if _, err := xocsp.CreateResponse(r.ca.Certificate, r.template.Signer, template, r.key); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	r := newRig(b, "p256")
	n := testSerial(b)
	rec := r.record(b, n, testGood)
	encoded := encode(b, &rec)
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		got, err := DecodeRecord(encoded)
		if err != nil {
			b.Fatal(err)
		}
		if buf, err = r.template.AppendResponse(buf[:0], SHA1, n, &got); err != nil {
			b.Fatal(err)
		}
	}
}
