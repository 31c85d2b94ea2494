package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
)

// EarlyRenewal says that certificates are to be renewed before they would be: those
// of an issuer, or of some holders, that were issued before Created.
type EarlyRenewal struct {
	ID string // UUID
	// Issuer is an issuer's name; empty means every issuer.
	Issuer string
	// Holder is the id of a caller or a name with its kind, "uri:spiffe://…", exact or
	// with a star at its end for any rest; empty means everybody.
	Holder string
	// RenewBy is when the last of them is advised to renew. Microseconds count.
	RenewBy time.Time
	// Reason is told to the holders.
	Reason    string
	CreatedBy string
	Created   time.Time
}

// MaxEarlyRenewals bounds the early renewals that stand: gateways look at all of them
// for every certificate.
const MaxEarlyRenewals = 100

// earlyRenewalKept is how long one stands after its RenewBy, for holders that were away.
const earlyRenewalKept = 90 * 24 * time.Hour

const earlyRenewalColumns = `id::text, issuer, holder, renew_by, reason, created_by, created_at`

// CreateEarlyRenewal stores an early renewal with its audit row, and returns it with
// its id and time. Beyond MaxEarlyRenewals it is a Conflict.
func (l *Ledger) CreateEarlyRenewal(ctx context.Context, e EarlyRenewal) (EarlyRenewal, error) {
	now := l.now().UTC().Truncate(time.Microsecond)
	e.ID, e.Created, e.RenewBy = uuid.NewString(), now, e.RenewBy.UTC().Truncate(time.Microsecond)
	err := l.inTx(ctx, l.dialect.locked(), func(ctx context.Context, tx pgx.Tx) error {
		head, err := lockAudit(ctx, tx) // one after the other, so that the bound holds
		if err != nil {
			return err
		}
		var mine bool // a first run whose answer was lost
		var standing int
		if err := tx.QueryRow(ctx, `SELECT count(*), COALESCE(bool_or(id = $1), false) FROM early_renewals`, e.ID).Scan(&standing, &mine); err != nil {
			return fmt.Errorf("counting the early renewals: %w", err)
		}
		switch {
		case mine:
			return nil
		case standing >= MaxEarlyRenewals:
			return problem.New(problem.Conflict, "%d early renewals stand already; end those that are over", MaxEarlyRenewals)
		}
		_, err = tx.Exec(ctx, `INSERT INTO early_renewals (id, issuer, holder, renew_by, reason, created_by, created_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7)`, e.ID, e.Issuer, e.Holder, e.RenewBy, e.Reason, e.CreatedBy, e.Created)
		if err != nil {
			return fmt.Errorf("storing the early renewal: %w", err)
		}
		_, err = l.appendAudit(ctx, tx, head, AuditEntry{
			Actor: e.CreatedBy, Action: "renewal.early", Subject: e.ID,
			Detail: fmt.Sprintf("issuer %q, holder %q, by %s: %s", e.Issuer, e.Holder, e.RenewBy.Format(time.RFC3339), e.Reason),
		})
		return err
	})
	return e, err
}

// EarlyRenewals returns those that stand, the newest first.
func (l *Ledger) EarlyRenewals(ctx context.Context) ([]EarlyRenewal, error) {
	var out []EarlyRenewal
	err := l.query(ctx, func() { out = nil }, func(rows pgx.Rows) error {
		var e EarlyRenewal
		err := rows.Scan(&e.ID, &e.Issuer, &e.Holder, &e.RenewBy, &e.Reason, &e.CreatedBy, &e.Created)
		e.RenewBy, e.Created = e.RenewBy.UTC(), e.Created.UTC()
		out = append(out, e)
		return err
	}, `SELECT `+earlyRenewalColumns+` FROM early_renewals WHERE renew_by > $1 ORDER BY created_at DESC, id`, l.now().Add(-earlyRenewalKept))
	return out, err
}

// EndEarlyRenewal takes one back on behalf of actor, with its audit row. An unknown id
// is NotFound.
func (l *Ledger) EndEarlyRenewal(ctx context.Context, id, actor string) error {
	u, err := uuid.Parse(id)
	if err != nil {
		return problem.Rejected("id", "uuid", "an early renewal's id is a UUID")
	}
	return l.inTx(ctx, l.dialect.locked(), func(ctx context.Context, tx pgx.Tx) error {
		head, err := lockAudit(ctx, tx)
		if err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `DELETE FROM early_renewals WHERE id = $1`, u.String())
		if err != nil {
			return fmt.Errorf("ending the early renewal: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return problem.New(problem.NotFound, "there is no early renewal %s", id)
		}
		_, err = l.appendAudit(ctx, tx, head, AuditEntry{Actor: actor, Action: "renewal.early_end", Subject: u.String()})
		return err
	})
}
