package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/certmill/certmill/internal/config"
)

// completeIndexes builds what a migration has declared ON ONLY a partitioned table, on
// one partition after the other and without keeping anybody from writing. What it did
// not come to the next run does.
func completeIndexes(ctx context.Context, cfg config.Ledger) error {
	return onConnection(ctx, cfg, func(conn *pgx.Conn, d dialect) error {
		if d != postgres {
			return nil
		}
		indexes, err := incomplete(ctx, conn)
		if err != nil || len(indexes) == 0 {
			return err
		}
		if err := lockMaintenance(ctx, conn); err != nil {
			return err
		}
		defer func() {
			_, _ = conn.Exec(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, int64(maintainLock))
		}()
		for _, x := range indexes {
			if err := x.complete(ctx, conn); err != nil {
				return fmt.Errorf("building the index %s: %w", x.name, err)
			}
		}
		return nil
	})
}

// lockMaintenance keeps Maintain from making and dropping partitions meanwhile. It asks
// again and again: who waits inside the database holds a snapshot, and an index that is
// built concurrently waits for that.
func lockMaintenance(ctx context.Context, conn *pgx.Conn) error {
	for {
		var mine bool
		err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(maintainLock)).Scan(&mine)
		if mine || err != nil {
			return err
		}
		if !sleep(ctx, longestPause) {
			return fmt.Errorf("waiting for the ledger's upkeep to end: %w", ctx.Err())
		}
	}
}

// partitionedIndex is an index of a partitioned table that some partitions lack.
type partitionedIndex struct {
	name, table string
	using       string // the definition from the method on
}

func incomplete(ctx context.Context, conn *pgx.Conn) ([]partitionedIndex, error) {
	rows, err := conn.Query(ctx, `SELECT c.relname::text, t.relname::text, pg_get_indexdef(c.oid)
		FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
		WHERE c.relkind = 'I' AND NOT i.indisvalid AND NOT t.relispartition AND c.relnamespace = current_schema()::regnamespace
		ORDER BY 1`)
	if err != nil {
		return nil, fmt.Errorf("looking for indexes that some partitions lack: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (x partitionedIndex, err error) {
		var definition string
		if err := row.Scan(&x.name, &x.table, &definition); err != nil {
			return x, err
		}
		var ok bool
		if _, x.using, ok = strings.Cut(definition, " USING "); !ok {
			return x, fmt.Errorf("the index %s has the definition %q", x.name, definition)
		}
		return x, nil
	})
}

// complete builds the index where it is missing. With the last partition PostgreSQL
// takes the whole for valid.
func (x partitionedIndex) complete(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `SELECT p.relname::text FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhrelid
		WHERE h.inhparent = $1::text::regclass AND NOT EXISTS (
			SELECT 1 FROM pg_inherits hi JOIN pg_index i ON i.indexrelid = hi.inhrelid
			WHERE hi.inhparent = $2::text::regclass AND i.indrelid = p.oid) ORDER BY 1`, x.table, x.name)
	if err != nil {
		return err
	}
	partitions, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, p := range partitions {
		if err := x.build(ctx, conn, p); err != nil {
			return fmt.Errorf("on %s: %w", p, err)
		}
	}
	return nil
}

func (x partitionedIndex) build(ctx context.Context, conn *pgx.Conn, partition string) error {
	own := partition + strings.TrimPrefix(x.name, x.table) + "_part"
	steps := []string{
		// What an interrupted run has left may be without rows.
		`DROP INDEX IF EXISTS ` + own,
		`CREATE INDEX CONCURRENTLY ` + own + ` ON ` + partition + ` USING ` + x.using,
		`ALTER INDEX ` + x.name + ` ATTACH PARTITION ` + own,
	}
	for pause := firstPause; ; pause = min(2*pause, time.Second) {
		var err error
		for _, sql := range steps {
			if _, err = conn.Exec(ctx, sql); err != nil {
				break
			}
		}
		// Others may hold or take locks the other way round: again, from the start.
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || (pgErr.Code != codeDeadlock && pgErr.Code != codeLockNotAvailable) {
			return err
		}
		if !sleep(ctx, pause) {
			return err
		}
	}
}
