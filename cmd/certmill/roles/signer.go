//go:build cgo

package roles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ledger/auditchain"
	"github.com/certmill/certmill/ocsp/crl"
	"github.com/certmill/certmill/signer"
	"github.com/certmill/certmill/signer/ceremony"
	"github.com/certmill/certmill/signer/hsm"
)

// All lists the roles.
func All() []Role {
	return []Role{gatewayRole(), signerRole(), responderRole(), presignerRole(), stapleRole(), ledgerRole()}
}

// hsmElements are the defaults of an HSM token in a list of them.
var hsmElements = []any{hsm.DefaultConfig()}

// SignerConfig is the signer's whole configuration.
type SignerConfig struct {
	signer.Config `yaml:",inline"`
	// CRL says how this signer makes CRLs, where profiles have them.
	CRL crl.Config `yaml:"crl"`
	// OCSPSigners says how this signer renews the certificates of delegated OCSP signers.
	OCSPSigners ceremony.RenewConfig `yaml:"ocsp_signers"`
	// Audit says how this signer has the audit chain signed.
	Audit auditchain.Config `yaml:"audit"`
}

// DefaultSigner returns the defaults.
func DefaultSigner() SignerConfig {
	return SignerConfig{Config: signer.DefaultConfig(), CRL: crl.DefaultConfig(), OCSPSigners: ceremony.DefaultRenewConfig(), Audit: auditchain.DefaultConfig()}
}

// Validate reports everything that is wrong.
func (c SignerConfig) Validate() error {
	err := c.Config.Validate()
	if cerr := c.CRL.Validate(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("crl: %w", cerr))
	}
	if oerr := c.OCSPSigners.Validate(); oerr != nil {
		err = errors.Join(err, fmt.Errorf("ocsp_signers: %w", oerr))
	}
	if aerr := c.Audit.Validate(); aerr != nil {
		err = errors.Join(err, fmt.Errorf("audit: %w", aerr))
	}
	return err
}

func signerRole() Role {
	return Role{
		Name: "signer", Command: "certmill signer", Summary: "Signs in the HSM, commits to the ledger, then releases.",
		Defaults: DefaultSigner(), Elements: hsmElements,
		Check: func(s Source) error {
			_, err := LoadSigner(s)
			return err
		},
	}
}

// LoadSigner reads the configuration of a signer.
func LoadSigner(s Source) (SignerConfig, error) {
	return load("signer", DefaultSigner(), hsmElements, s)
}

// Signer runs a signer until ctx ends, and with it a maker of CRLs, a renewer of OCSP
// signers and the sentry of the audit chain.
func Signer(ctx context.Context, s Source) error {
	cfg, err := LoadSigner(s)
	if err != nil {
		return err
	}
	return serve(ctx, "signer", cfg.Telemetry, func(ctx context.Context, tel *telemetry.Telemetry, running func(part)) error {
		r, err := signer.New(cfg.Config, signer.Deps{Log: tel.Log, Registry: tel.Registry, Tracer: tel.Tracer})
		if err != nil {
			return err
		}
		running(r)
		return inOrder(ctx, r.Run, followTokens(s, r, tel), func(ctx context.Context) error { return keyServices(ctx, cfg, r, tel) })
	})
}

// followTokens reads the configuration again at SIGHUP and has the signer work with the
// tokens in it. A configuration that is wrong changes nothing; nor does any other key
// before the next start.
func followTokens(s Source, r *signer.Signer, tel *telemetry.Telemetry) func(context.Context) error {
	return func(ctx context.Context) error {
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		defer signal.Stop(hup)
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hup:
			}
			cfg, err := LoadSigner(s)
			if err == nil {
				err = r.SetTokens(cfg.Tokens)
			}
			if err != nil {
				tel.Log.Error("the configuration cannot be read again; the tokens stay as they are", "error", err)
				continue
			}
			tel.Log.Info("the list of tokens was read again", "tokens", len(cfg.Tokens))
		}
	}
}

// serviceConnections is how many connections to the ledger CRLs, OCSP signers and the
// audit chain have together: they must not take those of certificates.
const serviceConnections = 4

// keyServices makes CRLs, renews OCSP signers and has the audit chain signed beside a
// signer, with the signer's keys and profiles.
func keyServices(ctx context.Context, cfg SignerConfig, r *signer.Signer, tel *telemetry.Telemetry) error {
	cfg.Ledger.MaxConnections = serviceConnections
	quiet := *tel
	quiet.Registry = prometheus.NewRegistry() // the signer's pool has the metrics' names
	book, err := openLedger(ctx, cfg.Ledger, &quiet)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer book.Close()
	maker, err := crl.New(cfg.CRL, crl.Deps{
		Ledger: book, Log: tel.Log, Registry: tel.Registry,
		Key: func(ctx context.Context, issuer ledger.Issuer) (crl.Key, error) {
			key, err := r.IssuerKey(ctx, issuer)
			if err != nil {
				return nil, err // not a nil key in an interface
			}
			return key, nil
		},
		Wanted: func() []crl.Wanted { return wantedCRLs(r.Profiles()) },
	})
	if err != nil {
		return err
	}
	renewer, err := ceremony.NewRenewer(cfg.OCSPSigners, ceremony.RenewDeps{
		Ledger: book, Log: tel.Log, Registry: tel.Registry,
		Key: func(ctx context.Context, issuer ledger.Issuer) (ceremony.IssuerKey, error) {
			key, err := r.IssuerKey(ctx, issuer)
			if err != nil {
				return nil, err
			}
			return key, nil
		},
	})
	if err != nil {
		return err
	}
	sentry, err := auditchain.NewSentry(cfg.Audit, auditchain.Deps{
		Ledger: book, Log: tel.Log, Registry: tel.Registry,
		Key: func(ctx context.Context, issuer ledger.Issuer) (auditchain.Key, error) {
			key, err := r.IssuerKey(ctx, issuer)
			if err != nil {
				return nil, err
			}
			return key, nil
		},
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return sentry.Run(ctx) })
	group.Go(func() error { return maker.Run(ctx) })
	group.Go(func() error { return renewer.Run(ctx) })
	return group.Wait()
}

func wantedCRLs(profiles *profile.Set) (wanted []crl.Wanted) {
	if profiles == nil {
		return nil
	}
	for _, p := range profiles.All() {
		if p.HasCRL() {
			for _, issuer := range p.IssuerNames() {
				wanted = append(wanted, crl.Wanted{Issuer: issuer, Point: p.CRLPoint()})
			}
		}
	}
	return wanted
}
