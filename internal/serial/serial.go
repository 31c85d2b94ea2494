// Package serial makes and reads certificate serial numbers.
//
// A serial is 16 octets (RFC 5280 section 4.1.2.2 allows 20):
//
//	octets 0–1   expiry bucket: when the certificate's ledger row may go
//	octets 2–5   signer epoch, big-endian: who signed it
//	octets 6–15  80 bits from a CSPRNG (CA/B BR 7.1 asks for 64)
//
// The first octet is 0x10–0x6f, so a serial is positive and its DER content is
// always these 16 octets. The bucket comes first so that serials sort by expiry:
// the ledger's primary key is its expiry order, a page of what expires next is a
// range of keys, and a partition of the past is a range of serials that is dropped
// whole. The epoch makes every certificate attributable to one start of one signer,
// and lets an OCSP responder refuse a serial that was never ours without a look-up.
package serial

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"time"
)

// Size is the length of a serial in octets.
const Size = 16

// Number is a certificate's serial number, big-endian as in DER.
type Number [Size]byte

// Bucket is the expiry bucket of a serial: a day, a month or a year, UTC, in which
// the certificate expires. Buckets of one class order by time.
type Bucket uint16

// The classes. Short-lived certificates leave by the day, others by the month or
// the year, so that a table of the living has tens of partitions, not thousands.
const (
	dayBase   Bucket = 0x1000
	monthBase Bucket = 0x4000
	yearBase  Bucket = 0x6000
	end       Bucket = 0x7000

	// DayMax and MonthMax are the longest lifetimes of the first two classes.
	DayMax   = 8 * 24 * time.Hour
	MonthMax = 400 * 24 * time.Hour

	baseYear = 2024
)

var baseDay = time.Date(baseYear, 1, 1, 0, 0, 0, 0, time.UTC)

// BucketOf returns the bucket of a certificate by its lifetime and end. It fails
// for a notAfter before 2024 or beyond the class's range (2057 for days).
func BucketOf(notBefore, notAfter time.Time) (Bucket, error) {
	notAfter = notAfter.UTC()
	var n int
	var base, limit Bucket
	switch life := notAfter.Sub(notBefore); {
	case life <= DayMax:
		n, base, limit = int(notAfter.Sub(baseDay)/(24*time.Hour)), dayBase, monthBase
	case life <= MonthMax:
		n, base, limit = (notAfter.Year()-baseYear)*12+int(notAfter.Month())-1, monthBase, yearBase
	default:
		n, base, limit = notAfter.Year()-baseYear, yearBase, end
	}
	if notAfter.Before(baseDay) || n >= int(limit-base) {
		return 0, fmt.Errorf("notAfter %s is outside the range of serial buckets", notAfter.Format(time.RFC3339))
	}
	return base + Bucket(n), nil
}

// End returns the first instant after the bucket: when all its certificates have expired.
func (b Bucket) End() time.Time {
	switch {
	case b < monthBase:
		return baseDay.AddDate(0, 0, int(b-dayBase)+1)
	case b < yearBase:
		return baseDay.AddDate(0, int(b-monthBase)+1, 0)
	default:
		return baseDay.AddDate(int(b-yearBase)+1, 0, 0)
	}
}

// Ranges returns the buckets [first, last] of each class that can hold a
// certificate expiring in [from, to]. Ends outside a class's range are clamped.
func Ranges(from, to time.Time) [][2]Bucket {
	if from.Before(baseDay) {
		from = baseDay
	}
	if to.Before(from) {
		to = from
	}
	from, to = from.UTC(), to.UTC()
	clamp := func(base, limit Bucket, n int) Bucket { return base + Bucket(min(max(n, 0), int(limit-base)-1)) }
	day := func(t time.Time) int {
		// Sub saturates at 292 years, which is beyond the last day bucket anyway.
		return int(t.Sub(baseDay) / (24 * time.Hour))
	}
	month := func(t time.Time) int { return (t.Year()-baseYear)*12 + int(t.Month()) - 1 }
	year := func(t time.Time) int { return t.Year() - baseYear }
	return [][2]Bucket{
		{clamp(dayBase, monthBase, day(from)), clamp(dayBase, monthBase, day(to))},
		{clamp(monthBase, yearBase, month(from)), clamp(monthBase, yearBase, month(to))},
		{clamp(yearBase, end, year(from)), clamp(yearBase, end, year(to))},
	}
}

// Daily reports whether the bucket is one of short-lived certificates, which leave by
// the day.
func (b Bucket) Daily() bool { return b < monthBase }

// First returns the smallest serial of the bucket, for key ranges.
func (b Bucket) First() Number {
	var n Number
	binary.BigEndian.PutUint16(n[:], uint16(b))
	return n
}

// WithEpoch returns the least number of an epoch that sorts like n's bucket: between it
// and that of the next epoch lie all the serials of the epoch in the bucket.
func (n Number) WithEpoch(epoch uint32) Number {
	var out Number
	copy(out[:2], n[:2])
	binary.BigEndian.PutUint32(out[2:], epoch)
	return out
}

// New makes a serial for a certificate with these times, in this epoch, with 80
// bits read from random (crypto/rand.Reader). Epoch 0 is refused: it stands for
// "no epoch".
func New(random io.Reader, epoch uint32, notBefore, notAfter time.Time) (Number, error) {
	var n Number
	if epoch == 0 {
		return n, errors.New("a serial needs a signer epoch")
	}
	b, err := BucketOf(notBefore, notAfter)
	if err != nil {
		return n, err
	}
	binary.BigEndian.PutUint16(n[0:], uint16(b))
	binary.BigEndian.PutUint32(n[2:], epoch)
	if _, err := io.ReadFull(random, n[6:]); err != nil {
		return Number{}, fmt.Errorf("reading random bits for a serial: %w", err)
	}
	return n, nil
}

// Bucket returns the expiry bucket.
func (n Number) Bucket() Bucket { return Bucket(binary.BigEndian.Uint16(n[0:])) }

// Epoch returns the signer epoch.
func (n Number) Epoch() uint32 { return binary.BigEndian.Uint32(n[2:]) }

// Big returns the serial for crypto/x509.
func (n Number) Big() *big.Int { return new(big.Int).SetBytes(n[:]) }

// String returns 32 lower-case hexadecimal digits.
func (n Number) String() string { return hex.EncodeToString(n[:]) }

// FromBytes reads the content octets of a DER INTEGER or a ledger key. It fails
// for anything that New cannot have made.
func FromBytes(b []byte) (Number, error) {
	var n Number
	if len(b) != Size {
		return n, fmt.Errorf("a serial has %d octets, not %d", Size, len(b))
	}
	copy(n[:], b)
	if k := n.Bucket(); k < dayBase || k >= end || n.Epoch() == 0 {
		return Number{}, errors.New("not a serial of certmill: bucket or epoch out of range")
	}
	return n, nil
}

// FromBig reads the serial of a parsed certificate, under the rules of FromBytes.
func FromBig(i *big.Int) (Number, error) {
	if i == nil || i.Sign() <= 0 || i.BitLen() > 8*Size {
		return Number{}, errors.New("not a serial of certmill: out of range")
	}
	var b [Size]byte
	i.FillBytes(b[:])
	return FromBytes(b[:])
}

// Parse reads hexadecimal digits in either case, with or without colons.
func Parse(s string) (Number, error) {
	if len(s) > 3*Size {
		return Number{}, fmt.Errorf("a serial has %d hexadecimal digits", 2*Size)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
	if err != nil {
		return Number{}, fmt.Errorf("a serial has %d hexadecimal digits: %w", 2*Size, err)
	}
	return FromBytes(b)
}
