package signer

import (
	"crypto/sha256"
	"encoding/asn1"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
)

// validity is the two ends of a certificate, whole seconds UTC, both inclusive.
type validity struct{ notBefore, notAfter time.Time }

// tbs builds the TBSCertificate (RFC 5280 section 4.1) of a request that the profile
// has allowed.
func (t *template) tbs(r *profile.Request, number serial.Number, v validity) ([]byte, error) {
	keyID, err := subjectKeyID(r.SPKI)
	if err != nil {
		return nil, err
	}
	extensions := t.extensionsFor(number)
	// One allocation: what varies beyond this is the names, which append.
	b := cryptobyte.NewBuilder(make([]byte, 0, len(t.issuer)+len(t.algorithm)+len(extensions)+len(r.SPKI)+512))
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes([]byte{0xa0, 3, 2, 1, 2}) // version [0] EXPLICIT v3
		b.AddASN1(der.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(number[:]) })
		b.AddBytes(t.algorithm)
		b.AddBytes(t.issuer)
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, v.notBefore)
			addTime(b, v.notAfter)
		})
		t.addSubject(b, r.CommonName)
		b.AddBytes(r.SPKI)
		b.AddASN1(der.Tag(3).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
				addNames(b, r, len(t.subject) == 0 && r.CommonName == "")
				addExtension(b, oidSubjectKeyID, false, func(b *cryptobyte.Builder) { b.AddASN1OctetString(keyID[:]) })
				b.AddBytes(extensions)
			})
		})
	})
	return b.Bytes()
}

// addTime: UTCTime through 2049 and GeneralizedTime from then on (RFC 5280 section 4.1.2.5).
func addTime(b *cryptobyte.Builder, t time.Time) {
	t = t.UTC()
	if t.Year() >= 2050 {
		b.AddASN1GeneralizedTime(t)
		return
	}
	b.AddASN1(der.UTCTime, func(b *cryptobyte.Builder) {
		// As Builder.AddASN1UTCTime does it, without the work of a time layout.
		hour, minute, second := t.Clock()
		year, month, day := t.Date()
		var text [13]byte
		for i, n := range [6]int{year % 100, int(month), day, hour, minute, second} {
			text[2*i], text[2*i+1] = '0'+byte(n/10), '0'+byte(n%10)
		}
		text[12] = 'Z'
		b.AddBytes(text[:])
	})
}

// The attributes of a subject (X.520).
var (
	oidCountry      = asn1.ObjectIdentifier{2, 5, 4, 6}
	oidOrganization = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidCommonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
)

// addSubject adds the Name: what the profile puts into every subject, and the common
// name, each where it is not empty.
func (t *template) addSubject(b *cryptobyte.Builder, commonName string) {
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(t.subject)
		addAttribute(b, oidCommonName, commonName)
	})
}

// fixedSubject returns the attributes that a profile puts into every subject.
func fixedSubject(s profile.Subject) ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	addAttribute(b, oidCountry, s.Country)
	addAttribute(b, oidOrganization, s.Organization)
	return b.Bytes()
}

// addAttribute adds a name's attribute, unless it is empty. It is a PrintableString
// where its characters allow and a UTF8String elsewhere, as crypto/x509 does.
func addAttribute(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, value string) {
	if value == "" {
		return
	}
	b.AddASN1(der.SET, func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			tag := der.PrintableString
			if !isPrintable(value) {
				tag = der.UTF8String
			}
			addString(b, tag, value)
		})
	})
}

// isPrintable reports whether s is a PrintableString (X.680 section 41.4).
func isPrintable(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == ' ', '\'' <= c && c <= ')', '+' <= c && c <= '/', c == ':', c == '=', c == '?':
		default:
			return false
		}
	}
	return true
}

// subjectKeyID is method 1 of RFC 7093 section 2: the leftmost 160 bits of the SHA-256
// over the bits of the public key. RFC 5280's SHA-1 is left out since nothing that
// checks chains recomputes it, and some platforms refuse to compute it.
func subjectKeyID(spki []byte) (id [20]byte, err error) {
	input := cryptobyte.String(spki)
	var key cryptobyte.String
	var bits []byte
	if !input.ReadASN1(&key, der.SEQUENCE) || !key.SkipASN1(der.SEQUENCE) || !key.ReadASN1BitStringAsBytes(&bits) {
		return id, fmt.Errorf("the SubjectPublicKeyInfo of the request is not DER")
	}
	sum := sha256.Sum256(bits)
	copy(id[:], sum[:])
	return id, nil
}
