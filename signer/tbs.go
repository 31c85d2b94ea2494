package signer

import (
	"bytes"
	"crypto/sha256"
	"encoding/asn1"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/tlv"
)

// validity is the two ends of a certificate, whole seconds UTC, both inclusive.
type validity struct{ notBefore, notAfter time.Time }

// tbs builds the TBSCertificate (RFC 5280 section 4.1) of a request that the profile
// has allowed, in one piece of memory: all lengths are known before anything is written.
func (t *template) tbs(r *profile.Request, number serial.Number, v validity) ([]byte, error) {
	keyID, err := subjectKeyID(r.SPKI)
	if err != nil {
		return nil, err
	}
	if v.notAfter.Year() > 9999 {
		return nil, fmt.Errorf("notAfter %s is after the year 9999 (RFC 5280 section 4.1.2.5)", v.notAfter)
	}
	subject, err := t.subjectFor(r.CommonName)
	if err != nil {
		return nil, err
	}
	names := newNames(r, len(subject) == 0)
	fixed := t.extensionsFor(number)

	validitySize := sizeOfTime(v.notBefore) + sizeOfTime(v.notAfter)
	extensions := names.size() + len(subjectKeyIDHead) + len(keyID) + len(fixed)
	list := tlv.Size(extensions)
	size := len(version3) + tlv.Size(len(number)) + len(t.algorithm) + len(t.issuer) + tlv.Size(validitySize) +
		tlv.Size(len(subject)) + len(r.SPKI) + tlv.Size(list)

	b := make([]byte, 0, tlv.Size(size))
	b = tlv.AppendHead(b, der.SEQUENCE, size)
	b = append(b, version3...)
	b = append(tlv.AppendHead(b, der.INTEGER, len(number)), number[:]...)
	b = append(b, t.algorithm...)
	b = append(b, t.issuer...)
	b = tlv.AppendHead(b, der.SEQUENCE, validitySize)
	b = appendTime(b, v.notBefore)
	b = appendTime(b, v.notAfter)
	b = append(tlv.AppendHead(b, der.SEQUENCE, len(subject)), subject...)
	b = append(b, r.SPKI...)
	b = tlv.AppendHead(b, der.Tag(3).ContextSpecific().Constructed(), list)
	b = tlv.AppendHead(b, der.SEQUENCE, extensions)
	b = names.append(b)
	b = append(append(b, subjectKeyIDHead...), keyID[:]...)
	return append(b, fixed...), nil
}

var (
	version3 = []byte{0xa0, 3, 2, 1, 2} // [0] EXPLICIT INTEGER 2
	// subjectKeyIDHead is the subject key identifier's extension up to its 20 octets.
	subjectKeyIDHead = []byte{0x30, 29, 6, 3, 0x55, 0x1d, 14, 4, 22, 4, 20}
)

// inUTCTime: UTCTime through 2049 and GeneralizedTime from then on (RFC 5280 section 4.1.2.5).
func inUTCTime(t time.Time) bool { return t.UTC().Year() < 2050 }

func sizeOfTime(t time.Time) int {
	if inUTCTime(t) {
		return tlv.Size(len("YYMMDDHHMMSSZ"))
	}
	return tlv.Size(len("YYYYMMDDHHMMSSZ"))
}

func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	if inUTCTime(t) {
		b = tlv.AppendHead(b, der.UTCTime, len("YYMMDDHHMMSSZ"))
	} else {
		b = appendTwoDigits(tlv.AppendHead(b, der.GeneralizedTime, len("YYYYMMDDHHMMSSZ")), year/100)
	}
	for _, n := range [6]int{year % 100, int(month), day, hour, minute, second} {
		b = appendTwoDigits(b, n)
	}
	return append(b, 'Z')
}

func appendTwoDigits(b []byte, n int) []byte { return append(b, '0'+byte(n/10), '0'+byte(n%10)) }

// The attributes of a subject (X.520).
var (
	oidCountry      = asn1.ObjectIdentifier{2, 5, 4, 6}
	oidOrganization = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidCommonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
)

// subjectFor returns the content of the Name: what the profile puts into every subject,
// and the common name, each where it is not empty.
func (t *template) subjectFor(commonName string) ([]byte, error) {
	if commonName == "" {
		return t.subject, nil
	}
	b := cryptobyte.NewBuilder(bytes.Clone(t.subject))
	addAttribute(b, oidCommonName, commonName)
	return b.Bytes()
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
