package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/certmill/certmill/internal/problem"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// block makes the signer wait until the returned function is called.
func (s *softSigner) block() (release func()) {
	gate := make(chan struct{})
	s.setRefuse(func(ctx context.Context, _ *queuev1.SignRequest) error {
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return problem.From(ctx.Err())
		}
	})
	return sync.OnceFunc(func() { close(gate) })
}

func TestTheInFlightBoundRefusesAtOnce(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) {
		c.Limits.MaxInFlight, c.Limits.MaxBatch, c.Limits.RetryAfter = 3, 3, 1500*time.Millisecond
	})
	release := w.signer.block()
	defer release()
	alice, inFlight := w.idp.token(t, "alice"), w.gateway.service.inFlight
	client := w.client()
	issue := func(name string) httpReply {
		return w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, token: alice, client: client, body: armour(newCSR(t, nil, name))})
	}
	var wait sync.WaitGroup
	for i := range 3 {
		wait.Go(func() { issue(fmt.Sprintf("f%d.example.test", i)).ok(t, 200) })
	}
	eventually(t, "three are in flight", func() bool { return inFlight.used.Load() == 3 })

	t.Run("over HTTP, before the credential is looked at, in milliseconds", func(t *testing.T) {
		best, advised := time.Hour, map[string]int{}
		for range 40 {
			start := time.Now()
			r := w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, token: "nonsense", client: client, body: []byte("x")})
			best = min(best, time.Since(start))
			r.expect(t, http.StatusTooManyRequests, "", "in_flight")
			advised[r.header.Get("Retry-After")]++
		}
		if best > 5*time.Millisecond {
			t.Errorf("the fastest refusal took %s", best)
		}
		// 0.75 to 2.25 s, in whole seconds and spread: one value alone comes by chance once in 10^8.
		if len(advised) < 2 || advised["1"]+advised["2"]+advised["3"] != 40 {
			t.Errorf("Retry-After %v", advised)
		}
	})
	t.Run("over gRPC", func(t *testing.T) {
		ca := certmillv1.NewCertificateAuthorityClient(w.dial(t))
		_, err := ca.Issue(t.Context(), &certmillv1.IssueRequest{})
		if e := problem.FromStatus(err); status.Code(err) != codes.ResourceExhausted || e.Rule != "in_flight" || e.RetryAfter < 750*time.Millisecond || e.RetryAfter > 2250*time.Millisecond {
			t.Errorf("got %v", err)
		}
	})
	t.Run("health is answered all the same", func(t *testing.T) {
		w.do(t, httpCall{method: http.MethodGet, path: "/healthz"}).ok(t, 200)
		w.do(t, httpCall{method: http.MethodGet, path: "/readyz"}).ok(t, 200)
	})
	release()
	wait.Wait()
	t.Run("a batch that does not fit starts none of its requests", func(t *testing.T) {
		release := w.signer.block()
		defer release()
		done := make(chan httpReply)
		go func() { done <- issue("g.example.test") }()
		eventually(t, "one is in flight", func() bool { return inFlight.used.Load() == 1 })
		w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates:batch", contentType: typeJSON, token: alice, body: []byte(`{"requests":[{},{},{}]}`)}).expect(t, 429, "", "in_flight")
		release()
		(<-done).ok(t, 200)
	})
	eventually(t, "every place is free", func() bool { return inFlight.used.Load() == 0 })
}

// raw opens a TLS connection that speaks HTTP/1.1.
func (w *world) raw(t testing.TB) *tls.Conn {
	t.Helper()
	cfg := w.clientTLS()
	cfg.NextProtos = []string{"http/1.1"}
	conn := must(tls.Dial("tcp", w.https, cfg))(t)
	t.Cleanup(func() { _ = conn.Close() })
	must0(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn
}

func TestSlowAndLargeCallersAreCut(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) {
		c.Limits.HeaderTimeout, c.Limits.ReadTimeout, c.Limits.IdleTimeout = 300*time.Millisecond, 600*time.Millisecond, 300*time.Millisecond
		c.Limits.MaxHeaderBytes = 4 << 10
	})
	t.Run("a header that comes too slowly ends the connection", func(t *testing.T) {
		conn := w.raw(t)
		must(io.WriteString(conn, "POST /v1/certificates HTTP/1.1\r\nHost: localhost\r\nX-"))(t)
		start := time.Now()
		_, _ = io.ReadAll(conn)
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("it was open for %s", d)
		}
	})
	t.Run("a body that comes too slowly is told so", func(t *testing.T) {
		conn := w.raw(t)
		must(fmt.Fprintf(conn, "POST /v1/certificates HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\nContent-Length: 1000\r\n\r\n-----", w.idp.token(t, "alice"), pemType))(t)
		r := must(http.ReadResponse(bufio.NewReader(conn), nil))(t)
		defer func() { _ = r.Body.Close() }()
		if r.StatusCode != http.StatusRequestTimeout || !r.Close {
			t.Errorf("got %d, connection closed: %v", r.StatusCode, r.Close)
		}
	})
	t.Run("an idle connection is closed", func(t *testing.T) {
		if n, err := w.raw(t).Read(make([]byte, 1)); err == nil {
			t.Errorf("read %d bytes", n)
		}
	})
	t.Run("a header that is too large is refused", func(t *testing.T) {
		r := must(http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+w.https+"/healthz", nil))(t)
		r.Header.Set("X-Large", strings.Repeat("x", 64<<10))
		response, err := w.client().Do(r)
		if err == nil {
			defer func() { _ = response.Body.Close() }()
			if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("got %d", response.StatusCode)
			}
		}
	})
	t.Run("a body that lies about its length is cut at the limit", func(t *testing.T) {
		body, feed := io.Pipe()
		go func() {
			_, err := io.CopyN(feed, zeros{}, 10<<20)
			_ = feed.CloseWithError(err)
		}()
		r := must(http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+w.https+"/v1/certificates", body))(t)
		r.Header.Set("Content-Type", pemType)
		r.Header.Set("Authorization", "Bearer "+w.idp.token(t, "alice"))
		response, err := w.client().Do(r)
		if err == nil { // the server may close before the client has read its answer
			defer func() { _ = response.Body.Close() }()
			if response.StatusCode != http.StatusRequestEntityTooLarge {
				t.Errorf("got %d", response.StatusCode)
			}
		}
		_ = body.Close()
	})
	t.Run("a gRPC message that is too large is refused", func(t *testing.T) {
		ca := certmillv1.NewCertificateAuthorityClient(w.dial(t))
		_, err := ca.Issue(as(t.Context(), w.idp.token(t, "alice")), &certmillv1.IssueRequest{Csr: make([]byte, 3<<20)})
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("got %v", err)
		}
	})
}

func TestACallMayOutlastTheTimeForSending(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) { c.Limits.ReadTimeout = 200 * time.Millisecond })
	http1 := w.client()
	http1.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	alice := w.idp.token(t, "alice")
	for name, client := range map[string]*http.Client{"HTTP/1.1": http1, "HTTP/2": w.client()} {
		t.Run(name, func(t *testing.T) {
			w.signer.setRefuse(func(ctx context.Context, _ *queuev1.SignRequest) error {
				select {
				case <-time.After(600 * time.Millisecond):
					return nil
				case <-ctx.Done():
					return problem.From(ctx.Err())
				}
			})
			w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, token: alice, client: client, body: armour(newCSR(t, nil, "a.example.test"))}).ok(t, 200)
			w.signer.setRefuse(overload)
			defer w.signer.setRefuse(nil)
			order := w.do(t, httpCall{method: http.MethodPost, path: "/v1/orders", contentType: pemType, token: alice, client: client, body: armour(newCSR(t, nil, "b.example.test"))}).ok(t, 202)
			w.do(t, httpCall{method: http.MethodGet, path: order.header.Get("Location") + "?wait=600ms", token: alice, client: client}).ok(t, 200)
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestShutdownLetsRunningCallsEnd(t *testing.T) {
	w := newWorld(t)
	release := w.signer.block()
	alice, client := w.idp.token(t, "alice"), w.client()
	conn := w.dial(t)
	ca := certmillv1.NewCertificateAuthorityClient(conn)
	var wait sync.WaitGroup
	wait.Go(func() {
		w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, token: alice, client: client, body: armour(newCSR(t, nil, "a.example.test"))}).ok(t, 200)
	})
	wait.Go(func() {
		if _, err := ca.Issue(as(t.Context(), alice), &certmillv1.IssueRequest{Csr: newCSR(t, nil, "b.example.test")}); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "two are in flight", func() bool { return w.gateway.service.inFlight.used.Load() == 2 })
	ended := make(chan error, 1)
	go func() { ended <- w.stop() }()
	eventually(t, "it is not ready any more", func() bool { return w.gateway.Ready() != nil })
	eventually(t, "no new connection is taken", func() bool {
		c, err := net.Dial("tcp", w.https)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	release()
	wait.Wait()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestShutdownCutsCallsThatDoNotEnd(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) { c.Limits.ShutdownTimeout = 100 * time.Millisecond })
	release := w.signer.block()
	defer release()
	failed := make(chan error, 1)
	csr := armour(newCSR(t, nil, "a.example.test"))
	go func() {
		r := must(http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+w.https+"/v1/certificates", strings.NewReader(string(csr))))(t)
		r.Header.Set("Content-Type", pemType)
		r.Header.Set("Authorization", "Bearer "+w.idp.token(t, "alice"))
		response, err := w.client().Do(r)
		if err == nil {
			_ = response.Body.Close()
		}
		failed <- err
	}()
	eventually(t, "one is in flight", func() bool { return w.gateway.service.inFlight.used.Load() == 1 })
	start := time.Now()
	if err := w.stop(); err != nil || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
	if err := <-failed; err == nil {
		t.Error("the call that was cut succeeded")
	}
}

func TestTLSFilesAreReadAgain(t *testing.T) {
	var cfg Config
	w := newWorld(t, func(c *Config, _ *Deps) { cfg = *c })
	serving := func() string {
		conn, err := tls.Dial("tcp", w.https, &tls.Config{InsecureSkipVerify: true, Time: w.clock.now})
		if err != nil {
			return err.Error()
		}
		defer func() { _ = conn.Close() }()
		return conn.ConnectionState().PeerCertificates[0].DNSNames[0]
	}
	if got := serving(); got != "localhost" {
		t.Fatalf("it serves %s", got)
	}
	must0(t, os.WriteFile(cfg.TLS.CertFile, []byte("broken"), 0o600))
	eventually(t, "the broken file is noticed", func() bool { return strings.Contains(w.logs.String(), "the old ones stay in use") })
	if got := serving(); got != "localhost" {
		t.Errorf("with a broken file it serves %s", got)
	}
	w.pki.writeServerFiles(t, "next.localhost", cfg.TLS.CertFile, cfg.TLS.KeyFile)
	eventually(t, "the new certificate is served", func() bool { return serving() == "next.localhost" })
}

func TestOldTLSIsRefused(t *testing.T) {
	w := newWorld(t)
	cfg := w.clientTLS()
	cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if conn, err := tls.Dial("tcp", w.https, cfg); err == nil {
		_ = conn.Close()
		t.Error("TLS 1.1 was spoken")
	}
}

// A new mTLS handshake costs as much as four certificates.
func TestTLSSessionsAreResumed(t *testing.T) {
	w := newWorld(t)
	cfg := w.clientTLS(w.pki.foreign.issue(t, &x509.Certificate{Subject: named("alice")}))
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	connect := func() httpReply {
		transport := &http.Transport{TLSClientConfig: cfg}
		defer transport.CloseIdleConnections()
		return w.do(t, httpCall{method: http.MethodGet, path: "/v1/certificates?caller=" + w.pki.foreign.caller("cn:alice"), client: &http.Client{Transport: transport}}).ok(t, 200)
	}
	if connect().tls.DidResume || !connect().tls.DidResume {
		t.Error("the second connection is not a resumption")
	}
}
