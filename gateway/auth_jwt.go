package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
)

// signatureAlgorithms are all that a token may use: asymmetric ones. "none" and the
// HMAC family are refused before a key is looked at, since a public key taken for
// an HMAC secret would let anybody sign (RFC 8725 section 2.1).
var signatureAlgorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

func asymmetric(name string) bool {
	return slices.Contains(signatureAlgorithms, jose.SignatureAlgorithm(name))
}

// maxTokenBytes bounds a JSON Web Token; the biggest service-account tokens have 2 KiB.
const maxTokenBytes = 16 << 10

// jwtAuth makes callers of JSON Web Tokens (RFC 7519) under the rules of RFC 8725.
type jwtAuth struct {
	issuers   map[string]*jwtIssuer
	operators []Operator
	now       func() time.Time
	ttl       time.Duration
	// known holds verified tokens by their hash.
	known *lru[[sha256.Size]byte, verifiedToken]
}

type jwtIssuer struct {
	JWTIssuer
	algorithms []jose.SignatureAlgorithm
	identity   identityTemplate
	keys       *keySet
}

type verifiedToken struct {
	caller *Caller
	until  time.Time
	// keys and version say under which state of the key set it was verified; nil where
	// somebody else has verified it.
	keys    *keySet
	version uint64
}

func newJWTAuth(cfg Auth, operators []Operator, now func() time.Time) *jwtAuth {
	a := &jwtAuth{
		issuers: map[string]*jwtIssuer{}, operators: operators, now: now, ttl: cfg.CacheTTL,
		known: newLRU[[sha256.Size]byte, verifiedToken](cfg.CacheEntries),
	}
	for _, j := range cfg.JWT {
		a.issuers[j.Issuer] = newJWTIssuer(j, now)
	}
	return a
}

func newJWTIssuer(j JWTIssuer, now func() time.Time) *jwtIssuer {
	i := &jwtIssuer{JWTIssuer: j, algorithms: signatureAlgorithms, keys: newKeySet(j, now)}
	if len(j.Algorithms) > 0 {
		i.algorithms = nil
		for _, name := range j.Algorithms {
			i.algorithms = append(i.algorithms, jose.SignatureAlgorithm(name))
		}
	}
	i.identity, _ = parseIdentity(j.Identity) // Validate has parsed it
	return i
}

// knows reports whether the token names one of the issuers, which proves nothing yet.
func (a *jwtAuth) knows(raw string) bool {
	if len(raw) > maxTokenBytes {
		return false
	}
	token, err := jwt.ParseSigned(raw, signatureAlgorithms)
	if err != nil {
		return false
	}
	_, err = a.issuerOf(token)
	return err == nil
}

func (a *jwtAuth) caller(ctx context.Context, raw string) (*Caller, error) {
	if len(raw) > maxTokenBytes {
		return nil, unauthenticated("malformed", "the token is too long")
	}
	hash := sha256.Sum256([]byte(raw))
	if v, ok := a.known.get(hash); ok && v.fresh(a.now()) {
		return v.caller, nil
	}
	v, err := a.verify(ctx, raw)
	if err != nil {
		return nil, err
	}
	a.known.put(hash, v)
	return v.caller, nil
}

func (a *jwtAuth) verify(ctx context.Context, raw string) (verifiedToken, error) {
	token, err := jwt.ParseSigned(raw, signatureAlgorithms)
	if err != nil {
		return verifiedToken{}, parseFailure(err)
	}
	issuer, err := a.issuerOf(token)
	if err != nil {
		return verifiedToken{}, err
	}
	checked, err := issuer.check(ctx, token, a.now())
	if err != nil {
		return verifiedToken{}, err
	}
	c, err := a.makeCaller(issuer, checked.claims.Subject, checked.all)
	if err != nil {
		return verifiedToken{}, err
	}
	return checked.remember(c, a.now().Add(a.ttl)), nil
}

// checkedToken is a token whose signature and claims are right.
type checkedToken struct {
	issuer  *jwtIssuer
	version uint64
	claims  jwt.Claims
	all     map[string]any
}

// check verifies a parsed token by the issuer's keys.
func (i *jwtIssuer) check(ctx context.Context, token *jwt.JSONWebToken, now time.Time) (*checkedToken, error) {
	header := token.Headers[0]
	if !slices.Contains(i.algorithms, jose.SignatureAlgorithm(header.Algorithm)) {
		return nil, unauthenticated("algorithm", "the token's signature algorithm is not accepted from its issuer")
	}
	key, version, err := i.keys.find(ctx, header.KeyID, header.Algorithm)
	if err != nil {
		return nil, err
	}
	checked := &checkedToken{issuer: i, version: version}
	if err := token.Claims(key, &checked.claims, &checked.all); err != nil {
		return nil, unauthenticated("signature", "the token's signature is wrong")
	}
	return checked, i.validate(checked.claims, now)
}

// remember returns what is kept of a token: until then, and never past the token's end.
func (t *checkedToken) remember(c *Caller, until time.Time) verifiedToken {
	if end := t.claims.Expiry.Time().Add(t.issuer.ClockSkew); end.Before(until) {
		until = end
	}
	return verifiedToken{caller: c, until: until, keys: t.issuer.keys, version: t.version}
}

// fresh reports whether the memory still counts.
func (v verifiedToken) fresh(now time.Time) bool {
	return now.Before(v.until) && (v.keys == nil || v.version == v.keys.version())
}

func parseFailure(err error) error {
	var algorithm *jose.ErrUnexpectedSignatureAlgorithm
	if errors.As(err, &algorithm) {
		return unauthenticated("algorithm", "the token's signature algorithm is not accepted; only asymmetric ones are")
	}
	return unauthenticated("malformed", "the bearer token is neither a JSON Web Token nor an enrollment token")
}

// issuerOf reads the issuer before the signature is checked, only to choose whose
// keys to check it with.
func (a *jwtAuth) issuerOf(token *jwt.JSONWebToken) (*jwtIssuer, error) {
	var claims jwt.Claims
	if err := token.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return nil, unauthenticated("malformed", "the token's claims cannot be read")
	}
	if i := a.issuers[claims.Issuer]; i != nil {
		return i, nil
	}
	return nil, unauthenticated("issuer", "the token's issuer is not trusted here")
}

func (i *jwtIssuer) validate(claims jwt.Claims, now time.Time) error {
	if claims.Expiry == nil {
		return unauthenticated("no_expiry", "the token has no exp claim")
	}
	if claims.Subject == "" || !printable(claims.Subject, 256) {
		return unauthenticated("subject", "the token's sub claim is missing or not printable")
	}
	err := claims.ValidateWithLeeway(jwt.Expected{Issuer: i.Issuer, AnyAudience: i.Audiences, Time: now}, i.ClockSkew)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jwt.ErrExpired):
		return unauthenticated("expired", "the token has expired")
	case errors.Is(err, jwt.ErrNotValidYet), errors.Is(err, jwt.ErrIssuedInTheFuture):
		return unauthenticated("not_yet_valid", "the token is not valid yet")
	case errors.Is(err, jwt.ErrInvalidIssuer):
		return unauthenticated("issuer", "the token's issuer is another one")
	case errors.Is(err, jwt.ErrInvalidAudience):
		return unauthenticated("audience", "the token is meant for another audience")
	default:
		return &problem.Error{Kind: problem.Unauthenticated, Field: "authorization", Rule: "claims", Detail: "the token's claims are not acceptable", Cause: err}
	}
}

func (a *jwtAuth) makeCaller(i *jwtIssuer, subject string, claims map[string]any) (*Caller, error) {
	identity, err := i.identity.expand(claims)
	if err != nil {
		return nil, unauthenticated("identity", err.Error())
	}
	id := fmt.Sprintf("jwt:%s#%s", i.Issuer, subject)
	return &Caller{Caller: profile.Caller{ID: id, Kind: kindJWT, Identity: identity, Roles: rolesOf(a.operators, id)}}, nil
}
