package gateway

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// idp is an issuer of JSON Web Tokens with its keys in a file.
type idp struct {
	config JWTIssuer
	ec     *ecdsa.PrivateKey
	rsa    *rsa.PrivateKey
}

var idpRSA = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func newIDP(t testing.TB) *idp {
	p := &idp{ec: newKey(t), rsa: must(idpRSA())(t)}
	p.config = DefaultJWTIssuer()
	p.config.Issuer, p.config.Audiences = "https://idp.example.test", []string{"certmill"}
	p.config.Identity = "spiffe://example.test/sa/{sub}"
	p.config.JWKSFile = filepath.Join(t.TempDir(), "jwks.json")
	p.publish(t, jose.JSONWebKey{Key: p.ec.Public(), KeyID: "ec", Use: "sig"}, jose.JSONWebKey{Key: p.rsa.Public(), KeyID: "rsa", Algorithm: "RS256"})
	return p
}

// publish replaces the key file, at once, as an operator would.
func (p *idp) publish(t testing.TB, keys ...jose.JSONWebKey) {
	t.Helper()
	data := must(json.Marshal(jose.JSONWebKeySet{Keys: keys}))(t)
	must0(t, os.WriteFile(p.config.JWKSFile+".new", data, 0o600))
	must0(t, os.Rename(p.config.JWKSFile+".new", p.config.JWKSFile))
}

// id is the caller id of a subject.
func (p *idp) id(subject string) string { return "jwt:" + p.config.Issuer + "#" + subject }

// claims are those of a good token.
func (p *idp) claims(subject string) map[string]any {
	now := time.Now()
	return map[string]any{
		"iss": p.config.Issuer, "sub": subject, "aud": "certmill",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
}

func (p *idp) token(t testing.TB, subject string) string {
	return p.sign(t, jose.ES256, p.ec, "ec", p.claims(subject))
}

func (p *idp) sign(t testing.TB, alg jose.SignatureAlgorithm, key any, kid string, claims any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithType("JWT")
	if kid != "" {
		options.WithHeader("kid", kid)
	}
	s := must(jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, options))(t)
	return must(jwt.Signed(s).Claims(claims).Serialize())(t)
}

// publicPEM is the RSA key as an attacker would use it for HS256.
func (p *idp) publicPEM(t testing.TB) []byte {
	return must(x509.MarshalPKIXPublicKey(p.rsa.Public()))(t)
}
