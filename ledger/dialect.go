package ledger

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// dialect is what the ledger runs on. Its value names a folder of migrations.
type dialect string

const (
	postgres  dialect = "postgres"
	cockroach dialect = "cockroach"
)

// dialectOf asks the server for its version: the product's name there is part of
// its interface.
func dialectOf(ctx context.Context, conn *pgx.Conn) (dialect, error) {
	var version string
	if err := conn.QueryRow(ctx, `SELECT version()`).Scan(&version); err != nil {
		return "", fmt.Errorf("asking for the database's version: %w", err)
	}
	if strings.HasPrefix(version, "CockroachDB") {
		return cockroach, nil
	}
	return postgres, nil
}

// locked are the options of a transaction that takes its order from a row lock, as
// the audit chain does. On PostgreSQL that is READ COMMITTED: a waiter goes on with
// the row as its predecessor left it, where SERIALIZABLE would throw it out with
// 40001 each time. CockroachDB keeps its waiters in a queue at SERIALIZABLE.
func (d dialect) locked() pgx.TxOptions {
	if d == cockroach {
		return pgx.TxOptions{IsoLevel: pgx.Serializable}
	}
	return pgx.TxOptions{IsoLevel: pgx.ReadCommitted}
}
