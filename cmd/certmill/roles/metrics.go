//go:build cgo

package roles

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/gateway"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ledger/auditchain"
	"github.com/certmill/certmill/ocsp"
	"github.com/certmill/certmill/ocsp/crl"
	"github.com/certmill/certmill/ocsp/presign"
	"github.com/certmill/certmill/ocsp/staple"
	"github.com/certmill/certmill/signer"
	"github.com/certmill/certmill/signer/ceremony"
	"github.com/certmill/certmill/signer/hsm"
)

// RoleMetrics is what a part of the service registers, for the reference.
type RoleMetrics struct {
	Name string
	// Register makes the part, as far as it can be made without a server, with this
	// registry. Nothing of it may be used.
	Register func(prometheus.Registerer) error
}

// Metrics lists the parts with metrics of their own.
func Metrics() []RoleMetrics {
	none := (*ledger.Ledger)(nil)
	return []RoleMetrics{
		{"Every role", func(r prometheus.Registerer) error { telemetry.DescribeMetrics(r); return nil }},
		{"Gateway", func(r prometheus.Registerer) error {
			c := DefaultGateway()
			c.TLS.CertFile, c.TLS.KeyFile, c.ProfilesDir = "-", "-", "-"
			d, err := gateway.NewDispatcher(c.Dispatch, gateway.DispatcherDeps{Conn: &queue.Conn{}, Registry: r})
			if err != nil {
				return err
			}
			r.MustRegister(newReportsRefused())
			_, err = gateway.New(c.Config, gateway.Deps{Ledger: none, Signer: d, Registry: r})
			return err
		}},
		{"Signer", func(r prometheus.Registerer) error {
			c := DefaultSigner().Config
			token := hsm.DefaultConfig()
			token.Module, token.TokenLabel, token.PINFile = "-", "-", "-"
			c.Name, c.ProfilesDir, c.Tokens = "x", "-", []hsm.Config{token}
			_, err := signer.New(c, signer.Deps{Registry: r})
			return err
		}},
		{"OCSP signers and audit chain, of signers", func(r prometheus.Registerer) error {
			c := DefaultSigner()
			_, err := ceremony.NewRenewer(c.OCSPSigners, ceremony.RenewDeps{
				Ledger: none, Registry: r, Key: func(context.Context, ledger.Issuer) (ceremony.IssuerKey, error) { return nil, nil },
			})
			if err != nil {
				return err
			}
			_, err = auditchain.NewSentry(c.Audit, auditchain.Deps{
				Ledger: none, Registry: r, Key: func(context.Context, ledger.Issuer) (auditchain.Key, error) { return nil, nil },
			})
			return err
		}},
		{"HSM tokens, of signers and presigners", func(r prometheus.Registerer) error { hsm.DescribeMetrics(r); return nil }},
		{"CRLs, of signers", func(r prometheus.Registerer) error { crl.DescribeMetrics(r); return nil }},
		{"Presigner", func(r prometheus.Registerer) error {
			_, err := presign.New(presign.DefaultConfig(), presign.Deps{Ledger: none, Registry: r})
			return err
		}},
		{"OCSP responder", func(r prometheus.Registerer) error {
			_, err := ocsp.New(ocsp.DefaultConfig(), ocsp.Deps{Registry: r})
			return err
		}},
		{"Stapler", func(r prometheus.Registerer) error { staple.DescribeMetrics(r); return nil }},
		{"Ledger, of every role that has one", func(r prometheus.Registerer) error {
			ledger.DescribeMetrics(r)
			_, err := ledger.NewCommitter(none, ledger.DefaultCommitterConfig(), ledger.Deps{Registry: r})
			return err
		}},
		{"Ledger maintenance", func(r prometheus.Registerer) error { newMaintenanceMetrics(r); return nil }},
	}
}
