package target

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/certmill/certmill/loadtest/wire"
)

// rest is certmill's POST /v1/certificates as curl would use it: a CSR in PEM goes in,
// a chain in PEM comes out, the rest stands in the query. `loadtest floor` speaks it
// too.
type rest struct {
	httpTarget
	target string
}

func openREST(c Config) (Target, error) {
	if err := requireURL(c, "https://127.0.0.1:8443"); err != nil {
		return nil, err
	}
	headers := http.Header{
		"Content-Type": {"application/x-pem-file"},
		"Accept":       {"application/pem-certificate-chain"},
	}
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	if token != "" {
		headers.Set("Authorization", "Bearer "+token)
	}
	client, path, err := c.http(headers)
	if err != nil {
		return nil, err
	}
	q := url.Values{}
	for name, v := range map[string]string{"profile": c.Profile, "owner": c.Owner, "service": c.Service, "environment": c.Environment} {
		if v != "" {
			q.Set(name, v)
		}
	}
	if c.Lifetime > 0 {
		q.Set("lifetime", strconv.FormatInt(int64(c.Lifetime.Seconds()), 10)+"s")
	}
	t := &rest{httpTarget{client}, path + "/v1/certificates"}
	if len(q) > 0 {
		t.target += "?" + q.Encode()
	}
	return t, nil
}

func (t *rest) Do(ctx context.Context, r *Request) (Answer, error) {
	res, err := t.send(ctx, &wire.Request{
		Method: http.MethodPost, Target: t.target, Header: "Idempotency-Key: " + r.ID + "\r\n", Body: r.CSR.PEM, Deadline: r.Deadline,
	})
	if err != nil {
		return Answer{}, err
	}
	return Answer{PEM: res.Body, Phases: serverTiming(res.Header["Server-Timing"])}, nil
}
