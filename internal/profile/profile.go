package profile

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"net/netip"

	"cel.dev/cel-go/cel"
)

// Profile is a compiled Spec. It is immutable and safe for concurrent use.
type Profile struct {
	Spec
	// Version is the first 12 hexadecimal digits of the SHA-256 over the file's content
	// with its defaults filled in: it changes with what the file means, not with its comments.
	Version string

	issuers    []WeightedIssuer // Issuer or Issuers
	cross      []*x509.Certificate
	callers    []callerMatch
	commonName []glob
	dns        kind[dnsPattern]
	ip         kind[netip.Prefix]
	uri        kind[glob]
	email      kind[glob]
	rules      []program
}

type callerMatch struct {
	kinds, roles []string
	ids          []glob
}

// kind is the compiled rule of one kind of name.
type kind[P any] struct {
	*NameRule
	name     string // dns, ip, uri, email
	allow    []P
	template glob // nil where the source is the CSR
}

type program struct {
	*Rule
	cel cel.Program
}

// Compile checks a spec, fills in its defaults and compiles it. The error joins
// everything that is wrong and names the keys.
func Compile(s Spec) (*Profile, error) {
	s.setDefaults()
	p := &Profile{Spec: s}
	if err := p.compile(); err != nil {
		return nil, err
	}
	canonical, err := json.Marshal(p.Spec)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(canonical)
	p.Version = hex.EncodeToString(sum[:6])
	return p, nil
}
