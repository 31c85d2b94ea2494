package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Restoration is what Restored has done.
type Restoration struct {
	// FirstLost and LastLost are the epochs that belong to the hole between the backup
	// and the loss: serials with these epochs were issued, and nothing is known of them.
	FirstLost, LastLost uint32
	// CRLs is how many CRL numbers were advanced.
	CRLs int64
}

// Restored makes a ledger that was restored from a backup fit to be used again. What
// counts upwards must not count again over what it gave out after the backup: epochs
// and CRL numbers go on behind a gap, which must be larger than what was given out in
// the hole. Run it once, before any signer starts. It is written into the audit chain,
// and RestoredAt tells signers that lived through it.
func (l *Ledger) Restored(ctx context.Context, actor string, gap uint32) (Restoration, error) {
	var r Restoration
	if gap == 0 || gap > 1<<24 {
		return r, errors.New("the gap must be 1 to 16777216")
	}
	sequence := map[dialect]string{postgres: `pg_get_serial_sequence('signer_epochs', 'id')`, cockroach: `'signer_epoch_ids'`}[l.dialect]
	err := l.inTx(ctx, l.dialect.locked(), func(ctx context.Context, tx pgx.Tx) error {
		var last int64
		if err := tx.QueryRow(ctx, `SELECT COALESCE(max(id), 0) FROM signer_epochs`).Scan(&last); err != nil {
			return fmt.Errorf("reading the last epoch: %w", err)
		}
		if last+int64(gap) >= 1<<31-1 {
			return fmt.Errorf("epoch %d with a gap of %d is beyond what a serial holds", last, gap)
		}
		r.FirstLost, r.LastLost = uint32(last+1), uint32(last)+gap
		if _, err := tx.Exec(ctx, `SELECT setval(`+sequence+`, $1::int8)`, int64(r.LastLost)); err != nil {
			return fmt.Errorf("advancing the epochs: %w", err)
		}
		if _, err := tx.Exec(ctx, `UPDATE ledger_state SET restored_at = now() WHERE id = 1`); err != nil {
			return fmt.Errorf("noting the restoration: %w", err)
		}
		tag, err := tx.Exec(ctx, `UPDATE crls SET reserved = reserved + $1`, int64(gap))
		r.CRLs = tag.RowsAffected()
		if err != nil {
			return fmt.Errorf("advancing the CRL numbers: %w", err)
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	_, err = l.AppendAudit(ctx, AuditEntry{Actor: actor, Action: "ledger.restore", Subject: "ledger",
		Detail: fmt.Sprintf("restored from a backup; epochs %d to %d are lost, CRL numbers advanced by %d", r.FirstLost, r.LastLost, gap)})
	return r, err
}

// RestoredAt returns when the ledger was last made fit after a restore, by the
// database's clock, or the zero time. A process that sees another time than when it
// started has lived through a restore: epochs and audit heads that it remembers may not
// be in the ledger any more.
func (l *Ledger) RestoredAt(ctx context.Context) (time.Time, error) {
	var at *time.Time
	err := l.query(ctx, func() { at = nil }, func(rows pgx.Rows) error { return rows.Scan(&at) },
		`SELECT restored_at FROM ledger_state WHERE id = 1`)
	if err != nil || at == nil {
		return time.Time{}, err
	}
	return at.UTC(), nil
}
