package ceremony

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/ledger"
)

// RenewConfig says how a signer renews the certificates of delegated OCSP signers.
// The comments are its manual.
type RenewConfig struct {
	// Lifetime is how long a renewed certificate is valid, cut at the issuer's notAfter.
	// It cannot be revoked (id-pkix-ocsp-nocheck), so keep it short.
	Lifetime time.Duration `yaml:"lifetime"`
	// RenewBefore is how long before its end a certificate is renewed. It must be longer
	// than the answers are valid, which end with the certificate that signed them. 0
	// leaves renewal to 'certmill ca renew-ocsp'.
	RenewBefore time.Duration `yaml:"renew_before"`
	// Backdate is how far notBefore lies in the past, for clients whose clock is slow.
	Backdate time.Duration `yaml:"backdate"`
	// Poll is how often the ledger is asked for certificates that are due.
	Poll time.Duration `yaml:"poll"`
}

// DefaultRenewConfig renews 30 days' certificates 10 days before their end.
func DefaultRenewConfig() RenewConfig {
	return RenewConfig{Lifetime: 30 * day, RenewBefore: 10 * day, Backdate: 5 * time.Minute, Poll: time.Minute}
}

// Validate reports everything that is wrong, with the keys' names.
func (c RenewConfig) Validate() error {
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	require(c.Lifetime >= time.Minute && c.Lifetime <= 366*day, "lifetime must be 1m to 366 days")
	require(c.RenewBefore >= 0 && c.RenewBefore < c.Lifetime, "renew_before must be at least 0 and shorter than lifetime")
	require(c.Backdate >= 0 && c.Backdate <= day, "backdate must be 0 to 24h")
	require(c.Poll >= 10*time.Millisecond && c.Poll <= time.Hour, "poll must be 10ms to 1h")
	return errors.Join(errs...)
}

// IssuerKey is an issuer's key in a signer's token; *signer.IssuerKey is one.
type IssuerKey interface {
	// TokenSerial names the token in epoch rows.
	TokenSerial() string
	// Hash is what Sign takes the digest of; 0 means that it takes the message itself.
	Hash() crypto.Hash
	// Sign returns a signature that has been verified with the issuer's key.
	Sign(ctx context.Context, digest []byte) ([]byte, error)
}

// RenewDeps are the parts that a Renewer works with. Ledger and Key are required.
type RenewDeps struct {
	Ledger Registrar
	// Key finds an issuer's key; it fails where this process does not have it.
	Key func(ctx context.Context, issuer ledger.Issuer) (IssuerKey, error)
	// Log, Registry and Now may be nil.
	Log      *slog.Logger
	Registry prometheus.Registerer
	Now      func() time.Time
}

// Renewer makes new certificates for delegated OCSP signers ahead of their end, beside
// a signer and with its tokens. As with CRLs there is no message that asks for one:
// what is due stands in the ledger, and so does the only key that is certified, which
// is the one that was certified before. The old certificate and the new are valid side
// by side until the old one's last answer has expired.
//
// Renewers of several signers look at different moments. Should two meet, both
// certificates are good, and presigners use the later one.
type Renewer struct {
	cfg     RenewConfig
	deps    RenewDeps
	said    map[int32]string // what was last said of an issuer that cannot be served
	renewed prometheus.Counter
	failed  prometheus.Counter
}

// NewRenewer checks cfg and makes a Renewer; it opens nothing.
func NewRenewer(cfg RenewConfig, deps RenewDeps) (*Renewer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Ledger == nil || deps.Key == nil {
		return nil, errors.New("renewing OCSP signers needs a ledger and keys")
	}
	d := Deps{Log: deps.Log, Now: deps.Now}.withDefaults()
	deps.Log, deps.Now = d.Log, d.Now
	if deps.Registry == nil {
		deps.Registry = prometheus.NewRegistry()
	}
	r := &Renewer{
		cfg: cfg, deps: deps, said: map[int32]string{},
		renewed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "certmill_signer_ocsp_signers_renewed_total", Help: "Certificates of delegated OCSP signers that this signer has renewed."}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "certmill_signer_ocsp_signers_failures_total", Help: "Renewals of delegated OCSP signers that were due and failed; they are tried again."}),
	}
	deps.Registry.MustRegister(r.renewed, r.failed)
	return r, nil
}

// Run renews what is due until ctx ends and returns nil then. The ledger and the keys
// may be away at any time.
func (r *Renewer) Run(ctx context.Context) error {
	if r.cfg.RenewBefore == 0 {
		<-ctx.Done()
		return nil
	}
	// Signers that were started together must not look together.
	timer := time.NewTimer(rand.N(r.cfg.Poll))
	defer timer.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		err := r.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !failing {
			r.deps.Log.Warn("OCSP signers cannot be looked after; it is tried again", "error", err)
		}
		failing = err != nil
		timer.Reset(r.cfg.Poll)
	}
}

// look renews what is due.
func (r *Renewer) look(ctx context.Context) error {
	issuers, err := r.deps.Ledger.Issuers(ctx)
	if err != nil {
		return fmt.Errorf("reading the issuers: %w", err)
	}
	for _, issuer := range issuers {
		if issuer.State == ledger.IssuerClosed {
			continue
		}
		err := r.renew(ctx, issuer)
		if err != nil {
			r.failed.Inc()
		}
		r.say(issuer, err)
	}
	return nil
}

// say logs what is wrong with an issuer when that changes.
func (r *Renewer) say(issuer ledger.Issuer, err error) {
	said := ""
	if err != nil {
		said = err.Error()
	}
	if said != "" && r.said[issuer.ID] != said {
		r.deps.Log.Warn("an OCSP signer is due and was not renewed; it is tried again", "issuer", issuer.Name, "generation", issuer.ID, "error", err)
	}
	r.said[issuer.ID] = said
}

// renew makes a new certificate for the OCSP signer of an issuer, also of a retired
// generation, whose certificates are still asked about, if one is due. The first one
// is made by 'certmill ca init', together with its key.
func (r *Renewer) renew(ctx context.Context, issuer ledger.Issuer) error {
	issuing, err := x509.ParseCertificate(issuer.DER)
	if err != nil {
		return fmt.Errorf("the ledger's certificate of the issuer: %w", err)
	}
	spec := OCSPSpec{Lifetime: profile.Duration(r.cfg.Lifetime), RenewBefore: profile.Duration(r.cfg.RenewBefore)}
	c := &ceremony{
		Deps: Deps{Log: r.deps.Log, Now: r.deps.Now}, book: r.deps.Ledger,
		spec: Spec{OCSP: spec, Backdate: profile.Duration(r.cfg.Backdate)},
	}
	there, err := c.newestDelegate(ctx, issuer.ID)
	if err != nil {
		return err
	}
	if now := c.Now(); there == nil || !now.Before(issuing.NotAfter) || !spec.due(there.Certificate, issuing, now) {
		return nil
	}
	key, err := r.deps.Key(ctx, issuer)
	if err != nil {
		return err
	}
	ca := &CA{Issuer: issuer, Certificate: issuing, key: &poolKey{key, issuing.PublicKey}}
	if _, err := c.makeDelegate(ctx, ca, there.Certificate.PublicKey, there.Signer.KeyURI); err != nil {
		return err
	}
	r.renewed.Inc()
	return nil
}

// poolKey is a key among a signer's tokens.
type poolKey struct {
	key    IssuerKey
	public crypto.PublicKey
}

func (k *poolKey) Public() crypto.PublicKey { return k.public }

func (k *poolKey) Serial() string { return k.key.TokenSerial() }

func (k *poolKey) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != k.key.Hash() {
		return nil, fmt.Errorf("the issuer's key signs %s, not %s", k.key.Hash(), opts.HashFunc())
	}
	return k.key.Sign(ctx, digest)
}
