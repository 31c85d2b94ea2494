package ledger

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	crdbpgx "github.com/cockroachdb/cockroach-go/v2/crdb/crdbpgxv5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/certmill/certmill/internal/problem"
)

// SQLSTATE codes that the ledger acts on.
const (
	codeUniqueViolation  = "23505"
	codeUndefinedTable   = "42P01"
	codeSerialization    = "40001"
	codeDeadlock         = "40P01"
	codeAmbiguous        = "40003" // CockroachDB: it may have committed
	codeLockNotAvailable = "55P03"
	codeReadOnly         = "25006" // a standby, or made read-only by its operator
	codeDiskFull         = "53100"
)

// The pauses between two runs of a statement.
const (
	firstPause   = time.Millisecond
	longestPause = 250 * time.Millisecond
)

// cause is why a statement failed, as far as the ledger treats it differently. It
// is also a metric label.
type cause string

const (
	causeConflict  cause = "conflict"  // nothing was done; at once again
	causeAmbiguous cause = "ambiguous" // perhaps done, perhaps not; again
	causeReadOnly  cause = "read_only" // nothing was done, the server takes no writes; again for a moment
	causeData      cause = "data"      // a row is at fault, not the database
	causeDefect    cause = "defect"    // the statement is at fault
	causeEnded     cause = "ended"     // the caller's context
)

// causeOf sorts an error of pgx by its SQLSTATE class. What does not come from the
// server is a connection that was refused, cut or late: nobody knows whether the
// statement has run, so what is run again must find its own traces.
func causeOf(ctx context.Context, err error) cause {
	if ctx.Err() != nil {
		return causeEnded
	}
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return causeAmbiguous
	}
	switch pgErr.Code {
	case codeSerialization, codeDeadlock, codeLockNotAvailable:
		return causeConflict
	case codeAmbiguous:
		return causeAmbiguous
	case codeReadOnly, codeDiskFull:
		return causeReadOnly
	}
	switch pgErr.Code[:2] {
	case "08", "53", "57", "58": // connection, resources, operator and timeouts, system
		return causeAmbiguous
	case "22", "23", "54": // data, integrity, limits
		return causeData
	default:
		return causeDefect
	}
}

func (c cause) retryable() bool {
	return c == causeConflict || c == causeAmbiguous || c == causeReadOnly
}

// readOnlyFor is how long a statement is repeated against a server that takes no writes:
// a primary may be about to come back. It is known that nothing was done, so whoever
// waits is better told soon.
const readOnlyFor = 2 * time.Second

// moreTries reports whether a statement that was begun at a time is worth repeating.
func (c cause) moreTries(began time.Time) bool {
	return c.retryable() && (c != causeReadOnly || time.Since(began) < readOnlyFor)
}

// retry runs do until it succeeds, fails for good, or its time is over. do must be
// safe to run again after it has had its effect.
func (l *Ledger) retry(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	began := time.Now()
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := do(ctx)
		if err == nil || isProblem(err) {
			return err
		}
		c := causeOf(ctx, err)
		if !c.moreTries(began) {
			return failed(c, err)
		}
		l.repeating(ctx, c, err)
		if !sleep(ctx, pause) {
			return failed(causeEnded, err)
		}
	}
}

// repeating counts a repeat. What it repairs nobody else hears of, so it is logged. On
// a server that takes no writes the sessions are given up: where several servers stand
// behind one name, the next sessions find the one that does.
func (l *Ledger) repeating(ctx context.Context, c cause, err error) {
	if c == causeReadOnly {
		l.write.Reset()
	}
	l.metrics.retries.WithLabelValues(string(c)).Inc()
	level := slog.LevelDebug
	if c == causeAmbiguous {
		level = slog.LevelWarn
	}
	l.log.Log(ctx, level, "the ledger repeats a statement", "cause", string(c), "error", err)
}

// failed gives an error of the database its kind.
func failed(c cause, err error) error {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && (pgErr.Code == codeReadOnly || pgErr.Code == codeDiskFull) {
		return errReadOnly(err)
	}
	switch c {
	case causeData, causeDefect:
		return err // Internal
	default:
		return problem.Down("ledger", time.Second, err)
	}
}

// ReadOnly is the rule of the problem while the database answers and takes no writes: it
// is a standby, or read-only by setting, or its disk is full.
const ReadOnly = "ledger_read_only"

func errReadOnly(cause error) error {
	return &problem.Error{Kind: problem.Unavailable, Rule: ReadOnly, RetryAfter: 5 * time.Second, Cause: cause,
		Detail: "the ledger takes no writes at the moment; repeat the request later"}
}

func isProblem(err error) bool {
	_, ok := errors.AsType[*problem.Error](err)
	return ok
}

// sleep waits for half to all of d, so that those who collided do not meet again.
// It reports false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// inTx runs fn in a transaction, as often as retry finds necessary. fn has no effect
// outside the database, wraps errors with %w, and finds what a lost first run of
// itself has committed.
//
// On CockroachDB a conflict is repeated inside the transaction, which keeps its
// priority (crdbpgxv5). Not so on PostgreSQL: crdbpgxv5 takes RELEASE SAVEPOINT for
// the commit and drops the error of COMMIT itself, which is where a SERIALIZABLE
// transaction there learns that it has failed, and a savepoint keeps the snapshot
// that made it fail.
func (l *Ledger) inTx(ctx context.Context, opts pgx.TxOptions, fn func(context.Context, pgx.Tx) error) error {
	return l.retry(ctx, func(ctx context.Context) error {
		do := func(tx pgx.Tx) error { return fn(ctx, tx) }
		if l.dialect == cockroach {
			return crdbpgx.ExecuteTx(ctx, l.write, opts, do)
		}
		return pgx.BeginTxFunc(ctx, l.write, opts, do)
	})
}

// query runs a reading statement and gives each row to scan. scan is called again
// from the first row when the statement is repeated: reset is called before.
func (l *Ledger) query(ctx context.Context, reset func(), scan func(pgx.Rows) error, sql string, args ...any) error {
	return l.retry(ctx, func(ctx context.Context) error {
		reset()
		rows, err := l.read.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := scan(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}
