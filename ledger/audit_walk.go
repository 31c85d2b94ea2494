package ledger

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
)

// auditPage is how many audit rows are read at a time.
const auditPage = 1000

// BrokenChainError names the first row of the audit table that is not as it was written.
type BrokenChainError struct {
	Sequence int64
	Reason   string
}

// Error says where the chain breaks.
func (e *BrokenChainError) Error() string {
	return fmt.Sprintf("the audit chain is broken at row %d: %s", e.Sequence, e.Reason)
}

// AuditWalk checks rows of the audit chain one after the other, wherever they come
// from. The zero value stands before the first row; with a head it stands on that row.
type AuditWalk struct{ AuditHead }

// Step checks that e is the next row, as it was written, and goes on to it. The error
// is a *BrokenChainError.
func (w *AuditWalk) Step(e AuditEntry) error {
	switch {
	case e.Sequence != w.Sequence+1:
		return &BrokenChainError{w.Sequence + 1, "the row is missing"}
	case auditHash(w.Hash, e) != e.Hash:
		return &BrokenChainError{e.Sequence, "its hash does not cover its fields and the row before"}
	}
	w.AuditHead = AuditHead{e.Sequence, e.Hash}
	return nil
}

// AuditHead returns the head of the chain: its last row as the ledger keeps it beside
// the rows; row 0 while there is none.
func (l *Ledger) AuditHead(ctx context.Context) (AuditHead, error) {
	var h AuditHead
	err := l.query(ctx, func() {}, func(rows pgx.Rows) error {
		var hash []byte
		err := rows.Scan(&h.Sequence, &hash)
		copy(h.Hash[:], hash)
		return err
	}, `SELECT seq, hash FROM audit_head WHERE id = 1`)
	return h, err
}

// WalkAudit steps w over the rows after it up to the head, gives each to visit, which
// may be nil, and ends on the head. A row that was changed, taken out or put in is a
// *BrokenChainError; visit's error ends the walk.
func (l *Ledger) WalkAudit(ctx context.Context, w *AuditWalk, visit func(AuditEntry) error) error {
	head, err := l.AuditHead(ctx)
	if err != nil {
		return err
	}
	for w.Sequence < head.Sequence {
		page, err := l.Audit(ctx, w.Sequence, auditPage)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return &BrokenChainError{w.Sequence + 1, "the rows up to the head are missing"}
		}
		for _, e := range page {
			if err := w.Step(e); err != nil {
				return err
			}
			if visit != nil {
				if err := visit(e); err != nil {
					return err
				}
			}
			if w.Sequence == head.Sequence {
				break // what came after the head was read is for the next walk
			}
		}
	}
	if w.AuditHead != head {
		return &BrokenChainError{head.Sequence, "it is not the row that the head names"}
	}
	return nil
}

// VerifyAudit walks the chain from its start to its head and returns how many rows
// it has. A row that was changed, taken out or put in is a *BrokenChainError. Rows taken
// off the end together with the head's own row are found by the signed heads alone.
func (l *Ledger) VerifyAudit(ctx context.Context) (int64, error) {
	var w AuditWalk
	err := l.WalkAudit(ctx, &w, nil)
	return w.Sequence, err
}

// PutSignedHead stores a signed head; the same one again does nothing.
func (l *Ledger) PutSignedHead(ctx context.Context, h SignedHead) error {
	if h.SignedAt.Nanosecond()%int(time.Microsecond) != 0 || len(h.Signature) == 0 {
		return problem.New(problem.Internal, "a signed head has a time in whole microseconds and a signature")
	}
	err := l.retry(ctx, func(ctx context.Context) error {
		_, err := l.write.Exec(ctx, `INSERT INTO audit_heads (seq, hash, signed_at, issuer, signature) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (seq, signed_at, issuer) DO NOTHING`, h.Sequence, h.Hash[:], h.SignedAt, h.Issuer, h.Signature)
		return err
	})
	if err != nil {
		return fmt.Errorf("storing a signed head of the audit chain: %w", err)
	}
	return nil
}

const signedHeadColumns = `seq, hash, signed_at, issuer, signature`

// LastSignedHead returns the newest signed head; its sequence is 0 where there is none.
func (l *Ledger) LastSignedHead(ctx context.Context) (SignedHead, error) {
	heads, err := l.NewestSignedHeads(ctx, 1)
	if len(heads) == 0 {
		return SignedHead{}, err
	}
	return heads[0], err
}

// NewestSignedHeads returns the last heads of the chain that are signed, up to limit, the
// newest first.
func (l *Ledger) NewestSignedHeads(ctx context.Context, limit int) ([]SignedHead, error) {
	return l.signedHeads(ctx, `SELECT `+signedHeadColumns+` FROM audit_heads ORDER BY seq DESC, signed_at DESC, issuer DESC LIMIT $1`, limit)
}

// SignedHeads returns up to limit signed heads after a position, which is the last one
// of the page before; the zero value is the start. They come in the order of the chain.
func (l *Ledger) SignedHeads(ctx context.Context, after SignedHead, limit int) ([]SignedHead, error) {
	return l.signedHeads(ctx, `SELECT `+signedHeadColumns+` FROM audit_heads
		WHERE (seq, signed_at, issuer) > ($1, $2, $3) ORDER BY seq, signed_at, issuer LIMIT $4`, after.Sequence, after.SignedAt, after.Issuer, limit)
}

func (l *Ledger) signedHeads(ctx context.Context, sql string, args ...any) ([]SignedHead, error) {
	var out []SignedHead
	err := l.query(ctx, func() { out = nil }, func(rows pgx.Rows) error {
		var h SignedHead
		var hash []byte
		err := rows.Scan(&h.Sequence, &hash, &h.SignedAt, &h.Issuer, &h.Signature)
		h.SignedAt = h.SignedAt.UTC()
		if len(hash) == sha256.Size {
			copy(h.Hash[:], hash)
		}
		out = append(out, h)
		return err
	}, sql, args...)
	return out, err
}
