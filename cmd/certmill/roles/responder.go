package roles

import (
	"context"

	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/ocsp"
)

func responderRole() Role {
	return Role{
		Name: "responder", Command: "certmill ocsp responder", Summary: "Answers OCSP requests from records in Redis.",
		Defaults: ocsp.DefaultConfig(),
		Check: func(s Source) error {
			_, err := load("responder", ocsp.DefaultConfig(), nil, s)
			return err
		},
	}
}

// Responder runs an OCSP responder until ctx ends.
func Responder(ctx context.Context, s Source) error {
	cfg, err := load("responder", ocsp.DefaultConfig(), nil, s)
	if err != nil {
		return err
	}
	return serve(ctx, "responder", cfg.Telemetry, func(ctx context.Context, tel *telemetry.Telemetry, running func(part)) error {
		r, err := ocsp.New(cfg, ocsp.Deps{Log: tel.Log, Registry: tel.Registry, Tracer: tel.Tracer})
		if err != nil {
			return err
		}
		running(r)
		return r.Run(ctx)
	})
}
