package crl

import (
	"github.com/certmill/certmill/internal/crldp"
	"github.com/certmill/certmill/ledger"
)

// deltas says how the sets of CRLs belong together (RFC 5280 section 5.2.4). Every set
// of CRLs may have one of deltas, shard by shard.
type deltas struct {
	base  map[int32]int32 // of a set of deltas
	has   map[int32]bool  // sets that have deltas
	ended map[int32]bool  // sets of deltas that are not made any more
}

// deltas sorts out the sets. With delta switched off, CRLs follow every revocation
// again, and deltas that were made before run out.
func (m *Maker) deltas(sets []ledger.CRLSet) deltas {
	d := deltas{base: map[int32]int32{}, has: map[int32]bool{}, ended: map[int32]bool{}}
	ids := map[crldp.Point]int32{}
	for _, s := range sets {
		ids[crldp.Point{URL: s.URL, Shards: s.Shards}] = s.ID
	}
	for _, s := range sets {
		point, is := crldp.Point{URL: s.URL, Shards: s.Shards}.Base()
		if !is {
			continue
		}
		base, known := ids[point]
		if !m.cfg.Delta || !known {
			d.ended[s.ID] = true
			continue
		}
		d.base[s.ID], d.has[base] = base, true
	}
	return d
}

// follows reports whether a revocation goes into the CRLs of a set at once, and not
// into their deltas.
func (d deltas) follows(set int32) bool { return !d.has[set] && !d.ended[set] }
