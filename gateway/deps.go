package gateway

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// Signer is the way to the signers; *Dispatcher is the one for production. Its
// methods are safe for concurrent use, return problems, and keep no reference to
// the request after they have returned.
type Signer interface {
	// Do waits for the outcome of one request until ctx ends. A failure that the signer
	// stated is the error; on success the result holds a certificate that is committed.
	// others are issuers that may issue it too, in the order in which they stand in.
	Do(ctx context.Context, request *queuev1.SignRequest, priority queue.Priority, others ...string) (*queuev1.SignResult, error)
	// Enqueue hands over a request that nobody waits for. A nil error says that the
	// queue has it, nothing more: the caller must be able to enqueue it again.
	Enqueue(ctx context.Context, request *queuev1.SignRequest, priority queue.Priority, others ...string) error
	// Expect says that n more requests are about to be given to Do, or, negative, that so
	// many fewer are: they may travel together.
	Expect(n int)
	// Ready returns nil while requests can be brought to signers.
	Ready() error
}

// Announcer tells presigners at once what the ledger has; they would find it by
// themselves, later. *Events is the one for production.
type Announcer interface {
	// Revoked announces one revocation of a certificate of the named issuer.
	Revoked(ctx context.Context, issuer string, event *queuev1.RevokedEvent) error
}

// Certificates finds and revokes what was issued.
type Certificates interface {
	// Certificate returns a NotFound problem for a serial that was never committed.
	Certificate(ctx context.Context, n serial.Number) (ledger.Certificate, *ledger.Revocation, error)
	// List pages by key; an unknown page token is an Invalid problem.
	List(ctx context.Context, f ledger.Filter, pageToken string, limit int) ([]ledger.Listed, string, error)
	// Revoke records the first revocation of a serial with its audit entry, in one
	// transaction, and returns the recorded one; first is false for a repetition.
	Revoke(ctx context.Context, r ledger.Revocation) (recorded ledger.Revocation, first bool, err error)
}

// OrderStore keeps asynchronous orders.
type OrderStore interface {
	// CreateOrder commits the order under an id that it gives it, or returns the one that
	// has its request key; a Conflict when that one was for another CSR.
	CreateOrder(ctx context.Context, o ledger.Order) (order ledger.Order, created bool, err error)
	// Order returns an order with its certificate, if it has one.
	Order(ctx context.Context, id string) (ledger.Order, error)
	// FailOrder ends an order, unless it is settled or its certificate exists, and reports
	// whether it did.
	FailOrder(ctx context.Context, id string, failure []byte) (failed bool, err error)
	// ClaimStaleOrders returns orders without an outcome that nobody has claimed for
	// olderThan, and claims them, so that of many gateways one gets each.
	ClaimStaleOrders(ctx context.Context, olderThan time.Duration, limit int) ([]ledger.Order, error)
}

// TokenStore keeps enrollment tokens by the hash of their secret.
type TokenStore interface {
	// CreateToken stores a token, with its audit row, and returns it with its id and time.
	CreateToken(ctx context.Context, t ledger.Token) (ledger.Token, error)
	// Tokens returns all tokens, the newest first.
	Tokens(ctx context.Context) ([]ledger.Token, error)
	// DeleteToken ends a token at once, with an audit row that names the actor; an
	// unknown id is a NotFound problem.
	DeleteToken(ctx context.Context, id, actor string) error
	// TokenByHash returns an Unauthenticated problem for an unknown or expired token.
	TokenByHash(ctx context.Context, hash [sha256.Size]byte) (ledger.Token, error)
	// UseToken takes one use of the token for a request, once per request key: a retry
	// takes nothing. A token that is used up or expired is an Unauthenticated problem.
	UseToken(ctx context.Context, hash [sha256.Size]byte, key ledger.RequestKey, again time.Duration) (ledger.Token, error)
}

// AuditTrail is the audit chain.
type AuditTrail interface {
	// Audit returns entries after a sequence number, in its order.
	Audit(ctx context.Context, after int64, limit int) ([]ledger.AuditEntry, error)
	// AuditOf returns the last entries about one subject, the newest first.
	AuditOf(ctx context.Context, subject string, limit int) ([]ledger.AuditEntry, error)
}

// IssuerSource knows the issuers.
type IssuerSource interface {
	// Issuers returns every generation of every issuer.
	Issuers(ctx context.Context) ([]ledger.Issuer, error)
}

// EarlyRenewalStore keeps what operators have pulled forward.
type EarlyRenewalStore interface {
	// CreateEarlyRenewal stores one with its audit entry; beyond the ledger's bound it is
	// a Conflict problem.
	CreateEarlyRenewal(ctx context.Context, e ledger.EarlyRenewal) (ledger.EarlyRenewal, error)
	// EarlyRenewals returns those that stand, the newest first.
	EarlyRenewals(ctx context.Context) ([]ledger.EarlyRenewal, error)
	// EndEarlyRenewal takes one back; an unknown id is a NotFound problem.
	EndEarlyRenewal(ctx context.Context, id, actor string) error
}

// Ledger is what the gateway asks of the ledger. *ledger.Ledger is the one for
// production; all methods are safe for concurrent use.
type Ledger interface {
	Certificates
	OrderStore
	TokenStore
	AuditTrail
	IssuerSource
	EarlyRenewalStore
	LedgerHealth
}

// The parts for production.
var (
	_ Ledger    = (*ledger.Ledger)(nil)
	_ Signer    = (*Dispatcher)(nil)
	_ Announcer = (*Events)(nil)
)

// Deps are the parts that a Gateway works with. Ledger and Signer are required.
type Deps struct {
	Ledger Ledger
	Signer Signer
	// Announcer may be nil: then presigners learn of revocations by their sweep.
	Announcer Announcer
	// Roles and Queue are what a status is made of beside the ledger; each may be nil.
	Roles RoleSource
	Queue QueueSource
	// Seals makes what the console gives out; nil where there is no console.
	Seals Sealer
	// Log, Registry, Tracer and Now may be nil.
	Log      *slog.Logger
	Registry prometheus.Registerer
	Tracer   trace.Tracer
	Now      func() time.Time
}

func (d Deps) withDefaults() Deps {
	telemetry.Fill(&d.Log, &d.Registry, &d.Tracer, &d.Now)
	return d
}
