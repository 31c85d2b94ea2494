package auditchain

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

// Config says how a signer watches over the audit chain.
type Config struct {
	// Interval is how often the head of the audit chain is signed while rows come: so
	// long may the last rows stand without a signature. 1s to 1h.
	Interval time.Duration `yaml:"interval"`
	// Heartbeat is how often it is signed though no row has come, so that a missing
	// signature means something. At least interval, at most 24h.
	Heartbeat time.Duration `yaml:"heartbeat"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Interval: time.Minute, Heartbeat: time.Hour} }

// Validate reports everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	if c.Interval < time.Second || c.Interval > time.Hour {
		errs = append(errs, errors.New("interval must be 1s to 1h"))
	}
	if c.Heartbeat < c.Interval || c.Heartbeat > 24*time.Hour {
		errs = append(errs, errors.New("heartbeat must be interval to 24h"))
	}
	return errors.Join(errs...)
}

// Key signs for an issuer and checks what it signed; *signer.IssuerKey is one.
type Key interface {
	// Hash is what Sign takes the digest of; 0 means that it takes the message itself.
	Hash() crypto.Hash
	Sign(ctx context.Context, digest []byte) ([]byte, error)
}

// SentryBook is what a Sentry asks of the ledger.
type SentryBook interface {
	Issuers(ctx context.Context) ([]ledger.Issuer, error)
	Audit(ctx context.Context, after int64, limit int) ([]ledger.AuditEntry, error)
	WalkAudit(ctx context.Context, w *ledger.AuditWalk, visit func(ledger.AuditEntry) error) error
	LastSignedHead(ctx context.Context) (ledger.SignedHead, error)
	PutSignedHead(ctx context.Context, h ledger.SignedHead) error
}

// Deps are what a Sentry works with. Ledger and Key are required.
type Deps struct {
	Ledger SentryBook
	// Key finds the key of an issuer; it fails where this process has none.
	Key      func(ctx context.Context, issuer ledger.Issuer) (Key, error)
	Log      *slog.Logger
	Registry prometheus.Registerer
	Now      func() time.Time
}

// Sentry has the head of the audit chain signed at intervals. It remembers where it
// was: it signs no head that does not come after the one before, so a chain that is
// rewritten or cut off while a signer runs gets no signature any more, and the alarm is
// raised. Every head is written to the log too: who ships logs elsewhere has a witness
// that whoever can write the database cannot reach. Several signers share the work.
type Sentry struct {
	cfg  Config
	deps Deps

	walk   ledger.AuditWalk // checked so far
	placed bool             // walk stands where the chain was when it was first seen
	broken atomic.Bool
	signed prometheus.Counter
	last   atomic.Int64 // when the newest head was signed, Unix microseconds; 0: none
}

// NewSentry makes a Sentry; Run brings it to life.
func NewSentry(cfg Config, deps Deps) (*Sentry, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if deps.Ledger == nil || deps.Key == nil {
		return nil, errors.New("audit: no ledger or no key given")
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Registry == nil {
		deps.Registry = prometheus.NewRegistry()
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	s := &Sentry{cfg: cfg, deps: deps, signed: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "certmill_audit_heads_signed_total", Help: "Heads of the audit chain signed by this process.",
	})}
	deps.Registry.MustRegister(s.signed,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "certmill_audit_chain_broken", Help: "1 while the audit chain is not what was signed or seen before: somebody has changed it."}, func() float64 {
			if s.broken.Load() {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "certmill_audit_head_age_seconds", Help: "Time since the newest signed head of the audit chain, of any signer; -1 while none is known."}, func() float64 {
			if last := s.last.Load(); last != 0 {
				return s.deps.Now().Sub(time.UnixMicro(last)).Seconds()
			}
			return -1
		}),
	)
	return s, nil
}

// afterFailure is when a look that failed is taken again: at a start the tokens may not
// be open yet.
const afterFailure = 5 * time.Second

// Run watches until ctx ends and returns nil. What goes wrong is logged and tried again.
func (s *Sentry) Run(ctx context.Context) error {
	for {
		wait := s.cfg.Interval
		if err := s.Watch(ctx); err != nil && ctx.Err() == nil {
			s.report(err)
			wait = min(wait, afterFailure)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

func (s *Sentry) report(err error) {
	if s.broken.Load() {
		s.deps.Log.Error("THE AUDIT TRAIL WAS CHANGED; no head of it is signed until it is what it was. Keep the database as it is and see `certmill audit verify`", "error", err)
		return
	}
	level := slog.LevelWarn
	if problem.KindOf(err) == problem.Unavailable { // a token or the ledger that is away is told elsewhere
		level = slog.LevelDebug
	}
	s.deps.Log.Log(context.Background(), level, "the head of the audit chain could not be signed", "error", err)
}

// Watch checks what has come since it was last called and has the head signed if it is
// due. A chain that does not go on from what was seen is a *ledger.BrokenChainError or a
// *HeadError, and stays one until it does.
func (s *Sentry) Watch(ctx context.Context) error {
	err := s.watch(ctx)
	_, row := errors.AsType[*ledger.BrokenChainError](err)
	_, head := errors.AsType[*HeadError](err)
	s.broken.Store(row || head)
	return err
}

func (s *Sentry) watch(ctx context.Context) error {
	issuers, err := s.deps.Ledger.Issuers(ctx)
	if err != nil {
		return fmt.Errorf("reading the issuers: %w", err)
	}
	last, err := s.deps.Ledger.LastSignedHead(ctx)
	if err != nil {
		return fmt.Errorf("reading the last signed head: %w", err)
	}
	if err := s.check(ctx, last, issuers); err != nil {
		return err
	}
	if last.Signature != nil {
		s.last.Store(last.SignedAt.UnixMicro())
	}
	age := s.deps.Now().Sub(last.SignedAt)
	if last.Signature != nil && age < s.cfg.Heartbeat && (last.Sequence == s.walk.Sequence || age < s.cfg.Interval) {
		return nil
	}
	return s.sign(ctx, issuers)
}

// check brings the walk to the head of the chain. At first it stands on the last signed
// head; later where it was, and the row there must still be the same.
func (s *Sentry) check(ctx context.Context, last ledger.SignedHead, issuers []ledger.Issuer) error {
	from := s.walk
	if !s.placed && last.Sequence > 0 {
		if err := checkHead(last, issuers); err != nil {
			return err
		}
		from = ledger.AuditWalk{AuditHead: last.AuditHead}
	}
	if from.Sequence > 0 {
		row, err := s.deps.Ledger.Audit(ctx, from.Sequence-1, 1)
		if err != nil {
			return fmt.Errorf("reading the audit trail: %w", err)
		}
		if len(row) == 0 || row[0].Sequence != from.Sequence || row[0].Hash != from.Hash {
			return &HeadError{from.Sequence, "the row that was seen there is gone or another one", nil}
		}
	}
	if err := s.deps.Ledger.WalkAudit(ctx, &from, nil); err != nil {
		return fmt.Errorf("walking the audit trail: %w", err)
	}
	s.walk, s.placed = from, true
	return nil
}

func checkHead(h ledger.SignedHead, issuers []ledger.Issuer) error {
	for _, i := range issuers {
		if i.ID != h.Issuer {
			continue
		}
		cert, err := x509.ParseCertificate(i.DER)
		if err != nil {
			return fmt.Errorf("issuer %d: %w", i.ID, err)
		}
		if err := CheckSignature(h, cert); err != nil {
			return &HeadError{h.Sequence, "it is forged", err}
		}
		return nil
	}
	return &HeadError{h.Sequence, fmt.Sprintf("issuer %d, who signed it, is not known", h.Issuer), nil}
}

// sign has the head signed by the first active issuer whose key is here.
func (s *Sentry) sign(ctx context.Context, issuers []ledger.Issuer) error {
	var errs []error
	for _, i := range issuers {
		if i.State != ledger.IssuerActive {
			continue
		}
		key, err := s.deps.Key(ctx, i)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		return s.signBy(ctx, key, i)
	}
	return fmt.Errorf("no key to sign the head of the audit chain with: %w", errors.Join(errs...))
}

func (s *Sentry) signBy(ctx context.Context, key Key, issuer ledger.Issuer) error {
	cert, err := x509.ParseCertificate(issuer.DER)
	if err != nil {
		return fmt.Errorf("issuer %d: %w", issuer.ID, err)
	}
	h := ledger.SignedHead{AuditHead: s.walk.AuditHead, SignedAt: s.deps.Now().UTC().Truncate(time.Microsecond), Issuer: issuer.ID}
	if h.Signature, err = key.Sign(ctx, digest(key.Hash(), Statement(h, cert))); err != nil {
		return fmt.Errorf("signing the head of the audit chain: %w", err)
	}
	if err := s.deps.Ledger.PutSignedHead(ctx, h); err != nil {
		return err
	}
	s.last.Store(h.SignedAt.UnixMicro())
	s.signed.Inc()
	s.deps.Log.Info("audit head signed", "sequence", h.Sequence, "hash", hex.EncodeToString(h.Hash[:]), "signed_at", h.SignedAt.Format(time.RFC3339Nano),
		"issuer_id", h.Issuer, "signature", base64.StdEncoding.EncodeToString(h.Signature))
	return nil
}
