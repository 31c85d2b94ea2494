package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/certmill/certmill/internal/problem"
)

const (
	// jwksRefresh is how often a URL is read again; jwksFileRefresh how often a file is
	// looked at, which only costs a stat.
	jwksRefresh     = 5 * time.Minute
	jwksFileRefresh = 2 * time.Second
	// jwksPause is the least time between two reads, however many unknown key ids
	// strangers send: the issuer's server is not ours to flood.
	jwksPause     = 10 * time.Second
	jwksFilePause = time.Second
	maxJWKSBytes  = 1 << 20
	maxJWKSKeys   = 100
)

// keySet holds the keys of one JWT issuer and reads them again now and then (run),
// and when a token names a key that is not there. Keys once read stay in use while
// their source is down. Safe for concurrent use.
type keySet struct {
	now   func() time.Time
	every time.Duration
	pause time.Duration
	// read returns nil data when nothing has changed since it was last called.
	read func(ctx context.Context) ([]byte, error)

	mu      sync.Mutex // guards the fields below; never held while reading
	reading chan struct{}
	keys    []jose.JSONWebKey
	number  uint64 // grows with every change of keys
	tried   time.Time
	failure error
}

func newKeySet(cfg JWTIssuer, now func() time.Time) *keySet {
	if cfg.JWKSFile != "" {
		return &keySet{now: now, every: jwksFileRefresh, pause: jwksFilePause, read: fileReader(cfg.JWKSFile)}
	}
	return &keySet{now: now, every: jwksRefresh, pause: jwksPause, read: urlReader(cfg)}
}

// run reads the keys at once and then again and again until ctx ends, so that keys
// which were taken away stop to count even for tokens that are remembered.
func (s *keySet) run(ctx context.Context) {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		_ = s.refresh(ctx) // a failure is kept for the caller whom it hits
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *keySet) version() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.number
}

// find returns the key for a token, and the version of the set it is from.
func (s *keySet) find(ctx context.Context, kid, algorithm string) (any, uint64, error) {
	if key, version, ok := s.lookUp(kid, algorithm); ok {
		return key, version, nil
	}
	if err := s.refresh(ctx); err != nil {
		return nil, 0, err
	}
	if key, version, ok := s.lookUp(kid, algorithm); ok {
		return key, version, nil
	}
	s.mu.Lock()
	failure, empty := s.failure, len(s.keys) == 0
	s.mu.Unlock()
	if empty && failure != nil {
		return nil, 0, problem.Down("jwks", s.pause, failure)
	}
	return nil, 0, unauthenticated("key", "the token names no key of its issuer that fits its algorithm")
}

// lookUp wants the key id to match; a token without one needs a set with one key.
func (s *keySet) lookUp(kid, algorithm string) (any, uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.keys {
		k := &s.keys[i]
		if (k.KeyID == kid || (kid == "" && len(s.keys) == 1)) && (k.Algorithm == "" || k.Algorithm == algorithm) {
			return k.Key, s.number, true
		}
	}
	return nil, 0, false
}

// refresh reads the source unless it was read within the pause; callers who come
// while it is being read wait for that reading. The error is the context's alone.
func (s *keySet) refresh(ctx context.Context) error {
	s.mu.Lock()
	if s.reading == nil {
		if !s.tried.IsZero() && s.now().Sub(s.tried) < s.pause {
			s.mu.Unlock()
			return nil
		}
		s.reading = make(chan struct{})
		s.tried = s.now()
		s.mu.Unlock()
		s.reload(ctx)
		return ctx.Err()
	}
	done := s.reading
	s.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *keySet) reload(ctx context.Context) {
	data, err := s.read(ctx)
	var keys []jose.JSONWebKey
	if err == nil && data != nil {
		keys, err = parseJWKS(data)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = err
	if err == nil && data != nil {
		s.keys, s.number = keys, s.number+1
	}
	close(s.reading)
	s.reading = nil
}

// parseJWKS keeps the public signature keys. Keys of a kind that this build does
// not know are passed over, as RFC 7517 section 5 asks.
func parseJWKS(data []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("reading a JWK set: %w", err)
	}
	if len(set.Keys) > maxJWKSKeys {
		return nil, fmt.Errorf("a JWK set has %d keys, more than %d", len(set.Keys), maxJWKSKeys)
	}
	var keys []jose.JSONWebKey
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(raw) == nil && k.IsPublic() && k.Valid() && k.Use != "enc" {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("the JWK set has no public signature key")
	}
	return keys, nil
}

// fileReader reads a file when its size or time of change differs from the last reading.
func fileReader(name string) func(context.Context) ([]byte, error) {
	var last os.FileInfo
	return func(context.Context) ([]byte, error) {
		info, err := os.Stat(name)
		if err != nil {
			return nil, fmt.Errorf("looking at a JWKS file: %w", err)
		}
		if last != nil && info.ModTime().Equal(last.ModTime()) && info.Size() == last.Size() {
			return nil, nil
		}
		if info.Size() > maxJWKSBytes {
			return nil, fmt.Errorf("the JWKS file %s has more than %d bytes", name, maxJWKSBytes)
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("reading a JWKS file: %w", err)
		}
		last = info
		return data, nil
	}
}

// urlReader fetches over HTTPS, following no redirect to another scheme.
func urlReader(cfg JWTIssuer) func(context.Context) ([]byte, error) {
	var client *http.Client // made at the first use, which keySet serialises
	return func(ctx context.Context) ([]byte, error) {
		if client == nil {
			c, err := jwksClient(cfg.JWKSCAFile)
			if err != nil {
				return nil, err
			}
			client = c
		}
		// The reading is shared by many callers: it does not end with the first of them.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return fetchJWKS(ctx, client, cfg.JWKSURL)
	}
}

func jwksClient(caFile string) (*http.Client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		data, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("reading jwks_ca_file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(data) {
			return nil, errors.New("jwks_ca_file holds no certificate")
		}
	}
	return &http.Client{
		// A key set is read every few minutes: no connection is kept for it.
		Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if r.URL.Scheme != "https" || len(via) > 3 {
				return errors.New("the JWKS URL redirects too often or away from https")
			}
			return nil
		},
	}, nil
}

func fetchJWKS(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("asking for a JWK set: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("asking for a JWK set: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("asking for a JWK set: %s answered %s", url, response.Status)
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, maxJWKSBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading a JWK set: %w", err)
	}
	if len(data) > maxJWKSBytes {
		return nil, fmt.Errorf("the JWK set of %s has more than %d bytes", url, maxJWKSBytes)
	}
	return data, nil
}
