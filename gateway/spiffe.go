package gateway

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/spiffe"
)

// SPIFFE is what the gateway publishes for the trust domains of its profiles of kind
// spiffe: their bundles, at /v1/spiffe-bundles/<trust domain> of the HTTPS API, for
// federation by the https_web profile, and as the roots in Istio's answers.
type SPIFFE struct {
	// RefreshHint is how often others are advised to fetch a bundle again.
	RefreshHint time.Duration `yaml:"refresh_hint"`
	// ExtraRoots are published beside the roots of our own issuers: those of a CA that a
	// mesh comes from or goes to.
	ExtraRoots []ExtraRoots `yaml:"extra_roots"`
}

// ExtraRoots are roots of a trust domain that are not our own.
type ExtraRoots struct {
	// TrustDomain is one of a profile of kind spiffe.
	TrustDomain string `yaml:"trust_domain"`
	// File holds the roots in PEM, read at start.
	File string `yaml:"file"`
}

func (s SPIFFE) validate(e *keyErrors) {
	e.between("spiffe.refresh_hint", s.RefreshHint, time.Second, 24*time.Hour)
	for i, r := range s.ExtraRoots {
		key := fmt.Sprintf("spiffe.extra_roots[%d]", i)
		e.require(spiffe.CheckTrustDomain(r.TrustDomain) == nil, key+".trust_domain", "must be the name of a trust domain")
		e.require(r.File != "", key+".file", "is missing")
	}
}

// bundles knows what belongs to each trust domain. It is immutable.
type bundles struct {
	refresh time.Duration
	issuers map[string][]string // names of issuers by trust domain
	extra   map[string][]*x509.Certificate
}

// newBundles reads the files of extra roots.
func newBundles(cfg SPIFFE, profiles *profile.Set) (*bundles, error) {
	b := &bundles{refresh: cfg.RefreshHint, issuers: map[string][]string{}, extra: map[string][]*x509.Certificate{}}
	for _, p := range profiles.All() {
		for _, domain := range p.SPIFFE.TrustDomains {
			for _, issuer := range p.IssuerNames() {
				if !slices.Contains(b.issuers[domain], issuer) {
					b.issuers[domain] = append(b.issuers[domain], issuer)
				}
			}
		}
	}
	for _, r := range cfg.ExtraRoots {
		if b.issuers[r.TrustDomain] == nil {
			return nil, fmt.Errorf("spiffe.extra_roots: no profile of kind spiffe is for trust domain %s", r.TrustDomain)
		}
		roots, err := readCertificates(r.File)
		if err != nil {
			return nil, fmt.Errorf("spiffe.extra_roots: %w", err)
		}
		for _, c := range roots {
			if !c.IsCA {
				return nil, fmt.Errorf("spiffe.extra_roots: %s holds %q, which is not a CA's certificate", r.File, c.Subject)
			}
		}
		b.extra[r.TrustDomain] = append(b.extra[r.TrustDomain], roots...)
	}
	return b, nil
}

// roots returns the roots of a trust domain in DER, with those of the given issuer
// first; it may be nil.
func (b *bundles) roots(set *issuerSet, domain string, first *issuer) [][]byte {
	var all [][]byte
	add := func(list ...[]byte) {
		for _, der := range list {
			if !slices.ContainsFunc(all, func(known []byte) bool { return bytes.Equal(known, der) }) {
				all = append(all, der)
			}
		}
	}
	if first != nil {
		add(first.root())
		add(set.roots[first.Name]...)
	}
	for _, name := range b.issuers[domain] {
		add(set.roots[name]...)
	}
	for _, c := range b.extra[domain] {
		add(c.Raw)
	}
	return all
}

// spiffeBundle is a trust bundle as SPIFFE Trust Domain and Bundle section 4 has it.
type spiffeBundle struct {
	Keys     []jose.JSONWebKey `json:"keys"`
	Sequence int               `json:"spiffe_sequence,omitempty"`
	Hint     int               `json:"spiffe_refresh_hint"`
}

// spiffeBundle returns the bundle of a trust domain as a JWK set.
func (s *service) spiffeBundle(domain string) ([]byte, error) {
	b := s.bundles
	if b.issuers[domain] == nil {
		return nil, problem.New(problem.NotFound, "there is no such trust domain here")
	}
	set := s.issuers.current()
	if set.loaded.IsZero() {
		return nil, problem.Down("ledger", s.cfg.Limits.RetryAfter, errors.New("no issuer has been read from the ledger yet"))
	}
	out := spiffeBundle{Keys: []jose.JSONWebKey{}, Hint: int(b.refresh / time.Second)}
	// A sequence must change with the content, and that of files has none.
	if len(b.extra[domain]) == 0 {
		out.Sequence = set.sequence
	}
	for _, der := range b.roots(set, domain, nil) {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("reading a root: %w", err)
		}
		out.Keys = append(out.Keys, jose.JSONWebKey{Key: cert.PublicKey, Certificates: []*x509.Certificate{cert}, Use: "x509-svid"})
	}
	return json.Marshal(out)
}
