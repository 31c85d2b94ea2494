package ledger

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// BeginOrder takes note that a signer begins a pending order, and EndOrder that it has
// ended, in whatever way. Between the two only the death of the process can come; so
// what stays is how many signers have died at the order. The count may be one too high
// for a connection that was lost at the wrong moment.
func (l *Ledger) BeginOrder(ctx context.Context, id string) error { return l.countDeath(ctx, id, 1) }

// EndOrder is the end of what BeginOrder began.
func (l *Ledger) EndOrder(ctx context.Context, id string) error { return l.countDeath(ctx, id, -1) }

func (l *Ledger) countDeath(ctx context.Context, id string, by int) error {
	return l.retry(ctx, func(ctx context.Context) error {
		_, err := l.write.Exec(ctx, `UPDATE orders SET deaths = greatest(0, deaths + $2::int4) WHERE id = $1::uuid`, id, by)
		if err != nil {
			return fmt.Errorf("counting who works on an order: %w", err)
		}
		return nil
	})
}

// OrderDeaths returns how many signers have died at each of the orders; those at which
// none has are absent, and so are ids that are no order's.
func (l *Ledger) OrderDeaths(ctx context.Context, ids []string) (map[string]int, error) {
	known := make([]uuid.UUID, 0, len(ids))
	for _, id := range ids {
		if u, err := uuid.Parse(id); err == nil {
			known = append(known, u)
		}
	}
	out := map[string]int{}
	err := l.query(ctx, func() { clear(out) }, func(rows pgx.Rows) error {
		var id string
		var deaths int
		err := rows.Scan(&id, &deaths)
		out[id] = deaths
		return err
	}, `SELECT id::text, deaths FROM orders WHERE id = ANY($1::uuid[]) AND deaths > 0`, known)
	return out, err
}
