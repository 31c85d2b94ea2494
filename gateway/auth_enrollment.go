package gateway

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/ledger"
)

// An enrollment token's secret is "cmt_" and 32 random octets in base64url. Only
// its SHA-256 is kept: with 256 random bits it needs no salt and no slow hash.
const (
	tokenPrefix = "cmt_"
	tokenLength = len(tokenPrefix) + 43

	// tokenMemory is how long a token's row is remembered: one herd with one token asks
	// the ledger once. What counts, the use, is always taken in the ledger.
	tokenMemory = 2 * time.Second
)

// newSecret returns a fresh secret and its hash.
func newSecret() (string, [sha256.Size]byte) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	secret := tokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
	return secret, sha256.Sum256([]byte(secret))
}

// grant is what a token allows.
type grant struct {
	hash  [sha256.Size]byte
	token ledger.Token
}

// enrollmentAuth makes callers of enrollment tokens.
type enrollmentAuth struct {
	enabled bool
	ledger  TokenStore
	now     func() time.Time
	known   *lru[[sha256.Size]byte, rememberedToken]
}

type rememberedToken struct {
	caller *Caller
	until  time.Time
}

func (a *enrollmentAuth) caller(ctx context.Context, secret string) (*Caller, error) {
	refused := unauthenticated("token", "the enrollment token is unknown, used up or expired")
	if !a.enabled || len(secret) != tokenLength {
		return nil, refused
	}
	hash := sha256.Sum256([]byte(secret))
	now := a.now()
	if r, ok := a.known.get(hash); ok && now.Before(r.until) {
		return r.caller, nil
	}
	t, err := a.ledger.TokenByHash(ctx, hash)
	if err != nil {
		return nil, fmt.Errorf("looking up an enrollment token: %w", err)
	}
	if subtle.ConstantTimeCompare(t.Hash[:], hash[:]) != 1 || !now.Before(t.Expires) {
		return nil, refused
	}
	c := &Caller{
		Caller: profile.Caller{ID: "token:" + t.ID, Kind: kindToken, Identity: soleName(t.Names)},
		grant:  &grant{hash: hash, token: t},
	}
	until := now.Add(tokenMemory)
	if t.Expires.Before(until) {
		until = t.Expires
	}
	a.known.put(hash, rememberedToken{c, until})
	return c, nil
}

// soleName is the identity of a token that is bound to one exact name.
func soleName(names []string) string {
	if len(names) != 1 || strings.HasPrefix(names[0], "*") {
		return ""
	}
	return bare(names[0])
}

// bare strips the kind from a name such as "dns:a.example".
func bare(name string) string {
	for _, kind := range []string{"dns:", "ip:", "uri:", "email:"} {
		if rest, ok := strings.CutPrefix(name, kind); ok {
			return rest
		}
	}
	return name
}

// check refuses what the token does not reach, before a use of it is taken.
func (g *grant) check(profileName, owner string, r *csr.Request) error {
	if profileName != g.token.Profile {
		return problem.Forbidden("profile", "token_profile", "the enrollment token is for profile %q", g.token.Profile)
	}
	if g.token.Owner != "" && owner != "" && owner != g.token.Owner {
		return problem.Forbidden("metadata.owner", "token_owner", "the enrollment token is for owner %q", g.token.Owner)
	}
	for _, name := range csrNames(r) {
		if !g.allows(name) {
			return problem.Forbidden("csr.names", "token_names", "the enrollment token does not allow the name %q", name)
		}
	}
	return nil
}

// allows compares a name of the form "dns:a.example" with the token's names, which
// may leave the kind out; "*.example" stands for one label before ".example".
func (g *grant) allows(name string) bool {
	kind, value, _ := strings.Cut(name, ":")
	for _, allowed := range g.token.Names {
		if equalName(kind, allowed, name) || equalName(kind, allowed, value) {
			return true
		}
		suffix, ok := strings.CutPrefix(strings.TrimPrefix(allowed, "dns:"), "*.")
		if !ok || kind != "dns" {
			continue
		}
		label, rest, ok := strings.Cut(value, ".")
		if ok && label != "" && label != "*" && strings.EqualFold(rest, suffix) {
			return true
		}
	}
	return false
}

// equalName compares DNS names without regard to case and all others exactly.
func equalName(kind, a, b string) bool {
	if kind == "dns" {
		return strings.EqualFold(a, b)
	}
	return a == b
}

// csrNames lists what a CSR asks for, with kinds. A common name that repeats no
// subject alternative name is listed as a DNS name: nothing else may stand there.
func csrNames(r *csr.Request) []string {
	names := make([]string, 0, len(r.DNSNames)+len(r.IPAddresses)+len(r.URIs)+len(r.Emails)+1)
	for _, n := range r.DNSNames {
		names = append(names, "dns:"+n)
	}
	for _, n := range r.IPAddresses {
		names = append(names, "ip:"+n.String())
	}
	for _, n := range r.URIs {
		names = append(names, "uri:"+n)
	}
	for _, n := range r.Emails {
		names = append(names, "email:"+n)
	}
	for _, n := range names {
		if bare(n) == r.CommonName {
			return names
		}
	}
	if r.CommonName != "" {
		names = append(names, "dns:"+r.CommonName)
	}
	return names
}
