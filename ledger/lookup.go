package ledger

import (
	"context"
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
	return l.lookup(ctx, keys, nil)
}

// lookup is Lookup that also returns keys past their reuse time when the serial
// under them is one of own. It reads by key in two statements, since the second
// then names its serials and touches their partitions alone.
func (l *Ledger) lookup(ctx context.Context, keys []RequestKey, own map[serial.Number]bool) (map[RequestKey]Found, error) {
	type claim struct {
		key    RequestKey
		serial serial.Number
		csr    [32]byte
	}
	var claims []claim
	raw := make([][]byte, len(keys))
	for i := range keys {
		raw[i] = keys[i][:]
	}
	now := l.now()
	err := l.query(ctx, func() { claims = claims[:0] }, func(rows pgx.Rows) error {
		var key, number, csr []byte
		var expires time.Time
		if err := rows.Scan(&key, &number, &csr, &expires); err != nil {
			return err
		}
		if n := serial.Number(number); expires.After(now) || own[n] {
			claims = append(claims, claim{RequestKey(key), n, [32]byte(csr)})
		}
		return nil
	}, `SELECT key, serial, csr, expires_at FROM requests WHERE gen IN (0, 1, 2) AND key = ANY($1::bytea[])`, raw)
	if err != nil || len(claims) == 0 {
		return nil, err
	}
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
		// An entry's own row, past its time, stands back behind another's that is live.
		if _, ok := found[c.key]; ok && own[c.serial] {
			continue
		}
		if cert, ok := certs[c.serial]; ok {
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
