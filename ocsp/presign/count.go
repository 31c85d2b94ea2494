package presign

import (
	"context"
	"time"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp"
)

// tally is what a walk through the records of Redis has seen.
type tally struct {
	records         int
	nearest, oldest int64 // Unix seconds; 0 while there is none
	overdue         map[serial.Number]string
}

// maxOverdue bounds the records that one walk asks the ledger about.
const maxOverdue = 100_000

// count walks through the records of this presigner's shards: it measures them, and
// removes those of certificates that have expired or that the ledger does not have.
// The sweep has just refreshed what the ledger has, so what is overdue is suspect.
func (p *Presigner) count(ctx context.Context, mask uint64) error {
	t := tally{overdue: map[serial.Number]string{}}
	now := p.deps.Now()
	for shards := range chunks(shardsOf(mask), countChunk) {
		rctx, cancel := p.redis(ctx)
		err := p.store.EachRecord(rctx, shards, func(n serial.Number, record string) { t.add(n, record, now, p.cfg.RefreshAt) })
		cancel()
		if err != nil {
			return err
		}
	}
	p.metrics.redisRecords.Set(float64(t.records))
	p.metrics.nearest.Set(float64(t.nearest))
	p.metrics.oldest.Set(float64(t.oldest))
	late, err := p.removeStrangers(ctx, t.overdue)
	if err != nil {
		return err
	}
	p.metrics.overdue.Set(float64(late))
	return nil
}

// countChunk is how many shards are read at once: at 10 million certificates, 3 MB.
const countChunk = 128

func shardsOf(mask uint64) []uint16 {
	out := make([]uint16, 0, ocsp.Shards)
	for shard := range ocsp.Shards {
		if mask>>sliceOfShard(uint16(shard))&1 != 0 {
			out = append(out, uint16(shard))
		}
	}
	return out
}

func (t *tally) add(n serial.Number, record string, now time.Time, refreshAt float64) {
	t.records++
	rec, err := ocsp.DecodeRecord(record)
	if err != nil {
		return // the sweep has counted it and signed it anew, if it is the ledger's
	}
	validity := float64(rec.NextUpdate - rec.ProducedAt)
	if float64(now.Unix()) >= float64(rec.ProducedAt)+validity*(refreshAt+0.1) && len(t.overdue) < maxOverdue {
		t.overdue[n] = record
	}
	if rec.Expired(now) {
		return
	}
	if t.nearest == 0 || rec.NextUpdate < t.nearest {
		t.nearest = rec.NextUpdate
	}
	if t.oldest == 0 || rec.ProducedAt < t.oldest {
		t.oldest = rec.ProducedAt
	}
}

// removeStrangers asks the ledger about overdue records and removes those that it
// does not know or that have expired with their certificate. It returns how many of
// the others could have been refreshed: one that lasts to its certificate's end is not
// signed again.
func (p *Presigner) removeStrangers(ctx context.Context, overdue map[serial.Number]string) (late int, err error) {
	serials := make([]serial.Number, 0, len(overdue))
	for n := range overdue {
		serials = append(serials, n)
	}
	for chunk := range chunks(serials, p.cfg.SweepPage) {
		known, err := p.deps.Ledger.Statuses(ctx, chunk)
		if err != nil {
			return late, err
		}
		alive := make(map[serial.Number]*ledger.Status, len(known))
		for i := range known {
			alive[known[i].Serial] = &known[i]
		}
		for _, n := range chunk {
			st := alive[n]
			if st != nil && p.deps.Now().Before(st.NotAfter) {
				if rec, err := ocsp.DecodeRecord(overdue[n]); err != nil || rec.NextUpdate < st.NotAfter.Unix() {
					late++
				}
				continue
			}
			if st == nil && p.deps.Now().Before(n.Bucket().End()) {
				p.metrics.mismatches.WithLabelValues(mismatchUnknown).Inc()
				p.deps.Log.Warn("Redis had a record of a certificate that the ledger does not have; it is removed", "serial", n)
			}
			rctx, cancel := p.redis(ctx)
			_, err := p.store.Drop(rctx, n, overdue[n])
			cancel()
			if err != nil {
				return late, err
			}
		}
	}
	return late, nil
}
