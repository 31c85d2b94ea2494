package gateway

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

const (
	// writableEvery is how often the ledger is asked whether it takes writes.
	writableEvery = time.Second
	// writableTimeout bounds one such question.
	writableTimeout = 2 * time.Second
	// writableRow is how many requests in a row must find that it takes none, for us to
	// believe it although the ledger says otherwise of itself.
	writableRow = 2
	// After that it is believed again after writableHold, and each time it fails again
	// after twice as long, up to writableLongest.
	writableHold    = 2 * time.Second
	writableLongest = 15 * time.Second
)

// writable knows whether the ledger takes writes. While it answers and takes none, since
// it is a standby, read-only by setting or its disk is full, nothing that is asked for
// can end well: whoever asks is told at once, and the gateway is not ready. A ledger that
// does not answer at all is another matter, since signers may still reach it.
//
// The ledger is asked now and then. A full disk shows only in writes, so those of others
// are heard of too. Safe for concurrent use.
type writable struct {
	ledger     LedgerHealth
	log        *slog.Logger
	retryAfter time.Duration
	now        func() time.Time

	why   atomic.Pointer[error] // nil: it takes writes
	heard chan struct{}         // somebody was refused

	mu    sync.Mutex // guards all below
	row   int        // writes in a row that were refused
	hold  time.Duration
	until time.Time // not before is it believed that writes are taken again
}

func newWritable(l LedgerHealth, log *slog.Logger, retryAfter time.Duration, now func() time.Time) *writable {
	return &writable{ledger: l, log: log, retryAfter: retryAfter, now: now, heard: make(chan struct{}, 1)}
}

// check returns Unavailable while the ledger takes no writes.
func (w *writable) check() error {
	why := w.why.Load()
	if why == nil {
		return nil
	}
	return &problem.Error{Kind: problem.Unavailable, Rule: ledger.ReadOnly, RetryAfter: max(time.Second, spread(w.retryAfter)), Cause: *why,
		Detail: "the ledger takes no writes at the moment, so nothing can be issued or revoked; repeat the request later"}
}

// note hears how a write of somebody ended.
func (w *writable) note(err error) {
	refused := errors.Is(err, &problem.Error{Kind: problem.Unavailable, Rule: ledger.ReadOnly})
	if err != nil && !refused {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !refused {
		w.row, w.hold = 0, 0
		return
	}
	w.row++
	select {
	case w.heard <- struct{}{}:
	default:
	}
}

// run keeps the knowledge fresh until ctx ends.
func (w *writable) run(ctx context.Context) {
	tick := time.NewTicker(writableEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-w.heard:
		case <-ctx.Done():
			return
		}
		pingCtx, cancel := context.WithTimeout(ctx, writableTimeout)
		err := w.ledger.Ping(pingCtx)
		cancel()
		if ctx.Err() == nil {
			w.learn(err)
		}
	}
}

// learn takes the ledger's answer about itself.
func (w *writable) learn(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	was := w.why.Load() != nil
	switch {
	case errors.Is(err, &problem.Error{Kind: problem.Unavailable, Rule: ledger.ReadOnly}):
	case err == nil && w.row >= writableRow:
		err = errors.New("it says that it takes writes, and refuses them: is its disk full?")
		w.hold = min(max(writableHold, 2*w.hold), writableLongest)
		w.until, w.row = now.Add(w.hold), 0
	case err != nil && was, now.Before(w.until):
		return // what was known stays true for now
	default:
		w.why.Store(nil)
		if was {
			w.log.Info("the ledger takes writes again")
		}
		return
	}
	w.why.Store(&err)
	if !was {
		w.log.Error("the ledger takes no writes: nothing is issued until it does", "error", err)
	}
}
