package ledger

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
)

// States of an Issuer, in the order in which a generation passes through them.
const (
	// IssuerPrepared is published and signs its CRLs and its OCSP signer's certificate;
	// it issues nothing yet.
	IssuerPrepared = "prepared"
	// IssuerActive issues. One generation of a name is active.
	IssuerActive = "active"
	// IssuerRetired issues nothing any more. CRLs and OCSP answers for its certificates
	// go on. A root, which issues by ceremony alone, is retired from the start.
	IssuerRetired = "retired"
	// IssuerClosed has no certificates left to answer for: it is not published and signs
	// nothing any more. Only CloseIssuer leads here, and nothing leads away.
	IssuerClosed = "closed"
)

// PutIssuer stores a generation of an issuer and returns its id. An active one
// retires the generation that was active under its name. The same certificate again
// has the same id, and its state, chain and key URI are brought up to date; it is a
// Conflict where the generation is closed.
func (l *Ledger) PutIssuer(ctx context.Context, i Issuer) (int32, error) {
	state, stage := i.State, ""
	switch i.State {
	case IssuerActive, IssuerRetired:
	case IssuerPrepared:
		state, stage = IssuerRetired, IssuerPrepared
	default:
		return 0, problem.Rejected("state", "enum", "an issuer is %q, %q or %q", IssuerPrepared, IssuerActive, IssuerRetired)
	}
	if i.Name == "" || len(i.DER) == 0 {
		return 0, problem.Rejected("name", "required", "an issuer needs a name and a certificate")
	}
	if i.Chain == nil {
		i.Chain = [][]byte{}
	}
	fingerprint := sha256.Sum256(i.DER)
	var id int32
	err := l.inTx(ctx, pgx.TxOptions{IsoLevel: pgx.Serializable}, func(ctx context.Context, tx pgx.Tx) error {
		if state == IssuerActive {
			_, err := tx.Exec(ctx, `UPDATE issuers SET state = 'retired', stage = '' WHERE name = $1 AND state = 'active' AND fingerprint <> $2`, i.Name, fingerprint[:])
			if err != nil {
				return fmt.Errorf("retiring the generation before: %w", err)
			}
		}
		err := tx.QueryRow(ctx, `INSERT INTO issuers (name, state, stage, der, fingerprint, chain, key_uri, created_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
			ON CONFLICT (fingerprint) DO UPDATE SET state = excluded.state, stage = excluded.stage, chain = excluded.chain, key_uri = excluded.key_uri
				WHERE issuers.stage <> 'closed'
			RETURNING id`, i.Name, state, stage, i.DER, fingerprint[:], i.Chain, i.KeyURI, l.now()).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return problem.New(problem.Conflict, "this generation of issuer %q is closed", i.Name)
		}
		return err
	})
	return id, err
}

// Issuers returns every generation of every issuer, by id.
func (l *Ledger) Issuers(ctx context.Context) ([]Issuer, error) {
	var out []Issuer
	err := l.query(ctx, func() { out = nil }, func(rows pgx.Rows) error {
		var i Issuer
		err := rows.Scan(&i.ID, &i.Name, &i.State, &i.DER, &i.Chain, &i.KeyURI, &i.Created)
		i.Created = i.Created.UTC()
		out = append(out, i)
		return err
	}, `SELECT id, name, CASE WHEN state = 'active' OR stage = '' THEN state ELSE stage END, der, chain, key_uri, created_at FROM issuers ORDER BY id`)
	return out, err
}

// PutOCSPSigner stores a delegated OCSP signer and returns its id. The same
// certificate again has the same id.
func (l *Ledger) PutOCSPSigner(ctx context.Context, s OCSPSigner) (int32, error) {
	fingerprint := sha256.Sum256(s.DER)
	var id int32
	err := l.retry(ctx, func(ctx context.Context) error {
		return l.write.QueryRow(ctx, `INSERT INTO ocsp_signers (issuer, der, fingerprint, key_uri, created_at)
			VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (fingerprint) DO UPDATE SET key_uri = excluded.key_uri
			RETURNING id`, s.Issuer, s.DER, fingerprint[:], s.KeyURI, l.now()).Scan(&id)
	})
	return id, err
}

// OCSPSigners returns every delegated OCSP signer, by id: of one issuer the last is
// the newest.
func (l *Ledger) OCSPSigners(ctx context.Context) ([]OCSPSigner, error) {
	var out []OCSPSigner
	err := l.query(ctx, func() { out = nil }, func(rows pgx.Rows) error {
		var s OCSPSigner
		err := rows.Scan(&s.ID, &s.Issuer, &s.DER, &s.KeyURI)
		out = append(out, s)
		return err
	}, `SELECT id, issuer, der, key_uri FROM ocsp_signers ORDER BY id`)
	return out, err
}
