package check

import (
	"errors"
	"fmt"
	"hash/maphash"
	"sync"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Serial returns the content octets of a certificate's serial number without parsing
// the rest. It must be positive and at most 20 octets (RFC 5280 section 4.1.2.2).
func Serial(der []byte) ([]byte, error) {
	in := cryptobyte.String(der)
	var cert, tbs, serial cryptobyte.String
	if !in.ReadASN1(&cert, asn1.SEQUENCE) || !in.Empty() || !cert.ReadASN1(&tbs, asn1.SEQUENCE) ||
		!tbs.SkipOptionalASN1(asn1.Tag(0).Constructed().ContextSpecific()) || !tbs.ReadASN1(&serial, asn1.INTEGER) {
		return nil, errors.New("the answer is not a certificate")
	}
	if len(serial) == 0 || len(serial) > 20 || serial[0]&0x80 != 0 || (len(serial) == 1 && serial[0] == 0) {
		return nil, fmt.Errorf("serial %x is not positive or longer than 20 octets", []byte(serial))
	}
	return serial, nil
}

const (
	// exactSerials is up to how many serials are kept as they are: some 60 MB.
	exactSerials = 1 << 20
	// maxHashes bounds the table of hashes after that: 8 bytes each, 256 MB.
	maxHashes = 1 << 25
)

// SerialSet finds out whether a serial has been seen before, in bounded memory: the
// first million exactly; up to 25 million in a table of 64-bit keyed hashes, where a
// false alarm has a chance of n²/2⁶⁵ for the whole run (1 in 50,000 at 25 million);
// what comes after that is not remembered, and the summary says so. It is safe for
// concurrent use.
type SerialSet struct {
	mu       sync.Mutex
	exact    map[[20]byte]struct{}
	limit    int // of exact
	seed     maphash.Seed
	hashes   []uint64 // open addressing; 0 is free
	used     int
	maxTable int
	count    int64
	missed   int64
}

// NewSerialSet makes an empty set.
func NewSerialSet() *SerialSet { return newSerialSet(exactSerials, maxHashes) }

func newSerialSet(exact, table int) *SerialSet {
	return &SerialSet{exact: map[[20]byte]struct{}{}, limit: exact, maxTable: table, seed: maphash.MakeSeed()}
}

// Add adds a serial of at most 20 octets and reports whether it was there.
func (s *SerialSet) Add(serial []byte) bool {
	var key [20]byte
	copy(key[20-len(serial):], serial)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	if s.hashes == nil {
		if _, seen := s.exact[key]; seen {
			return true
		}
		if len(s.exact) < s.limit {
			s.exact[key] = struct{}{}
			return false
		}
		s.spill()
	}
	h := s.hash(key)
	if s.find(h) {
		return true
	}
	if s.used >= len(s.hashes)/4*3 {
		if 2*len(s.hashes) > s.maxTable {
			s.missed++
			return false
		}
		s.grow()
	}
	s.insert(h)
	return false
}

// spill moves the exact serials into the table of hashes.
func (s *SerialSet) spill() {
	size := 16
	for size/4*3 <= 2*s.limit {
		size *= 2
	}
	s.hashes = make([]uint64, size)
	for key := range s.exact {
		s.insert(s.hash(key))
	}
	s.exact = nil
}

func (s *SerialSet) hash(key [20]byte) uint64 { return max(maphash.Bytes(s.seed, key[:]), 1) }

func (s *SerialSet) find(h uint64) bool {
	mask := uint64(len(s.hashes) - 1)
	for i := h & mask; s.hashes[i] != 0; i = (i + 1) & mask {
		if s.hashes[i] == h {
			return true
		}
	}
	return false
}

func (s *SerialSet) insert(h uint64) {
	mask := uint64(len(s.hashes) - 1)
	i := h & mask
	for s.hashes[i] != 0 {
		i = (i + 1) & mask
	}
	s.hashes[i] = h
	s.used++
}

func (s *SerialSet) grow() {
	old := s.hashes
	s.hashes, s.used = make([]uint64, 2*len(old)), 0
	for _, h := range old {
		if h != 0 {
			s.insert(h)
		}
	}
}

// String says how uniqueness was checked.
func (s *SerialSet) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.hashes == nil:
		return fmt.Sprintf("%d, each compared with all others", s.count)
	case s.missed == 0:
		return fmt.Sprintf("%d, compared by 64-bit hash", s.count)
	default:
		return fmt.Sprintf("%d, compared by 64-bit hash with the first %d", s.count, s.used)
	}
}
