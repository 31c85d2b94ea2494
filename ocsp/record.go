package ocsp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"time"
)

// Status is what one answer says, without its signature. Times are Unix seconds:
// an answer has no fractions of a second (RFC 9919 section 3.2.4).
type Status struct {
	ProducedAt int64
	ThisUpdate int64
	NextUpdate int64
	// Revoked, and since when and why (RFC 5280 CRLReason). Reason 0, unspecified, is
	// not written into the answer.
	Revoked   bool
	RevokedAt int64
	Reason    uint8
}

// Record is what Redis holds for one certificate: a status and the signatures over
// the answers that state it, one for each hash of a CertID. The codec makes about
// 140 octets of it with P-256; README.md has the arithmetic.
//
//	octet 0      0x80 revoked, 0x40 SHA-256 signature, 0x20 SHA-1 signature, low bits: version 1
//	octets 1–4   thisUpdate, big-endian
//	uvarint      nextUpdate − thisUpdate
//	uvarint      producedAt − thisUpdate
//	uvarint      signer: OCSPSigner.ID
//	5 octets     only if revoked: revokedAt, big-endian, and reason
//	the rest     the signatures, SHA-1 first, of one length each: ECDSA as r ‖ s
//
// The first five octets decide which of two records stands: revoked over good, then
// the later thisUpdate. put.lua compares them in Redis.
type Record struct {
	Status
	Signer     int32
	Signatures [Hashes]string // by Hash; empty where there is none
}

const (
	recordVersion = 1
	versionMask   = 0x1f
	flagSHA1      = 0x20
	flagSHA256    = 0x40
	flagRevoked   = 0x80

	recordHead = 5 // octets that put.lua compares
)

var errRecord = errors.New("not a record of an OCSP answer")

var hashFlags = [Hashes]byte{SHA1: flagSHA1, SHA256: flagSHA256}

// AppendTo appends the encoded record. It fails where a time cannot be held: before
// 1970, after 2106, or out of order.
func (r *Record) AppendTo(dst []byte) ([]byte, error) {
	if !fits(r.ThisUpdate) || r.NextUpdate < r.ThisUpdate || r.ProducedAt < r.ThisUpdate || r.Signer < 0 ||
		r.Revoked && !fits(r.RevokedAt) {
		return dst, fmt.Errorf("%w: times or signer out of range", errRecord)
	}
	head := byte(recordVersion)
	length := 0
	for h, sig := range r.Signatures {
		if sig == "" {
			continue
		}
		if length != 0 && length != len(sig) {
			return dst, fmt.Errorf("%w: signatures of unequal length", errRecord)
		}
		length = len(sig)
		head |= hashFlags[h]
	}
	if length == 0 {
		return dst, fmt.Errorf("%w: no signature", errRecord)
	}
	if r.Revoked {
		head |= flagRevoked
	}
	dst = append(dst, head)
	dst = binary.BigEndian.AppendUint32(dst, uint32(r.ThisUpdate))
	dst = binary.AppendUvarint(dst, uint64(r.NextUpdate-r.ThisUpdate))
	dst = binary.AppendUvarint(dst, uint64(r.ProducedAt-r.ThisUpdate))
	dst = binary.AppendUvarint(dst, uint64(r.Signer))
	if r.Revoked {
		dst = binary.BigEndian.AppendUint32(dst, uint32(r.RevokedAt))
		dst = append(dst, r.Reason)
	}
	for _, sig := range r.Signatures {
		dst = append(dst, sig...)
	}
	return dst, nil
}

func fits(t int64) bool { return t >= 0 && t <= math.MaxUint32 }

// DecodeRecord reads an encoded record; the signatures lie in s. It allocates nothing.
func DecodeRecord(s string) (Record, error) {
	var r Record
	if len(s) < recordHead || s[0]&versionMask != recordVersion {
		return r, errRecord
	}
	head := s[0]
	r.Revoked = head&flagRevoked != 0
	r.ThisUpdate = int64(beUint32(s[1:]))
	s = s[recordHead:]
	next, s, ok1 := cutUvarint(s)
	produced, s, ok2 := cutUvarint(s)
	signer, s, ok3 := cutUvarint(s)
	if !ok1 || !ok2 || !ok3 || signer > math.MaxInt32 || next > math.MaxUint32 || produced > math.MaxUint32 {
		return Record{}, errRecord
	}
	r.NextUpdate, r.ProducedAt, r.Signer = r.ThisUpdate+int64(next), r.ThisUpdate+int64(produced), int32(signer)
	if r.Revoked {
		if len(s) < 5 {
			return Record{}, errRecord
		}
		r.RevokedAt, r.Reason = int64(beUint32(s)), s[4]
		s = s[5:]
	}
	n := bits.OnesCount8(head & (flagSHA1 | flagSHA256))
	if n == 0 || len(s) == 0 || len(s)%n != 0 {
		return Record{}, errRecord
	}
	each := len(s) / n
	for h := range r.Signatures {
		if head&hashFlags[h] != 0 {
			r.Signatures[h], s = s[:each], s[each:]
		}
	}
	return r, nil
}

// stands reports whether the encoded record a stands against b: it is revoked and b
// is not, or it is as late in the same status. It is put.lua's rule for the cache.
func stands(a, b string) bool {
	if len(a) < recordHead {
		return false
	}
	if len(b) < recordHead {
		return true
	}
	if ra, rb := a[0]&flagRevoked, b[0]&flagRevoked; ra != rb {
		return ra != 0
	}
	return beUint32(a[1:]) >= beUint32(b[1:])
}

// Expired reports whether the answer may no longer be given at now.
func (s *Status) Expired(now time.Time) bool { return now.Unix() >= s.NextUpdate }

func beUint32(s string) uint32 {
	return uint32(s[0])<<24 | uint32(s[1])<<16 | uint32(s[2])<<8 | uint32(s[3])
}

// cutUvarint reads a uvarint from the front of s; one that is not minimal is refused,
// so that a record has one encoding.
func cutUvarint(s string) (v uint64, rest string, ok bool) {
	for i := 0; i < len(s) && i < 5; i++ {
		c := s[i]
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			return v, s[i+1:], i == 0 || c != 0
		}
	}
	return 0, s, false
}
