package target

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/loadtest/wire"
)

// step is step-ca's POST /1.0/sign. Each request carries a one-time token of a JWK
// provisioner; it is made here, within the measured time (an ES256 signature, about
// 40 µs), since tokens live for minutes only and cannot be made for an hour's run
// beforehand.
type step struct {
	httpTarget
	target, audience, provisioner string
	signer                        jose.Signer
	notAfter                      string
}

func openStep(c Config) (Target, error) {
	if err := requireURL(c, "https://127.0.0.1:9000"); err != nil {
		return nil, err
	}
	if c.Provisioner == "" || c.ProvisionerKeyFile == "" {
		return nil, errors.New("step needs --provisioner and --provisioner-key, of a JWK provisioner")
	}
	signer, err := provisionerSigner(c)
	if err != nil {
		return nil, fmt.Errorf("--provisioner-key: %w", err)
	}
	client, path, err := c.http(http.Header{"Content-Type": {"application/json"}})
	if err != nil {
		return nil, err
	}
	t := &step{httpTarget: httpTarget{client}, target: path + "/1.0/sign", audience: strings.TrimSuffix(c.URL, "/") + "/1.0/sign", provisioner: c.Provisioner, signer: signer}
	if c.Lifetime > 0 {
		t.notAfter = c.Lifetime.String()
	}
	return t, nil
}

func provisionerSigner(c Config) (jose.Signer, error) {
	data, err := os.ReadFile(c.ProvisionerKeyFile)
	if err != nil {
		return nil, err
	}
	if c.ProvisionerPasswordFile != "" {
		password, err := config.ReadSecret(c.ProvisionerPasswordFile)
		if err != nil {
			return nil, fmt.Errorf("--provisioner-password-file: %w", err)
		}
		// ca.json holds the compact form, `step crypto jwk create` writes JSON.
		parse := jose.ParseEncryptedCompact
		if strings.HasPrefix(strings.TrimSpace(string(data)), "{") {
			parse = jose.ParseEncryptedJSON
		}
		jwe, err := parse(strings.TrimSpace(string(data)),
			[]jose.KeyAlgorithm{jose.PBES2_HS256_A128KW}, []jose.ContentEncryption{jose.A128GCM, jose.A256GCM, jose.A128CBC_HS256})
		if err != nil {
			return nil, err
		}
		if data, err = jwe.Decrypt([]byte(password)); err != nil {
			return nil, err
		}
	}
	var key jose.JSONWebKey
	if err := json.Unmarshal(data, &key); err != nil {
		return nil, err
	}
	alg := jose.SignatureAlgorithm(key.Algorithm)
	if alg == "" {
		alg = jose.ES256
	}
	return jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
}

// token makes a one-time token for the CSR's names.
func (t *step) token(r *Request) (string, error) {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return "", err
	}
	names := append(r.CSR.DNSNames[:len(r.CSR.DNSNames):len(r.CSR.DNSNames)], r.CSR.URIs...)
	now := time.Now()
	return jwt.Signed(t.signer).Claims(jwt.Claims{
		ID: hex.EncodeToString(id[:]), Issuer: t.provisioner, Subject: names[0], Audience: jwt.Audience{t.audience},
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(5 * time.Minute)),
	}).Claims(map[string]any{"sans": names}).Serialize()
}

func (t *step) Do(ctx context.Context, r *Request) (Answer, error) {
	token, err := t.token(r)
	if err != nil {
		return Answer{}, err
	}
	body, err := json.Marshal(struct {
		CSR      string `json:"csr"`
		Token    string `json:"ott"`
		NotAfter string `json:"notAfter,omitempty"`
	}{string(r.CSR.PEM), token, t.notAfter})
	if err != nil {
		return Answer{}, err
	}
	res, err := t.send(ctx, &wire.Request{Method: http.MethodPost, Target: t.target, Body: body, Deadline: r.Deadline})
	if err != nil {
		return Answer{}, err
	}
	var out struct {
		Certificate string   `json:"crt"`
		Issuer      string   `json:"ca"`
		Chain       []string `json:"certChain"`
	}
	if err := unmarshal(res, &out); err != nil {
		return Answer{}, err
	}
	if len(out.Chain) == 0 {
		out.Chain = []string{out.Certificate, out.Issuer}
	}
	return Answer{PEM: joinPEM(out.Chain...)}, nil
}
