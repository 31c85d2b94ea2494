package ledger

import (
	"context"
	"fmt"
	"time"

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
	return l.ReportEpoch(ctx, epoch, EpochReport{Signatures: signatures, Final: final})
}

// ReportEpoch records what became of the epoch's signatures so far. Numbers that are
// smaller than before are ignored, one by one.
func (l *Ledger) ReportEpoch(ctx context.Context, epoch uint32, r EpochReport) error {
	return l.retry(ctx, func(ctx context.Context) error {
		tag, err := l.write.Exec(ctx, `UPDATE signer_epochs SET signatures = greatest(signatures, $2::int8),
			committed = greatest(committed, $3::int8), discarded = greatest(discarded, $4::int8), crls = greatest(crls, $5::int8),
			final = final OR $6::bool, reported_at = $7 WHERE id = $1`,
			int32(epoch), r.Signatures, r.Committed, r.Discarded, r.CRLs, r.Final, l.now())
		if err == nil && tag.RowsAffected() == 0 {
			return problem.New(problem.NotFound, "there is no epoch %d", epoch)
		}
		return err
	})
}

// RecordStrays writes down signatures that have no row. It may be repeated; of a serial
// the first reason stands.
func (l *Ledger) RecordStrays(ctx context.Context, strays []Stray) error {
	if len(strays) == 0 {
		return nil
	}
	serials, epochs, reasons := make([][]byte, len(strays)), make([]int32, len(strays)), make([]string, len(strays))
	for i, s := range strays {
		serials[i], epochs[i], reasons[i] = s.Serial[:], int32(s.Serial.Epoch()), string(s.Reason)
	}
	err := l.retry(ctx, func(ctx context.Context) error {
		_, err := l.write.Exec(ctx, `INSERT INTO signature_strays (serial, epoch, reason, recorded_at)
			SELECT serial, epoch, reason, $4 FROM unnest($1::bytea[], $2::int4[], $3::text[]) AS t(serial, epoch, reason)
			ON CONFLICT (serial) DO NOTHING`, serials, epochs, reasons, l.now())
		return err
	})
	if err != nil {
		return fmt.Errorf("recording signatures without a row: %w", err)
	}
	return nil
}

// Epochs returns every epoch, the newest first.
func (l *Ledger) Epochs(ctx context.Context) ([]Epoch, error) {
	var out []Epoch
	err := l.query(ctx, func() { out = nil }, func(rows pgx.Rows) error {
		var e Epoch
		var id int32
		var reported *time.Time
		err := rows.Scan(&id, &e.Signer, &e.Issuer, &e.Token, &e.Started, &e.Signatures, &e.Committed, &e.Discarded, &e.CRLs, &e.Final, &reported)
		e.ID, e.Started = uint32(id), e.Started.UTC()
		if reported != nil {
			e.ReportedAt = reported.UTC()
		}
		out = append(out, e)
		return err
	}, `SELECT id, signer, issuer, token, started_at, signatures, committed, discarded, crls, final, reported_at FROM signer_epochs ORDER BY id DESC`)
	return out, err
}
