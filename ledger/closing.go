package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
)

// Unexpired returns when one of the last certificates of a generation ends, revoked ones
// too, or the zero time where all have expired. It does not read the certificates of
// others: serials begin with the time of expiry and the epoch, and an epoch is of one
// issuer, so it steps from one epoch of the generation to the next within each day, month
// or year of expiry. Of those under way it reads what the generation has in them.
func (l *Ledger) Unexpired(ctx context.Context, issuer int32) (time.Time, error) {
	epochs, err := l.epochsOf(ctx, issuer)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the epochs of generation %d: %w", issuer, err)
	}
	now := l.now()
	var last time.Time
	for _, r := range keyRanges(serial.Number{}, now, time.Time{}) { // one for each class of lifetime
		end, err := l.lastOf(ctx, epochs, r, now)
		if err != nil {
			return last, fmt.Errorf("looking for certificates of generation %d: %w", issuer, err)
		}
		if end.After(last) {
			last = end
		}
	}
	return last, nil
}

// epochsOf returns the epochs of a generation, in order.
func (l *Ledger) epochsOf(ctx context.Context, issuer int32) (epochs []uint32, err error) {
	err = l.query(ctx, func() { epochs = nil }, func(rows pgx.Rows) error {
		var id int32
		err := rows.Scan(&id)
		epochs = append(epochs, uint32(id))
		return err
	}, `SELECT id FROM signer_epochs WHERE issuer = $1 ORDER BY id`, issuer)
	return epochs, err
}

// lastOf goes down a range of serials and returns the end of the first certificate of one
// of the epochs that has not expired, or the zero time.
func (l *Ledger) lastOf(ctx context.Context, epochs []uint32, r keyRange, now time.Time) (time.Time, error) {
	for {
		number, _, err := l.below(ctx, r, time.Time{})
		if err != nil || number == (serial.Number{}) {
			return time.Time{}, err
		}
		bucket := number.Bucket().First()
		i, own := slices.BinarySearch(epochs, number.Epoch())
		if own {
			within := keyRange{bucket.WithEpoch(epochs[i]), r.before}
			if bytes.Compare(r.after[:], within.after[:]) > 0 {
				within.after = r.after
			}
			if _, end, err := l.below(ctx, within, now); err != nil || !end.IsZero() {
				return end, err
			}
		}
		// On below what was seen: with the next epoch of ours, or the bucket before.
		if i == 0 {
			r.before = bucket
		} else if own {
			r.before = bucket.WithEpoch(epochs[i])
		} else {
			r.before = bucket.WithEpoch(epochs[i-1] + 1)
		}
	}
}

// below returns the greatest serial of a range whose certificate ends after a time, with
// its end; a zero serial where there is none.
func (l *Ledger) below(ctx context.Context, r keyRange, after time.Time) (n serial.Number, end time.Time, err error) {
	err = l.query(ctx, func() { n, end = serial.Number{}, time.Time{} }, func(rows pgx.Rows) error {
		var raw []byte
		err := rows.Scan(&raw, &end)
		if err == nil {
			n, err = serial.FromBytes(raw)
		}
		return err
	}, `SELECT serial, not_after FROM certificates WHERE serial > $1 AND serial < $2 AND not_after > $3 ORDER BY serial DESC LIMIT 1`,
		r.after[:], r.before[:], after)
	return n, end.UTC(), err
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
