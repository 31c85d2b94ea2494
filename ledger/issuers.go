package ledger

import (
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
)

// States of an Issuer.
const (
	IssuerActive  = "active"
	IssuerRetired = "retired"
)

// PutIssuer stores a generation of an issuer and returns its id. An active one
// retires the generation that was active under its name. The same certificate again
// has the same id, and its state, chain and key URI are brought up to date.
func (l *Ledger) PutIssuer(ctx context.Context, i Issuer) (int32, error) {
	if i.State != IssuerActive && i.State != IssuerRetired {
		return 0, problem.Rejected("state", "enum", "an issuer is %q or %q", IssuerActive, IssuerRetired)
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
		if i.State == IssuerActive {
			_, err := tx.Exec(ctx, `UPDATE issuers SET state = 'retired' WHERE name = $1 AND state = 'active' AND fingerprint <> $2`, i.Name, fingerprint[:])
			if err != nil {
				return fmt.Errorf("retiring the generation before: %w", err)
			}
		}
		return tx.QueryRow(ctx, `INSERT INTO issuers (name, state, der, fingerprint, chain, key_uri, created_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7)
			ON CONFLICT (fingerprint) DO UPDATE SET state = excluded.state, chain = excluded.chain, key_uri = excluded.key_uri
			RETURNING id`, i.Name, i.State, i.DER, fingerprint[:], i.Chain, i.KeyURI, l.now()).Scan(&id)
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
	}, `SELECT id, name, state, der, chain, key_uri, created_at FROM issuers ORDER BY id`)
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
