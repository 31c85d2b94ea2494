package presign

import (
	"context"
	"errors"
	"hash/fnv"
	"time"

	"github.com/certmill/certmill/internal/crldp"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp"
)

// CRLs is where CRLs are; *ledger.Ledger is the one for production.
type CRLs interface {
	CRLSets(ctx context.Context) ([]ledger.CRLSet, error)
	CRLs(ctx context.Context) ([]ledger.CRL, error)
	// CRLChunk returns a piece of a CRL's DER.
	CRLChunk(ctx context.Context, set int32, shard int, number int64, chunk int) ([]byte, error)
}

// crlTimeout bounds the bringing of one CRL to Redis.
const crlTimeout = 2 * time.Minute

// keepCRLs brings the CRLs that signers make from the ledger to Redis until ctx ends.
// It signs nothing.
func (p *Presigner) keepCRLs(ctx context.Context) {
	p.every(ctx, p.cfg.CRLPoll, "bringing CRLs to Redis", p.bringCRLs)
}

// bringCRLs compares the ledger with Redis and brings what differs, of this
// presigner's slices. Two that bring the same one at the same time do no harm.
func (p *Presigner) bringCRLs(ctx context.Context) error {
	sets, err := p.deps.CRLs.CRLSets(ctx)
	if err != nil || len(sets) == 0 {
		return err
	}
	crls, err := p.deps.CRLs.CRLs(ctx)
	if err != nil {
		return err
	}
	rctx, cancel := p.redis(ctx)
	defer cancel()
	there, err := p.store.CRLs(rctx)
	if err != nil {
		return err
	}
	points := map[int32]crldp.Point{}
	for _, s := range sets {
		points[s.ID] = crldp.Point{URL: s.URL, Shards: s.Shards}
	}
	mask, now := p.leases.mask(), p.deps.Now()
	var errs []error
	for i := range crls {
		c := &crls[i]
		point, ok := points[c.Set]
		if !ok || c.Number == 0 || !now.Before(c.NextUpdate) {
			continue
		}
		path, err := point.Path(c.Shard)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		has, found := there[path]
		// A later one is from before the ledger was restored: it stands until its end.
		later := has.Number > c.Number && has.NextUpdate > now.Unix()
		if mask>>sliceOfPath(path)&1 == 0 || found && (has.Digest == c.Digest || later) {
			continue
		}
		errs = append(errs, p.bringCRL(ctx, path, c))
	}
	return errors.Join(errs...)
}

func (p *Presigner) bringCRL(ctx context.Context, path string, c *ledger.CRL) error {
	ctx, cancel := context.WithTimeout(ctx, crlTimeout)
	defer cancel()
	info := ocsp.CRLInfo{
		Number: c.Number, ThisUpdate: c.ThisUpdate.Unix(), NextUpdate: c.NextUpdate.Unix(), Bytes: c.Bytes, Chunks: c.Chunks, Digest: c.Digest,
	}
	stored, err := p.store.PutCRL(ctx, path, info, p.deps.Now(), func(n int) ([]byte, error) {
		return p.deps.CRLs.CRLChunk(ctx, c.Set, c.Shard, c.Number, n)
	})
	if stored {
		p.metrics.crls.Inc()
	}
	return err
}

// sliceOfPath gives each CRL to one holder of a slice.
func sliceOfPath(path string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(path)) // a hash takes everything
	return int(h.Sum32() % sliceCount)
}
