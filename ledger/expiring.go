package ledger

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/serial"
)

const (
	// ExpiringDays is how far Expiring looks ahead.
	ExpiringDays = 30
	// maxExpiring bounds the certificates that Expiring reads.
	maxExpiring = 200_000
	// successorSample bounds the certificates whose successors Successors looks for.
	successorSample = 1000
	oneDay          = 24 * time.Hour
)

// Expiring is what one owner's certificates have left. Certificates of at most
// serial.DayMax (8 days) are not counted, whose whole life would be in the window and
// which renew by themselves; nor are those that were revoked.
type Expiring struct {
	Owner string // "" for certificates without one
	// Within1, Within7 and Within30 count what expires within so many days; each holds
	// the one before.
	Within1, Within7, Within30 int64
}

// Expiring counts what expires within ExpiringDays by owner: first who has the most
// that is nearest. whole is false where there is more than 200,000 of it, of which the
// rest is not counted.
func (l *Ledger) Expiring(ctx context.Context) (owners []Expiring, whole bool, err error) {
	now := l.now()
	sums := map[string]*Expiring{}
	left := int64(maxExpiring)
	for _, r := range longLived(now, now.Add(ExpiringDays*oneDay)) {
		part := map[string]*Expiring{}
		err := l.query(ctx, func() { clear(part) }, func(rows pgx.Rows) error {
			e := &Expiring{}
			err := rows.Scan(&e.Owner, &e.Within1, &e.Within7, &e.Within30)
			part[e.Owner] = e
			return err
		}, `SELECT owner, count(*) FILTER (WHERE not_after <= $4), count(*) FILTER (WHERE not_after <= $5), count(*)
			FROM (SELECT owner, not_after FROM certificates c
				WHERE serial > $1 AND serial < $2 AND not_after > $3 AND not_after <= $6
				AND NOT EXISTS (SELECT 1 FROM revocations r WHERE r.serial = c.serial)
				ORDER BY serial LIMIT $7) AS expiring
			GROUP BY owner`, r.after[:], r.before[:], now, now.Add(oneDay), now.Add(7*oneDay), now.Add(ExpiringDays*oneDay), left)
		if err != nil {
			return nil, false, err
		}
		for owner, e := range part {
			s := sums[owner]
			if s == nil {
				s = &Expiring{Owner: owner}
				sums[owner] = s
			}
			s.Within1 += e.Within1
			s.Within7 += e.Within7
			s.Within30 += e.Within30
			left -= e.Within30
		}
		if left <= 0 {
			break
		}
	}
	for _, s := range sums {
		owners = append(owners, *s)
	}
	slices.SortFunc(owners, func(a, b Expiring) int {
		return cmp.Or(cmp.Compare(b.Within1, a.Within1), cmp.Compare(b.Within7, a.Within7), cmp.Compare(b.Within30, a.Within30), cmp.Compare(a.Owner, b.Owner))
	})
	return owners, left > 0, nil
}

// longLived returns the ranges of serials of certificates that live for more than
// serial.DayMax and expire in [from, to].
func longLived(from, to time.Time) []keyRange {
	return slices.DeleteFunc(keyRanges(serial.Number{}, from, to), func(r keyRange) bool { return r.after.Bucket().Daily() })
}

// sameName lets the index find the later ones.
var sameName = map[dialect]string{
	postgres: `hashtext(substr(later.name, strpos(later.name, ':') + 1)) = hashtext(substr(last.name, strpos(last.name, ':') + 1)) AND `,
}

// Successors looks at up to 1,000 certificates that live for more than 8 days and have
// less than a week left, and returns how many it has seen and how many of them have no
// later certificate with the same first name: nobody has renewed those. Revoked ones
// are not looked at.
func (l *Ledger) Successors(ctx context.Context) (seen, without int64, err error) {
	now := l.now()
	for _, r := range longLived(now, now.Add(7*oneDay)) {
		var n, bare int64
		err := l.query(ctx, func() {}, func(rows pgx.Rows) error { return rows.Scan(&n, &bare) },
			`SELECT count(*), count(*) FILTER (WHERE NOT EXISTS (
				SELECT 1 FROM certificates later WHERE `+sameName[l.dialect]+`later.name = last.name AND later.not_after > last.not_after))
			FROM (SELECT name, not_after FROM certificates c
				WHERE serial > $1 AND serial < $2 AND not_after > $3 AND not_after <= $4
				AND NOT EXISTS (SELECT 1 FROM revocations r WHERE r.serial = c.serial)
				ORDER BY serial LIMIT $5) AS last`, r.after[:], r.before[:], now, now.Add(7*oneDay), successorSample-seen)
		if err != nil {
			return seen, without, err
		}
		if seen, without = seen+n, without+bare; seen >= successorSample {
			break
		}
	}
	return seen, without, nil
}
