package ledger

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/serial"
)

// Lookup returns what stands under the keys; a key that is free, or past its reuse
// time, is missing from the answer. A signer asks it before it signs what may have
// been signed before.
func (l *Ledger) Lookup(ctx context.Context, keys []RequestKey) (map[RequestKey]Found, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	now := l.now()
	return l.lookup(ctx, keys, func(c claim) bool { return c.expires.After(now) })
}

// claim is a row of requests: what stands under a key, until when.
type claim struct {
	key     RequestKey
	serial  serial.Number
	csr     [32]byte
	expires time.Time
}

// lookup returns what is behind the claims on keys that count; of two on one key, in
// two generations, the later one. It reads by key in two statements, since the second
// then names its serials and touches their partitions alone.
func (l *Ledger) lookup(ctx context.Context, keys []RequestKey, counts func(claim) bool) (map[RequestKey]Found, error) {
	var claims []claim
	raw := make([][]byte, len(keys))
	for i := range keys {
		raw[i] = keys[i][:]
	}
	err := l.query(ctx, func() { claims = claims[:0] }, func(rows pgx.Rows) error {
		var key, number, csr []byte
		var expires time.Time
		if err := rows.Scan(&key, &number, &csr, &expires); err != nil {
			return err
		}
		if c := (claim{RequestKey(key), serial.Number(number), [32]byte(csr), expires}); counts(c) {
			claims = append(claims, c)
		}
		return nil
	}, `SELECT key, serial, csr, expires_at FROM requests WHERE gen IN (0, 1, 2) AND key = ANY($1::bytea[])`, raw)
	if err != nil || len(claims) == 0 {
		return nil, err
	}
	slices.SortFunc(claims, func(a, b claim) int { return a.expires.Compare(b.expires) })
	serials := make([]serial.Number, len(claims))
	for i, c := range claims {
		serials[i] = c.serial
	}
	certs, err := l.certificates(ctx, serials)
	if err != nil {
		return nil, err
	}
	found := make(map[RequestKey]Found, len(claims))
	for _, c := range claims {
		if c.serial == noSerial {
			found[c.key] = Found{CSR: c.csr, Failed: true}
		} else if cert, ok := certs[c.serial]; ok {
			found[c.key] = Found{Certificate: cert, CSR: c.csr}
		}
	}
	return found, nil
}

// certificates reads the rows of the serials given; what is not there is missing.
func (l *Ledger) certificates(ctx context.Context, serials []serial.Number) (map[serial.Number]Certificate, error) {
	if len(serials) == 0 {
		return nil, nil
	}
	out := make(map[serial.Number]Certificate, len(serials))
	err := l.query(ctx, func() { clear(out) }, func(rows pgx.Rows) error {
		c, err := scanCertificate(rows)
		out[c.Serial] = c
		return err
	}, `SELECT `+certificateColumns+` FROM certificates WHERE serial = ANY($1::bytea[])`, octets(serials))
	return out, err
}
