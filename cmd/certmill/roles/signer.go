//go:build cgo

package roles

import (
	"context"
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp/crl"
	"github.com/certmill/certmill/signer"
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
}

// DefaultSigner returns the defaults.
func DefaultSigner() SignerConfig {
	return SignerConfig{Config: signer.DefaultConfig(), CRL: crl.DefaultConfig()}
}

// Validate reports everything that is wrong.
func (c SignerConfig) Validate() error {
	err := c.Config.Validate()
	if cerr := c.CRL.Validate(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("crl: %w", cerr))
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

// Signer runs a signer until ctx ends, and with it a maker of CRLs.
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
		return inOrder(ctx, r.Run, func(ctx context.Context) error { return makeCRLs(ctx, cfg, r, tel) })
	})
}

// crlConnections is how many connections to the ledger the maker of CRLs has: it must
// not take those of certificates.
const crlConnections = 4

// makeCRLs runs the maker of CRLs beside a signer, with the signer's keys and profiles.
func makeCRLs(ctx context.Context, cfg SignerConfig, r *signer.Signer, tel *telemetry.Telemetry) error {
	cfg.Ledger.MaxConnections = crlConnections
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
				return nil, err
			}
			return key, nil
		},
		Wanted: func() []crl.Wanted { return wantedCRLs(r.Profiles()) },
	})
	if err != nil {
		return err
	}
	return maker.Run(ctx)
}

func wantedCRLs(profiles *profile.Set) (wanted []crl.Wanted) {
	if profiles == nil {
		return nil
	}
	for _, p := range profiles.All() {
		if p.HasCRL() {
			wanted = append(wanted, crl.Wanted{Issuer: p.Issuer, Point: p.CRLPoint()})
		}
	}
	return wanted
}
