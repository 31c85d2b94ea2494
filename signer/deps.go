package signer

import (
	"context"
	"crypto"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/hsm"
)

// Deps are what a role takes from its process. Every field may be nil.
type Deps struct {
	Log      *slog.Logger
	Registry prometheus.Registerer
	Tracer   trace.Tracer
	Now      func() time.Time
}

func (d Deps) withDefaults() Deps {
	telemetry.Fill(&d.Log, &d.Registry, &d.Tracer, &d.Now)
	return d
}

// Ledger is what the signer asks of the ledger. *ledger.Ledger is the one for
// production; all methods are safe for concurrent use and return problems.
type Ledger interface {
	// Issuers returns every generation of every issuer.
	Issuers(ctx context.Context) ([]ledger.Issuer, error)
	// Drains returns the signers that are to take no work.
	Drains(ctx context.Context) ([]ledger.Drain, error)
	// StartEpoch commits an epoch row and returns its number, which no other start has.
	StartEpoch(ctx context.Context, e ledger.Epoch) (uint32, error)
	// ReportEpoch records what became of an epoch's signatures so far.
	ReportEpoch(ctx context.Context, epoch uint32, r ledger.EpochReport) error
	// RecordStrays writes down signatures that have no row. It may be repeated.
	RecordStrays(ctx context.Context, strays []ledger.Stray) error
	// Statuses returns those of the serials that have a row.
	Statuses(ctx context.Context, serials []serial.Number) ([]ledger.Status, error)
	// Lookup returns what stands under the keys: a certificate, or the failure of an order;
	// keys that are free are absent.
	Lookup(ctx context.Context, keys []ledger.RequestKey) (map[ledger.RequestKey]ledger.Found, error)
	// FailOrder ends an order that has no certificate and reports whether it did; from
	// then on none can be committed for it.
	FailOrder(ctx context.Context, id string, failure []byte) (failed bool, err error)
	// OrderDeaths returns how many signers have died at each of the orders.
	OrderDeaths(ctx context.Context, ids []string) (map[string]int, error)
	// BeginOrder and EndOrder frame the work on an order, so that a death between shows.
	BeginOrder(ctx context.Context, id string) error
	EndOrder(ctx context.Context, id string) error
	// ClockSkew returns our clock less the database's.
	ClockSkew(ctx context.Context) (time.Duration, error)
	// RestoredAt returns when the ledger was last restored from a backup.
	RestoredAt(ctx context.Context) (time.Time, error)
	// Ping returns nil when the ledger can be written to.
	Ping(ctx context.Context) error
}

// Committer commits one certificate, grouped with others. After a nil error the
// outcome is durable; a Conflict says that the key stands for another CSR; after an
// Unavailable it is not known whether the certificate is in the ledger.
type Committer interface {
	Commit(ctx context.Context, e ledger.Entry) (ledger.Outcome, error)
	// Expect says that n more certificates are being made, or, negative, so many fewer:
	// a commit that begins waits a moment for them.
	Expect(n int)
}

// Token is what the signer asks of an HSM token; *hsm.Token, wrapped, is the one for
// production.
type Token interface {
	// Serial names the token in epoch rows.
	Serial() string
	// Sessions is how many signatures it makes at once.
	Sessions() int
	// Ready reports whether it is worth asking for a signature now.
	Ready() bool
	// Stuck is closed when only a new process can use the token again.
	Stuck() <-chan struct{}
	// Condemn takes the token out of service for good: it signed wrongly.
	Condemn(reason error)
	// Key finds the private key of public by its RFC 7512 URI.
	Key(ctx context.Context, uri string, public crypto.PublicKey) (ContextSigner, error)
	// Close waits for calls that are inside the token, within ctx.
	Close(ctx context.Context) error
}

// hsmToken makes a Token of an *hsm.Token.
type hsmToken struct {
	*hsm.Token
	looked atomic.Int64 // when ready was found, Unix nanoseconds
	ready  atomic.Bool
}

// readyFor is how long a look at a token's condition holds: it takes locks, and is
// asked for with every request.
const readyFor = 5 * time.Millisecond

func (t *hsmToken) Serial() string { return t.Info().Serial }
func (t *hsmToken) Sessions() int  { return t.Info().Sessions }

func (t *hsmToken) Ready() bool {
	if now := time.Now().UnixNano(); now-t.looked.Load() > int64(readyFor) {
		t.ready.Store(t.State().Condition == hsm.Ready)
		t.looked.Store(now)
	}
	return t.ready.Load()
}

func (t *hsmToken) Key(ctx context.Context, uri string, public crypto.PublicKey) (ContextSigner, error) {
	return t.KeyFor(ctx, uri, public)
}

// preparer turns requests into one-shot certificates; *Preparer is the one for
// production.
type preparer interface {
	prepare(r *profile.Request, epoch uint32) (prepared, error)
}

// prepared is signed once at most; the signature is verified.
type prepared interface {
	Serial() serial.Number
	Sign(ctx context.Context, s ContextSigner) (ledger.Certificate, error)
}

// templates makes a preparer of a *Preparer.
type templates struct{ *Preparer }

func (t templates) prepare(r *profile.Request, epoch uint32) (prepared, error) {
	return t.Prepare(r, epoch)
}
