package ledger

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// volatile returns the settings of a PostgreSQL with which a commit that was
// acknowledged can be lost in a crash of the machine. synchronous_commit is not among
// them: our sessions switch it on.
func volatile(ctx context.Context, conn *pgx.Conn) (settings []string, err error) {
	rows, err := conn.Query(ctx, `SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off' ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("asking whether commits are durable: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// lazyCommit reports whether the database acknowledges commits before they are on disk.
func lazyCommit(ctx context.Context, conn *pgx.Conn) (bool, error) {
	var mode string
	err := conn.QueryRow(ctx, `SHOW synchronous_commit`).Scan(&mode)
	return mode == "off", err
}
