package ocsp

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"errors"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	xocsp "golang.org/x/crypto/ocsp"

	"github.com/certmill/certmill/internal/serial"
)

// requestSpec describes a request to build by hand; the zero value with one CertID is
// an ordinary one.
type requestSpec struct {
	ids        []CertID
	version    []byte // content of [0]; nil: absent
	requestor  bool
	nonce      []byte // raw extnValue; nil: absent
	critical   bool   // an unknown critical extension
	signature  bool
	noParams   bool
	singleExts bool
	oid        []byte
}

func (s requestSpec) der(t testing.TB) []byte {
	t.Helper()
	extension := func(b *cryptobyte.Builder, oid []byte, critical bool, value []byte) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(oid) })
			if critical {
				b.AddASN1Boolean(true)
			}
			b.AddASN1OctetString(value)
		})
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			if s.version != nil {
				b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { b.AddBytes(s.version) })
			}
			if s.requestor {
				b.AddASN1(tagExplicit1, func(b *cryptobyte.Builder) {
					b.AddASN1(asn1.Tag(2).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte("client.test")) })
				})
			}
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, id := range s.ids {
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
							b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
								oid := s.oid
								if oid == nil {
									oid = hashOIDs[id.Hash]
								}
								b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(oid) })
								if !s.noParams {
									b.AddASN1NULL()
								}
							})
							b.AddASN1OctetString(id.NameHash)
							b.AddASN1OctetString(id.KeyHash)
							b.AddASN1(asn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(id.Serial) })
						})
						if s.singleExts {
							b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) {
								b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { extension(b, []byte{0x2a, 3}, false, []byte{5, 0}) })
							})
						}
					})
				}
			})
			if s.nonce != nil || s.critical {
				b.AddASN1(tagExplicit2, func(b *cryptobyte.Builder) {
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
						if s.nonce != nil {
							extension(b, oidNonce, false, s.nonce)
						}
						if s.critical {
							extension(b, []byte{0x2a, 3, 4}, true, []byte{5, 0})
						}
					})
				})
			}
		})
		if s.signature {
			b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1NULL() })
			})
		}
	})
	der, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// certID names a serial of the issuer.
func (i *Issuer) certID(h Hash, n serial.Number) CertID {
	return CertID{Hash: h, NameHash: []byte(i.ids[h].name), KeyHash: []byte(i.ids[h].key), Serial: n[:]}
}

func octets(b []byte) []byte { return append([]byte{4, byte(len(b))}, b...) }

func TestRequestsOfAllFormsAreRead(t *testing.T) {
	r := newRig(t, "p256")
	one, two := testSerial(t), testSerial(t)
	id := r.issuer.certID(SHA1, one)
	for name, spec := range map[string]requestSpec{
		"plain":                     {ids: []CertID{id}},
		"SHA-256":                   {ids: []CertID{r.issuer.certID(SHA256, one)}},
		"explicit version 1":        {ids: []CertID{id}, version: []byte{2, 1, 0}},
		"requestorName":             {ids: []CertID{id}, requestor: true},
		"nonce":                     {ids: []CertID{id}, nonce: octets(make([]byte, 32))},
		"nonce of 128 octets":       {ids: []CertID{id}, nonce: append([]byte{4, 0x81, 128}, make([]byte, 128)...)},
		"raw nonce of old clients":  {ids: []CertID{id}, nonce: []byte{0xff, 1, 2, 3}},
		"signed":                    {ids: []CertID{id}, signature: true},
		"absent hash parameters":    {ids: []CertID{id}, noParams: true},
		"extensions of one CertID":  {ids: []CertID{id}, singleExts: true},
		"several CertIDs":           {ids: []CertID{id, r.issuer.certID(SHA256, one), r.issuer.certID(SHA1, two)}},
		"as many CertIDs as may be": {ids: manyIDs(id, MaxCertIDs)},
	} {
		t.Run(name, func(t *testing.T) {
			var got Request
			if err := got.Parse(spec.der(t)); err != nil {
				t.Fatal(err)
			}
			if len(got.CertIDs) != len(spec.ids) || got.Nonce != (spec.nonce != nil) {
				t.Fatalf("%d CertIDs, nonce %v", len(got.CertIDs), got.Nonce)
			}
			for i, want := range spec.ids {
				id := got.CertIDs[i]
				if id.Hash != want.Hash || !bytes.Equal(id.NameHash, want.NameHash) || !bytes.Equal(id.KeyHash, want.KeyHash) || !bytes.Equal(id.Serial, want.Serial) {
					t.Errorf("CertID %d is %+v", i, id)
				}
			}
		})
	}
}

func manyIDs(id CertID, n int) []CertID {
	out := make([]CertID, n)
	for i := range out {
		out[i] = id
	}
	return out
}

func TestRequestsOfXCryptoAreRead(t *testing.T) {
	r := newRig(t, "p256")
	leaf, _ := r.ca.Leaf(t, testEpoch, testNow, testNow.Add(90*24*3600e9))
	for h, hash := range map[Hash]crypto.Hash{SHA1: crypto.SHA1, SHA256: crypto.SHA256, otherHash: crypto.SHA384} {
		der, err := xocsp.CreateRequest(leaf, r.ca.Certificate, &xocsp.RequestOptions{Hash: hash})
		if err != nil {
			t.Fatal(err)
		}
		var got Request
		if err := got.Parse(der); err != nil || len(got.CertIDs) != 1 || got.CertIDs[0].Hash != h {
			t.Errorf("%s: %v, %+v", hash, err, got.CertIDs)
		}
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	r := newRig(t, "p256")
	id := r.issuer.certID(SHA1, testSerial(t))
	good := requestSpec{ids: []CertID{id}}.der(t)
	noSerial := id
	noSerial.Serial = nil
	for name, c := range map[string]struct {
		der  []byte
		want error
	}{
		"nothing":                    {nil, ErrMalformed},
		"trailing data":              {append(bytes.Clone(good), 0), ErrMalformed},
		"version 2":                  {requestSpec{ids: []CertID{id}, version: []byte{2, 1, 1}}.der(t), ErrMalformed},
		"negative version":           {requestSpec{ids: []CertID{id}, version: []byte{2, 1, 0xff}}.der(t), ErrMalformed},
		"no CertID":                  {requestSpec{}.der(t), ErrMalformed},
		"one CertID too many":        {requestSpec{ids: manyIDs(id, MaxCertIDs+1)}.der(t), ErrMalformed},
		"empty serial":               {requestSpec{ids: []CertID{noSerial}}.der(t), ErrMalformed},
		"empty nonce":                {requestSpec{ids: []CertID{id}, nonce: octets(nil)}.der(t), ErrMalformed},
		"nonce of 129 octets":        {requestSpec{ids: []CertID{id}, nonce: append([]byte{4, 0x81, 129}, make([]byte, 129)...)}.der(t), ErrMalformed},
		"critical unknown extension": {requestSpec{ids: []CertID{id}, critical: true}.der(t), ErrUnsupported},
		"too large":                  {make([]byte, MaxRequestBytes+1), ErrMalformed},
	} {
		var got Request
		if err := got.Parse(c.der); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for i := range good {
		if err := new(Request).Parse(good[:i]); err == nil {
			t.Errorf("the first %d octets pass", i)
		}
	}
}

func TestParsingDoesNotAllocate(t *testing.T) {
	r := newRig(t, "p256")
	der := requestSpec{ids: []CertID{r.issuer.certID(SHA1, testSerial(t))}, nonce: octets(make([]byte, 16))}.der(t)
	var got Request
	if allocs := testing.AllocsPerRun(100, func() {
		if err := got.Parse(der); err != nil {
			t.Fatal(err)
		}
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// awkward returns a request whose base64 holds what clients stumble over: "+", "/",
// and "//".
func awkward(t testing.TB, i *Issuer) (der []byte, encoded string) {
	t.Helper()
	for range 200_000 {
		der = requestSpec{ids: []CertID{i.certID(SHA1, testSerial(t))}}.der(t)
		encoded = base64.StdEncoding.EncodeToString(der)
		if strings.Contains(encoded, "+") && strings.Contains(encoded, "//") {
			return der, encoded
		}
	}
	t.Fatal("no such request was found")
	return nil, ""
}

func TestGetTargetsOfAllClients(t *testing.T) {
	r := newRig(t, "p256")
	der, encoded := awkward(t, r.issuer)
	for name, c := range map[string]struct{ target, prefix string }{
		"raw, as NATS sends it":         {"/" + encoded, "/"},
		"escaped, as nginx sends it":    {"/" + url.QueryEscape(encoded), "/"},
		"escaped in lower case":         {"/" + strings.NewReplacer("+", "%2b", "/", "%2f", "=", "%3d").Replace(encoded), "/"},
		"only the plus":                 {"/" + strings.ReplaceAll(encoded, "+", "%2B"), "/"},
		"plus became a space":           {"/" + strings.ReplaceAll(encoded, "+", "%20"), "/"},
		"one slash more":                {"//" + encoded, "/"},
		"without padding":               {"/" + strings.TrimRight(encoded, "="), "/"},
		"mounted":                       {"/ocsp/" + encoded, "/ocsp/"},
		"mounted, one slash more":       {"/ocsp//" + encoded, "/ocsp/"},
		"absolute form":                 {"http://ocsp.test/" + encoded, "/"},
		"absolute form, https, mounted": {"https://ocsp.test:8080/ocsp/" + encoded, "/ocsp/"},
	} {
		got, err := decodeTarget(nil, c.target, c.prefix)
		if err != nil || !bytes.Equal(got, der) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]struct{ target, prefix string }{
		"nothing":                {"/", "/"},
		"slashes":                {"///", "/"},
		"not base64":             {"/favicon.ico", "/"},
		"escape cut short":       {"/MFQ%2", "/"},
		"escape of no digits":    {"/MFQ%zz", "/"},
		"another path":           {"/" + encoded, "/ocsp/"},
		"a path like the prefix": {"/ocspMFQ=", "/ocsp/"},
		"a line end inside":      {"/MF%0AQw", "/"},
		"a query":                {"/" + encoded + "?a=b", "/"},
		"options":                {"*", "/"},
		"no path":                {"http://ocsp.test", "/"},
		"too long":               {"/" + strings.Repeat("A", MaxPathBytes), "/"},
		"three paddings":         {"/" + strings.TrimRight(encoded, "=") + "===", "/"},
	} {
		if got, err := decodeTarget(nil, c.target, c.prefix); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
}

func FuzzRequest(f *testing.F) {
	r := newRig(f, "p256")
	id, id256 := r.issuer.certID(SHA1, testSerial(f)), r.issuer.certID(SHA256, testSerial(f))
	for _, s := range []requestSpec{
		{ids: []CertID{id}}, {ids: []CertID{id256, id}, requestor: true, nonce: octets(make([]byte, 16)), version: []byte{2, 1, 0}, signature: true},
		{ids: []CertID{id}, critical: true}, {ids: []CertID{id}, singleExts: true, noParams: true},
	} {
		f.Add(s.der(f))
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		var got Request
		if err := got.Parse(der); err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("an error of another kind: %v", err)
			}
			return
		}
		if len(got.CertIDs) == 0 || len(got.CertIDs) > MaxCertIDs {
			t.Errorf("%d CertIDs", len(got.CertIDs))
		}
		// Go's parser reads the first CertID of what it takes; we read the same.
		want, err := xocsp.ParseRequest(der)
		if err != nil {
			return
		}
		id := got.CertIDs[0]
		if !bytes.Equal(id.NameHash, want.IssuerNameHash) || !bytes.Equal(id.KeyHash, want.IssuerKeyHash) {
			t.Errorf("another CertID than x/crypto reads: %+v", id)
		}
	})
}

func FuzzTarget(f *testing.F) {
	r := newRig(f, "p256")
	_, encoded := awkward(f, r.issuer)
	for _, s := range []string{"/" + encoded, "//" + url.QueryEscape(encoded), "http://h/" + encoded, "/%2B%20%", "*"} {
		f.Add(s, "/")
	}
	f.Add("/ocsp/"+encoded, "/ocsp/")
	f.Fuzz(func(t *testing.T, target, prefix string) {
		got, err := decodeTarget(nil, target, prefix)
		if err != nil {
			return
		}
		if len(got) > MaxPathBytes {
			t.Errorf("%d octets of a target of %d", len(got), len(target))
		}
		// What was decoded is found again from its plain form.
		again, err := decodeTarget(nil, "/"+base64.StdEncoding.EncodeToString(got), "/")
		if len(got) > 0 && base64.StdEncoding.EncodeToString(got)[0] != '/' && (err != nil || !bytes.Equal(again, got)) {
			t.Errorf("%x became %x, %v", got, again, err)
		}
	})
}
