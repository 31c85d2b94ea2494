package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
)

// failureStands is how long a failed order keeps its request key at least: longer than
// a copy of its request can be on its way through the queue and a signer.
const failureStands = 15 * time.Minute

// noSerial stands under the request key of an order that has failed, in place of a
// certificate's. No serial has epoch 0, so no certificate has it.
var noSerial serial.Number

// An order and its certificate are decided by the same row: who has the request key.
// Failing an order is a claim on its key with no certificate, in the statement that
// marks it, and it succeeds where the order's commit would; so of a failure and a commit
// at the same moment one finds the key taken, and says so.
//
// A key that stands for another CSR is why such an order fails: it stays as it is, and
// for as long as a copy of the order may come to a commit. Keys whose time was over when
// the order was made stand for nothing.
const (
	failStart = `
WITH ended AS (
	SELECT request_key, greatest(reuse_until, $4::timestamptz) AS until
	FROM orders WHERE id = $1::uuid AND state = 'pending' AND request_key IS NOT NULL
), `

	// The generation before, as in commitClaimPostgres.
	failClaimPostgres = `standing AS (
	SELECT r.key, r.serial, r.csr, r.expires_at FROM requests r
	WHERE r.gen = (SELECT ((gen + 2) % 3)::int2 FROM ledger_state WHERE id = 1)
		AND r.key = (SELECT request_key FROM ended) AND r.expires_at > $6::timestamptz
), taken AS (
	INSERT INTO requests (gen, key, serial, csr, expires_at)
	SELECT (SELECT gen FROM ledger_state WHERE id = 1), e.request_key,
		coalesce(s.serial, $5::bytea), coalesce(s.csr, $7::bytea), greatest(s.expires_at, e.until)
	FROM ended e LEFT JOIN standing s ON s.key = e.request_key
	WHERE s.key IS NULL OR s.csr <> $7::bytea OR s.serial = $5::bytea`

	failClaimCockroach = `taken AS (
	INSERT INTO requests (gen, key, serial, csr, expires_at)
	SELECT 0, e.request_key, $5::bytea, $7::bytea, e.until FROM ended e`

	failStore = `
	ON CONFLICT (key, gen) DO UPDATE SET
		serial = CASE WHEN requests.csr <> $7::bytea AND requests.expires_at > $6::timestamptz THEN requests.serial ELSE excluded.serial END,
		csr = CASE WHEN requests.csr <> $7::bytea AND requests.expires_at > $6::timestamptz THEN requests.csr ELSE excluded.csr END,
		expires_at = greatest(requests.expires_at, excluded.expires_at)
		WHERE requests.expires_at <= $6::timestamptz OR requests.csr <> $7::bytea OR requests.serial = $5::bytea
	RETURNING key
)
UPDATE orders SET state = 'failed', failure = $2::bytea, expires_at = $3::timestamptz, reuse_until = greatest(reuse_until, $4::timestamptz)
FROM taken WHERE orders.id = $1::uuid AND orders.state = 'pending' AND orders.request_key = taken.key`
)

var failSQL = map[dialect]string{
	postgres:  failStart + failClaimPostgres + failStore,
	cockroach: failStart + failClaimCockroach + failStore,
}

// FailOrder ends an order with a failure and reports whether it did: not where the
// order is settled already, or its certificate is in the ledger or gets there first.
// From then on no certificate can be committed under its request key, for as long as
// copies of its request may be on their way; who asks with that key is told of the
// failure. An unknown id is NotFound.
func (l *Ledger) FailOrder(ctx context.Context, id string, failure []byte) (failed bool, err error) {
	o, err := l.Order(ctx, id)
	if err != nil || o.State != OrderPending {
		return false, err
	}
	now := l.now()
	again := false
	err = l.retry(ctx, func(ctx context.Context) error {
		tag, err := l.write.Exec(ctx, failSQL[l.dialect], o.ID, failure, now.Add(OrderRetention), now.Add(failureStands), noSerial[:], o.Created, o.CSR[:])
		if err != nil {
			again = again || causeOf(ctx, err) == causeAmbiguous // it may have been done
			return fmt.Errorf("failing an order: %w", err)
		}
		failed = tag.RowsAffected() == 1
		return nil
	})
	if err != nil || failed || !again {
		return failed, err
	}
	o, err = l.Order(ctx, id)
	return o.State == OrderFailed, err
}

func errOrderFailed() error {
	return &problem.Error{Kind: problem.Conflict, Field: "request_id", Rule: "order_failed",
		Detail: "an order with this request id has failed, and a request id stands for one outcome; ask again with a new request id"}
}

// Refusal returns why a request with the CSR cannot have what stands under its key: a
// Conflict, or nil.
func (f Found) Refusal(csr [32]byte) error {
	switch {
	case f.CSR != csr:
		return errOtherCSR()
	case f.Failed:
		return errOrderFailed()
	}
	return nil
}
