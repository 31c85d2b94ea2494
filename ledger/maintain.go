package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/serial"
)

// Maintenance is what one Maintain has done.
type Maintenance struct {
	// Skipped is true when another process was at it.
	Skipped bool
	// Created and Dropped name partitions (PostgreSQL).
	Created, Dropped []string
	// Rotated is true when the requests began a new generation (PostgreSQL).
	Rotated bool
	// Deleted counts the rows of expired revocations, orders and tokens.
	Deleted int64
}

// maintainLock is the key of the advisory lock that lets one process maintain at a time.
const maintainLock = 0x63657274_6d696c6c // "certmill"

// deleteBatch bounds the rows that one statement deletes.
const deleteBatch = 1000

// Maintain makes the partitions of the days to come, drops those that expired longer
// than Grace ago, turns the generations of request keys, and deletes what is small
// and expired. On CockroachDB row-level TTL does most of it. Run it at least once a
// day, from as many processes as you like: one works, the others skip. A step that
// would wait for a lock is left to the next run and does not stop the others.
func (l *Ledger) Maintain(ctx context.Context) (Maintenance, error) {
	var m Maintenance
	if l.dialect == postgres {
		conn, err := l.write.Acquire(ctx)
		if err != nil {
			return m, failed(causeOf(ctx, err), err)
		}
		defer conn.Release()
		var mine bool
		if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(maintainLock)).Scan(&mine); err != nil {
			return m, failed(causeOf(ctx, err), err)
		}
		if !mine {
			m.Skipped = true
			l.metrics.maintained.Set(float64(l.now().Unix()))
			return m, nil
		}
		defer func() { // a session that cannot say this in time is closed, and its lock is gone with it
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
			defer cancel()
			_, _ = conn.Exec(ctx, `SELECT pg_advisory_unlock($1)`, int64(maintainLock))
		}()
	}
	var errs []error
	if l.dialect == postgres {
		errs = append(errs, l.maintainPartitions(ctx, &m), l.turnGenerations(ctx, &m))
	}
	errs = append(errs, l.deleteExpired(ctx, &m))
	err := errors.Join(errs...)
	if err == nil {
		l.metrics.maintained.Set(float64(l.now().Unix()))
	}
	return m, err
}

// turnGenerations begins a new generation of request keys when the current one is
// older than any key may stand. Commits read ledger_state, so under SERIALIZABLE a
// commit that began before the turn either counts as before it or is run again: no
// two can miss each other's keys across it.
func (l *Ledger) turnGenerations(ctx context.Context, m *Maintenance) error {
	now := l.now()
	var gen int16
	var since time.Time
	err := l.query(ctx, func() {}, func(rows pgx.Rows) error { return rows.Scan(&gen, &since) },
		`SELECT gen, since FROM ledger_state WHERE id = 1`)
	if err != nil {
		return fmt.Errorf("reading the generation of requests: %w", err)
	}
	// Twice: a turn that lost its second emptying is made good by the next run.
	if err := l.emptyGeneration(ctx, (gen+1)%3); err != nil {
		return err
	}
	// The hour is for clocks that differ and for commits that took long.
	if now.Sub(since) < MaxReuse+time.Hour {
		return nil
	}
	err = l.inTx(ctx, pgx.TxOptions{IsoLevel: pgx.Serializable}, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE ledger_state SET gen = ((gen + 1) % 3)::int2, since = $2 WHERE id = 1 AND gen = $1`, gen, now)
		return err
	})
	if err != nil {
		return fmt.Errorf("turning the generations of requests: %w", err)
	}
	m.Rotated = true
	return l.emptyGeneration(ctx, (gen+2)%3)
}

// emptyGeneration truncates the generation that is neither written nor read: its
// keys are older than MaxReuse. It takes no lock when there is nothing to do.
func (l *Ledger) emptyGeneration(ctx context.Context, gen int16) error {
	table := fmt.Sprintf("requests_%d", gen)
	var full bool
	err := l.query(ctx, func() {}, func(rows pgx.Rows) error { return rows.Scan(&full) }, `SELECT EXISTS (SELECT 1 FROM `+table+`)`)
	if err != nil || !full {
		return err
	}
	return l.ddl(ctx, func(ctx context.Context, tx pgx.Tx) error {
		// The maintenance's lock may be gone with its connection, and another process
		// may have turned since. This row tells, and no turn passes while it is locked.
		var current int16
		if err := tx.QueryRow(ctx, `SELECT gen FROM ledger_state WHERE id = 1 FOR SHARE`).Scan(&current); err != nil {
			return err
		}
		if gen != (current+1)%3 {
			return nil
		}
		_, err := tx.Exec(ctx, `TRUNCATE `+table)
		return err
	})
}

// deleteExpired deletes in small batches, each found by an index.
func (l *Ledger) deleteExpired(ctx context.Context, m *Maintenance) error {
	now := l.now()
	var errs []error
	for _, b := range serial.Ranges(time.Time{}, now.Add(-Grace)) {
		first, last := b[0].First(), b[1].First() // the last bucket may hold a living one
		errs = append(errs, l.deleteAll(ctx, m, `DELETE FROM revocations WHERE serial IN (
			SELECT serial FROM revocations WHERE serial >= $1 AND serial < $2 LIMIT $3)`, first[:], last[:]))
		// The epoch's count of what it discarded stays.
		errs = append(errs, l.deleteAll(ctx, m, `DELETE FROM signature_strays WHERE serial IN (
			SELECT serial FROM signature_strays WHERE serial >= $1 AND serial < $2 LIMIT $3)`, first[:], last[:]))
	}
	errs = append(errs, l.deleteAll(ctx, m, `DELETE FROM orders WHERE id IN (
			SELECT id FROM orders WHERE expires_at IS NOT NULL AND expires_at <= $1 LIMIT $2)`, now))
	errs = append(errs, l.deleteAll(ctx, m, `DELETE FROM enrollment_tokens WHERE id IN (
			SELECT id FROM enrollment_tokens WHERE expires_at <= $1 LIMIT $2)`, now.Add(-Grace)))
	errs = append(errs, l.deleteAll(ctx, m, `DELETE FROM early_renewals WHERE id IN (
			SELECT id FROM early_renewals WHERE renew_by <= $1 LIMIT $2)`, now.Add(-earlyRenewalKept)))
	return errors.Join(errs...)
}

func (l *Ledger) deleteAll(ctx context.Context, m *Maintenance, sql string, args ...any) error {
	for n := int64(deleteBatch); n == deleteBatch; {
		err := l.retry(ctx, func(ctx context.Context) error {
			tag, err := l.write.Exec(ctx, sql, append(args, deleteBatch)...)
			n = tag.RowsAffected()
			return err
		})
		if err != nil {
			return fmt.Errorf("deleting what has expired: %w", err)
		}
		m.Deleted += n
	}
	return nil
}
