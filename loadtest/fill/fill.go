// Package fill puts a history into the ledger of a stack that is about to be measured:
// a CA is rarely empty. The rows go in by the ledger's own commit, so they lie there as
// the service itself would have written them, at the rate that the database takes.
package fill

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/ledger"
)

// Config says what to put where.
type Config struct {
	Ledger config.Ledger
	// Rows is how many certificates.
	Rows int64
	// Lifetime is theirs.
	Lifetime time.Duration
	// Over is how long a time they were issued in, evenly, up to now: with a day's
	// lifetime and an hour all share the table partition of what is issued now. What has
	// expired longer ago than the ledger keeps it is its next upkeep's to drop.
	Over time.Duration
	// Workloads is how many different callers and names there are; each has renewed
	// Rows/Workloads times.
	Workloads int64
	// Writers is how many statements are under way at once.
	Writers int
}

// Validate reports everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	if c.Rows < 1 || c.Workloads < 1 {
		errs = append(errs, errors.New("there must be at least one row and one workload"))
	}
	if c.Lifetime < time.Minute || c.Over <= 0 {
		errs = append(errs, errors.New("a lifetime is at least a minute, and the time of issue above zero"))
	}
	if c.Writers < 1 || c.Writers > 64 {
		errs = append(errs, errors.New("there are 1 to 64 writers"))
	}
	return errors.Join(errs...)
}

// Result is what was done, and what the ledger holds after it.
type Result struct {
	Rows    int64                 `json:"rows"`
	Seconds float64               `json:"seconds"`
	Storage []ledger.TableStorage `json:"storage"`
}

// Run fills the ledger; progress is told how many rows are in, by one goroutine at a
// time, and may be nil. When ctx ends, what is in stays.
func Run(ctx context.Context, cfg Config, progress func(done, of int64)) (Result, error) {
	if err := cfg.Validate(); err != nil {
		return Result{}, err
	}
	cfg.Ledger.MaxConnections = 2 * cfg.Writers // half of them write
	book, err := ledger.Open(ctx, cfg.Ledger, ledger.Deps{})
	if err != nil {
		return Result{}, err
	}
	defer book.Close()
	m, err := newMaker(ctx, book, cfg)
	if err != nil {
		return Result{}, err
	}
	began := time.Now()
	var next, done atomic.Int64
	var telling sync.Mutex
	g, work := errgroup.WithContext(ctx)
	for range cfg.Writers {
		g.Go(func() error {
			entries := make([]ledger.Entry, 0, ledger.MaxBatch)
			for work.Err() == nil {
				first := next.Add(ledger.MaxBatch) - ledger.MaxBatch
				if first >= cfg.Rows {
					return nil
				}
				var err error
				if entries, err = m.entries(entries[:0], first, min(first+ledger.MaxBatch, cfg.Rows)); err != nil {
					return err
				}
				for _, r := range book.CommitBatch(work, entries) {
					if r.Err != nil {
						return fmt.Errorf("storing a row: %w", r.Err)
					}
				}
				done.Add(int64(len(entries)))
				if progress != nil {
					telling.Lock()
					progress(done.Load(), cfg.Rows)
					telling.Unlock()
				}
			}
			return work.Err()
		})
	}
	err = g.Wait()
	r := Result{Rows: done.Load(), Seconds: time.Since(began).Seconds()}
	if err = errors.Join(err, m.end(context.WithoutCancel(ctx), book, r.Rows)); err != nil {
		return r, err
	}
	r.Storage, err = book.Storage(ctx)
	return r, err
}
