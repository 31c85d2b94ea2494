// Package ceremony makes a CA: a root, issuing CAs with their delegated OCSP signers,
// cross-certificates and the root's CRL; the keys in an HSM token, the certificates in
// the ledger.
//
// Init may be ended at any point and begun again: keys are found by their labels,
// certificates in the ledger, and only what is missing is made. No certificate is
// handed out before the ledger has it. Plan says what Init would make, a Transcript what
// was made; Prepare and Activate put a new key in an issuing CA's place.
package ceremony

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/hsm"
)

// Spec says what CA to make.
type Spec struct {
	// Root is the self-signed CA that clients trust. It signs issuing CAs only.
	Root CASpec `yaml:"root"`
	// Issuing is the CA that signs certificates all day.
	Issuing CASpec `yaml:"issuing"`
	// More are further issuing CAs below the same root, for profiles that name them. What
	// a CA here leaves out is as in the defaults of issuing.
	More []CASpec `yaml:"more"`
	// OCSP is the delegate that signs the OCSP answers for an issuing CA; each has its own.
	OCSP OCSPSpec `yaml:"ocsp"`
	// Cross are second certificates for keys of these CAs, by other CAs of the ledger.
	Cross []CrossSpec `yaml:"cross"`
	// CRL is what the root and the CAs of cross.by say of the certificates they revoked.
	CRL CRLSpec `yaml:"crl"`
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

// CrossSpec says which key is certified once more, and by whom.
type CrossSpec struct {
	// Subject is the name of the root or of an issuing CA of this file.
	Subject string `yaml:"subject"`
	// By is the name of the CA in the ledger that certifies it: an older root, whose key
	// must be in the token.
	By string `yaml:"by"`
	// Lifetime is how long the certificate is valid, cut at the end of By's.
	Lifetime profile.Duration `yaml:"lifetime"`
	// IssuersURL and CRLURL stand in the certificate: where By's certificate and its CRL
	// can be fetched. Empty leaves them out.
	IssuersURL string `yaml:"issuers_url"`
	CRLURL     string `yaml:"crl_url"`
}

// CRLSpec says what the CRLs of CAs that only ceremonies use are like.
type CRLSpec struct {
	// NextUpdate is how long a CRL is valid: the next ceremony makes the next one before
	// that. 0 makes none.
	NextUpdate profile.Duration `yaml:"next_update"`
	// Revoked are certificates of CAs that are revoked. Intermediates of meshes and
	// cross-certificates, which are in the ledger, are revoked there: `certmill revoke`.
	Revoked []RevokedSpec `yaml:"revoked"`
}

// RevokedSpec is a CA's certificate that is revoked.
type RevokedSpec struct {
	// Serial is its serial number, in hexadecimal digits, from `certmill ca show`.
	Serial string `yaml:"serial"`
	// By is the CA that had issued it; empty: the root.
	By string `yaml:"by"`
	// At is when it was revoked: 2026-11-21T08:00:00Z.
	At time.Time `yaml:"at"`
	// Reason is unspecified, keyCompromise, cACompromise, affiliationChanged, superseded
	// or cessationOfOperation.
	Reason string `yaml:"reason"`
}

// by is the name of the CA that had issued it.
func (r RevokedSpec) by(s Spec) string { return cmp.Or(r.By, s.Root.Name) }

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

// Elements are the defaults of what stands in lists of a Spec.
func Elements() []any {
	ca := DefaultSpec().Issuing
	ca.Name, ca.CommonName = "", ""
	return []any{ca, CrossSpec{Lifetime: profile.Duration(2 * 365 * day)}, RevokedSpec{Reason: "unspecified"}}
}

// issuers are the issuing CAs with their keys in the file.
func (s Spec) issuers() (keys []string, all []CASpec) {
	keys, all = []string{"issuing"}, append([]CASpec{s.Issuing}, s.More...)
	for i := range s.More {
		keys = append(keys, fmt.Sprintf("more[%d]", i))
	}
	return keys, all
}

// For returns the spec with the issuing CA of this name as Issuing, alone: the one that a
// rollover is about. An empty name is that of Issuing.
func (s Spec) For(name string) (Spec, error) {
	_, all := s.issuers()
	i := slices.IndexFunc(all, func(c CASpec) bool { return c.Name == cmp.Or(name, s.Issuing.Name) })
	if i < 0 {
		return s, problem.Rejected("issuer", "unknown", "the spec has no issuing CA %q", name)
	}
	s.Issuing, s.More, s.Cross = all[i], nil, nil
	return s, nil
}

// Validate returns every error of the spec, joined.
func (s Spec) Validate() error {
	errs := []error{s.Root.validate("root"), s.OCSP.validate("ocsp"), s.validateCross(), s.CRL.validate("crl")}
	keys, issuers := s.issuers()
	names, commonNames := map[string]bool{s.Root.Name: true}, map[string]bool{s.Root.CommonName: true}
	for i, ca := range issuers {
		errs = append(errs, ca.validate(keys[i]))
		if names[ca.Name] {
			errs = append(errs, fmt.Errorf("%s.name: is another CA's; every CA has its own", keys[i]))
		}
		if commonNames[ca.CommonName] {
			errs = append(errs, fmt.Errorf("%s.common_name: is another CA's; every CA has its own", keys[i]))
		}
		names[ca.Name], commonNames[ca.CommonName] = true, true
		if ca.Lifetime > s.Root.Lifetime {
			errs = append(errs, fmt.Errorf("%s.lifetime: is longer than the root's", keys[i]))
		}
		if ca.PathLength != 0 {
			errs = append(errs, fmt.Errorf("%s.path_length: an issuing CA has no CA below it", keys[i]))
		}
	}
	if len(s.More) > 0 && s.OCSP.KeyFile != "" && !strings.Contains(s.OCSP.KeyFile, "{issuer}") {
		errs = append(errs, errors.New("ocsp.key_file: needs {issuer}, since there are several issuing CAs"))
	}
	if s.Root.PathLength < 1 || s.Root.PathLength > 5 {
		errs = append(errs, errors.New("root.path_length: must be 1 to 5"))
	}
	if s.Root.IssuersURL != "" || s.Root.CRLURL != "" {
		errs = append(errs, errors.New("root: a root has no issuers_url and no crl_url; they belong to issuing"))
	}
	if s.Backdate < 0 || s.Backdate > profile.Duration(day) {
		errs = append(errs, errors.New("backdate: must be 0 to 1d"))
	}
	return errors.Join(errs...)
}

func (s Spec) validateCross() error {
	_, all := s.issuers()
	var errs []error
	for i, x := range s.Cross {
		key := fmt.Sprintf("cross[%d]", i)
		if !slices.ContainsFunc(append(all, s.Root), func(c CASpec) bool { return c.Name == x.Subject }) {
			errs = append(errs, fmt.Errorf("%s.subject: %q is no CA of this file", key, x.Subject))
		}
		if !validCAName(x.By) || x.By == x.Subject || x.By == s.Root.Name {
			errs = append(errs, fmt.Errorf("%s.by: must be the name of another CA, beside the root", key))
		}
		if x.Lifetime < profile.Duration(day) {
			errs = append(errs, fmt.Errorf("%s.lifetime: must be at least 1d", key))
		}
		errs = append(errs, httpURL(key+".issuers_url", x.IssuersURL), httpURL(key+".crl_url", x.CRLURL))
	}
	return errors.Join(errs...)
}

func (c CRLSpec) validate(key string) error {
	var errs []error
	if c.NextUpdate != 0 && c.NextUpdate < profile.Duration(time.Hour) {
		errs = append(errs, fmt.Errorf("%s.next_update: must be 0 or at least 1h", key))
	}
	if len(c.Revoked) > 0 && c.NextUpdate == 0 {
		errs = append(errs, fmt.Errorf("%s.next_update: is needed for a CRL with what is revoked", key))
	}
	for i, r := range c.Revoked {
		at := fmt.Sprintf("%s.revoked[%d]", key, i)
		if _, err := serial.Parse(r.Serial); err != nil {
			errs = append(errs, fmt.Errorf("%s.serial: %w", at, err))
		}
		if _, ok := crlReasons[r.Reason]; !ok {
			errs = append(errs, fmt.Errorf("%s.reason: %q is not a reason to revoke a CA for good (RFC 5280 section 5.3.1)", at, r.Reason))
		}
		if r.At.IsZero() {
			errs = append(errs, fmt.Errorf("%s.at: is needed, as 2026-11-21T08:00:00Z", at))
		}
	}
	return errors.Join(errs...)
}

func validCAName(name string) bool {
	valid := func(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' }
	return name != "" && len(name) <= 63 && !strings.ContainsFunc(name, func(r rune) bool { return !valid(r) })
}

func httpURL(key, value string) error {
	if u, err := url.Parse(value); value != "" && (err != nil || u.Scheme != "http" || u.Host == "") {
		return fmt.Errorf("%s: must be an http URL (RFC 5280 sections 4.2.1.13 and 4.2.2.1)", key)
	}
	return nil
}

func (c CASpec) validate(key string) error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s.%s: %s", key, field, fmt.Sprintf(format, args...)))
	}
	if !validCAName(c.Name) {
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
	return errors.Join(append(errs, httpURL(key+".issuers_url", c.IssuersURL), httpURL(key+".crl_url", c.CRLURL), checkAlgorithm(key, c.KeyAlgorithm))...)
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
	// CommitBatch and List keep cross-certificates and intermediates, among the others.
	CommitBatch(ctx context.Context, entries []ledger.Entry) []ledger.Result
	List(ctx context.Context, f ledger.Filter, pageToken string, limit int) ([]ledger.Listed, string, error)
	// RevocationSequence and CRLEntries say what is revoked.
	RevocationSequence(ctx context.Context) (int64, error)
	CRLEntries(ctx context.Context, s ledger.CRLScope, after serial.Number, limit int, dst []ledger.CRLEntry) ([]ledger.CRLEntry, error)
}

// Deps are what a ceremony needs of the process around it; nil fields have defaults.
type Deps struct {
	Log *slog.Logger
	Now func() time.Time
}

func (d Deps) withDefaults() Deps {
	telemetry.Fill(&d.Log, nil, nil, &d.Now)
	return d
}
