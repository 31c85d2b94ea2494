package gateway

import (
	"fmt"

	"github.com/certmill/certmill/internal/profile"
)

// Istio is the certificate service of an Istio mesh, on the gRPC port. Its callers are
// those of auth.kubernetes, auth.jwt and tls.own_clients.
type Istio struct {
	// Profile issues for proxies that name no CertSigner. Where it and cert_signers are
	// empty the service is off.
	Profile string `yaml:"profile"`
	// CertSigners maps the names that proxies may send as CertSigner to profiles, and so
	// to issuers: {"clusterissuers.example.test/blue": mesh-blue}.
	CertSigners map[string]string `yaml:"cert_signers"`
}

func (i Istio) enabled() bool { return i.Profile != "" || len(i.CertSigners) > 0 }

// check reports whether the profiles exist and name certificates by SPIFFE ID.
func (i Istio) check(profiles *profile.Set) error {
	names := map[string]string{"istio.profile": i.Profile}
	for signer, name := range i.CertSigners {
		names["istio.cert_signers: "+signer] = name
	}
	for key, name := range names {
		if name == "" && key == "istio.profile" {
			continue
		}
		p, err := profiles.Get(name)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		if p.Kind != profile.KindSPIFFE {
			return fmt.Errorf("%s: profile %s is not of kind %q", key, name, profile.KindSPIFFE)
		}
	}
	return nil
}
