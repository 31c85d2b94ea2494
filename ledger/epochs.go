package ledger

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
)

// StartEpoch records the start of a signer for an issuer and returns the epoch's id,
// never given before and never 0. A signer starts one before its first signature.
func (l *Ledger) StartEpoch(ctx context.Context, e Epoch) (uint32, error) {
	var id int32
	err := l.retry(ctx, func(ctx context.Context) error {
		return l.write.QueryRow(ctx, `INSERT INTO signer_epochs (signer, issuer, token, started_at) VALUES ($1, $2, $3, $4) RETURNING id`,
			e.Signer, e.Issuer, e.Token, l.now()).Scan(&id)
	})
	return uint32(id), err
}

// ReportSignatures records how many signatures the epoch has made so far; final when
// there will be no more. A smaller number than before is ignored.
func (l *Ledger) ReportSignatures(ctx context.Context, epoch uint32, signatures int64, final bool) error {
	return l.retry(ctx, func(ctx context.Context) error {
		tag, err := l.write.Exec(ctx, `UPDATE signer_epochs
			SET signatures = greatest(signatures, $2::int8), final = final OR $3::bool, reported_at = $4 WHERE id = $1`,
			int32(epoch), signatures, final, l.now())
		if err == nil && tag.RowsAffected() == 0 {
			return problem.New(problem.NotFound, "there is no epoch %d", epoch)
		}
		return err
	})
}

// Epochs returns every epoch, the newest first.
func (l *Ledger) Epochs(ctx context.Context) ([]Epoch, error) {
	var out []Epoch
	err := l.query(ctx, func() { out = nil }, func(rows pgx.Rows) error {
		var e Epoch
		var id int32
		err := rows.Scan(&id, &e.Signer, &e.Issuer, &e.Token, &e.Started, &e.Signatures, &e.Final)
		e.ID, e.Started = uint32(id), e.Started.UTC()
		out = append(out, e)
		return err
	}, `SELECT id, signer, issuer, token, started_at, signatures, final FROM signer_epochs ORDER BY id DESC`)
	return out, err
}
