package signer

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/ledger"
)

// DirectConfig is what a Direct works with.
type DirectConfig struct {
	// Name is what its epoch calls it, for example "ca-issue".
	Name string
	// Actor answers for what is issued, in the audit trail and the request keys.
	Actor string
	// Issuer is the issuing certificate; Key is its key in the token TokenSerial.
	Issuer      ledger.Issuer
	Key         DirectKey
	TokenSerial string
	Profiles    *profile.Set
	// LintShare is the share of certificates that are linted before they are signed.
	LintShare float64
}

// DirectKey is a key in a token; *hsm.Key is one.
type DirectKey interface {
	ContextSigner
	Public() crypto.PublicKey
}

// DirectLedger is what a Direct asks of the ledger. *ledger.Ledger is the one for production.
type DirectLedger interface {
	StartEpoch(ctx context.Context, e ledger.Epoch) (uint32, error)
	ReportSignatures(ctx context.Context, epoch uint32, signatures int64, final bool) error
	CommitBatch(ctx context.Context, entries []ledger.Entry) []ledger.Result
	AppendAudit(ctx context.Context, e ledger.AuditEntry) (ledger.AuditEntry, error)
}

// Direct issues certificates without a queue, on the same path as a signer: profile,
// one-shot preparation, signature and its check, commit before release. It is for the
// command line and for the first certificates of an installation. It is safe for
// concurrent use; Close ends its epoch.
type Direct struct {
	cfg  DirectConfig
	book DirectLedger
	prep *Preparer
	now  func() time.Time

	epoch uint32
	made  atomic.Int64
}

// NewDirect compiles the profiles and writes the epoch row.
func NewDirect(ctx context.Context, cfg DirectConfig, book DirectLedger, deps Deps) (*Direct, error) {
	deps = deps.withDefaults()
	if cfg.Name == "" || cfg.Actor == "" {
		return nil, errors.New("direct issue needs a name and an actor")
	}
	prep, err := NewPreparer(PreparerConfig{Issuer: cfg.Issuer, Public: cfg.Key.Public(), Profiles: cfg.Profiles, LintShare: cfg.LintShare, Now: deps.Now})
	if err != nil {
		return nil, err
	}
	d := &Direct{cfg: cfg, book: book, prep: prep, now: deps.Now}
	if d.epoch, err = book.StartEpoch(ctx, ledger.Epoch{Signer: cfg.Name, Issuer: cfg.Issuer.ID, Token: cfg.TokenSerial}); err != nil {
		return nil, fmt.Errorf("starting an epoch: %w", err)
	}
	return d, nil
}

// DirectRequest is one certificate to issue.
type DirectRequest struct {
	Request *profile.Request
	// CSR is the SHA-256 of the CSR in DER.
	CSR [sha256.Size]byte
	// RequestID makes repetitions by the same actor one, for Reuse; empty: there are none.
	RequestID string
	Reuse     time.Duration
}

// Issue returns the committed certificate, or the one that the same request made
// before. Errors are problems where the request is the cause; after an Unavailable
// repeat it with the same RequestID.
func (d *Direct) Issue(ctx context.Context, r DirectRequest) (ledger.Outcome, error) {
	p, err := d.prep.Prepare(r.Request, d.epoch)
	if err != nil {
		return ledger.Outcome{}, fmt.Errorf("preparing the certificate: %w", err)
	}
	cert, err := p.Sign(ctx, counted{d.cfg.Key, &d.made})
	if err != nil {
		return ledger.Outcome{}, err
	}
	id := r.RequestID
	if id == "" {
		id = rand.Text()
	}
	entry := ledger.Entry{
		Certificate: cert, CSR: r.CSR, ReuseUntil: d.now().Add(r.Reuse),
		RequestKey: ledger.NewRequestKey("direct", d.cfg.Actor, id),
	}
	res := d.book.CommitBatch(ctx, []ledger.Entry{entry})[0]
	if res.Err != nil {
		return ledger.Outcome{}, fmt.Errorf("committing certificate %s: %w", cert.Serial, res.Err)
	}
	detail := fmt.Sprintf("issuer %s, profile %s", d.cfg.Issuer.Name, r.Request.Profile)
	_, err = d.book.AppendAudit(ctx, ledger.AuditEntry{
		Actor: d.cfg.Actor, Action: "certificate.issue", Subject: res.Certificate.Serial.String(), Detail: detail,
	})
	if err != nil {
		return ledger.Outcome{}, fmt.Errorf("writing the audit entry of certificate %s, which is issued: %w", res.Certificate.Serial, err)
	}
	return res.Outcome, nil
}

// Close reports how many signatures the epoch has made, for good.
func (d *Direct) Close(ctx context.Context) error {
	if err := d.book.ReportSignatures(ctx, d.epoch, d.made.Load(), true); err != nil {
		return fmt.Errorf("reporting the signatures of epoch %d: %w", d.epoch, err)
	}
	return nil
}

// counted counts the signatures of a key.
type counted struct {
	key  ContextSigner
	made *atomic.Int64
}

// SignContext signs and counts the signature, whatever becomes of it.
func (c counted) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := c.key.SignContext(ctx, digest, opts)
	if err == nil {
		c.made.Add(1)
	}
	return sig, err
}
