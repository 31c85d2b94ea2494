// Package ceremony makes a CA: a root, an issuing CA and a delegated OCSP signer,
// their keys in an HSM token and their certificates in the ledger.
//
// Init may be ended at any point and begun again: keys are found by their labels,
// certificates in the ledger, and only what is missing is made. No certificate is
// handed out before the ledger has it. Plan says what Init would make, a Transcript what
// was made; Prepare and Activate put a new key in an issuing CA's place.
package ceremony

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/hsm"
)

// Spec says what CA to make.
type Spec struct {
	// Root is the self-signed CA that clients trust. It signs issuing CAs only.
	Root CASpec `yaml:"root"`
	// Issuing is the CA that signs certificates all day.
	Issuing CASpec `yaml:"issuing"`
	// OCSP is the delegate that signs the OCSP answers for the issuing CA.
	OCSP OCSPSpec `yaml:"ocsp"`
	// Backdate is how far notBefore lies in the past, for clients whose clock is slow.
	Backdate profile.Duration `yaml:"backdate"`
}

// CASpec says what one CA is like.
type CASpec struct {
	// Name is what profiles and the ledger call the CA, and the label of its key:
	// 1–63 of a–z, 0–9 and "-".
	Name string `yaml:"name"`
	// CommonName begins the subject's common name. Eight digits of the key's identifier
	// follow, so that no two CA keys ever share a subject.
	CommonName string `yaml:"common_name"`
	// Organization and Country (two letters) stand in the subject; empty leaves them out.
	Organization string `yaml:"organization"`
	Country      string `yaml:"country"`
	// KeyAlgorithm is ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072, rsa-4096 or, where the
	// token has it, ed25519.
	KeyAlgorithm hsm.Algorithm `yaml:"key_algorithm"`
	// Lifetime is how long the CA's certificate is valid.
	Lifetime profile.Duration `yaml:"lifetime"`
	// PathLength is the root's: how many CAs may stand below each other. 1 is enough for
	// issuing CAs and the intermediates of Istio meshes; a SPIRE server with an
	// intermediate of ours makes a CA of its own below it and needs 2.
	PathLength int `yaml:"path_length"`
	// IssuersURL and CRLURL stand in the issuing CA's certificate: where the root's
	// certificate and its CRL can be fetched. Empty leaves them out; the root has none.
	IssuersURL string `yaml:"issuers_url"`
	CRLURL     string `yaml:"crl_url"`
}

// OCSPSpec says what the delegated OCSP signer is like (RFC 6960 section 4.2.2.2).
type OCSPSpec struct {
	// KeyAlgorithm is as for a CA. Few OCSP clients know Ed25519.
	KeyAlgorithm hsm.Algorithm `yaml:"key_algorithm"`
	// KeyFile keeps the delegate's key in software: the file (PEM, PKCS #8) where the
	// presigners find it too, made where it is not there. {issuer} stands for the issuing
	// CA's name. Empty: the key is in the token.
	KeyFile string `yaml:"key_file"`
	// Lifetime is how long the delegate's certificate is valid. It cannot be revoked
	// (id-pkix-ocsp-nocheck), so keep it short.
	Lifetime profile.Duration `yaml:"lifetime"`
	// RenewBefore is how long before its end the certificate is made anew.
	RenewBefore profile.Duration `yaml:"renew_before"`
}

const day = 24 * time.Hour

// DefaultSpec returns a root for 20 years, an issuing CA for 5 and a delegate for 30 days.
func DefaultSpec() Spec {
	return Spec{
		Root:     CASpec{Name: "root", CommonName: "certmill root CA", KeyAlgorithm: hsm.ECDSAP384, Lifetime: profile.Duration(20 * 365 * day), PathLength: 2},
		Issuing:  CASpec{Name: "issuing", CommonName: "certmill issuing CA", KeyAlgorithm: hsm.ECDSAP256, Lifetime: profile.Duration(5 * 365 * day)},
		OCSP:     OCSPSpec{KeyAlgorithm: hsm.ECDSAP256, Lifetime: profile.Duration(30 * day), RenewBefore: profile.Duration(10 * day)},
		Backdate: profile.Duration(5 * time.Minute),
	}
}

// Validate returns every error of the spec, joined.
func (s Spec) Validate() error {
	errs := []error{s.Root.validate("root"), s.Issuing.validate("issuing"), s.OCSP.validate("ocsp")}
	if s.Root.Name == s.Issuing.Name {
		errs = append(errs, errors.New("issuing.name: is the root's; every CA has its own"))
	}
	if s.Root.CommonName == s.Issuing.CommonName {
		errs = append(errs, errors.New("issuing.common_name: is the root's; every CA has its own"))
	}
	if s.Issuing.Lifetime > s.Root.Lifetime {
		errs = append(errs, errors.New("issuing.lifetime: is longer than the root's"))
	}
	if s.Root.PathLength < 1 || s.Root.PathLength > 5 {
		errs = append(errs, errors.New("root.path_length: must be 1 to 5"))
	}
	if s.Issuing.PathLength != 0 {
		errs = append(errs, errors.New("issuing.path_length: an issuing CA has no CA below it"))
	}
	if s.Root.IssuersURL != "" || s.Root.CRLURL != "" {
		errs = append(errs, errors.New("root: a root has no issuers_url and no crl_url; they belong to issuing"))
	}
	if s.Backdate < 0 || s.Backdate > profile.Duration(day) {
		errs = append(errs, errors.New("backdate: must be 0 to 1d"))
	}
	return errors.Join(errs...)
}

func (c CASpec) validate(key string) error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s.%s: %s", key, field, fmt.Sprintf(format, args...)))
	}
	valid := func(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' }
	if c.Name == "" || len(c.Name) > 63 || strings.ContainsFunc(c.Name, func(r rune) bool { return !valid(r) }) {
		bad("name", "must be 1 to 63 of a-z, 0-9 and -")
	}
	// X.520 ub-common-name is 64; a blank and eight digits are added.
	if n := len([]rune(c.CommonName)); n == 0 || n > 64-9 {
		bad("common_name", "must have 1 to 55 characters")
	}
	if len([]rune(c.Organization)) > 64 {
		bad("organization", "must have at most 64 characters")
	}
	if c.Country != "" && (len(c.Country) != 2 || strings.ToUpper(c.Country) != c.Country) {
		bad("country", "must be two capital letters (ISO 3166)")
	}
	if c.Lifetime < profile.Duration(day) {
		bad("lifetime", "must be at least 1d")
	}
	for field, value := range map[string]string{"issuers_url": c.IssuersURL, "crl_url": c.CRLURL} {
		if u, err := url.Parse(value); value != "" && (err != nil || u.Scheme != "http" || u.Host == "") {
			bad(field, "must be an http URL (RFC 5280 sections 4.2.1.13 and 4.2.2.1)")
		}
	}
	return errors.Join(append(errs, checkAlgorithm(key, c.KeyAlgorithm))...)
}

func (o OCSPSpec) validate(key string) error {
	errs := []error{checkAlgorithm(key, o.KeyAlgorithm)}
	if o.Lifetime < profile.Duration(time.Hour) {
		errs = append(errs, fmt.Errorf("%s.lifetime: must be at least 1h", key))
	}
	if o.RenewBefore <= 0 || o.RenewBefore >= o.Lifetime {
		errs = append(errs, fmt.Errorf("%s.renew_before: must be positive and shorter than lifetime", key))
	}
	if o.KeyFile != "" && !filepath.IsAbs(o.KeyFile) {
		errs = append(errs, fmt.Errorf("%s.key_file: must be an absolute path: presigners find the key by it", key))
	}
	return errors.Join(errs...)
}

func checkAlgorithm(key string, a hsm.Algorithm) error {
	if !slices.Contains(hsm.Algorithms, a) {
		return fmt.Errorf("%s.key_algorithm: %q is not one of %q", key, a, hsm.Algorithms)
	}
	return nil
}

// Registrar keeps what a ceremony makes; *ledger.Ledger is one. What a call has
// returned without an error outlives the process.
type Registrar interface {
	Issuers(ctx context.Context) ([]ledger.Issuer, error)
	PutIssuer(ctx context.Context, i ledger.Issuer) (int32, error)
	OCSPSigners(ctx context.Context) ([]ledger.OCSPSigner, error)
	PutOCSPSigner(ctx context.Context, s ledger.OCSPSigner) (int32, error)
	StartEpoch(ctx context.Context, e ledger.Epoch) (uint32, error)
	ReportSignatures(ctx context.Context, epoch uint32, signatures int64, final bool) error
}

// Deps are what a ceremony needs of the process around it; nil fields have defaults.
type Deps struct {
	Log *slog.Logger
	Now func() time.Time
}

func (d Deps) withDefaults() Deps {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	return d
}
