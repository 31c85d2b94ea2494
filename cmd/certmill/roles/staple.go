package roles

import (
	"context"

	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/ocsp/staple"
)

func stapleRole() Role {
	return Role{
		Name: "staple", Command: "certmill staple", Summary: "Keeps OCSP staples fresh for proxies that do not fetch any or fetch badly.",
		Defaults: staple.DefaultConfig(), Elements: []any{staple.Certificate{}},
		Check: func(s Source) error {
			_, err := LoadStaple(s, nil)
			return err
		},
	}
}

// LoadStaple reads the configuration of the stapler; certificates are added to those
// of the file.
func LoadStaple(s Source, certificates []staple.Certificate) (staple.Config, error) {
	defaults := staple.DefaultConfig()
	if s.File == "" {
		defaults.Certificates = certificates
		return load("staple", defaults, []any{staple.Certificate{}}, s)
	}
	cfg, err := load("staple", defaults, []any{staple.Certificate{}}, s)
	if err != nil || len(certificates) == 0 {
		return cfg, err
	}
	cfg.Certificates = append(cfg.Certificates, certificates...)
	return cfg, cfg.Validate()
}

// Staple keeps staples fresh until ctx ends.
func Staple(ctx context.Context, cfg staple.Config) error {
	return serve(ctx, "staple", cfg.Telemetry, func(ctx context.Context, tel *telemetry.Telemetry, running func(part)) error {
		s, err := staple.New(cfg, staple.Deps{Log: tel.Log, Registry: tel.Registry})
		if err != nil {
			return err
		}
		running(s)
		return s.Run(ctx)
	})
}
