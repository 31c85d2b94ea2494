package ledger

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
)

const (
	// MaxPage is the most certificates on a page of List.
	MaxPage = 1000
	// listRounds bounds how many keys List reads for one page: so many times the
	// limit. A filter that hardly anything passes gives short pages, not long calls.
	listRounds = 10
)

// List returns up to limit (1 to MaxPage) certificates that pass the filter, by
// serial, which is by expiry: first the classes of lifetime, within them the day,
// the month or the year. next is the token of the next page and "" after the last;
// a page may be shorter than limit, even empty, before the last.
func (l *Ledger) List(ctx context.Context, f Filter, pageToken string, limit int) (page []Listed, next string, err error) {
	limit = min(max(limit, 1), MaxPage)
	var after serial.Number
	if pageToken != "" {
		if after, err = serial.Parse(pageToken); err != nil {
			return nil, "", problem.Rejected("page_token", "token", "not a page token of this list")
		}
	}
	for range listRounds {
		keys, err := l.listKeys(ctx, f, after, limit)
		if err != nil {
			return nil, "", err
		}
		rows, err := l.withRevocations(ctx, keys)
		if err != nil {
			return nil, "", err
		}
		for _, r := range rows {
			if !f.passes(&r.Certificate) {
				continue
			}
			if page = append(page, r); len(page) == limit {
				return page, r.Serial.String(), nil
			}
		}
		if len(keys) < limit {
			return page, "", nil
		}
		after = keys[len(keys)-1]
	}
	return page, after.String(), nil
}

// passes checks what the index that List has read could not.
func (f *Filter) passes(c *Certificate) bool {
	return (f.Owner == "" || f.Owner == c.Owner) && (f.Caller == "" || f.Caller == c.Caller) &&
		(f.ExpiresAfter.IsZero() || c.NotAfter.After(f.ExpiresAfter)) &&
		(f.ExpiresBefore.IsZero() || c.NotAfter.Before(f.ExpiresBefore))
}

// certificatesBy says how the certificates with the name or the caller $4 are found. On
// PostgreSQL the indexes have hashes, so the text itself is asked for beside them.
var certificatesBy = map[dialect]struct{ name, caller, callerInName string }{
	postgres: {
		name:   `hashtext(substr(name, strpos(name, ':') + 1)) = hashtext(substr($4::text, strpos($4, ':') + 1)) AND name = $4 AND `,
		caller: `hashtext(caller) = hashtext($4::text) AND caller = $4 AND strpos(caller, ':') <> length(caller) AND `,
		callerInName: `hashtext(substr(name, strpos(name, ':') + 1)) = hashtext(substr($4::text, strpos($4, ':') + 1))
			AND caller = left($4, strpos($4, ':')) AND substr(name, strpos(name, ':') + 1) = substr($4, strpos($4, ':') + 1) AND `,
	},
	cockroach: {name: `name = $4 AND `, caller: `caller = $4 AND `},
}

// listKeys reads the next serials from the index that narrows the filter most.
func (l *Ledger) listKeys(ctx context.Context, f Filter, after serial.Number, limit int) ([]serial.Number, error) {
	const of = `SELECT serial FROM %s WHERE %sserial > $1 AND serial < $2 ORDER BY serial LIMIT $3`
	const either = `(%s) UNION (%s) ORDER BY serial LIMIT $3`
	where := certificatesBy[l.dialect]
	sql, args := fmt.Sprintf(of, "certificates", ""), []any(nil)
	switch {
	case f.Name != "":
		args = append(args, f.Name)
		sql = fmt.Sprintf(either, fmt.Sprintf(of, "certificates", where.name), fmt.Sprintf(of, "certificate_names", "name = $4 AND "))
	case f.Caller != "":
		args = append(args, f.Caller)
		sql = fmt.Sprintf(of, "certificates", where.caller)
		if where.callerInName != "" {
			sql = fmt.Sprintf(either, sql, fmt.Sprintf(of, "certificates", where.callerInName))
		}
	case f.Owner != "":
		// The index on owner is partial; the second condition says that it serves.
		args = append(args, f.Owner)
		sql = fmt.Sprintf(of, "certificates", "owner = $4 AND owner <> '' AND ")
	}
	var keys []serial.Number
	for _, r := range keyRanges(after, f.ExpiresAfter, f.ExpiresBefore) {
		var part []serial.Number
		err := l.query(ctx, func() { part = nil }, func(rows pgx.Rows) error {
			var number []byte
			if err := rows.Scan(&number); err != nil {
				return err
			}
			n, err := serial.FromBytes(number)
			part = append(part, n)
			return err
		}, sql, append([]any{r.after[:], r.before[:], limit - len(keys)}, args...)...)
		if err != nil {
			return nil, err
		}
		if keys = append(keys, part...); len(keys) >= limit {
			break
		}
	}
	return keys, nil
}

// keyRange is the serials between two, both excluded.
type keyRange struct{ after, before serial.Number }

// keyRanges returns the ranges of serials after one that can hold certificates
// expiring in [from, to]: one for each class of lifetime, in order. A zero time is
// no bound.
func keyRanges(after serial.Number, from, to time.Time) []keyRange {
	if to.IsZero() {
		to = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	var out []keyRange
	for _, b := range serial.Ranges(from, to) {
		r := keyRange{b[0].First(), (b[1] + 1).First()}
		if bytes.Compare(after[:], r.after[:]) > 0 {
			r.after = after
		}
		if bytes.Compare(r.after[:], r.before[:]) < 0 {
			out = append(out, r)
		}
	}
	return out
}
