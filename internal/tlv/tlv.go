// Package tlv writes the tag and length of DER elements (X.690) whose content has a
// length that is known before it is written, as it is on the paths where everything
// goes into one piece of memory.
package tlv

import "math/bits"

// Size returns the octets of an element with n octets of content and a tag of one octet.
func Size[N int | int64](n N) N { return 1 + LengthSize(n) + n }

// LengthSize returns the octets of the length of n octets of content.
func LengthSize[N int | int64](n N) N {
	if n < 0x80 {
		return 1
	}
	return 1 + N(bits.Len64(uint64(n))+7)/8
}

// AppendHead appends a tag of one octet and the length of n octets of content, in the
// shortest form (X.690 section 10.1).
func AppendHead[T ~uint8, N int | int64](b []byte, tag T, n N) []byte {
	if n < 0x80 {
		return append(b, byte(tag), byte(n))
	}
	octets := LengthSize(n) - 1
	b = append(b, byte(tag), 0x80|byte(octets))
	for octets--; octets >= 0; octets-- {
		b = append(b, byte(n>>(8*octets)))
	}
	return b
}
