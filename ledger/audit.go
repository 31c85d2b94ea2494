package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// AppendAudit adds a row and returns it with its sequence, time and hash. When the
// database's answer is lost the row may be there twice, never not at all.
func (l *Ledger) AppendAudit(ctx context.Context, e AuditEntry) (AuditEntry, error) {
	err := l.inTx(ctx, l.dialect.locked(), func(ctx context.Context, tx pgx.Tx) error {
		head, err := lockAudit(ctx, tx)
		if err != nil {
			return err
		}
		e, err = l.appendAudit(ctx, tx, head, e)
		return err
	})
	return e, err
}

// lockAudit takes the head of the chain. Until tx ends, which must be in the
// dialect's locked mode, nobody else appends: sequences have no gaps and are
// committed in their order, and what else the transaction reads stays as it is read
// by all who append.
func lockAudit(ctx context.Context, tx pgx.Tx) (AuditHead, error) {
	var h AuditHead
	var hash []byte
	if err := tx.QueryRow(ctx, `SELECT seq, hash FROM audit_head WHERE id = 1 FOR UPDATE`).Scan(&h.Sequence, &hash); err != nil {
		return h, fmt.Errorf("locking the audit chain: %w", err)
	}
	copy(h.Hash[:], hash)
	return h, nil
}

// appendAudit adds a row after head within the transaction that has locked it.
func (l *Ledger) appendAudit(ctx context.Context, tx pgx.Tx, head AuditHead, e AuditEntry) (AuditEntry, error) {
	e.Sequence = head.Sequence + 1
	e.Time = l.now().UTC().Truncate(time.Microsecond)
	e.Hash = auditHash(head.Hash, e)
	_, err := tx.Exec(ctx, `INSERT INTO audit (seq, recorded_at, actor, action, subject, detail, hash) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		e.Sequence, e.Time, e.Actor, e.Action, e.Subject, e.Detail, e.Hash[:])
	if err != nil {
		return e, fmt.Errorf("appending to the audit chain: %w", err)
	}
	if _, err = tx.Exec(ctx, `UPDATE audit_head SET seq = $1, hash = $2 WHERE id = 1`, e.Sequence, e.Hash[:]); err != nil {
		return e, fmt.Errorf("moving the head of the audit chain: %w", err)
	}
	return e, nil
}

// auditHash is SHA-256 over the hash before and the row's fields, each with its
// length, so that no two rows have the same input.
func auditHash(prev [sha256.Size]byte, e AuditEntry) [sha256.Size]byte {
	h := sha256.New()
	var n [8]byte
	number := func(v int64) {
		binary.BigEndian.PutUint64(n[:], uint64(v))
		h.Write(n[:])
	}
	h.Write(prev[:])
	number(e.Sequence)
	number(e.Time.UnixMicro())
	for _, s := range []string{e.Actor, e.Action, e.Subject, e.Detail} {
		number(int64(len(s)))
		h.Write([]byte(s))
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// Audit returns up to limit rows after a sequence, in order. Start with 0.
func (l *Ledger) Audit(ctx context.Context, after int64, limit int) ([]AuditEntry, error) {
	return l.auditRows(ctx, `SELECT seq, recorded_at, actor, action, subject, detail, hash FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2`, after, limit)
}

// AuditOf returns the last limit rows about one subject, for example a serial, the
// newest first.
func (l *Ledger) AuditOf(ctx context.Context, subject string, limit int) ([]AuditEntry, error) {
	return l.auditRows(ctx, `SELECT seq, recorded_at, actor, action, subject, detail, hash FROM audit WHERE subject = $1 ORDER BY seq DESC LIMIT $2`, subject, limit)
}

func (l *Ledger) auditRows(ctx context.Context, sql string, args ...any) ([]AuditEntry, error) {
	var out []AuditEntry
	err := l.query(ctx, func() { out = nil }, func(rows pgx.Rows) error {
		var e AuditEntry
		var hash []byte
		err := rows.Scan(&e.Sequence, &e.Time, &e.Actor, &e.Action, &e.Subject, &e.Detail, &hash)
		e.Time = e.Time.UTC()
		copy(e.Hash[:], hash)
		out = append(out, e)
		return err
	}, sql, args...)
	return out, err
}
