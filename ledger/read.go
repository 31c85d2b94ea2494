package ledger

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
)

// Certificate returns a certificate and, where it is revoked, its revocation. An
// unknown serial, or one that expired longer than Grace ago, is NotFound.
func (l *Ledger) Certificate(ctx context.Context, n serial.Number) (Certificate, *Revocation, error) {
	listed, err := l.withRevocations(ctx, []serial.Number{n})
	if err != nil {
		return Certificate{}, nil, err
	}
	if len(listed) == 0 {
		return Certificate{}, nil, problem.New(problem.NotFound, "there is no certificate %s", n)
	}
	return listed[0].Certificate, listed[0].Revoked, nil
}

// withRevocations reads certificates with their revocations, in the order of their serials.
func (l *Ledger) withRevocations(ctx context.Context, serials []serial.Number) ([]Listed, error) {
	certs, err := l.certificates(ctx, serials)
	if err != nil || len(certs) == 0 {
		return nil, err
	}
	revoked, err := l.revoked(ctx, serials)
	if err != nil {
		return nil, err
	}
	out := make([]Listed, 0, len(certs))
	for n, c := range certs {
		out = append(out, Listed{Certificate: c, Revoked: revoked[n]})
	}
	slices.SortFunc(out, func(a, b Listed) int { return slices.Compare(a.Serial[:], b.Serial[:]) })
	return out, nil
}

func (l *Ledger) revoked(ctx context.Context, serials []serial.Number) (map[serial.Number]*Revocation, error) {
	out := map[serial.Number]*Revocation{}
	err := l.retry(ctx, func(ctx context.Context) error {
		found, err := revocationsOf(ctx, l.read, serials...)
		for i := range found {
			out[found[i].Serial] = &found[i]
		}
		return err
	})
	return out, err
}

// Statuses returns the statuses of those of the serials that were issued and have not
// been dropped, in no order. A caller that reads a status after it has heard of the
// revocation sees the revocation.
func (l *Ledger) Statuses(ctx context.Context, serials []serial.Number) ([]Status, error) {
	var out []Status
	err := l.query(ctx, func() { out = nil }, func(rows pgx.Rows) error {
		s, err := scanStatus(rows)
		out = append(out, s)
		return err
	}, `SELECT `+statusColumns+` FROM certificates WHERE serial = ANY($1::bytea[])`, octets(serials))
	if err != nil {
		return nil, err
	}
	return l.markRevoked(ctx, out)
}

// SweepStatuses returns up to limit statuses of unexpired certificates that have an
// OCSP service, with serials after the one given, by serial. Start with the zero
// serial, go on with the last one returned, and stop at an empty answer. A
// certificate committed meanwhile may be missed: the next sweep has it.
func (l *Ledger) SweepStatuses(ctx context.Context, after serial.Number, limit int) ([]Status, error) {
	now := l.now()
	var out []Status
	for _, r := range keyRanges(after, now, time.Time{}) {
		var page []Status
		err := l.query(ctx, func() { page = nil }, func(rows pgx.Rows) error {
			s, err := scanStatus(rows)
			page = append(page, s)
			return err
		}, `SELECT `+statusColumns+` FROM certificates
			WHERE serial > $1 AND serial < $2 AND not_after > $3 AND revocation & 1 <> 0
			ORDER BY serial LIMIT $4`, r.after[:], r.before[:], now, limit-len(out))
		if err != nil {
			return nil, err
		}
		if out = append(out, page...); len(out) >= limit {
			break
		}
	}
	return l.markRevoked(ctx, out)
}

const statusColumns = `serial, issuer, not_before, not_after, revocation`

func scanStatus(rows pgx.Rows) (Status, error) {
	var s Status
	var number []byte
	var revocation int16
	if err := rows.Scan(&number, &s.Issuer, &s.NotBefore, &s.NotAfter, &revocation); err != nil {
		return s, err
	}
	s.NotBefore, s.NotAfter, s.Revocation = s.NotBefore.UTC(), s.NotAfter.UTC(), uint8(revocation)
	var err error
	s.Serial, err = serial.FromBytes(number)
	return s, err
}

// markRevoked reads the revocations after the certificates, so that it never returns
// a status older than the moment of the call.
func (l *Ledger) markRevoked(ctx context.Context, statuses []Status) ([]Status, error) {
	if len(statuses) == 0 {
		return nil, nil
	}
	serials := make([]serial.Number, len(statuses))
	for i := range statuses {
		serials[i] = statuses[i].Serial
	}
	revoked, err := l.revoked(ctx, serials)
	if err != nil {
		return nil, err
	}
	for i := range statuses {
		statuses[i].Revoked = revoked[statuses[i].Serial]
	}
	return statuses, nil
}
