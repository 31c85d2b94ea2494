package mesh

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/sync/errgroup"

	"github.com/certmill/certmill/loadtest/material"
	"github.com/certmill/certmill/loadtest/target"
)

// maxCSRs bounds what is made before the clock starts: about 400 bytes each.
const maxCSRs = 1_000_000

// Material is what the agents have before the clock starts: a token each, and the CSRs
// for all of their renewals, each of a key of its own. It is safe for concurrent use.
type Material struct {
	prefix string // of the names
	tokens []string
	csrs   [][]CSR
	late   atomic.Int64
}

// CSR is one certificate request in DER.
type CSR struct {
	der  []byte
	spki [sha256.Size]byte
}

// Identities says who the agents are.
type Identities struct {
	// Prefix is the start of their names, to which the subject is added:
	// "spiffe://certmill.test/ns/mesh/sa/".
	Prefix string
	// Run makes the subjects of this run its own: "agent-<run>-<n>".
	Run string
	// Issuer, Audience and Key are those of the tokens (ES256), and Lifetime theirs.
	Issuer, Audience string
	Key              *ecdsa.PrivateKey
	Lifetime         time.Duration
}

// Make makes the material on all cores, each agent with so many CSRs. progress may be nil.
func Make(ctx context.Context, agents, each int, who Identities, progress func(done, of int)) (*Material, error) {
	if agents < 1 || each < 1 || agents*each > maxCSRs {
		return nil, fmt.Errorf("%d agents with %d CSRs each are more than %d", agents, each, maxCSRs)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: who.Key, KeyID: KeyID}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("signing tokens: %w", err)
	}
	m := &Material{prefix: who.Prefix + "agent-" + who.Run + "-", tokens: make([]string, agents), csrs: make([][]CSR, agents)}
	now := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	var next, done atomic.Int64
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			for n := int(next.Add(1)) - 1; n < agents; n = int(next.Add(1)) - 1 {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := m.makeAgent(n, each, who, signer, now); err != nil {
					return err
				}
				if d := int(done.Add(1)); progress != nil && (d%1000 == 0 || d == agents) {
					progress(d, agents)
				}
			}
			return nil
		})
	}
	return m, g.Wait()
}

func (m *Material) makeAgent(n, each int, who Identities, signer jose.Signer, now time.Time) (err error) {
	m.tokens[n], err = jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: who.Issuer, Audience: jwt.Audience{who.Audience}, Subject: "agent-" + who.Run + "-" + strconv.Itoa(n),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(who.Lifetime)),
	}).Serialize()
	if err != nil {
		return fmt.Errorf("signing a token: %w", err)
	}
	m.csrs[n] = make([]CSR, each)
	for k := range each {
		if m.csrs[n][k], err = newCSR(m.name(n)); err != nil {
			return fmt.Errorf("making a CSR: %w", err)
		}
	}
	return nil
}

// Agents returns how many there is material for.
func (m *Material) Agents() int { return len(m.tokens) }

// Prefix is the start of all agents' names in this run.
func (m *Material) Prefix() string { return m.prefix }

// Bytes is what the material takes, roughly.
func (m *Material) Bytes() (n int) {
	for i := range m.csrs {
		n += len(m.tokens[i])
		for k := range m.csrs[i] {
			n += len(m.csrs[i][k].der) + sha256.Size
		}
	}
	return n
}

// Late returns how many CSRs had to be made while the clock ran.
func (m *Material) Late() int64 { return m.late.Load() }

func (m *Material) name(n int) string { return m.prefix + strconv.Itoa(n) }

// CSR returns the k-th CSR of agent n, and makes one when those made before are used up.
func (m *Material) CSR(n, k int) (*CSR, error) {
	if k < len(m.csrs[n]) {
		return &m.csrs[n][k], nil
	}
	m.late.Add(1)
	c, err := newCSR(m.name(n))
	return &c, err
}

func newCSR(name string) (CSR, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return CSR{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return CSR{}, err
	}
	u, err := url.Parse(name)
	if err != nil {
		return CSR{}, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{u}}, key)
	return CSR{der, sha256.Sum256(spki)}, err
}

// Material is the CSR as targets take it.
func (c *CSR) Material(name string) *material.CSR {
	return &material.CSR{DER: c.der, PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: c.der}), URIs: []string{name}}
}

type leaf = x509.Certificate

var errWrong = errors.New("a wrong answer")

// check looks whether the answer is a certificate for this key and this name.
func (c *CSR) check(a *target.Answer, name string) (*leaf, error) {
	var der []byte
	if len(a.DER) > 0 {
		der = a.DER[0]
	} else if block, _ := pem.Decode(a.PEM); block != nil {
		der = block.Bytes
	}
	cert, err := x509.ParseCertificate(der)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errWrong, err)
	case sha256.Sum256(cert.RawSubjectPublicKeyInfo) != c.spki:
		return nil, fmt.Errorf("%w: the certificate is for another key", errWrong)
	case len(cert.URIs) != 1 || cert.URIs[0].String() != name:
		return nil, fmt.Errorf("%w: the certificate is for %v, not for %s", errWrong, cert.URIs, name)
	}
	return cert, nil
}

// KeyID names the key of the tokens in its JWK set.
const KeyID = "mesh"

// NewTokenKey makes the key of the agents' tokens: its PEM (PKCS #8) and the JWK set by
// which a gateway knows it.
func NewTokenKey() (keyPEM, jwks []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	jwks, err = json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: KeyID, Use: "sig", Algorithm: string(jose.ES256)}}})
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), jwks, err
}

// ReadTokenKey reads a P-256 key in PEM (PKCS #8).
func ReadTokenKey(file string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(bytes.TrimSpace(data))
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM", file)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if ec, ok := key.(*ecdsa.PrivateKey); ok && ec.Curve == elliptic.P256() {
		return ec, nil
	}
	return nil, fmt.Errorf("%s is not a P-256 key", file)
}
