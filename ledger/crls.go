package ledger

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
)

// CRLSet is a distribution point that certificates of an issuer may name: Shards CRLs
// under one URL, in which {shard} stands for the shard.
type CRLSet struct {
	ID     int32
	Issuer int32
	URL    string
	Shards int
}

// CRL is the last CRL of one shard that was published; Number is 0 before the first.
type CRL struct {
	Set    int32
	Issuer int32 // the generation whose it is
	Shard  int
	// Number is the CRLNumber (RFC 5280 section 5.2.3). Numbers rise; some are never used.
	Number int64
	// Sequence is the Revocation.Sequence up to which it is complete.
	Sequence               int64
	ThisUpdate, NextUpdate time.Time // whole seconds
	// Scheduled is the ThisUpdate of the last one that was made on schedule and not for
	// a revocation. Entries stay until one such CRL lies after the certificate's end.
	Scheduled time.Time
	Entries   int64
	Bytes     int64
	Chunks    int
	// Digest is the SHA-256 over the tbsCertList and what follows it.
	Digest [sha256.Size]byte
}

// PutCRLSet stores a distribution point and makes its CRLs known; the same one again
// has the same id. A URL and number of shards that another issuer has is a Conflict.
func (l *Ledger) PutCRLSet(ctx context.Context, s CRLSet) (int32, error) {
	err := l.inTx(ctx, pgx.TxOptions{IsoLevel: pgx.Serializable}, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO crl_sets (issuer, url, shards, created_at) VALUES ($1, $2, $3, $4)
			ON CONFLICT (url, shards) DO NOTHING`, s.Issuer, s.URL, s.Shards, l.now())
		if err != nil {
			return fmt.Errorf("storing a CRL's distribution point: %w", err)
		}
		var issuer int32
		err = tx.QueryRow(ctx, `SELECT id, issuer FROM crl_sets WHERE url = $1 AND shards = $2`, s.URL, s.Shards).Scan(&s.ID, &issuer)
		if err != nil {
			return err
		}
		if issuer != s.Issuer {
			return problem.New(problem.Conflict, "the CRLs under %s are another issuer's", s.URL)
		}
		_, err = tx.Exec(ctx, `INSERT INTO crls (crl_set, shard) SELECT $1::int4, generate_series(0, $2::int4 - 1)
			ON CONFLICT (crl_set, shard) DO NOTHING`, s.ID, s.Shards)
		return err
	})
	return s.ID, err
}

// CRLSets returns every distribution point, by id.
func (l *Ledger) CRLSets(ctx context.Context) ([]CRLSet, error) {
	var out []CRLSet
	err := l.query(ctx, func() { out = nil }, func(rows pgx.Rows) error {
		var s CRLSet
		err := rows.Scan(&s.ID, &s.Issuer, &s.URL, &s.Shards)
		out = append(out, s)
		return err
	}, `SELECT id, issuer, url, shards FROM crl_sets ORDER BY id`)
	return out, err
}

// CRLs returns the last CRL of every shard, by set and shard.
func (l *Ledger) CRLs(ctx context.Context) ([]CRL, error) {
	var out []CRL
	err := l.query(ctx, func() { out = nil }, func(rows pgx.Rows) error {
		var c CRL
		var this, next, scheduled *time.Time
		var digest []byte
		err := rows.Scan(&c.Set, &c.Issuer, &c.Shard, &c.Number, &c.Sequence, &this, &next, &scheduled, &c.Entries, &c.Bytes, &c.Chunks, &digest)
		for _, t := range []struct {
			from *time.Time
			to   *time.Time
		}{{this, &c.ThisUpdate}, {next, &c.NextUpdate}, {scheduled, &c.Scheduled}} {
			if t.from != nil {
				*t.to = t.from.UTC()
			}
		}
		copy(c.Digest[:], digest)
		out = append(out, c)
		return err
	}, `SELECT c.crl_set, s.issuer, c.shard, c.number, c.seq, c.this_update, c.next_update, c.scheduled_at, c.entries, c.bytes, c.chunks, c.digest
		FROM crls c JOIN crl_sets s ON s.id = c.crl_set ORDER BY c.crl_set, c.shard`)
	return out, err
}

// CRLClaim is the right to make the next CRL of a shard.
type CRLClaim struct {
	Set   int32
	Shard int
	// Number is the CRLNumber reserved for it: it is in the ledger before there is a
	// signature, and never given out again.
	Number int64
	maker  string
}

// ClaimCRL reserves the next number of a shard for maker until the claim ends, if
// nobody else has it and seen is still the number published. ok is false otherwise.
// Numbers keep up with the time in Unix milliseconds, so that they go on rising when
// the ledger is restored from a backup.
func (l *Ledger) ClaimCRL(ctx context.Context, set int32, shard int, seen int64, maker string, d time.Duration) (c CRLClaim, ok bool, err error) {
	c = CRLClaim{Set: set, Shard: shard, maker: maker}
	now := l.now()
	// Run again after a lost answer it reserves another number, which does no harm.
	err = l.inTx(ctx, l.dialect.locked(), func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `UPDATE crls SET reserved = greatest(reserved + 1, $7), maker = $4, claimed_till = $5
			WHERE crl_set = $1 AND shard = $2 AND number = $3 AND (claimed_till IS NULL OR claimed_till < $6 OR maker = $4)
			RETURNING reserved`, set, shard, seen, maker, now.Add(d), now, now.UnixMilli())
		if err != nil {
			return err
		}
		numbers, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if ok = len(numbers) == 1; ok {
			c.Number = numbers[0]
		}
		return err
	})
	return c, ok, err
}

// ReleaseCRL gives a claim back that was not used, or of which ClaimCRL has not said
// whether it was given. It goes by the maker's name, not by the number.
func (l *Ledger) ReleaseCRL(ctx context.Context, c CRLClaim) error {
	return l.retry(ctx, func(ctx context.Context) error {
		_, err := l.write.Exec(ctx, `UPDATE crls SET claimed_till = NULL WHERE crl_set = $1 AND shard = $2 AND maker = $3`,
			c.Set, c.Shard, c.maker)
		return err
	})
}

// PutCRLChunk stores a piece of the DER of a claimed CRL; pieces are numbered from 0.
func (l *Ledger) PutCRLChunk(ctx context.Context, c CRLClaim, chunk int, der []byte) error {
	return l.retry(ctx, func(ctx context.Context) error {
		_, err := l.write.Exec(ctx, `INSERT INTO crl_chunks (crl_set, shard, number, chunk, der) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (crl_set, shard, number, chunk) DO UPDATE SET der = excluded.der`, c.Set, c.Shard, c.Number, chunk, der)
		return err
	})
}

// PublishCRL makes the CRL of a claim, whose pieces are stored, the one of its shard,
// and ends the claim. It reports false when a higher number was published meanwhile:
// numbers never go back. Of each shard the last two CRLs are kept.
func (l *Ledger) PublishCRL(ctx context.Context, claim CRLClaim, c CRL) (bool, error) {
	published := false
	err := l.inTx(ctx, l.dialect.locked(), func(ctx context.Context, tx pgx.Tx) error {
		var before int64
		err := tx.QueryRow(ctx, `SELECT number FROM crls WHERE crl_set = $1 AND shard = $2 FOR UPDATE`, claim.Set, claim.Shard).Scan(&before)
		if err != nil {
			return fmt.Errorf("locking the CRL: %w", err)
		}
		// Equal: a first run of this whose answer was lost.
		if published = before <= claim.Number; before >= claim.Number {
			return nil
		}
		_, err = tx.Exec(ctx, `UPDATE crls SET number = $3, seq = $4, this_update = $5, next_update = $6, scheduled_at = $7,
			entries = $8, bytes = $9, chunks = $10, digest = $11, claimed_till = CASE WHEN maker = $12 THEN NULL ELSE claimed_till END
			WHERE crl_set = $1 AND shard = $2`,
			claim.Set, claim.Shard, claim.Number, c.Sequence, c.ThisUpdate, c.NextUpdate, c.Scheduled, c.Entries, c.Bytes, c.Chunks, c.Digest[:], claim.maker)
		if err != nil {
			return fmt.Errorf("publishing a CRL: %w", err)
		}
		_, err = tx.Exec(ctx, `DELETE FROM crl_chunks WHERE crl_set = $1 AND shard = $2 AND number < $3`, claim.Set, claim.Shard, before)
		return err
	})
	return published && err == nil, err
}

// CRLChunk returns a piece of a CRL's DER. One that is not kept any more is NotFound.
func (l *Ledger) CRLChunk(ctx context.Context, set int32, shard int, number int64, chunk int) ([]byte, error) {
	var der []byte
	err := l.query(ctx, func() { der = nil }, func(rows pgx.Rows) error { return rows.Scan(&der) },
		`SELECT der FROM crl_chunks WHERE crl_set = $1 AND shard = $2 AND number = $3 AND chunk = $4`, set, shard, number, chunk)
	if err == nil && der == nil {
		return nil, problem.New(problem.NotFound, "CRL %d of set %d, shard %d, has no piece %d", number, set, shard, chunk)
	}
	return der, err
}

// CRLScope selects the revocations of a CRL.
type CRLScope struct {
	Issuer int32
	// First and Last bound the last two octets of the serial.
	First, Last [2]byte
	// Complete takes in certificates whose profile has no CRL.
	Complete bool
	// Sequence leaves out later revocations, so that a scope does not change while it
	// is read, and After those up to it, which a delta CRL's base has.
	Sequence, After int64
	// Unexpired leaves out certificates that ended before it.
	Unexpired time.Time
}

// scopeWhere takes a CRLScope's args as $1 to $7.
const scopeWhere = ` FROM revocations WHERE issuer = $1 AND substr(serial, 15, 2) >= $2 AND substr(serial, 15, 2) <= $3
	AND (services & 2 <> 0 OR $4) AND seq <= $5 AND not_after >= $6 AND seq > $7`

func (s *CRLScope) args(more ...any) []any {
	return append([]any{s.Issuer, s.First[:], s.Last[:], s.Complete, s.Sequence, s.Unexpired, s.After}, more...)
}

// RevocationSequence returns the Sequence of the last revocation, 0 without one.
func (l *Ledger) RevocationSequence(ctx context.Context) (int64, error) {
	var seq int64
	err := l.query(ctx, func() {}, func(rows pgx.Rows) error { return rows.Scan(&seq) }, `SELECT COALESCE(max(seq), 0) FROM revocations`)
	return seq, err
}

// CRLCount is how many entries a scope has, and how many of them have reason 0 and
// a time from 2050 on: what the length of a CRL depends on.
type CRLCount struct {
	Entries, Unspecified, Late int64
}

// CountCRLEntries counts the entries of a scope.
func (l *Ledger) CountCRLEntries(ctx context.Context, s CRLScope) (CRLCount, error) {
	var c CRLCount
	err := l.query(ctx, func() {}, func(rows pgx.Rows) error { return rows.Scan(&c.Entries, &c.Unspecified, &c.Late) },
		`SELECT count(*), count(*) FILTER (WHERE reason = 0), count(*) FILTER (WHERE revoked_at >= '2050-01-01 00:00:00+00')`+scopeWhere, s.args()...)
	return c, err
}

// CRLEntry is one entry of a CRL.
type CRLEntry struct {
	Serial    serial.Number
	RevokedAt time.Time
	Reason    int16
}

// CRLEntries returns up to limit entries of a scope after a serial, in an order of its
// own. Start with the zero serial and go on with the last one returned. dst is reused.
func (l *Ledger) CRLEntries(ctx context.Context, s CRLScope, after serial.Number, limit int, dst []CRLEntry) ([]CRLEntry, error) {
	slot, from := after[serial.Size-2:], after[:]
	if after == (serial.Number{}) {
		slot, from = s.First[:], nil
	}
	if from == nil {
		from = []byte{}
	}
	out := dst[:0]
	var number []byte
	err := l.query(ctx, func() { out = dst[:0] }, func(rows pgx.Rows) error {
		var e CRLEntry
		err := rows.Scan(&number, &e.RevokedAt, &e.Reason)
		if err != nil {
			return err
		}
		e.Serial, err = serial.FromBytes(number)
		out = append(out, e)
		return err
	}, `SELECT serial, revoked_at, reason`+scopeWhere+` AND (substr(serial, 15, 2), serial) > ($8, $9)
		ORDER BY issuer, substr(serial, 15, 2), serial LIMIT $10`, s.args(slot, from, limit)...)
	return out, err
}
