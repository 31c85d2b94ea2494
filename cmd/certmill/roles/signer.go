//go:build cgo

package roles

import (
	"context"

	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/signer"
	"github.com/certmill/certmill/signer/hsm"
)

// All lists the roles.
func All() []Role {
	return []Role{gatewayRole(), signerRole(), responderRole(), presignerRole(), ledgerRole()}
}

// hsmElements are the defaults of an HSM token in a list of them.
var hsmElements = []any{hsm.DefaultConfig()}

func signerRole() Role {
	return Role{
		Name: "signer", Command: "certmill signer", Summary: "Signs in the HSM, commits to the ledger, then releases.",
		Defaults: signer.DefaultConfig(), Elements: hsmElements,
		Check: func(s Source) error {
			_, err := LoadSigner(s)
			return err
		},
	}
}

// LoadSigner reads the configuration of a signer.
func LoadSigner(s Source) (signer.Config, error) {
	return load("signer", signer.DefaultConfig(), hsmElements, s)
}

// Signer runs a signer until ctx ends.
func Signer(ctx context.Context, s Source) error {
	cfg, err := LoadSigner(s)
	if err != nil {
		return err
	}
	return serve(ctx, "signer", cfg.Telemetry, func(ctx context.Context, tel *telemetry.Telemetry, running func(part)) error {
		r, err := signer.New(cfg, signer.Deps{Log: tel.Log, Registry: tel.Registry, Tracer: tel.Tracer})
		if err != nil {
			return err
		}
		running(r)
		return r.Run(ctx)
	})
}
