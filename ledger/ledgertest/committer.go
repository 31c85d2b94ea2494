package ledgertest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

var committerTests = map[string]func(*testing.T, *env){
	"rows from many goroutines share statements":           groupCommit,
	"rows that are expected are stored together":           expectedRows,
	"a row does not wait for ever for what is expected":    expectedInVain,
	"a crowd does not wait for a statement under way":      crowdOfRows,
	"a row whose caller has gone is not written":           abandonedRow,
	"a row on its way is written though its caller leaves": leftRow,
	"a full queue is Overloaded at once":                   fullQueue,
	"after the end a commit is Unavailable":                afterEnd,
	"a configuration out of range is refused":              badCommitter,
}

// committing starts a committer that stops when the test ends.
func committing(t *testing.T, l *ledger.Ledger, cfg ledger.CommitterConfig) (*ledger.Committer, *prometheus.Registry) {
	t.Helper()
	r := prometheus.NewRegistry()
	c, err := ledger.NewCommitter(l, cfg, ledger.Deps{Registry: r})
	noError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		noError(t, <-done)
	})
	return c, r
}

// batches returns how many statements the committer has made, and of how many rows.
func batches(t *testing.T, r *prometheus.Registry) (statements uint64, rows float64) {
	t.Helper()
	families, err := r.Gather()
	noError(t, err)
	for _, f := range families {
		if f.GetName() == "certmill_ledger_commit_batch_rows" {
			h := f.GetMetric()[0].GetHistogram()
			return h.GetSampleCount(), h.GetSampleSum()
		}
	}
	t.Fatal("no metric certmill_ledger_commit_batch_rows")
	return 0, 0
}

func groupCommit(t *testing.T, e *env) {
	c, registry := committing(t, e.Ledger, ledger.DefaultCommitterConfig())
	const rows = 400
	var wg sync.WaitGroup
	for range rows {
		entry := e.entry(t, time.Hour)
		wg.Go(func() {
			out, err := c.Commit(t.Context(), entry)
			if err != nil || out.Duplicate || out.Certificate.Serial != entry.Serial {
				t.Errorf("%+v, %v", out, err)
			}
		})
	}
	wg.Wait()
	if n := e.count(t, `SELECT count(*) FROM certificates`); n != rows {
		t.Errorf("%d certificates", n)
	}
	if n, sum := batches(t, registry); sum != rows || n > rows/2 {
		t.Errorf("%d statements for %v rows", n, sum)
	}
}

func expectedRows(t *testing.T, e *env) {
	cfg := ledger.DefaultCommitterConfig()
	cfg.Gather = time.Second
	c, registry := committing(t, e.Ledger, cfg)
	const rows = 20
	c.Expect(rows)
	var wg sync.WaitGroup
	for i := range rows {
		entry := e.entry(t, time.Hour)
		wg.Go(func() {
			if _, err := c.Commit(t.Context(), entry); err != nil {
				t.Error(err)
			}
		})
		if i < rows-1 {
			c.Expect(-1)
		}
	}
	c.Expect(-1)
	wg.Wait()
	// The last ones may come after the count has fallen to nothing.
	if n, sum := batches(t, registry); sum != rows || n > 3 {
		t.Errorf("%d statements for %v rows", n, sum)
	}
}

func expectedInVain(t *testing.T, e *env) {
	c, _ := committing(t, e.Ledger, ledger.DefaultCommitterConfig())
	c.Expect(1000)
	_, err := c.Commit(t.Context(), e.entry(t, time.Hour))
	noError(t, err)
}

func crowdOfRows(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	lock, err := e.connect(t).Begin(t.Context())
	noError(t, err)
	_, err = lock.Exec(t.Context(), `LOCK TABLE requests IN ACCESS EXCLUSIVE MODE`)
	noError(t, err)
	cfg := ledger.DefaultCommitterConfig()
	cfg.Connections = 2
	c, _ := committing(t, e.Ledger, cfg)
	var wg sync.WaitGroup
	commit := func(n int) {
		for range n {
			entry := e.entry(t, time.Hour)
			wg.Go(func() {
				if _, err := c.Commit(t.Context(), entry); err != nil {
					t.Error(err)
				}
			})
		}
	}
	watch := e.connect(t)
	statements := func(n int) {
		for waiting := 0; waiting < n; {
			noError(t, watch.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&waiting))
		}
	}
	commit(1)
	statements(1)
	commit(64)
	statements(2)
	noError(t, lock.Rollback(t.Context()))
	wg.Wait()
}

// blocked returns a committer on one connection whose statement waits for a lock
// until release is called, with one row of it under way.
func blocked(t *testing.T, e *env, queue int) (c *ledger.Committer, release func(), first chan error) {
	t.Helper()
	lock, err := e.connect(t).Begin(t.Context())
	noError(t, err)
	_, err = lock.Exec(t.Context(), `LOCK TABLE requests IN ACCESS EXCLUSIVE MODE`)
	noError(t, err)
	c, _ = committing(t, e.Ledger, ledger.CommitterConfig{MaxBatch: 256, Connections: 1, QueueSize: queue})
	first = make(chan error, 1)
	entry := e.entry(t, time.Hour)
	go func() {
		_, err := c.Commit(t.Context(), entry)
		first <- err
	}()
	watch := e.connect(t)
	for waiting := false; !waiting; {
		noError(t, watch.QueryRow(t.Context(), `SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)`).Scan(&waiting))
	}
	return c, func() { noError(t, lock.Rollback(t.Context())) }, first
}

func abandonedRow(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	c, release, first := blocked(t, e, 10)
	gone := e.entry(t, time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Commit(ctx, gone); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	release()
	noError(t, <-first)
	_, err := c.Commit(t.Context(), e.entry(t, time.Hour)) // comes after the abandoned one
	noError(t, err)
	_, _, err = e.Certificate(t.Context(), gone.Serial)
	wantKind(t, err, problem.NotFound)
}

func leftRow(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	lock, err := e.connect(t).Begin(t.Context())
	noError(t, err)
	_, err = lock.Exec(t.Context(), `LOCK TABLE requests IN ACCESS EXCLUSIVE MODE`)
	noError(t, err)
	c, registry := committing(t, e.Ledger, ledger.DefaultCommitterConfig())
	entry := e.entry(t, time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := c.Commit(ctx, entry)
		left <- err
	}()
	watch := e.connect(t)
	for waiting := false; !waiting; {
		noError(t, watch.QueryRow(t.Context(), `SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)`).Scan(&waiting))
	}
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	noError(t, lock.Rollback(t.Context()))
	for n := uint64(0); n == 0; n, _ = batches(t, registry) {
		time.Sleep(time.Millisecond) // a yield; the loop waits for the condition
	}
	_, _, err = e.Certificate(t.Context(), entry.Serial)
	noError(t, err)
}

func fullQueue(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	c, release, first := blocked(t, e, 1)
	second := make(chan error, 1)
	refusal := make(chan error, 1)
	for range 2 { // one of them fills the queue, the other is refused
		entry := e.entry(t, time.Hour)
		go func() {
			_, err := c.Commit(t.Context(), entry)
			if problem.KindOf(err) == problem.Overloaded {
				refusal <- err
			} else {
				second <- err
			}
		}()
	}
	if p := problem.From(<-refusal); p.RetryAfter <= 0 {
		t.Errorf("the refusal %v does not say when to try again", p)
	}
	release()
	noError(t, <-first)
	noError(t, <-second)
}

func afterEnd(t *testing.T, e *env) {
	c, err := ledger.NewCommitter(e.Ledger, ledger.DefaultCommitterConfig(), ledger.Deps{})
	noError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	noError(t, c.Run(ctx))
	_, err = c.Commit(t.Context(), e.entry(t, time.Hour))
	wantKind(t, err, problem.Unavailable)
}

func badCommitter(t *testing.T, e *env) {
	for _, cfg := range []ledger.CommitterConfig{{}, {MaxBatch: 257, Connections: 1, QueueSize: 1}, {MaxBatch: 1, Connections: 0, QueueSize: 1}} {
		if _, err := ledger.NewCommitter(e.Ledger, cfg, ledger.Deps{}); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}
