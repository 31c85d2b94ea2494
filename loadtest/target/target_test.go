package target_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/loadtest/check"
	"github.com/certmill/certmill/loadtest/floor"
	"github.com/certmill/certmill/loadtest/material"
	"github.com/certmill/certmill/loadtest/target"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func startFloor(t *testing.T, cfg floor.Config) (*floor.Server, string) {
	t.Helper()
	cfg.Listen, cfg.Dir, cfg.Lifetime = "127.0.0.1:0", t.TempDir(), 24*time.Hour
	s, err := floor.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, cfg.Dir
}

func csrs(t *testing.T) *material.Pool {
	t.Helper()
	p, err := material.Make(t.Context(), material.Config{CSRs: 20, Keys: 4, Name: "w{n}.load.test", CommonName: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func open(t *testing.T, name string, c target.Config) target.Target {
	t.Helper()
	k, err := target.Find(name)
	if err != nil {
		t.Fatal(err)
	}
	if c.Connections == 0 {
		c.Connections = 2
	}
	tg, err := k.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tg.Close(); err != nil {
			t.Error(err)
		}
	})
	if w, ok := tg.(target.Warmer); ok {
		if err := w.Warm(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return tg
}

// hammer asks for 20 certificates at once and checks every one in full.
func hammer(t *testing.T, tg target.Target, roots string) {
	t.Helper()
	cfg := check.Config{Share: 1, Lifetime: 24 * time.Hour}
	data, err := os.ReadFile(roots)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Roots = x509.NewCertPool()
	cfg.Roots.AppendCertsFromPEM(data)
	c, p := check.New(cfg), csrs(t)
	var all sync.WaitGroup
	for i := range int64(20) {
		all.Go(func() {
			r := &target.Request{ID: fmt.Sprint("req-", i), CSR: p.Get(i), Deadline: time.Now().Add(20 * time.Second)}
			a, err := tg.Do(t.Context(), r)
			if err != nil {
				t.Error(err)
				return
			}
			c.Offer(r, a)
		})
	}
	all.Wait()
	if s := c.Close(); s.Wrong != 0 || s.Checked != 20 {
		t.Errorf("%+v", s)
	}
}

// fails asks once and wants a failure of this kind.
func fails(t *testing.T, tg target.Target, r *target.Request, kind string) {
	t.Helper()
	_, err := tg.Do(t.Context(), r)
	if err == nil {
		t.Fatalf("no failure, want %s", kind)
	}
	if f := target.Classify(err); f.Kind != kind {
		t.Errorf("failure %+v, want kind %s", f, kind)
	}
}

func TestRESTAgainstTheFloor(t *testing.T) {
	s, dir := startFloor(t, floor.Config{ClientAuth: true})
	in := func(name string) string { return filepath.Join(dir, name) }
	tg := open(t, "rest", target.Config{URL: s.URL(), CAFile: in("ca.pem"), CertFile: in("client.pem"), KeyFile: in("client.key"), Lifetime: 24 * time.Hour, Profile: "server", Owner: "a b"})
	hammer(t, tg, in("ca.pem"))
	bad := *csrs(t).Get(0)
	bad.PEM = []byte("nonsense")
	fails(t, tg, &target.Request{CSR: &bad, Deadline: time.Now().Add(10 * time.Second)}, "http_400")
	tampered := *csrs(t).Get(0)
	tampered.DER = append([]byte(nil), tampered.DER...)
	tampered.DER[len(tampered.DER)-1] ^= 1
	tampered.PEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: tampered.DER})
	fails(t, tg, &target.Request{CSR: &tampered, Deadline: time.Now().Add(10 * time.Second)}, "http_400")

	k, _ := target.Find("rest")
	anonymous, err := k.Open(target.Config{URL: s.URL(), CAFile: in("ca.pem"), Connections: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer anonymous.Close()
	if _, err := anonymous.Do(t.Context(), &target.Request{CSR: csrs(t).Get(0), Deadline: time.Now().Add(10 * time.Second)}); err == nil {
		t.Error("the floor took a caller without a certificate")
	}
}

func TestOCSPAgainstTheFloor(t *testing.T) {
	for _, plain := range []bool{true, false} {
		s, dir := startFloor(t, floor.Config{Plain: plain, Statuses: 50})
		data, err := os.ReadFile(filepath.Join(dir, "issuer.pem"))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(data)
		issuer, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		serials, err := os.Open(filepath.Join(dir, "serials.txt"))
		if err != nil {
			t.Fatal(err)
		}
		defer serials.Close()
		asked, err := target.ReadStatusRequests(serials, issuer, crypto.SHA1)
		if err != nil || len(asked) != 50 {
			t.Fatalf("%d requests, %v", len(asked), err)
		}
		for _, name := range []string{"ocsp-get", "ocsp-post"} {
			tg := open(t, name, target.Config{URL: s.URL(), CAFile: filepath.Join(dir, "ca.pem")})
			c := check.New(check.Config{Share: 1, Issuer: issuer})
			for _, q := range asked {
				r := &target.Request{Status: q, Deadline: time.Now().Add(10 * time.Second)}
				a, err := tg.Do(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				c.Offer(r, a)
			}
			if s := c.Close(); s.Wrong != 0 || s.Checked != 50 {
				t.Errorf("%s: %+v", name, s)
			}
			unknown, err := target.NewStatusRequest(issuer, big.NewInt(4711), crypto.SHA1)
			if err != nil {
				t.Fatal(err)
			}
			fails(t, tg, &target.Request{Status: unknown, Deadline: time.Now().Add(10 * time.Second)}, "ocsp_unauthorized")
		}
	}
}

func TestStatusRequestsAreReadFromCertificatesAndSerials(t *testing.T) {
	issuer := newPeer(t).cert
	leaf := newPeer(t).sign(t, csrs(t).Get(0).DER)
	both := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuer.Raw}))
	if qs, err := target.ReadStatusRequests(strings.NewReader(both), issuer, crypto.SHA256); err != nil || len(qs) != 1 {
		t.Errorf("a leaf and its issuer gave %d requests, %v", len(qs), err)
	}
	if qs, err := target.ReadStatusRequests(strings.NewReader("# two\n0a:ff\n1B\n"), issuer, crypto.SHA1); err != nil || len(qs) != 2 || qs[0].Serial.Int64() != 0xaff {
		t.Errorf("%v, %v", qs, err)
	}
	for _, bad := range []string{"", "# none\n", "-5\n", "xyz\n", strings.Repeat("f", 41)} {
		if _, err := target.ReadStatusRequests(strings.NewReader(bad), issuer, crypto.SHA1); err == nil {
			t.Errorf("%q was taken for serials", bad)
		}
	}
}

// peer signs what the handlers below are asked for.
type peer struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	mu   sync.Mutex
	next int64
}

func newPeer(t *testing.T) *peer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	template.Subject.CommonName = "peer"
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &peer{key: key, cert: cert, next: 1000}
}

func (p *peer) sign(t *testing.T, csr []byte) []byte {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		t.Error(err)
		return nil
	}
	p.mu.Lock()
	p.next++
	serial := p.next
	p.mu.Unlock()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: req.DNSNames,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour)}, p.cert, req.PublicKey, p.key)
	if err != nil {
		t.Error(err)
	}
	return der
}

func (p *peer) signPEM(t *testing.T, csr string) string {
	block, _ := pem.Decode([]byte(csr))
	if block == nil {
		t.Error("no CSR in PEM")
		return ""
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.sign(t, block.Bytes)}))
}

func (p *peer) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw}))
}

func (p *peer) tls() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{p.cert.Raw}, PrivateKey: p.key}}}
}

func (p *peer) rootFile(t *testing.T) string { return file(t, "root.pem", p.pem()) }

func file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// serve starts an HTTPS server that speaks JSON.
func (p *peer) serve(t *testing.T, path string, answer func(r *http.Request, body []byte) (int, any)) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path != path {
			http.NotFound(w, r)
			return
		}
		code, out := answer(r, body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(out)
	}))
	s.TLS = p.tls()
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

func TestVault(t *testing.T) {
	p := newPeer(t)
	url := p.serve(t, "/v1/mesh/sign/leaf", func(r *http.Request, body []byte) (int, any) {
		var in struct{ CSR, TTL string }
		if err := json.Unmarshal(body, &in); err != nil || r.Header.Get("X-Vault-Token") != "s.token" || in.TTL != "24h0m0s" {
			return 403, map[string]any{"errors": []string{"permission denied"}}
		}
		return 200, map[string]any{"data": map[string]any{"certificate": strings.TrimSpace(p.signPEM(t, in.CSR)), "issuing_ca": p.pem(), "ca_chain": []string{strings.TrimSpace(p.pem())}}}
	})
	c := target.Config{URL: url, CAFile: p.rootFile(t), TokenFile: file(t, "token", "s.token\n"), Mount: "mesh", Role: "leaf", Lifetime: 24 * time.Hour}
	hammer(t, open(t, "vault", c), c.CAFile)
	c.TokenFile = file(t, "token", "another")
	fails(t, open(t, "vault", c), &target.Request{CSR: csrs(t).Get(0), Deadline: time.Now().Add(10 * time.Second)}, "http_403")
}

func TestCFSSL(t *testing.T) {
	p := newPeer(t)
	sign := func(body []byte) (int, any) {
		var in struct {
			CSR     string   `json:"certificate_request"`
			Hosts   []string `json:"hosts"`
			Profile string   `json:"profile"`
		}
		if err := json.Unmarshal(body, &in); err != nil || len(in.Hosts) != 1 || in.Profile != "peer" {
			return 200, map[string]any{"success": false, "errors": []map[string]any{{"code": 5100, "message": "bad policy"}}}
		}
		return 200, map[string]any{"success": true, "result": map[string]any{"certificate": p.signPEM(t, in.CSR)}}
	}
	key := []byte("0123456789abcdef")
	plain := p.serve(t, "/api/v1/cfssl/sign", func(_ *http.Request, body []byte) (int, any) { return sign(body) })
	authenticated := p.serve(t, "/api/v1/cfssl/authsign", func(_ *http.Request, body []byte) (int, any) {
		var in struct{ Token, Request []byte }
		mac := hmac.New(sha256.New, key)
		if err := json.Unmarshal(body, &in); err == nil {
			mac.Write(in.Request)
		}
		if !hmac.Equal(mac.Sum(nil), in.Token) {
			return 401, map[string]any{"success": false}
		}
		return sign(in.Request)
	})
	c := target.Config{URL: plain, CAFile: p.rootFile(t), Profile: "peer"}
	hammer(t, open(t, "cfssl", c), c.CAFile)
	c.URL, c.TokenFile = authenticated, file(t, "key", hex.EncodeToString(key))
	hammer(t, open(t, "cfssl", c), c.CAFile)
	c.Profile = "other"
	fails(t, open(t, "cfssl", c), &target.Request{CSR: csrs(t).Get(0), Deadline: time.Now().Add(10 * time.Second)}, "cfssl")
}

func TestStep(t *testing.T) {
	p := newPeer(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := json.Marshal(jose.JSONWebKey{Key: key, KeyID: "kid-1", Algorithm: "ES256"})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	used := map[string]bool{}
	var url string
	url = p.serve(t, "/1.0/sign", func(_ *http.Request, body []byte) (int, any) {
		var in struct{ CSR, OTT, NotAfter string }
		if err := json.Unmarshal(body, &in); err != nil {
			return 400, nil
		}
		token, err := jwt.ParseSigned(in.OTT, []jose.SignatureAlgorithm{jose.ES256})
		var claims jwt.Claims
		var more struct {
			SANs []string `json:"sans"`
		}
		if err == nil {
			err = token.Claims(key.Public(), &claims, &more)
		}
		if err == nil {
			err = claims.Validate(jwt.Expected{Issuer: "load", AnyAudience: jwt.Audience{url + "/1.0/sign"}, Time: time.Now()})
		}
		mu.Lock()
		defer mu.Unlock()
		if err != nil || used[claims.ID] || len(more.SANs) != 1 || token.Headers[0].KeyID != "kid-1" || in.NotAfter != "24h0m0s" {
			return 401, map[string]any{"status": 401, "message": fmt.Sprint(err)}
		}
		used[claims.ID] = true
		leaf := p.signPEM(t, in.CSR)
		return 201, map[string]any{"crt": leaf, "ca": p.pem(), "certChain": []string{leaf, p.pem()}}
	})
	c := target.Config{URL: url, CAFile: p.rootFile(t), Provisioner: "load", ProvisionerKeyFile: file(t, "jwk", string(jwk)), Lifetime: 24 * time.Hour}
	hammer(t, open(t, "step", c), c.CAFile)

	// step-ca keeps the key as a JWE under a password.
	encrypter, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.PBES2_HS256_A128KW, Key: []byte("secret"), PBES2Count: 10_000}, nil)
	if err != nil {
		t.Fatal(err)
	}
	jwe, err := encrypter.Encrypt(jwk)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := jwe.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	c.ProvisionerPasswordFile = file(t, "password", "secret\n")
	for _, text := range []string{compact, jwe.FullSerialize()} {
		c.ProvisionerKeyFile = file(t, "jwe", text)
		hammer(t, open(t, "step", c), c.CAFile)
	}
	c.Provisioner = "other"
	fails(t, open(t, "step", c), &target.Request{CSR: csrs(t).Get(0), Deadline: time.Now().Add(10 * time.Second)}, "http_401")
}

// grpcServer serves on loopback.
func (p *peer) grpcServer(t *testing.T, register func(*grpc.Server)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(p.tls())))
	register(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// authority is certmill's service, as far as it is asked here.
type authority struct {
	certmillv1.UnimplementedCertificateAuthorityServer
	t *testing.T
	p *peer
}

func (a *authority) certificate(r *certmillv1.IssueRequest) (*certmillv1.Certificate, error) {
	if r.GetProfile() != "workload" || r.GetLifetime().AsDuration() != 24*time.Hour || r.GetMetadata().GetOwner() != "me" {
		return nil, problem.ToStatus(problem.Rejected("profile", "unknown", "no such profile")).Err()
	}
	return &certmillv1.Certificate{Der: a.p.sign(a.t, r.GetCsr()), Chain: [][]byte{a.p.cert.Raw}, RequestId: r.GetRequestId()}, nil
}

func (a *authority) result(r *certmillv1.IssueRequest) *certmillv1.IssueResult {
	c, err := a.certificate(r)
	if err != nil {
		return &certmillv1.IssueResult{RequestId: r.GetRequestId(), Outcome: &certmillv1.IssueResult_Problem{Problem: &certmillv1.Problem{Type: problem.Invalid.Type(), Detail: "no"}}}
	}
	return &certmillv1.IssueResult{RequestId: r.GetRequestId(), Outcome: &certmillv1.IssueResult_Certificate{Certificate: c}}
}

func (a *authority) Issue(ctx context.Context, r *certmillv1.IssueRequest) (*certmillv1.IssueResponse, error) {
	if md, _ := metadata.FromIncomingContext(ctx); len(md["authorization"]) != 1 || md["authorization"][0] != "Bearer t0ken" {
		return nil, status.Error(codes.Unauthenticated, "who are you?")
	}
	c, err := a.certificate(r)
	if err != nil {
		return nil, err
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs("server-timing", "queue;dur=0.4, hsm;dur=1.5")); err != nil {
		return nil, err
	}
	return &certmillv1.IssueResponse{Certificate: c}, nil
}

func (a *authority) IssueBatch(_ context.Context, r *certmillv1.IssueBatchRequest) (*certmillv1.IssueBatchResponse, error) {
	out := &certmillv1.IssueBatchResponse{}
	for _, q := range r.GetRequests() {
		out.Results = append(out.Results, a.result(q))
	}
	return out, nil
}

// IssueStream answers pairs in reverse, so that order alone joins nothing.
func (a *authority) IssueStream(s certmillv1.CertificateAuthority_IssueStreamServer) error {
	var held *certmillv1.IssueResult
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if r.GetRequestId() == "end" {
			return status.Error(codes.Unavailable, "going away")
		}
		if r.GetRequestId() == "silence" {
			continue
		}
		res := a.result(r)
		if held == nil && strings.HasPrefix(r.GetRequestId(), "req-") {
			held = res
			continue
		}
		if err := s.Send(res); err != nil {
			return err
		}
		if held != nil {
			if err := s.Send(held); err != nil {
				return err
			}
			held = nil
		}
	}
}

func TestGRPCStreamAndBatch(t *testing.T) {
	p := newPeer(t)
	address := p.grpcServer(t, func(s *grpc.Server) {
		certmillv1.RegisterCertificateAuthorityServer(s, &authority{t: t, p: p})
	})
	c := target.Config{URL: address, CAFile: p.rootFile(t), TokenFile: file(t, "token", "t0ken"), Profile: "workload", Lifetime: 24 * time.Hour, Owner: "me", Batch: 5}
	soon := func() time.Time { return time.Now().Add(10 * time.Second) }
	csr := csrs(t).Get(0)

	unary := open(t, "grpc", c)
	hammer(t, unary, c.CAFile)
	a, err := unary.Do(t.Context(), &target.Request{ID: "x", CSR: csr, Deadline: soon()})
	if err != nil || len(a.Phases) != 2 || a.Phases[1].Name != "hsm" || a.Phases[1].Duration != 1500*time.Microsecond {
		t.Errorf("server timing: %v %+v", err, a.Phases)
	}
	fails(t, unary, &target.Request{ID: "x", CSR: csr, Deadline: time.Now().Add(-time.Second)}, "timeout")

	stream := open(t, "stream", c)
	hammer(t, stream, c.CAFile)
	fails(t, stream, &target.Request{ID: "silence", CSR: csr, Deadline: time.Now().Add(50 * time.Millisecond)}, "timeout")
	fails(t, stream, &target.Request{ID: "end", CSR: csr, Deadline: soon()}, "grpc_Unavailable")
	if _, err := stream.Do(t.Context(), &target.Request{ID: "after", CSR: csr, Deadline: soon()}); err != nil {
		t.Errorf("the stream was not opened again: %v", err)
	}

	batch := open(t, "batch", c)
	hammer(t, batch, c.CAFile)
	var rs []*target.Request
	for i := range int64(5) {
		rs = append(rs, &target.Request{ID: fmt.Sprint(i), CSR: csrs(t).Get(i), Deadline: soon()})
	}
	results, err := batch.(target.Batcher).DoBatch(t.Context(), rs)
	if err != nil || len(results) != 5 || results[4].Err != nil || len(results[4].Answer.DER) != 2 {
		t.Errorf("batch: %v %+v", err, results)
	}

	for _, name := range []string{"grpc", "stream", "batch"} {
		wrong := c
		wrong.Profile = "none"
		fails(t, open(t, name, wrong), &target.Request{ID: "x", CSR: csr, Deadline: soon()}, "invalid")
	}
	anonymous := c
	anonymous.TokenFile = ""
	fails(t, open(t, "grpc", anonymous), &target.Request{ID: "x", CSR: csr, Deadline: soon()}, "grpc_Unauthenticated")
}

// rawBytes is the server's half of Istio's two messages.
type rawBytes struct{}

func (rawBytes) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (rawBytes) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (rawBytes) Name() string { return "proto" }

func TestIstio(t *testing.T) {
	p := newPeer(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	handler := func(_ any, s grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(s)
		md, _ := metadata.FromIncomingContext(s.Context())
		var in []byte
		if err := s.RecvMsg(&in); err != nil {
			return err
		}
		if method != "/istio.v1.auth.IstioCertificateService/CreateCertificate" || len(md["clusterid"]) != 1 || md["clusterid"][0] != "Kubernetes" {
			return status.Error(codes.InvalidArgument, method)
		}
		_, _, n := protowire.ConsumeTag(in)
		csr, m := protowire.ConsumeString(in[n:])
		_, _, k := protowire.ConsumeTag(in[n+m:])
		if seconds, _ := protowire.ConsumeVarint(in[n+m+k:]); seconds != 86400 {
			return status.Errorf(codes.InvalidArgument, "%d seconds", seconds)
		}
		var out []byte
		for _, c := range []string{p.signPEM(t, csr), p.pem()} {
			out = protowire.AppendString(protowire.AppendTag(out, 1, protowire.BytesType), c)
		}
		return s.SendMsg(&out)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(p.tls())), grpc.UnknownServiceHandler(handler), grpc.ForceServerCodec(rawBytes{}))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	defer func() { s.Stop(); <-done }()
	c := target.Config{URL: l.Addr().String(), CAFile: p.rootFile(t), ClusterID: "Kubernetes", Lifetime: 24 * time.Hour}
	hammer(t, open(t, "istio", c), c.CAFile)
	c.ClusterID = ""
	fails(t, open(t, "istio", c), &target.Request{CSR: csrs(t).Get(0), Deadline: time.Now().Add(10 * time.Second)}, "grpc_InvalidArgument")
}

func TestProblemsAndOutagesHaveTheirKinds(t *testing.T) {
	p := newPeer(t)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("Idempotency-Key") {
		case "busy":
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(429)
			_, _ = io.WriteString(w, `{"type":"urn:certmill:problem:overloaded","detail":"full"}`)
		case "hostile":
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(400)
			_, _ = io.WriteString(w, `{"type":"urn:certmill:problem:\u001b[2J"}`)
		case "slow":
			_, _ = io.Copy(io.Discard, r.Body) // only then does the server see the caller go
			<-r.Context().Done()
		case "broken":
			panic(http.ErrAbortHandler)
		}
	}))
	s.TLS = p.tls()
	s.StartTLS()
	tg := open(t, "rest", target.Config{URL: s.URL, CAFile: p.rootFile(t)})
	csr := csrs(t).Get(0)
	for id, kind := range map[string]string{"busy": "overloaded", "hostile": "http_400", "slow": "timeout", "broken": "connection"} {
		fails(t, tg, &target.Request{ID: id, CSR: csr, Deadline: time.Now().Add(200 * time.Millisecond)}, kind)
	}
	s.Close()
	fails(t, tg, &target.Request{CSR: csr, Deadline: time.Now().Add(time.Second)}, "connect")
}

func TestEveryKindSaysWhatItNeeds(t *testing.T) {
	for _, name := range target.Names() {
		k, err := target.Find(name)
		if err != nil || k.Summary == "" || k.Connections < 1 || k.Subject == "" {
			t.Errorf("%s: %+v %v", name, k, err)
		}
		if _, err := k.Open(target.Config{Connections: 1, Batch: 1}); err == nil {
			t.Errorf("%s opens without an address", name)
		}
	}
	if _, err := target.Find("nothing"); err == nil || !strings.Contains(err.Error(), "floor, floor-get, floor-post, grpc") {
		t.Errorf("found nothing: %v", err)
	}
}

func TestMistakesNameTheirFlag(t *testing.T) {
	const web, rpc = "https://127.0.0.1:1", "127.0.0.1:1"
	nowhere, empty := filepath.Join(t.TempDir(), "nowhere"), file(t, "empty", "")
	secret := file(t, "secret", "no hexadecimal")
	if err := os.Chmod(secret, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		target string
		cfg    target.Config
		want   string
	}{
		{"rest", target.Config{URL: web, Connections: -1}, "--connections"},
		{"grpc", target.Config{URL: rpc, Connections: -1}, "--connections"},
		{"rest", target.Config{URL: web, TokenFile: nowhere}, "--token-file: "},
		{"rest", target.Config{URL: web, CAFile: nowhere}, "--ca: "},
		{"rest", target.Config{URL: web, CAFile: empty}, "--ca: "},
		{"grpc", target.Config{URL: rpc, CertFile: nowhere}, "--cert and --key"},
		{"grpc", target.Config{URL: rpc, CertFile: nowhere, KeyFile: nowhere}, "--cert, --key: "},
		{"rest", target.Config{URL: "127.0.0.1:1"}, "--url: "},
		{"rest", target.Config{URL: "ftp://127.0.0.1:1"}, "--url: "},
		{"vault", target.Config{URL: web}, "--token-file and --role"},
		{"step", target.Config{URL: web}, "--provisioner and --provisioner-key"},
		{"step", target.Config{URL: web, Provisioner: "p", ProvisionerKeyFile: nowhere}, "--provisioner-key: "},
		{"step", target.Config{URL: web, Provisioner: "p", ProvisionerKeyFile: empty, ProvisionerPasswordFile: nowhere}, "--provisioner-password-file: "},
		{"cfssl", target.Config{URL: web, TokenFile: secret}, "--token-file: "},
		{"batch", target.Config{URL: rpc, Batch: 257}, "--batch"},
	} {
		k, err := target.Find(tc.target)
		if err != nil {
			t.Fatal(err)
		}
		if tc.cfg.Connections == 0 {
			tc.cfg.Connections = 1
		}
		if _, err := k.Open(tc.cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %+v: error %v, want one that names %q", tc.target, tc.cfg, err, tc.want)
		}
	}
}
