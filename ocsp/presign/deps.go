package presign

import (
	"context"
	"crypto"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// Ledger is what the presigner reads; *ledger.Ledger is the one for production. Every
// method is safe for concurrent use and returns problems.
type Ledger interface {
	Issuers(ctx context.Context) ([]ledger.Issuer, error)
	// OCSPSigners returns signers by id; of one issuer the last is the newest.
	OCSPSigners(ctx context.Context) ([]ledger.OCSPSigner, error)
	Epochs(ctx context.Context) ([]ledger.Epoch, error)
	// Statuses returns what the ledger knows of these serials, in no order.
	Statuses(ctx context.Context, serials []serial.Number) ([]ledger.Status, error)
	// SweepStatuses pages through the unexpired certificates that have OCSP, by serial.
	SweepStatuses(ctx context.Context, after serial.Number, limit int) ([]ledger.Status, error)
	// Revocations pages through the revocations by Sequence.
	Revocations(ctx context.Context, after int64, limit int) ([]ledger.Revocation, error)
}

// ContextSigner is a key whose wait obeys a context; *hsm.Key is one. It must be safe
// for concurrent use, and gives ECDSA signatures in ASN.1, RSA ones by PKCS#1 v1.5.
type ContextSigner interface {
	Public() crypto.PublicKey
	SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// KeyFunc finds the key of a URI in an HSM. It is called again when it has failed.
type KeyFunc func(ctx context.Context, uri string, public crypto.PublicKey) (ContextSigner, error)

// Deps are the parts that a Presigner works with. Ledger is required.
type Deps struct {
	Ledger Ledger
	// CRLs are brought to Redis; nil where there are none.
	CRLs CRLs
	// Queue brings the events; nil leaves the ledger alone to be asked.
	Queue *queue.Conn
	// Key finds pkcs11: keys; nil where all keys are files ("file:/path/to/key.pem").
	Key KeyFunc
	// Tokens describes the HSM tokens that Key uses, for the reports; it may be nil.
	Tokens func() []*certmillv1.TokenStatus
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
