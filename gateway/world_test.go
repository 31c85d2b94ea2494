package gateway

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	"github.com/certmill/certmill/signer"
)

// world is a gateway on a real ledger with a signer in this process, which signs
// with a software key by the signer's own code.
type world struct {
	testing.TB
	book     *ledger.Ledger
	signer   *softSigner
	gateway  *Gateway
	registry *prometheus.Registry
	logs     *logBuffer
	clock    *clock
	pki      *pki
	idp      *idp
	https    string
	grpc     string
	stop     func() error // ends Run and returns what it returned; may be called twice
}

// clock is the time of the gateway, which a test can move.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

// logBuffer keeps what was logged.
type logBuffer struct {
	mu   sync.Mutex
	text []byte
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p...)
	return len(p), nil
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.text)
}

// newWorld starts a world; change may alter the configuration and the parts.
func newWorld(t testing.TB, change ...func(*Config, *Deps)) *world {
	t.Helper()
	w := &world{TB: t, registry: prometheus.NewRegistry(), logs: &logBuffer{}, clock: &clock{}, pki: newPKI(t), idp: newIDP(t)}
	ctx := t.Context()
	cfg := DefaultConfig()
	cfg.Ledger = config.Ledger{URL: testenv.PostgreSQL(t), MaxConnections: 6}
	must0(t, ledger.Migrate(ctx, cfg.Ledger))
	w.book = must(ledger.Open(ctx, cfg.Ledger, ledger.Deps{Now: w.clock.now}))(t)
	t.Cleanup(w.book.Close)
	w.signer = newSoftSigner(t, w.book, w.pki, w.clock)

	cfg.Listen, cfg.GRPCListen = "127.0.0.1:0", "127.0.0.1:0"
	cfg.TLS.CertFile, cfg.TLS.KeyFile = w.pki.serverFiles(t, "localhost")
	cfg.TLS.ClientCAFiles = []string{w.pki.foreign.file(t), w.pki.twin.file(t)}
	cfg.TLS.Reload, cfg.TLS.RevocationTTL = 20*time.Millisecond, 0
	cfg.IssuerRefresh = 100 * time.Millisecond
	cfg.ProfilesDir, cfg.DefaultProfile = "testdata/profiles", "server"
	cfg.Orders.SweepInterval, cfg.Orders.StaleAfter = 20*time.Millisecond, 50*time.Millisecond
	cfg.Auth.JWT = []JWTIssuer{w.idp.config}
	cfg.Operators = []Operator{
		{Match: w.idp.id("viewer"), Roles: []string{"viewer"}}, {Match: w.idp.id("operator"), Roles: []string{"operator"}},
		{Match: w.idp.id("auditor"), Roles: []string{"auditor"}}, {Match: w.idp.id("admin"), Roles: []string{"admin"}},
	}
	deps := Deps{
		Ledger: w.book, Signer: w.signer, Registry: w.registry, Now: w.clock.now,
		Log: slog.New(slog.NewJSONHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(&cfg, &deps)
	}
	w.gateway = must(New(cfg, deps))(t)
	w.run(ctx)
	return w
}

func (w *world) run(ctx context.Context) {
	w.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- w.gateway.Run(ctx) }()
	w.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	w.Cleanup(func() {
		if err := w.stop(); err != nil {
			w.Errorf("Run returned %v", err)
		}
	})
	wait, done := context.WithTimeout(ctx, 20*time.Second)
	defer done()
	var err error
	if w.https, w.grpc, err = w.gateway.Addresses(wait); err != nil {
		select {
		case err = <-ended:
			ended <- err
		default:
		}
		w.Fatalf("the gateway does not listen: %v", err)
	}
	eventually(w, "the gateway is ready", func() bool { return w.gateway.Ready() == nil })
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 20 s: %s", what)
}

// must unwraps a value in one expression: must(f())(t).
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func must0(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// softSigner is the queue and the signers in one, for a gateway alone.
type softSigner struct {
	t    testing.TB
	book *ledger.Ledger

	mu       sync.Mutex // guards all below
	prep     *signer.Preparer
	key      *ecdsa.PrivateKey
	epoch    uint32
	seen     []*queuev1.SignRequest
	priority []queue.Priority
	// refuse, where set, is asked first and may answer in the signer's place; it runs
	// without the lock.
	refuse func(context.Context, *queuev1.SignRequest) error
}

func newSoftSigner(t testing.TB, book *ledger.Ledger, p *pki, c *clock) *softSigner {
	t.Helper()
	ctx := t.Context()
	row := ledger.Issuer{Name: "issuing", State: "active", DER: p.issuing.cert.Raw, Chain: [][]byte{p.root.cert.Raw}, KeyURI: "pkcs11:object=issuing"}
	row.ID = must(book.PutIssuer(ctx, row))(t)
	s := &softSigner{t: t, book: book, key: p.issuing.key}
	s.epoch = must(book.StartEpoch(ctx, ledger.Epoch{Signer: "test", Issuer: row.ID, Token: "software"}))(t)
	profiles := must(profile.LoadDir("testdata/profiles"))(t)
	s.prep = must(signer.NewPreparer(signer.PreparerConfig{Issuer: row, Public: p.issuing.key.Public(), Profiles: profiles, Now: c.now}))(t)
	return s
}

// softKey is a key in memory.
type softKey struct{ *ecdsa.PrivateKey }

// SignContext implements signer.ContextSigner.
func (k softKey) SignContext(_ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.Sign(rand.Reader, digest, opts)
}

func (s *softSigner) Ready() error { return nil }

func (s *softSigner) note(r *queuev1.SignRequest, p queue.Priority) func(context.Context, *queuev1.SignRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen, s.priority = append(s.seen, r), append(s.priority, p)
	return s.refuse
}

func (s *softSigner) setRefuse(f func(context.Context, *queuev1.SignRequest) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = f
}

func (s *softSigner) lastPriority() queue.Priority {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.priority[len(s.priority)-1]
}

func (s *softSigner) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

func (s *softSigner) Do(ctx context.Context, r *queuev1.SignRequest, p queue.Priority, _ ...string) (*queuev1.SignResult, error) {
	if refuse := s.note(r, p); refuse != nil {
		if err := refuse(ctx, r); err != nil {
			return nil, err
		}
	}
	return s.sign(ctx, r)
}

func (s *softSigner) Expect(int) {}

func (s *softSigner) Enqueue(ctx context.Context, r *queuev1.SignRequest, p queue.Priority, _ ...string) error {
	if refuse := s.note(r, p); refuse != nil {
		if err := refuse(ctx, r); err != nil {
			return err
		}
	}
	_, err := s.sign(ctx, r)
	return err
}

func (s *softSigner) sign(ctx context.Context, r *queuev1.SignRequest) (*queuev1.SignResult, error) {
	request, err := profile.FromQueue(r)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	prep, key, epoch := s.prep, softKey{s.key}, s.epoch
	s.mu.Unlock()
	prepared, err := prep.Prepare(request, epoch)
	if err != nil {
		return nil, err
	}
	cert, err := prepared.Sign(ctx, key)
	if err != nil {
		return nil, err
	}
	result := s.book.CommitBatch(ctx, []ledger.Entry{{
		Certificate: cert, RequestKey: ledger.RequestKey(r.RequestKey), CSR: [sha256.Size]byte(r.CsrSha256),
		ReuseUntil: time.Now().Add(time.Duration(r.ReuseSeconds) * time.Second),
	}})[0]
	if result.Err != nil {
		return nil, result.Err
	}
	c := result.Outcome.Certificate
	return &queuev1.SignResult{
		RequestKey: r.RequestKey, Serial: c.Serial[:], Der: c.DER, Duplicate: result.Outcome.Duplicate, CsrSha256: r.CsrSha256,
		ProfileVersion: c.ProfileVersion, IssuerId: c.Issuer, QueueUs: 1500, PrepareUs: 20, SignUs: 70, CommitUs: 900,
	}, nil
}

// overload is a refusal for setRefuse.
func overload(context.Context, *queuev1.SignRequest) error {
	return problem.Busy("signers", 3*time.Second, "no signer is free")
}

// authority is a CA of the tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// pki holds the CA that the gateway serves (root, issuing), the one that its own TLS
// comes from (server), and one for client certificates that it trusts (foreign).
type pki struct {
	root, issuing, server, foreign *authority
	// twin has foreign's name and another key.
	twin *authority
}

func newPKI(t testing.TB) *pki {
	root := newAuthority(t, "certmill test root", nil)
	return &pki{
		root: root, issuing: newAuthority(t, "certmill test issuing", root),
		server: newAuthority(t, "server CA", nil), foreign: newAuthority(t, "foreign CA", nil), twin: newAuthority(t, "foreign CA", nil),
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

func newAuthority(t testing.TB, name string, parent *authority) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetInt64(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	signing, key := template, a.key
	if parent != nil {
		signing, key = parent.cert, parent.key
	}
	der := must(x509.CreateCertificate(rand.Reader, template, signing, a.key.Public(), key))(t)
	a.cert = must(x509.ParseCertificate(der))(t)
	return a
}

// issue makes a leaf from a template; times are filled in where they are missing.
func (a *authority) issue(t testing.TB, template *x509.Certificate) tls.Certificate {
	t.Helper()
	key := newKey(t)
	if template.SerialNumber == nil {
		template.SerialNumber = big.NewInt(time.Now().UnixNano())
	}
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key))(t)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: must(x509.ParseCertificate(der))(t)}
}

// caller is the id of a caller whom this CA names, where it is not one of ours.
func (a *authority) caller(name string) string { return "mtls:" + caPrefix(a.cert) + name }

func (a *authority) file(t testing.TB) string {
	name := filepath.Join(t.TempDir(), "ca.pem")
	must0(t, os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o600))
	return name
}

func (p *pki) serverFiles(t testing.TB, name string) (certFile, keyFile string) {
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	p.writeServerFiles(t, name, certFile, keyFile)
	return certFile, keyFile
}

func (p *pki) writeServerFiles(t testing.TB, name, certFile, keyFile string) {
	c := p.server.issue(t, &x509.Certificate{DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	key := must(x509.MarshalPKCS8PrivateKey(c.PrivateKey))(t)
	must0(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), 0o600))
	must0(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
}

// clientTLS is a client's side of TLS, with at most one certificate.
func (w *world) clientTLS(certs ...tls.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(w.pki.server.cert)
	c := &tls.Config{RootCAs: pool, ServerName: "localhost", Time: w.clock.now}
	if len(certs) > 0 {
		// Certificates would leave one out whose CA the server does not name.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
	}
	return c
}

// client is an HTTP client of its own connections.
func (w *world) client(certs ...tls.Certificate) *http.Client {
	transport := &http.Transport{TLSClientConfig: w.clientTLS(certs...), ForceAttemptHTTP2: true}
	w.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 60 * time.Second}
}

var errGone = errors.New("gone")
