package target

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/certmill/certmill/loadtest/wire"
)

// cfssl is POST /api/v1/cfssl/sign, or authsign when there is a key: its
// "authenticated request" is HMAC-SHA256 over the inner request. cfssl sends no chain;
// roots for the check are then the issuing certificate itself.
type cfssl struct {
	httpTarget
	target  string
	key     []byte
	profile string
}

func openCFSSL(c Config) (Target, error) {
	if err := requireURL(c, "http://127.0.0.1:8888"); err != nil {
		return nil, err
	}
	secret, err := c.token()
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(secret)
	if err != nil {
		return nil, fmt.Errorf("--token-file: cfssl's authentication key is hexadecimal: %w", err)
	}
	client, path, err := c.http(http.Header{"Content-Type": {"application/json"}})
	t := &cfssl{httpTarget{client}, path + "/api/v1/cfssl/sign", key, c.Profile}
	if len(key) > 0 {
		t.target = path + "/api/v1/cfssl/authsign"
	}
	return t, err
}

func (t *cfssl) Do(ctx context.Context, r *Request) (Answer, error) {
	body, err := json.Marshal(struct {
		CSR     string   `json:"certificate_request"`
		Hosts   []string `json:"hosts,omitempty"`
		Profile string   `json:"profile,omitempty"`
	}{string(r.CSR.PEM), append(r.CSR.DNSNames[:len(r.CSR.DNSNames):len(r.CSR.DNSNames)], r.CSR.URIs...), t.profile})
	if err != nil {
		return Answer{}, err
	}
	if len(t.key) > 0 {
		mac := hmac.New(sha256.New, t.key)
		mac.Write(body)
		if body, err = json.Marshal(map[string][]byte{"token": mac.Sum(nil), "request": body}); err != nil {
			return Answer{}, err
		}
	}
	res, err := t.send(ctx, &wire.Request{Method: http.MethodPost, Target: t.target, Body: body, Deadline: r.Deadline})
	if err != nil {
		return Answer{}, err
	}
	var out struct {
		Success bool `json:"success"`
		Result  struct {
			Certificate string `json:"certificate"`
		} `json:"result"`
		Errors []struct {
			Message string `json:"message"`
		} `json:"errors"`
	}
	if err := unmarshal(res, &out); err != nil {
		return Answer{}, err
	}
	if !out.Success {
		return Answer{}, failure("cfssl", "%+v", out.Errors)
	}
	return Answer{PEM: []byte(out.Result.Certificate)}, nil
}
