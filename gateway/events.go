package gateway

import (
	"context"

	"github.com/certmill/certmill/internal/queue"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// Events announces over NATS what the ledger has. It is safe for concurrent use.
type Events struct {
	conn *queue.Conn
}

// NewEvents makes an Events on a connection, which stays the owner's to close.
func NewEvents(conn *queue.Conn) *Events { return &Events{conn: conn} }

// Revoked publishes the event. It does not wait for the broker: what gets lost is
// found by the presigners' sweep of the ledger.
func (e *Events) Revoked(_ context.Context, issuer string, event *queuev1.RevokedEvent) error {
	return e.conn.Publish(queue.RevokedSubject(issuer), event)
}
