package presign

import (
	"hash/maphash"
	"sync"

	"github.com/certmill/certmill/internal/serial"
)

// checked remembers which revoked records were verified, so that a sweep does not
// verify again, at 170 µs each, what has not changed since the last one. It is a table
// of fixed size in which a later record takes an earlier one's place: what is forgotten
// is verified once more. The hash is keyed by a secret of the process, so nobody can
// make a record that passes for another. The zero value is ready; it is safe for
// concurrent use.
type checked struct {
	mu    sync.Mutex
	seed  maphash.Seed
	table []uint64
}

// checkedSlots makes a table of 8 MB, which is there from the first revocation on.
const checkedSlots = 1 << 20

func (c *checked) hash(n serial.Number, record string) uint64 {
	var h maphash.Hash
	h.SetSeed(c.seed)
	_, _ = h.Write(n[:])
	_, _ = h.WriteString(record) // a hash takes everything
	return h.Sum64() | 1         // 0 is an empty slot
}

func (c *checked) has(n serial.Number, record string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.table == nil {
		return false
	}
	h := c.hash(n, record)
	return c.table[h>>44] == h
}

func (c *checked) add(n serial.Number, record string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.table == nil {
		c.seed, c.table = maphash.MakeSeed(), make([]uint64, checkedSlots)
	}
	h := c.hash(n, record)
	c.table[h>>44] = h // the upper 20 bits, since the lowest is fixed
}
