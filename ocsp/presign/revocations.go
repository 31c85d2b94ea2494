package presign

import (
	"context"

	"github.com/certmill/certmill/ledger"
)

// eachRevocation pages through the revocations after a sequence, as statuses, with the
// sequence of the last of each page.
func (p *Presigner) eachRevocation(ctx context.Context, after int64, limit int, fn func(page []ledger.Status, last int64) error) error {
	for {
		revocations, err := p.deps.Ledger.Revocations(ctx, after, limit)
		if err != nil || len(revocations) == 0 {
			return err
		}
		after = revocations[len(revocations)-1].Sequence
		page := make([]ledger.Status, len(revocations))
		for i := range revocations {
			r := &revocations[i]
			page[i] = ledger.Status{Serial: r.Serial, Issuer: r.Issuer, NotAfter: r.NotAfter, Revocation: r.Services, Revoked: r}
		}
		if err := fn(page, after); err != nil {
			return err
		}
	}
}

// pollRevocations asks the ledger for new revocations until ctx ends. Events bring
// them sooner; this bounds the delay when an event is lost or NATS is down. Where to
// begin is of no weight: a presigner that starts sweeps all revocations that Redis
// does not have.
func (p *Presigner) pollRevocations(ctx context.Context) {
	var cursor int64
	p.every(ctx, p.cfg.RevocationPoll, "asking the ledger for revocations", func(ctx context.Context) error {
		return p.eachRevocation(ctx, cursor, p.cfg.SweepPage, func(page []ledger.Status, last int64) error {
			if err := p.publishRevoked(ctx, page); err != nil {
				return err
			}
			cursor = last
			return nil
		})
	})
}

// publishRevoked publishes the revocations of a page, of this presigner's slices, that
// Redis does not have.
func (p *Presigner) publishRevoked(ctx context.Context, page []ledger.Status) error {
	mask, view, now := p.leases.mask(), p.shared.Load(), p.deps.Now()
	if view == nil {
		return nil // the first sweep has them
	}
	mine := page[:0:0]
	for _, st := range page {
		if holds(mask, st.Serial) && st.Revocation&ledger.RevocationOCSP != 0 && now.Before(st.NotAfter) {
			mine = append(mine, st)
		}
	}
	rctx, cancel := p.redis(ctx)
	defer cancel()
	records, err := p.store.Get(rctx, serialsOf(mine))
	if err != nil {
		return err
	}
	missing := mine[:0]
	for i := range mine {
		why, mismatch := p.judge(view, &mine[i], records[i], now)
		if mismatch == mismatchForged {
			p.metrics.mismatches.WithLabelValues(mismatch).Inc()
			if _, err := p.store.Drop(rctx, mine[i].Serial, records[i]); err != nil {
				return err
			}
		}
		if why == fromDifference || why == fromMissing {
			missing = append(missing, mine[i])
		}
	}
	return p.publish(ctx, missing, fromPoll, 0)
}
