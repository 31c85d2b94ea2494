package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// reportFor is how long the report of a process that is heard no more is kept.
	reportFor = 10 * time.Minute
	// maxReports bounds the reports that are read.
	maxReports = 100
)

// RoleReport is what a process said of itself that has no broker to say it by.
type RoleReport struct {
	Report []byte
	// Age is how long ago that was, by the database's clock.
	Age time.Duration
}

// PutReport keeps what a process says of itself, in place of what it or the one before
// it said, and forgets those that have been silent for ten minutes.
func (l *Ledger) PutReport(ctx context.Context, process string, report []byte) error {
	return l.inTx(ctx, pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO role_reports (process, report, reported_at) VALUES ($1, $2, now())
			ON CONFLICT (process) DO UPDATE SET report = EXCLUDED.report, reported_at = EXCLUDED.reported_at`, process, report)
		if err == nil {
			_, err = tx.Exec(ctx, `DELETE FROM role_reports WHERE reported_at < now() - $1 * INTERVAL '1 second'`, reportFor.Seconds())
		}
		if err != nil {
			return fmt.Errorf("writing a report: %w", err)
		}
		return nil
	})
}

// Reports returns the last report of each process that was heard within ten minutes, a
// hundred at most.
func (l *Ledger) Reports(ctx context.Context) ([]RoleReport, error) {
	var out []RoleReport
	err := l.query(ctx, func() { out = nil }, func(rows pgx.Rows) error {
		var r RoleReport
		var seconds float64
		err := rows.Scan(&r.Report, &seconds)
		r.Age = time.Duration(seconds * float64(time.Second))
		out = append(out, r)
		return err
	}, `SELECT report, EXTRACT(EPOCH FROM now() - reported_at)::FLOAT8 FROM role_reports WHERE reported_at > now() - $1 * INTERVAL '1 second' ORDER BY process LIMIT $2`, reportFor.Seconds(), maxReports)
	if err != nil {
		return nil, fmt.Errorf("reading the reports: %w", err)
	}
	return out, nil
}
