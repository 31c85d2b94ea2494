package signer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	_ "embed" // for the sample keys
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
)

// Certificates are linted before the HSM signs them, when a bad one can still be
// stopped: zlint reads the very bytes of the TBSCertificate that the issuer's key is to
// sign, with a signature of the same kind below it that a throw-away key has made of
// something else. All that differs is the value of the signature. Boulder, whose idea
// this is, has to compare a fake issuer with the real one, since crypto/x509 builds its
// certificate twice; here there is one TBSCertificate.

// blindLints judge by the value of the signature, so on a throw-away key's they pass
// whatever the issuer is: they are left out rather than believed. What they look for
// is a fault of the issuer's key, not of one certificate; to have it looked for, run
// zlint on a certificate that was issued.
var blindLints = []string{
	// Tries eight compromised P-384 keys on each ECDSA signature, which takes 18 ms of
	// the 19 that all lints take together.
	"e_cert_issued_by_compromised_emudhra_ca",
}

// A linter holds the lints that apply to a profile. Filtering zlint's registry is slow,
// so it is done once. Safe for concurrent use.
type linter struct {
	registry lint.Registry
}

func newLinter(p *profile.Profile) (*linter, error) {
	global := lint.GlobalRegistry()
	var sources lint.SourceList
	for _, name := range p.Lint.Sources {
		source := lint.LintSource(name)
		if !slices.Contains(global.Sources(), source) {
			return nil, fmt.Errorf("lint.sources: %q is not one of zlint's %q", name, global.Sources())
		}
		sources = append(sources, source)
	}
	for _, name := range p.Lint.Ignore {
		if global.CertificateLints().ByName(name) == nil {
			return nil, fmt.Errorf("lint.ignore: zlint has no lint %q", name)
		}
	}
	l := new(linter)
	if len(sources) == 0 {
		return l, nil // an empty list, written as such, switches linting off
	}
	var err error
	l.registry, err = global.Filter(lint.FilterOptions{IncludeSources: sources, ExcludeNames: slices.Concat(p.Lint.Ignore, blindLints)})
	return l, err
}

// check lints the certificate that a TBSCertificate is to become. A lint of status
// error or fatal is a *problem.Error.
func (l *linter) check(s *scheme, t *template, tbs []byte) error {
	if l.registry == nil {
		return nil
	}
	dummy, ok := dummySignatures[s.algorithm]
	if !ok {
		return fmt.Errorf("lint: no signatures of %s", s.algorithm)
	}
	signature, err := dummy()
	if err != nil {
		return fmt.Errorf("lint: %w", err)
	}
	cert, err := zx509.ParseCertificate(t.assemble(tbs, signature))
	if err != nil {
		return fmt.Errorf("lint: the certificate cannot be read back: %w", err)
	}
	return l.verdict(zlint.LintCertificateEx(cert, l.registry))
}

func (l *linter) verdict(result *zlint.ResultSet) error {
	if !result.ErrorsPresent && !result.FatalsPresent {
		return nil
	}
	var failed []string
	for name, r := range result.Results {
		if r.Status < lint.Error {
			continue
		}
		if r.Details != "" {
			name += " (" + r.Details + ")"
		}
		failed = append(failed, name)
	}
	slices.Sort(failed)
	return problem.Rejected("certificate", "lint", "the certificate would break %s", strings.Join(failed, ", "))
}

// lintSamples lints a sample certificate of the profile with each of its key types.
func (t *template) lintSamples(p *Preparer) error {
	var errs []error
	for _, kind := range t.profile.KeyTypes {
		if err := t.lintSample(p, kind); err != nil {
			errs = append(errs, fmt.Errorf("profile %s with a key of type %s: %w", t.profile.Name, kind, err))
		}
	}
	return errors.Join(errs...)
}

func (t *template) lintSample(p *Preparer, kind csr.KeyType) error {
	r := t.profile.Sample()
	keys, err := sampleKeys()
	if err != nil {
		return err
	}
	r.SPKI = keys[kind]
	// Not p.validity: a profile is no worse for an issuer that is about to end.
	now := p.now().UTC().Truncate(1e9)
	v := validity{notBefore: now.Add(-t.profile.Lifetime.Backdate.D()), notAfter: now.Add(t.profile.Lifetime.Max.D())}
	number, err := serial.New(rand.Reader, math.MaxUint32, v.notBefore, v.notAfter)
	if err != nil {
		return err
	}
	tbs, err := t.tbs(r, number, v)
	if err != nil {
		return err
	}
	return t.lint.check(p.scheme, t, tbs)
}

// samplePEM holds one public key of each type, whose private keys nobody has: making
// RSA keys at every start would take seconds.
//
//go:embed samplekeys.pem
var samplePEM []byte

var sampleKeys = sync.OnceValues(func() (map[csr.KeyType][]byte, error) {
	keys := make(map[csr.KeyType][]byte)
	for rest := samplePEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return keys, nil
		}
		_, kind, err := csr.ParseKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("sample keys: %w", err)
		}
		keys[kind] = block.Bytes
	}
})

// dummySignatures are by throw-away keys, one of each kind that issuers make, made
// when first needed.
var dummySignatures = map[x509.SignatureAlgorithm]func() ([]byte, error){
	x509.ECDSAWithSHA256:  dummySignature(x509.ECDSAWithSHA256, ecdsaKey(elliptic.P256())),
	x509.ECDSAWithSHA384:  dummySignature(x509.ECDSAWithSHA384, ecdsaKey(elliptic.P384())),
	x509.PureEd25519:      dummySignature(x509.PureEd25519, ed25519Key),
	x509.SHA256WithRSA:    dummySignature(x509.SHA256WithRSA, rsaKey),
	x509.SHA256WithRSAPSS: dummySignature(x509.SHA256WithRSAPSS, rsaKey),
}

func ecdsaKey(curve elliptic.Curve) func() (crypto.Signer, error) {
	return func() (crypto.Signer, error) { return ecdsa.GenerateKey(curve, rand.Reader) }
}

func rsaKey() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) }

func ed25519Key() (crypto.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return key, err
}

func dummySignature(algorithm x509.SignatureAlgorithm, generate func() (crypto.Signer, error)) func() ([]byte, error) {
	options := signerOptions[algorithm]
	return sync.OnceValues(func() ([]byte, error) {
		key, err := generate()
		if err != nil {
			return nil, err
		}
		var digest []byte
		if hash := options.HashFunc(); hash != 0 {
			digest = make([]byte, hash.Size())
		}
		return key.Sign(rand.Reader, digest, options)
	})
}

// A sampler picks an even share of calls: with 0.25 every fourth. Safe for concurrent use.
type sampler struct {
	share float64
	calls *atomic.Uint64
}

func newSampler(share float64) (sampler, error) {
	if !(share >= 0 && share <= 1) {
		return sampler{}, fmt.Errorf("the share of certificates to lint, %v, is not within 0 and 1", share)
	}
	return sampler{share: share, calls: new(atomic.Uint64)}, nil
}

func (s sampler) next() bool {
	if s.share == 0 {
		return false
	}
	n := s.calls.Add(1)
	return math.Floor(float64(n)*s.share) > math.Floor(float64(n-1)*s.share)
}
