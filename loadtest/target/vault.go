package target

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/certmill/certmill/loadtest/wire"
)

// vault is the PKI secrets engine of OpenBao and HashiCorp Vault: POST
// /v1/<mount>/sign/<role>. The role must take names from the CSR (use_csr_sans).
type vault struct {
	httpTarget
	target string
	ttl    string
}

func openVault(c Config) (Target, error) {
	if err := requireURL(c, "https://127.0.0.1:8200"); err != nil {
		return nil, err
	}
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	if token == "" || c.Role == "" {
		return nil, errors.New("vault needs --token-file and --role")
	}
	client, path, err := c.http(http.Header{"Content-Type": {"application/json"}, "X-Vault-Token": {token}})
	if err != nil {
		return nil, err
	}
	mount := c.Mount
	if mount == "" {
		mount = "pki"
	}
	t := &vault{httpTarget: httpTarget{client}, target: path + "/v1/" + mount + "/sign/" + c.Role}
	if c.Lifetime > 0 {
		t.ttl = c.Lifetime.String()
	}
	return t, nil
}

func (t *vault) Do(ctx context.Context, r *Request) (Answer, error) {
	body, err := json.Marshal(struct {
		CSR        string `json:"csr"`
		CommonName string `json:"common_name,omitempty"`
		TTL        string `json:"ttl,omitempty"`
	}{string(r.CSR.PEM), r.CSR.CommonName, t.ttl})
	if err != nil {
		return Answer{}, err
	}
	res, err := t.send(ctx, &wire.Request{Method: http.MethodPost, Target: t.target, Body: body, Deadline: r.Deadline})
	if err != nil {
		return Answer{}, err
	}
	var out struct {
		Data struct {
			Certificate string   `json:"certificate"`
			Chain       []string `json:"ca_chain"`
			Issuer      string   `json:"issuing_ca"`
		} `json:"data"`
	}
	if err := unmarshal(res, &out); err != nil {
		return Answer{}, err
	}
	chain := out.Data.Chain
	if len(chain) == 0 {
		chain = []string{out.Data.Issuer}
	}
	return Answer{PEM: joinPEM(append([]string{out.Data.Certificate}, chain...)...)}, nil
}

// joinPEM puts PEM texts one after the other, whether or not they end in a newline.
func joinPEM(parts ...string) []byte {
	var b strings.Builder
	for _, p := range parts {
		if p = strings.TrimSpace(p); p != "" {
			b.WriteString(p)
			b.WriteByte('\n')
		}
	}
	return []byte(b.String())
}
