package ledger

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/certmill/certmill/internal/problem"
)

// CreateToken stores an enrollment token and returns it with its id and time. Its audit
// row is in the same transaction: there is no token without one.
func (l *Ledger) CreateToken(ctx context.Context, t Token) (Token, error) {
	now := l.now()
	switch {
	case t.Uses < 1 || t.Uses > 1_000_000_000:
		return t, problem.Rejected("uses", "range", "a token has between 1 and 1,000,000,000 uses")
	case !t.Expires.After(now):
		return t, problem.Rejected("expires", "future", "a token expires in the future")
	case t.Hash == [sha256.Size]byte{}:
		return t, problem.New(problem.Internal, "a token without a hash")
	}
	if t.Names == nil {
		t.Names = []string{}
	}
	t.ID, t.Used, t.Created = uuid.NewString(), 0, now.UTC()
	detail := fmt.Sprintf("profile %s, names %q, %d uses", t.Profile, t.Names, t.Uses)
	err := l.inTx(ctx, l.dialect.locked(), func(ctx context.Context, tx pgx.Tx) error {
		head, err := lockAudit(ctx, tx)
		if err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `INSERT INTO enrollment_tokens (id, hash, profile, names, uses, expires_at, owner, created_by, created_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO NOTHING`,
			t.ID, t.Hash[:], t.Profile, t.Names, t.Uses, t.Expires, t.Owner, t.CreatedBy, t.Created)
		if hasCode(err, codeUniqueViolation) {
			return problem.New(problem.Conflict, "this token exists already")
		}
		if err != nil || tag.RowsAffected() == 0 { // an earlier try, whose answer was lost, has done it
			return err
		}
		_, err = l.appendAudit(ctx, tx, head, AuditEntry{Actor: t.CreatedBy, Action: "enrollment_token.create", Subject: t.ID, Detail: detail})
		return err
	})
	return t, err
}

// Tokens returns every token, the newest first. Maintain takes them away when they
// have expired longer than Grace ago.
func (l *Ledger) Tokens(ctx context.Context) ([]Token, error) {
	var out []Token
	err := l.query(ctx, func() { out = nil }, func(rows pgx.Rows) error {
		t, err := scanToken(rows)
		out = append(out, t)
		return err
	}, `SELECT `+tokenColumns+` FROM enrollment_tokens ORDER BY created_at DESC, id`)
	return out, err
}

// DeleteToken ends a token on behalf of an actor, with an audit row in the same
// transaction. An unknown id is NotFound.
func (l *Ledger) DeleteToken(ctx context.Context, id, actor string) error {
	u, err := uuid.Parse(id)
	if err != nil {
		return problem.Rejected("id", "uuid", "a token's id is a UUID")
	}
	entry := AuditEntry{Actor: actor, Action: "enrollment_token.delete", Subject: u.String()}
	began := int64(-1) // the chain's end when this was first tried
	return l.inTx(ctx, l.dialect.locked(), func(ctx context.Context, tx pgx.Tx) error {
		head, err := lockAudit(ctx, tx)
		if err != nil {
			return err
		}
		if began < 0 {
			began = head.Sequence
		}
		tag, err := tx.Exec(ctx, `DELETE FROM enrollment_tokens WHERE id = $1`, u.String())
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return deletedSince(ctx, tx, began, entry)
		}
		_, err = l.appendAudit(ctx, tx, head, entry)
		return err
	})
}

// deletedSince returns nil where a deletion was recorded after a row of the audit
// chain: an earlier try has done it, whose answer was lost.
func deletedSince(ctx context.Context, tx pgx.Tx, row int64, e AuditEntry) error {
	var done bool
	err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM audit WHERE seq > $1 AND actor = $2 AND action = $3 AND subject = $4)`,
		row, e.Actor, e.Action, e.Subject).Scan(&done)
	if err == nil && !done {
		err = problem.New(problem.NotFound, "there is no token %s", e.Subject)
	}
	return err
}

// TokenByHash returns the token whose secret has this SHA-256, used or not. An
// unknown or expired one is Unauthenticated.
func (l *Ledger) TokenByHash(ctx context.Context, hash [sha256.Size]byte) (Token, error) {
	t, _, err := l.token(ctx, hash, RequestKey{}, 0)
	if err != nil {
		return t, err
	}
	return t, l.expired(t)
}

// UseToken takes one use of the token for a request. The same request again, at any
// gateway, takes no other, for as long as given; after that it is refused: by then it
// would be given another certificate. Of more requests than the token has uses exactly
// so many succeed; the others, like an unknown or expired token, are Unauthenticated.
func (l *Ledger) UseToken(ctx context.Context, hash [sha256.Size]byte, key RequestKey, again time.Duration) (Token, error) {
	var t Token
	err := l.retry(ctx, func(ctx context.Context) (err error) {
		var admitted bool
		if t, admitted, err = l.token(ctx, hash, key, again); err != nil || admitted {
			return err
		}
		if err := l.expired(t); err != nil {
			return err
		}
		if t.Used >= t.Uses {
			return errTokenUsed()
		}
		took, err := l.takeUse(ctx, t.ID, key)
		if hasCode(err, codeUniqueViolation) {
			// No use was taken here: the same request, at another gateway, was quicker, or
			// came so long ago that it is refused.
			if t, admitted, err = l.token(ctx, hash, key, again); err == nil && !admitted {
				err = errTokenUsed()
			}
			return err
		}
		if err == nil && !took {
			return errTokenUsed()
		}
		t.Used++
		return err
	})
	return t, err
}

// takeUse counts and records one use in one statement: the row's lock lets one
// request pass at a time, and a key that is there already undoes the count.
func (l *Ledger) takeUse(ctx context.Context, id string, key RequestKey) (bool, error) {
	var took int64
	err := pgx.BeginTxFunc(ctx, l.write, l.dialect.locked(), func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `WITH took AS (
				UPDATE enrollment_tokens SET used = used + 1 WHERE id = $1 AND used < uses RETURNING id
			) INSERT INTO token_uses (token, key, used_at) SELECT id, $2::bytea, $3::timestamptz FROM took`, id, key[:], l.now())
		took = tag.RowsAffected()
		return err
	})
	return took == 1, err
}

// token reads a token and whether it has admitted the request, not longer ago than given.
func (l *Ledger) token(ctx context.Context, hash [sha256.Size]byte, key RequestKey, again time.Duration) (Token, bool, error) {
	var t Token
	var admitted, found bool
	err := l.query(ctx, func() { found = false }, func(rows pgx.Rows) (err error) {
		found = true
		t, err = scanToken(rows, &admitted)
		return err
	}, `SELECT `+tokenColumns+`, EXISTS (SELECT 1 FROM token_uses u WHERE u.token = enrollment_tokens.id AND u.key = $2 AND u.used_at > $3)
		FROM enrollment_tokens WHERE hash = $1`, hash[:], key[:], l.now().Add(-again))
	if err == nil && !found {
		err = &problem.Error{Kind: problem.Unauthenticated, Rule: "token_unknown", Detail: "the enrollment token is not known"}
	}
	return t, admitted, err
}

func (l *Ledger) expired(t Token) error {
	if l.now().Before(t.Expires) {
		return nil
	}
	return &problem.Error{Kind: problem.Unauthenticated, Rule: "token_expired", Detail: "the enrollment token has expired"}
}

func errTokenUsed() error {
	return &problem.Error{Kind: problem.Unauthenticated, Rule: "token_used", Detail: "the enrollment token has no uses left"}
}

const tokenColumns = `id::text, hash, profile, names, uses, used, expires_at, owner, created_by, created_at`

// scanToken reads tokenColumns and what the statement has after them.
func scanToken(rows pgx.Rows, more ...any) (Token, error) {
	var t Token
	var hash []byte
	err := rows.Scan(append([]any{&t.ID, &hash, &t.Profile, &t.Names, &t.Uses, &t.Used, &t.Expires, &t.Owner, &t.CreatedBy, &t.Created}, more...)...)
	copy(t.Hash[:], hash)
	t.Expires, t.Created = t.Expires.UTC(), t.Created.UTC()
	return t, err
}

// hasCode reports whether err comes from the database with this SQLSTATE.
func hasCode(err error, code string) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == code
}
