package presign

import (
	"context"
	"errors"
	"iter"
	"sync"
	"sync/atomic"

	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp"
)

// putChunk is how many records one pipeline writes.
const putChunk = 256

// signAll signs statuses side by side, keeping their order. It returns what it has
// signed, and the first error.
func (p *Presigner) signAll(ctx context.Context, statuses []ledger.Status) ([]ocsp.Item, error) {
	items := make([]ocsp.Item, len(statuses))
	var next atomic.Int64
	var mu sync.Mutex
	var first error
	work := func() {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(statuses) {
				return
			}
			var err error
			if items[i], err = p.sign(ctx, &statuses[i]); err != nil && !errors.Is(err, errExpired) {
				mu.Lock()
				if first == nil {
					first = err
				}
				mu.Unlock()
			}
		}
	}
	var wg sync.WaitGroup
	for range min(p.cfg.Concurrency, len(statuses)) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	signed := items[:0]
	for _, it := range items {
		if it.Record != "" {
			signed = append(signed, it)
		}
	}
	return signed, first
}

// chunks cuts s into pieces of at most n.
func chunks[T any](s []T, n int) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		for len(s) > 0 {
			k := min(n, len(s))
			if !yield(s[:k:k]) {
				return
			}
			s = s[k:]
		}
	}
}
