package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
)

// longestOrderPause is the longest time until an unsettled order is claimed again.
const longestOrderPause = 5 * time.Minute

const orderColumns = `orders.id::text, request_key, csr, reuse_until, caller, request_id, request, state, serial, failure, created_at, attempts`

// CreateOrder stores an accepted request for asynchronous issue and returns it with
// its id, state and time. created is false when the request key has an order already:
// that one is returned, or a Conflict when its CSR was another. A settled order past
// its reuse time gives its key up.
func (l *Ledger) CreateOrder(ctx context.Context, o Order) (order Order, created bool, err error) {
	if o.CSR == [32]byte{} || o.RequestKey == (RequestKey{}) {
		return o, false, problem.New(problem.Internal, "an order without a request key or the hash of its CSR")
	}
	now := l.now().UTC().Truncate(time.Microsecond)
	if o.ReuseUntil.IsZero() || o.ReuseUntil.After(now.Add(MaxReuse)) {
		o.ReuseUntil = now.Add(MaxReuse)
	}
	o.ID, o.State, o.Created, o.Attempts = uuid.NewString(), OrderPending, now, 0
	err = l.inTx(ctx, l.dialect.locked(), func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE orders SET request_key = NULL WHERE request_key = $1 AND reuse_until <= $2 AND state <> 'pending'`, o.RequestKey[:], now)
		if err != nil {
			return fmt.Errorf("freeing the request key: %w", err)
		}
		_, err = tx.Exec(ctx, `INSERT INTO orders (id, request_key, csr, reuse_until, caller, request_id, request, state, created_at, next_attempt_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, 'pending', $8, $8) ON CONFLICT (request_key) DO NOTHING`,
			o.ID, o.RequestKey[:], o.CSR[:], o.ReuseUntil, o.Caller, o.RequestID, o.Request, now)
		if err != nil {
			return fmt.Errorf("storing the order: %w", err)
		}
		rows, err := tx.Query(ctx, `SELECT `+orderColumns+` FROM orders WHERE request_key = $1`, o.RequestKey[:])
		if err != nil {
			return err
		}
		order, err = pgx.CollectExactlyOneRow(rows, scanOrder)
		return err
	})
	if err != nil {
		return o, false, err
	}
	if order.ID == o.ID {
		return order, true, nil
	}
	if order.CSR != o.CSR {
		return order, false, errOtherCSR()
	}
	order, err = l.withOutcome(ctx, order)
	return order, false, err
}

// Order returns an order with its certificate, as soon as the ledger has one under
// its request key, and for good. An unknown id is NotFound. A settled order is kept for
// OrderRetention; its certificate is nil when that was dropped before.
func (l *Ledger) Order(ctx context.Context, id string) (Order, error) {
	u, err := uuid.Parse(id)
	if err != nil {
		return Order{}, problem.New(problem.NotFound, "there is no order %q", id)
	}
	var found []Order
	err = l.query(ctx, func() { found = nil }, func(rows pgx.Rows) error {
		o, err := scanOrder(rows)
		found = append(found, o)
		return err
	}, `SELECT `+orderColumns+` FROM orders WHERE id = $1`, u.String())
	if err != nil {
		return Order{}, err
	}
	if len(found) == 0 {
		return Order{}, problem.New(problem.NotFound, "there is no order %s", u)
	}
	return l.withOutcome(ctx, found[0])
}

// withOutcome adds what the certificates say of the order.
func (l *Ledger) withOutcome(ctx context.Context, o Order) (Order, error) {
	switch {
	case o.State == OrderPending:
		found, err := l.made(ctx, []Order{o})
		if err != nil {
			return o, err
		}
		if f, ok := found[o.RequestKey]; ok && f.Refusal(o.CSR) == nil {
			o.State, o.Certificate = OrderIssued, &f.Certificate
		}
	case o.Certificate != nil:
		certs, err := l.certificates(ctx, []serial.Number{o.Certificate.Serial})
		if err != nil {
			return o, err
		}
		o.Certificate = nil
		for _, c := range certs {
			o.Certificate = &c
		}
	}
	return o, nil
}

// made returns the certificates of pending orders, by request key. A key counts if it
// has stood at any time since its order was created: the order may be looked at when
// the key's time is over, and what was made for it must not be made again.
func (l *Ledger) made(ctx context.Context, orders []Order) (map[RequestKey]Found, error) {
	if len(orders) == 0 {
		return nil, nil
	}
	keys := make([]RequestKey, len(orders))
	created := make(map[RequestKey]time.Time, len(orders))
	for i, o := range orders {
		keys[i], created[o.RequestKey] = o.RequestKey, o.Created
	}
	return l.lookup(ctx, keys, func(c claim) bool { return c.expires.After(created[c.key]) })
}

// planned has a statement planned each time. Writing sessions keep the plans of others
// (see sessions), and one that joins, made while there were no orders, would read all
// that are pending until the table has been analysed.
const planned = pgx.QueryExecModeCacheDescribe

// ClaimStaleOrders settles the pending orders whose certificates exist and returns up
// to limit of the others that nobody has claimed for olderThan, or since they were
// created. Each is given to one caller alone, who queues it again; every time it
// comes up later, by olderThan more. Any number of gateways may share the sweep.
func (l *Ledger) ClaimStaleOrders(ctx context.Context, olderThan time.Duration, limit int) ([]Order, error) {
	now := l.now()
	var due []Order
	err := l.inTx(ctx, l.dialect.locked(), func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `WITH due AS MATERIALIZED (
				SELECT id FROM orders WHERE state = 'pending' AND next_attempt_at <= $1::timestamptz
				ORDER BY next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED
			)
			UPDATE orders SET attempts = attempts + 1,
				next_attempt_at = $3::timestamptz + least($4::interval * attempts, $5::interval)
			FROM due WHERE orders.id = due.id
			RETURNING `+orderColumns, planned, now.Add(-olderThan), limit, now, olderThan, longestOrderPause)
		if err != nil {
			return err
		}
		due, err = pgx.CollectRows(rows, scanOrder)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("claiming orders: %w", err)
	}
	return l.settleOrders(ctx, due)
}

// settleOrders marks those orders issued that have their certificate and returns the
// others.
func (l *Ledger) settleOrders(ctx context.Context, due []Order) ([]Order, error) {
	found, err := l.made(ctx, due)
	if err != nil {
		return nil, err
	}
	var open []Order
	var ids []string
	var serials [][]byte
	for _, o := range due {
		if f, ok := found[o.RequestKey]; ok && f.Refusal(o.CSR) == nil {
			ids, serials = append(ids, o.ID), append(serials, f.Certificate.Serial[:])
		} else {
			open = append(open, o)
		}
	}
	if len(ids) == 0 {
		return open, nil
	}
	err = l.retry(ctx, func(ctx context.Context) error {
		_, err := l.write.Exec(ctx, `UPDATE orders SET state = 'issued', serial = done.serial, expires_at = $3
			FROM unnest($1::uuid[], $2::bytea[]) AS done(id, serial) WHERE orders.id = done.id AND state = 'pending'`,
			planned, ids, serials, l.now().Add(OrderRetention))
		return err
	})
	return open, err
}

// scanOrder reads orderColumns. The certificate of a settled order has its serial
// alone: withOutcome reads the rest.
func scanOrder(row pgx.CollectableRow) (Order, error) {
	var o Order
	var key, csr, number []byte
	err := row.Scan(&o.ID, &key, &csr, &o.ReuseUntil, &o.Caller, &o.RequestID, &o.Request, &o.State, &number, &o.Failure, &o.Created, &o.Attempts)
	if err != nil {
		return o, err
	}
	copy(o.RequestKey[:], key)
	copy(o.CSR[:], csr)
	o.ReuseUntil, o.Created = o.ReuseUntil.UTC(), o.Created.UTC()
	if number != nil {
		n, err := serial.FromBytes(number)
		if err != nil {
			return o, err
		}
		o.Certificate = &Certificate{Serial: n}
	}
	return o, nil
}
