package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
)

// reasons are the CRLReasons of RFC 5280 section 5.3.1 that a revocation may have.
// 6 (certificateHold) and 8 (removeFromCRL) are reversible and not offered, 7 is
// not used.
var reasons = map[int16]string{
	0: "unspecified", 1: "keyCompromise", 2: "cACompromise", 3: "affiliationChanged",
	4: "superseded", 5: "cessationOfOperation", 9: "privilegeWithdrawn", 10: "aACompromise",
}

const revocationColumns = `serial, seq, revoked_at, not_after, issuer, reason, services, revoked_by, comment`

// Revoke revokes r.Serial for r.Reason on behalf of r.RevokedBy, with an audit row in
// the same transaction. It returns the revocation that stands, and whether this call
// made it: a repeat returns the first one unchanged. A reason that is reversible or
// unknown and an expired certificate are Invalid, an unknown serial is NotFound.
func (l *Ledger) Revoke(ctx context.Context, r Revocation) (Revocation, bool, error) {
	reason, ok := reasons[r.Reason]
	if !ok {
		return r, false, problem.Rejected("reason", "crl_reason", "%d is not a reason for revocation here; RFC 5280's 0–5, 9 and 10 are (revocation is final, so 6, certificateHold, is not offered)", r.Reason)
	}
	cert, standing, err := l.Certificate(ctx, r.Serial)
	if err != nil {
		return r, false, err
	}
	if standing != nil {
		return *standing, false, nil
	}
	now := l.now().UTC().Truncate(time.Second)
	if !now.Before(cert.NotAfter) {
		return r, false, problem.Rejected("serial", "expired", "the certificate expired at %s", cert.NotAfter.Format(time.RFC3339))
	}
	r.Issuer, r.NotAfter, r.Services, r.RevokedAt = cert.Issuer, cert.NotAfter, cert.Revocation, now
	stands := r
	err = l.inTx(ctx, l.dialect.locked(), func(ctx context.Context, tx pgx.Tx) error {
		// The lock comes first, so two revocations of one serial are one after the other.
		head, err := lockAudit(ctx, tx)
		if err != nil {
			return err
		}
		earlier, err := revocationsOf(ctx, tx, r.Serial)
		if err != nil {
			return fmt.Errorf("looking for an earlier revocation: %w", err)
		}
		if len(earlier) > 0 {
			stands = earlier[0]
			return nil
		}
		a, err := l.appendAudit(ctx, tx, head, AuditEntry{Actor: r.RevokedBy, Action: "certificate.revoke", Subject: r.Serial.String(), Detail: reason})
		if err != nil {
			return err
		}
		stands = r
		stands.Sequence = a.Sequence
		return insertRevocation(ctx, tx, stands)
	})
	if err != nil {
		return r, false, err
	}
	// A first run whose answer was lost is recognised by what it wrote.
	r.Sequence = stands.Sequence
	return stands, stands == r, nil
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func revocationsOf(ctx context.Context, q querier, serials ...serial.Number) ([]Revocation, error) {
	rows, err := q.Query(ctx, `SELECT `+revocationColumns+` FROM revocations WHERE serial = ANY($1::bytea[])`, octets(serials))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanRevocation)
}

func insertRevocation(ctx context.Context, tx pgx.Tx, r Revocation) error {
	_, err := tx.Exec(ctx, `INSERT INTO revocations (`+revocationColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		r.Serial[:], r.Sequence, r.RevokedAt, r.NotAfter, r.Issuer, r.Reason, int16(r.Services), r.RevokedBy, r.Comment)
	if err != nil {
		return fmt.Errorf("storing the revocation: %w", err)
	}
	return nil
}

func scanRevocation(row pgx.CollectableRow) (Revocation, error) {
	var r Revocation
	var number []byte
	var services int16
	err := row.Scan(&number, &r.Sequence, &r.RevokedAt, &r.NotAfter, &r.Issuer, &r.Reason, &services, &r.RevokedBy, &r.Comment)
	if err != nil {
		return r, err
	}
	r.Services, r.RevokedAt, r.NotAfter = uint8(services), r.RevokedAt.UTC(), r.NotAfter.UTC()
	r.Serial, err = serial.FromBytes(number)
	return r, err
}

// Revocations returns up to limit revocations after a Sequence, in the order in which
// they were committed. Start with 0. Those of certificates that expired longer than
// Grace ago are gone.
func (l *Ledger) Revocations(ctx context.Context, after int64, limit int) ([]Revocation, error) {
	var out []Revocation
	err := l.query(ctx, func() { out = nil }, func(rows pgx.Rows) error {
		r, err := scanRevocation(rows)
		out = append(out, r)
		return err
	}, `SELECT `+revocationColumns+` FROM revocations WHERE seq > $1 ORDER BY seq LIMIT $2`, after, limit)
	return out, err
}
