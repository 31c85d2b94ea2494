package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
)

// Drain says that a signer is to take no work.
type Drain struct {
	Signer string // its configured name
	Actor  string // who wants it so
	Since  time.Time
}

// maxSignerName bounds the names in drains, in bytes.
const maxSignerName = 255

// Drain has the signers of this name take no more work until Undrain, also those that
// are started later. The audit trail has it. One that is drained already is left alone.
func (l *Ledger) Drain(ctx context.Context, signer, actor string) error {
	if signer == "" || len(signer) > maxSignerName {
		return problem.Rejected("name", "length", "a signer's name has 1 to %d bytes", maxSignerName)
	}
	return l.changeDrain(ctx, AuditEntry{Actor: actor, Action: "signer.drain", Subject: signer},
		`INSERT INTO signer_drains (name, actor, since) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING`, signer, actor, l.now())
}

// Undrain lets the signers of this name work again. The audit trail has it.
func (l *Ledger) Undrain(ctx context.Context, signer, actor string) error {
	return l.changeDrain(ctx, AuditEntry{Actor: actor, Action: "signer.undrain", Subject: signer},
		`DELETE FROM signer_drains WHERE name = $1`, signer)
}

// changeDrain runs a statement and, where it has changed something, writes the entry.
func (l *Ledger) changeDrain(ctx context.Context, e AuditEntry, sql string, args ...any) error {
	return l.inTx(ctx, l.dialect.locked(), func(ctx context.Context, tx pgx.Tx) error {
		head, err := lockAudit(ctx, tx)
		if err != nil {
			return err
		}
		done, err := tx.Exec(ctx, sql, args...)
		if err != nil {
			return fmt.Errorf("writing the drain of %q: %w", e.Subject, err)
		}
		if done.RowsAffected() > 0 {
			_, err = l.appendAudit(ctx, tx, head, e)
		}
		return err
	})
}

// Drains returns the signers that are to take no work, by name.
func (l *Ledger) Drains(ctx context.Context) ([]Drain, error) {
	var out []Drain
	err := l.query(ctx, func() { out = nil }, func(rows pgx.Rows) error {
		var d Drain
		err := rows.Scan(&d.Signer, &d.Actor, &d.Since)
		d.Since = d.Since.UTC()
		out = append(out, d)
		return err
	}, `SELECT name, actor, since FROM signer_drains ORDER BY name`)
	return out, err
}
