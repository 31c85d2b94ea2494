package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
)

// Unexpired returns when one of the last certificates of a generation ends, revoked ones
// too, or the zero time where all have expired. Where there is none it has read every
// certificate that has not expired.
func (l *Ledger) Unexpired(ctx context.Context, issuer int32) (time.Time, error) {
	now := l.now()
	var last time.Time
	// One range for each class of lifetime; serials begin with the time of expiry.
	for _, r := range keyRanges(serial.Number{}, now, time.Time{}) {
		var end time.Time
		err := l.query(ctx, func() { end = time.Time{} }, func(rows pgx.Rows) error { return rows.Scan(&end) },
			`SELECT not_after FROM certificates WHERE serial > $1 AND serial < $2 AND issuer = $3 AND not_after > $4
			ORDER BY serial DESC LIMIT 1`, r.after[:], r.before[:], issuer, now)
		if err != nil {
			return last, fmt.Errorf("looking for certificates of generation %d: %w", issuer, err)
		}
		if end.After(last) {
			last = end.UTC()
		}
	}
	return last, nil
}

// CloseIssuer ends a retired generation and takes its CRLs away. It is a Conflict where
// the generation is not retired, is a root, or has certificates that have not expired
// unless force is set; they cannot be checked any more then. The audit trail has it, by
// actor. A generation that is closed already is left alone.
func (l *Ledger) CloseIssuer(ctx context.Context, id int32, actor string, force bool) error {
	last, err := l.Unexpired(ctx, id)
	if err != nil {
		return err
	}
	if !last.IsZero() && !force {
		return &problem.Error{Kind: problem.Conflict, Field: "generation", Rule: "unexpired",
			Detail: fmt.Sprintf("generation %d has certificates that have not expired, until %s", id, last.Format(time.RFC3339))}
	}
	detail := "all of its certificates have expired"
	if !last.IsZero() {
		detail = "forced; certificates of it are valid until " + last.Format(time.RFC3339)
	}
	return l.inTx(ctx, l.dialect.locked(), func(ctx context.Context, tx pgx.Tx) error {
		head, err := lockAudit(ctx, tx)
		if err != nil {
			return err
		}
		var name, state, stage string
		var root bool
		err = tx.QueryRow(ctx, `SELECT name, state, stage, COALESCE(array_length(chain, 1), 0) = 0 FROM issuers WHERE id = $1 FOR UPDATE`, id).Scan(&name, &state, &stage, &root)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return problem.New(problem.NotFound, "the ledger has no generation %d", id)
		case err != nil:
			return fmt.Errorf("reading generation %d: %w", id, err)
		case stage == IssuerClosed:
			return nil
		case state != IssuerRetired || stage != "" || root:
			return problem.New(problem.Conflict, "generation %d of %q is not a retired issuing CA", id, name)
		}
		for _, sql := range []string{
			`DELETE FROM crl_chunks WHERE crl_set IN (SELECT id FROM crl_sets WHERE issuer = $1)`,
			`DELETE FROM crls WHERE crl_set IN (SELECT id FROM crl_sets WHERE issuer = $1)`,
			`DELETE FROM crl_sets WHERE issuer = $1`,
			`UPDATE issuers SET stage = 'closed' WHERE id = $1`,
		} {
			if _, err := tx.Exec(ctx, sql, id); err != nil {
				return fmt.Errorf("closing generation %d: %w", id, err)
			}
		}
		_, err = l.appendAudit(ctx, tx, head, AuditEntry{Actor: actor, Action: "issuer.close", Subject: fmt.Sprintf("%s/%d", name, id), Detail: detail})
		return err
	})
}
