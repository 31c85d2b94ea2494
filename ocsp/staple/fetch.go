package staple

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/crypto/ocsp"
)

const (
	// maxGet is up to which length of the URL a request goes by GET, which caches can
	// answer (RFC 9919 section 5).
	maxGet = 255
	// maxStapleBytes bounds an answer. HAProxy's runtime socket takes about 12 KB.
	maxStapleBytes = 10 << 10
)

// fetch asks the responder and returns the answer, unverified. The CertID is by SHA-1:
// HAProxy and nginx take no other in a staple.
func fetch(ctx context.Context, client *http.Client, m *material) ([]byte, error) {
	der, err := ocsp.CreateRequest(m.leaf, m.issuer, nil)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	req, err := request(ctx, m.responder, der)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/ocsp-response")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", m.responder, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxStapleBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", m.responder, err)
	}
	if len(body) > maxStapleBytes {
		return nil, fmt.Errorf("the answer of %s has more than %d bytes", m.responder, maxStapleBytes)
	}
	return body, nil
}

func request(ctx context.Context, responder string, der []byte) (*http.Request, error) {
	target := strings.TrimSuffix(responder, "/") + "/" + url.QueryEscape(base64.StdEncoding.EncodeToString(der))
	if len(target) <= maxGet {
		return http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, responder, bytes.NewReader(der))
	if err == nil {
		req.Header.Set("Content-Type", "application/ocsp-request")
	}
	return req, err
}
