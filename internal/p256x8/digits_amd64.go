package p256x8

import "encoding/binary"

// scalar is a number of 256 bits, the lowest word first.
type scalar [4]uint64

func scalarOf(b *[octets]byte) (k scalar) {
	for i := range k {
		k[i] = binary.BigEndian.Uint64(b[octets-8*(i+1):])
	}
	return k
}

// recode writes k as signed digits of the given number of bits, the lowest first, each
// between -2^(bits-1)+1 and 2^(bits-1). There must be enough of them for the last not to
// fill its bits.
func (k *scalar) recode(to []int16, bits int) {
	carry := 0
	for i := range to {
		at := i * bits
		word := k[at/64] >> (at % 64)
		if at/64+1 < len(k) {
			word |= k[at/64+1] << 1 << (63 - at%64)
		}
		d := int(word&(1<<bits-1)) + carry
		carry = 0
		if d > 1<<(bits-1) {
			d -= 1 << bits
			carry = 1
		}
		to[i] = int16(d)
	}
}

// choice is which entry of a table is added in each lane.
type choice struct {
	offsets         lanes // in octets
	apply, negative uint64
}

// choose takes for a lane the entry of digit d, where entries are size octets apart and
// the first begins at the octet base.
func (c *choice) choose(lane int, d int16, size, base int) {
	bit := uint64(1) << lane
	c.offsets[lane] = uint64(base)
	switch {
	case d > 0:
		c.apply |= bit
		c.offsets[lane] += uint64(int(d-1) * size)
	case d < 0:
		c.apply |= bit
		c.negative |= bit
		c.offsets[lane] += uint64(int(-d-1) * size)
	}
}
