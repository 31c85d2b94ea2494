package crl

import (
	"encoding/asn1"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/tlv"
)

// Header is what a CRL says beside its entries (RFC 5280 section 5.1).
type Header struct {
	// Issuer is the issuer's subject, byte for byte, and AuthorityKeyID its subject key
	// identifier.
	Issuer         []byte
	AuthorityKeyID []byte
	// Algorithm is the AlgorithmIdentifier of the signature, as DER.
	Algorithm              []byte
	Number                 int64
	ThisUpdate, NextUpdate time.Time // whole seconds
	// DistributionPoint is the URL in the certificates that this CRL is for; "" means a
	// complete CRL.
	DistributionPoint string
	// Freshest is the URL of the delta CRL to this one; "" means none.
	Freshest string
	// BaseNumber is the number of the CRL that this one is the delta to; 0 means that it
	// is none.
	BaseNumber int64
	// Count is of the entries that follow: DER puts lengths before contents.
	Count Count
}

// Count is what the length of the entries depends on.
type Count struct {
	Entries     int64
	Unspecified int64 // of them with reason 0, which is left out (RFC 5280 section 5.3.1)
	Late        int64 // of them revoked in 2050 or later
}

var (
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidCRLNumber      = asn1.ObjectIdentifier{2, 5, 29, 20}
	oidIssuingPoint   = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidDelta          = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidFreshest       = asn1.ObjectIdentifier{2, 5, 29, 46}
)

const (
	tagSequence    = byte(0x30)
	tagExtensions  = 0xa0 // [0] EXPLICIT
	serialTLV      = 2 + serial.Size
	utcTimeTLV     = 2 + len("YYMMDDHHMMSSZ")
	generalTimeTLV = 2 + len("YYYYMMDDHHMMSSZ")
	entryHeader    = 2 // an entry is shorter than 128 octets
)

// reasonExtension is crlEntryExtensions with a reasonCode, but for the reason itself.
var reasonExtension = []byte{0x30, 12, 0x30, 10, 0x06, 3, 0x55, 0x1d, 0x15, 0x04, 3, 0x0a, 1}

// reasonTLV is the length of the whole.
const reasonTLV = 14

// entriesLength is the length of the entries' contents.
func (c *Count) entriesLength() int64 {
	return c.Entries*int64(entryHeader+serialTLV+utcTimeTLV) + (c.Entries-c.Unspecified)*reasonTLV + c.Late*int64(generalTimeTLV-utcTimeTLV)
}

// entryHeader ‖ serial ‖ time ‖ reason. The octets of a serial are a positive INTEGER
// as they stand (see package serial).
func appendEntry(dst []byte, n serial.Number, revokedAt time.Time, reason int16) []byte {
	start := len(dst)
	dst = append(dst, tagSequence, 0, byte(der.INTEGER), serial.Size)
	dst = append(dst, n[:]...)
	dst = appendTime(dst, revokedAt)
	if reason != 0 {
		dst = append(append(dst, reasonExtension...), byte(reason))
	}
	dst[start+1] = byte(len(dst) - start - entryHeader)
	return dst
}

// appendTime: UTCTime through 2049, GeneralizedTime from then on (RFC 5280 section 5.1.2.4).
func appendTime(dst []byte, t time.Time) []byte {
	t = t.UTC()
	if late(t) {
		return t.AppendFormat(append(dst, byte(der.GeneralizedTime), byte(generalTimeTLV-2)), "20060102150405Z")
	}
	return t.AppendFormat(append(dst, byte(der.UTCTime), byte(utcTimeTLV-2)), "060102150405Z")
}

func late(t time.Time) bool { return t.UTC().Year() >= 2050 }

// ends returns the tbsCertList without its entries: what goes before and after them.
func (h *Header) ends() (head, tail []byte, err error) {
	if tail, err = h.extensions(); err != nil {
		return nil, nil, fmt.Errorf("encoding the CRL's extensions: %w", err)
	}
	body := append([]byte{byte(der.INTEGER), 1, 1}, h.Algorithm...) // version v2
	body = append(body, h.Issuer...)
	body = appendTime(appendTime(body, h.ThisUpdate), h.NextUpdate)
	if n := h.Count.entriesLength(); n > 0 { // without entries the list is left out
		body = tlv.AppendHead(body, tagSequence, n)
	}
	total := int64(len(body)+len(tail)) + h.Count.entriesLength()
	return append(tlv.AppendHead(nil, tagSequence, total), body...), tail, nil
}

func (h *Header) extensions() ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(der.Tag(tagExtensions), func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			addExtension(b, oidAuthorityKeyID, false, func(b *cryptobyte.Builder) {
				b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(der.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(h.AuthorityKeyID) })
				})
			})
			addExtension(b, oidCRLNumber, false, func(b *cryptobyte.Builder) { b.AddASN1Int64(h.Number) })
			if h.BaseNumber != 0 {
				addExtension(b, oidDelta, true, func(b *cryptobyte.Builder) { b.AddASN1Int64(h.BaseNumber) })
			}
			if h.DistributionPoint != "" {
				addExtension(b, oidIssuingPoint, true, func(b *cryptobyte.Builder) { addPoint(b, h.DistributionPoint) })
			}
			if h.Freshest != "" { // CRLDistributionPoints, RFC 5280 section 5.2.6
				addExtension(b, oidFreshest, false, func(b *cryptobyte.Builder) {
					b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) { addPoint(b, h.Freshest) })
				})
			}
		})
	})
	return b.Bytes()
}

// addPoint is a distribution point with a full name, in the form that
// IssuingDistributionPoint (RFC 5280 section 5.2.5: the CRL cannot be taken for that of
// another shard) and DistributionPoint (section 4.2.1.13) share.
func addPoint(b *cryptobyte.Builder, url string) {
	explicit := der.Tag(0).ContextSpecific().Constructed()
	uri := der.Tag(6).ContextSpecific()
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(explicit, func(b *cryptobyte.Builder) {
			b.AddASN1(explicit, func(b *cryptobyte.Builder) {
				b.AddASN1(uri, func(b *cryptobyte.Builder) { b.AddBytes([]byte(url)) })
			})
		})
	})
}

func addExtension(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, critical bool, value cryptobyte.BuilderContinuation) {
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(der.OCTET_STRING, value)
	})
}
