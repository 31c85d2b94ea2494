package presign

import (
	"context"

	"github.com/certmill/certmill/ocsp"
)

// watchRedis looks for signs that Redis has lost records until ctx ends, and has them
// made again.
func (p *Presigner) watchRedis(ctx context.Context) {
	var before *ocsp.Health
	generation := ""
	compact := false
	p.every(ctx, p.cfg.HealthPoll, "watching Redis", func(ctx context.Context) error {
		ctx, cancel := p.redis(ctx)
		defer cancel()
		now, err := p.store.Health(ctx)
		if err != nil {
			return err
		}
		p.metrics.redisBytes.Set(float64(now.UsedBytes))
		if before != nil && lost(before, &now) {
			p.deps.Log.Warn("Redis was restarted, has failed over or was emptied; its records are made again from the ledger", "keys_before", before.Keys(), "keys", now.Keys())
			p.metrics.losses.Inc()
			if err := p.store.Lost(ctx, generation); err != nil {
				return err
			}
			if err := p.republish(ctx); err != nil {
				return err
			}
			compact = false
			p.sweepSoon()
		}
		if generation, err = p.store.Generation(ctx); err != nil {
			return err
		}
		before = &now
		if !compact { // asked once for every start of a server
			if compact, err = p.store.Compact(ctx); err != nil {
				return err
			}
			p.metrics.setCompact(compact)
			if !compact {
				p.deps.Log.Warn("Redis keeps records in its larger form, about 250 bytes each instead of 190; set hash-max-listpack-value to 256 in its configuration")
				compact = true
			}
		}
		return nil
	})
}

// lost compares two looks at Redis. Shards come and go only with many certificates, so
// a sudden fall of their number means that keys were taken away.
func lost(before, now *ocsp.Health) bool {
	for addr, b := range before.Servers {
		n, there := now.Servers[addr]
		if !there || n.RunID != b.RunID || n.Flushes > b.Flushes || n.Keys == 0 && b.Keys > 0 || n.Keys < b.Keys-b.Keys/8-64 {
			return true
		}
	}
	return len(now.Servers) != len(before.Servers)
}
