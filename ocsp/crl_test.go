package ocsp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

// crlWorld is a Redis, whose connections can be cut, with a responder before it.
type crlWorld struct {
	t     *testing.T
	store *Store
	proxy *ocsptest.Proxy
	url   string
}

func newCRLWorld(t *testing.T, change func(*Config)) *crlWorld {
	w := &crlWorld{t: t}
	redis := testenv.Redis(t)
	w.proxy = ocsptest.NewProxy(t, redis)
	var err error
	w.store, err = OpenStore(config.Redis{Addresses: []string{redis}}, DefaultNamespace)
	noError(t, err)
	t.Cleanup(func() { noError(t, w.store.Close()) })
	cfg := DefaultConfig()
	cfg.Listen, cfg.Redis = "127.0.0.1:0", config.Redis{Addresses: []string{w.proxy.Addr()}}
	change(&cfg)
	r, err := New(cfg, Deps{})
	noError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		noError(t, <-done)
	})
	addr, err := r.Addr(t.Context())
	noError(t, err)
	w.url = "http://" + addr.String()
	return w
}

// put stores a CRL of these bytes.
func (w *crlWorld) put(path string, number int64, next time.Duration, pieces ...string) bool {
	w.t.Helper()
	now := time.Now()
	i := CRLInfo{Number: number, ThisUpdate: now.Add(-time.Minute).Unix() + number, NextUpdate: now.Add(next).Unix(), Chunks: len(pieces)}
	for n, p := range pieces {
		i.Bytes += int64(len(p))
		i.Digest = sha256.Sum256(fmt.Appendf(i.Digest[:], "%d %s %d", n, p, number))
	}
	ok, err := w.store.PutCRL(w.t.Context(), path, i, now, func(n int) ([]byte, error) { return []byte(pieces[n]), nil })
	noError(w.t, err)
	return ok
}

func (w *crlWorld) get(path string, header ...string) (*http.Response, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.url+path, nil)
	noError(w.t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	noError(w.t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp, "cut short"
	}
	return resp, string(body)
}

// becomes waits for an answer.
func (w *crlWorld) becomes(path string, status int, body string) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, got := w.get(path)
		if resp.StatusCode == status && (got == body || body == "") {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s is still %d %.40q, want %d %.40q", path, resp.StatusCode, got, status, body)
		}
	}
}

func TestACRLIsServedUnderItsPathWithCachingHeaders(t *testing.T) {
	w := newCRLWorld(t, func(*Config) {})
	const path = "/crl/issuing-1/64-3.crl"
	w.put(path, 5, time.Hour, "one", "two")
	resp, body := w.get(path)
	h := resp.Header
	if body != "onetwo" || h.Get("Content-Type") != "application/pkix-crl" || h.Get("Content-Length") != "6" ||
		h.Get("Cache-Control") != "max-age=300, public, no-transform, must-revalidate" {
		t.Errorf("%q with %v", body, h)
	}
	for _, name := range []string{"Last-Modified", "Expires"} {
		if _, err := http.ParseTime(h.Get(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, condition := range map[string][]string{
		"etag": {"If-None-Match", `"x", ` + h.Get("Etag")}, "time": {"If-Modified-Since", h.Get("Last-Modified")},
	} {
		if resp, body := w.get(path, condition...); resp.StatusCode != http.StatusNotModified || body != "" || resp.Header.Get("Etag") != h.Get("Etag") {
			t.Errorf("%s: %d %q", name, resp.StatusCode, body)
		}
	}
	if resp, _ := w.get("/crl/other.crl"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("another path: %d", resp.StatusCode)
	}
	post, err := http.Post(w.url+path, "text/plain", bytes.NewReader(nil))
	noError(t, err)
	noError(t, post.Body.Close())
	if post.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", post.StatusCode)
	}
	head, err := http.Head(w.url + path)
	noError(t, err)
	noError(t, head.Body.Close())
	if head.ContentLength != 6 {
		t.Errorf("HEAD: %d", head.ContentLength)
	}
}

func TestALaterCRLReplacesAndAnEarlierNever(t *testing.T) {
	w := newCRLWorld(t, func(*Config) {})
	w.put("/a.crl", 5, time.Hour, "five")
	w.becomes("/a.crl", 200, "five")
	if !w.put("/a.crl", 6, time.Hour, "six") {
		t.Error("the later one was not taken")
	}
	w.becomes("/a.crl", 200, "six")
	if w.put("/a.crl", 5, time.Hour, "five") {
		t.Error("an earlier one was taken")
	}
	if w.put("/a.crl", 7, -time.Second, "seven") {
		t.Error("an expired one was taken")
	}
	w.becomes("/a.crl", 200, "six")
	w.put("/brief.crl", 1, 2*time.Second, "brief")
	w.becomes("/brief.crl", 200, "brief")
	w.becomes("/brief.crl", 503, "") // nobody has made another
}

func TestWithoutRedisAValidCRLIsServedAndAnExpiredNever(t *testing.T) {
	w := newCRLWorld(t, func(*Config) {})
	w.put("/long.crl", 1, time.Hour, "long")
	w.put("/short.crl", 1, 3*time.Second, "short")
	w.becomes("/long.crl", 200, "long")
	w.becomes("/short.crl", 200, "short")
	w.proxy.Cut()
	w.becomes("/short.crl", 503, "")
	w.becomes("/long.crl", 200, "long")
	if resp, _ := w.get("/never-asked.crl"); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("unknown without Redis: %d", resp.StatusCode)
	}
	w.proxy.Mend()
	w.becomes("/never-asked.crl", 404, "")
	noError(t, w.store.Client().FlushAll(t.Context()).Err())
	w.becomes("/long.crl", 200, "long")
}

func TestALargeCRLIsPassedOnPieceByPiece(t *testing.T) {
	w := newCRLWorld(t, func(c *Config) { c.CRLCacheBytes = 64 })
	w.put("/large.crl", 1, time.Hour, "aaaaaaaa", "bbbbbbbb", "cccccccc")
	w.becomes("/large.crl", 200, "aaaaaaaabbbbbbbbcccccccc")
	i, err := w.store.CRL(t.Context(), "/large.crl")
	noError(t, err)
	// A piece that Redis has dropped must not make a shorter CRL.
	noError(t, w.store.Client().Del(t.Context(), w.store.keys.crlChunk(&i, 2)).Err())
	resp, err := http.Get(w.url + "/large.crl")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	if err == nil {
		t.Error("a CRL without its last piece came as if it were whole")
	}
	if all, err := w.store.CRLs(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("a CRL with a lost piece is counted: %v, %v", all, err)
	}
	if _, err := w.store.CRLChunk(t.Context(), &i, 2); !errors.Is(err, ErrNoCRL) {
		t.Error(err)
	}
}
