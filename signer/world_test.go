package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/deploy/profiles"
	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	"github.com/certmill/certmill/signer/hsm"
)

// A world is everything around signers: a broker that can be stopped and started, a
// ledger, a token with an issuing key, and a gateway's side of the queue.
type world struct {
	t      testing.TB
	dir    *local.Dir
	server *local.NATS
	cfg    Config // as a signer is started with
	book   *ledger.Ledger
	issuer ledger.Issuer
	cert   *x509.Certificate
	conn   *queue.Conn // the gateway's
	reply  string
	spki   []byte

	results chan *queuev1.SignResult
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, results: make(chan *queuev1.SignResult, 10_000), reply: queue.ReplySubject("gw1")}
	url := testenv.PostgreSQL(t)
	lc := config.Ledger{URL: url, MaxConnections: 8}
	w.check(ledger.Migrate(bounded(t), lc))
	var err error
	w.book, err = ledger.Open(bounded(t), lc, ledger.Deps{})
	w.check(err)
	t.Cleanup(w.book.Close)
	w.startNATS()
	w.configure(url)
	w.makeIssuer()
	w.connect()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.check(err)
	w.spki, err = x509.MarshalPKIXPublicKey(&key.PublicKey)
	w.check(err)
	return w
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) startNATS() {
	w.t.Helper()
	var err error
	if w.dir == nil {
		w.dir, err = local.OpenDir(w.t.TempDir())
		w.check(err)
		w.t.Cleanup(func() {
			w.server.Stop()
			w.dir.Close()
		})
	}
	w.server, err = local.StartNATS(w.dir, local.NATSOptions{})
	w.check(err)
}

func (w *world) configure(ledgerURL string) {
	w.t.Helper()
	token := testenv.SoftHSM(w.t)
	w.cfg = DefaultConfig()
	w.cfg.Name = "test"
	h := hsm.DefaultConfig()
	h.Module, h.TokenLabel, h.PINFile = token.Module, token.TokenLabel, token.PINFile
	w.cfg.Tokens = []hsm.Config{h}
	w.cfg.Ledger.URL = ledgerURL
	w.cfg.IssuerRefresh = 100 * time.Millisecond
	w.cfg.EpochReportInterval = 100 * time.Millisecond
	w.cfg.LintShare = 0
	w.cfg.ProfilesDir = w.t.TempDir()
	for _, name := range []string{"workload.yaml", "server.yaml"} {
		text, err := profiles.FS.ReadFile(name)
		w.check(err)
		w.check(os.WriteFile(filepath.Join(w.cfg.ProfilesDir, name), text, 0o600))
	}
	w.cfg.NATS = config.DefaultNATS()
	w.cfg.NATS.URL, w.cfg.NATS.NKeyFile = w.server.URL(), w.server.NKeyFile()
	w.cfg.NATS.AckWait = time.Second
	w.cfg.NATS.QueueKeyFile = filepath.Join(w.t.TempDir(), "queue.key")
	w.check(os.WriteFile(w.cfg.NATS.QueueKeyFile, []byte(strings.Repeat("a1", 32)), 0o600))
}

func (w *world) makeIssuer() {
	w.t.Helper()
	ctx := bounded(w.t)
	token, err := hsm.Open(ctx, w.cfg.Tokens[0], hsm.Deps{})
	w.check(err)
	defer func() { w.check(token.Close(ctx)) }()
	key, err := token.GenerateKey(ctx, hsm.KeySpec{Label: "issuing", Algorithm: hsm.ECDSAP256})
	w.check(err)
	w.issuer = ledger.Issuer{Name: "issuing", State: "active", KeyURI: key.URI()}
	w.sign(key)
}

// makeGeneration registers another certificate of the issuer, for the same key.
func (w *world) makeGeneration() {
	w.t.Helper()
	ctx := bounded(w.t)
	token, err := hsm.Open(ctx, w.cfg.Tokens[0], hsm.Deps{})
	w.check(err)
	defer func() { w.check(token.Close(ctx)) }()
	key, err := token.Key(ctx, w.issuer.KeyURI)
	w.check(err)
	w.sign(key)
}

func (w *world) sign(key *hsm.Key) {
	w.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test issuing CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	w.check(err)
	w.cert, err = x509.ParseCertificate(der)
	w.check(err)
	w.issuer.DER, w.issuer.Chain = der, [][]byte{der}
	w.issuer.ID, err = w.book.PutIssuer(bounded(w.t), w.issuer)
	w.check(err)
}

// connect makes the gateway's side: a reply subject whose results go to w.results.
func (w *world) connect() {
	w.t.Helper()
	var err error
	w.conn, err = queue.Connect(w.cfg.NATS, "gateway", nil)
	w.check(err)
	w.t.Cleanup(func() { w.conn.Close(bounded(w.t)) })
	ctx := bounded(w.t)
	w.check(w.conn.Wait(ctx))
	w.check(queue.EnsureStreams(ctx, w.conn.JetStream, w.conn.Settings))
	_, err = w.conn.NATS.Subscribe(w.reply, func(m *nats.Msg) {
		var reply queuev1.SignReply
		if err := w.conn.Keys.Open(m.Subject, m.Data, &reply); err != nil {
			w.t.Errorf("opening a reply: %v", err)
		}
		for _, r := range reply.Results {
			w.results <- r
		}
	})
	w.check(err)
}

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// request makes a request that the profile "workload" allows.
func (w *world) request(id string) *queuev1.SignRequest {
	key := ledger.NewRequestKey("mtls:test", id)
	csr := sha256.Sum256([]byte("csr " + id))
	return &queuev1.SignRequest{
		RequestKey: key[:], CsrSha256: csr[:], ReuseSeconds: 3600, Spki: w.spki, Issuer: "issuing", Profile: "workload",
		Uris:           []string{"spiffe://certmill.test/ns/test/sa/" + id},
		Caller:         &queuev1.Caller{Id: "mtls:test", Kind: "mtls", Identity: "spiffe://certmill.test/ns/test/sa/" + id},
		DeadlineUnixMs: time.Now().Add(20 * time.Second).UnixMilli(),
	}
}

// send publishes requests as one message.
func (w *world) send(p queue.Priority, requests ...*queuev1.SignRequest) {
	w.t.Helper()
	subject := queue.SignSubject("issuing", p)
	data, err := w.conn.Keys.Seal(subject, &queuev1.SignBatch{Requests: requests})
	w.check(err)
	w.publish(subject, data, nil)
}

func (w *world) publish(subject string, data []byte, header nats.Header) {
	w.t.Helper()
	m := &nats.Msg{Subject: subject, Data: data, Header: nats.Header{queue.HeaderReply: {w.reply}}}
	for k, v := range header {
		m.Header[k] = v
	}
	_, err := w.conn.JetStream.PublishMsg(bounded(w.t), m)
	w.check(err)
}

// await returns n results by request key.
func (w *world) await(n int) map[ledger.RequestKey]*queuev1.SignResult {
	w.t.Helper()
	got := map[ledger.RequestKey]*queuev1.SignResult{}
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	for len(got) < n {
		select {
		case r := <-w.results:
			got[ledger.RequestKey(r.RequestKey)] = r
		case <-limit.C:
			w.t.Fatalf("%d of %d results after 20 s", len(got), n)
		}
	}
	return got
}

// one sends one request and returns its result.
func (w *world) one(r *queuev1.SignRequest) *queuev1.SignResult {
	w.t.Helper()
	w.send(queue.First, r)
	return w.await(1)[ledger.RequestKey(r.RequestKey)]
}

// certificate checks a result against the issuer and the ledger.
func (w *world) certificate(r *queuev1.SignResult) *x509.Certificate {
	w.t.Helper()
	if r == nil || r.Failure != nil {
		w.t.Fatalf("no certificate: %v", r)
	}
	cert, err := x509.ParseCertificate(r.Der)
	w.check(err)
	w.check(cert.CheckSignatureFrom(w.cert))
	row := w.rows(r.RequestKey)[ledger.RequestKey(r.RequestKey)]
	if !bytes.Equal(row.Certificate.DER, r.Der) {
		w.t.Fatal("the certificate is not the one in the ledger")
	}
	return cert
}

func (w *world) rows(keys ...[]byte) map[ledger.RequestKey]ledger.Found {
	w.t.Helper()
	var rk []ledger.RequestKey
	for _, k := range keys {
		rk = append(rk, ledger.RequestKey(k))
	}
	found, err := w.book.Lookup(bounded(w.t), rk)
	w.check(err)
	return found
}

// pending returns how many messages the queue holds.
func (w *world) pending() uint64 {
	w.t.Helper()
	s, err := w.conn.JetStream.Stream(bounded(w.t), queue.SignStream)
	w.check(err)
	return s.CachedInfo().State.Msgs
}

func (w *world) drained() {
	eventually(w.t, "the queue is empty", func() bool { return w.pending() == 0 })
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// running is a signer at work.
type running struct {
	*Signer
	registry *prometheus.Registry
	stop     func() error // once
}

func (w *world) run(s *Signer, reg *prometheus.Registry, serve func(context.Context) error) *running {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx) }()
	r := &running{Signer: s, registry: reg, stop: sync.OnceValue(func() error { cancel(); return <-done })}
	w.t.Cleanup(func() {
		if err := r.stop(); err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	for end := time.Now().Add(20 * time.Second); s.Ready() != nil; time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-done:
			w.t.Fatalf("Run ended: %v", err)
		default:
		}
		if time.Now().After(end) {
			w.t.Fatalf("not ready within 20 s: %v", s.Ready())
		}
	}
	return r
}

// begin runs a signer without waiting until it is ready, and returns what stops it.
func (w *world) begin(s *Signer) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	w.t.Cleanup(func() { _ = stop() })
	return stop
}

// start runs a signer on its configuration, as the command does.
func (w *world) start() *running {
	w.t.Helper()
	reg := prometheus.NewRegistry()
	s, err := New(w.cfg, Deps{Registry: reg, Log: testLog(w.t)})
	w.check(err)
	return w.run(s, reg, s.Run)
}

// startWith runs a signer on parts that a test has changed.
func (w *world) startWith(change func(p *parts, tokens *[]Token)) *running {
	w.t.Helper()
	reg := prometheus.NewRegistry()
	s := newSigner(w.cfg, Deps{Registry: reg, Log: testLog(w.t)})
	set, err := profile.LoadDir(w.cfg.ProfilesDir)
	w.check(err)
	conn, err := queue.Connect(w.cfg.NATS, "signer", nil)
	w.check(err)
	committer, err := ledger.NewCommitter(w.book, w.cfg.Committer, ledger.Deps{})
	w.check(err)
	commitCtx, endCommits := context.WithCancel(context.Background())
	committed := make(chan error, 1)
	go func() { committed <- committer.Run(commitCtx) }()
	token, err := s.openToken(bounded(w.t), w.cfg.Tokens[0])
	w.check(err)
	p := parts{book: w.book, committer: committer, conn: conn, profiles: set, newPreparer: s.compiler(set)}
	tokens := []Token{token}
	change(&p, &tokens)
	return w.run(s, reg, func(ctx context.Context) error {
		defer conn.Close(context.Background())
		defer func() { endCommits(); <-committed }()
		return s.serve(ctx, p, tokens, nil)
	})
}

func testLog(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// value returns the sum of a metric over its labels; want are parts of label values
// that must be there.
func (r *running) value(name string, want ...string) float64 {
	families, err := r.registry.Gather()
	if err != nil {
		return -1
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	metric:
		for _, m := range f.Metric {
			for _, v := range want {
				found := false
				for _, l := range m.Label {
					found = found || l.GetValue() == v
				}
				if !found {
					continue metric
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

func name(i int) string { return "w" + strconv.Itoa(i) }

// fakeToken wraps a token to force what it cannot be made to show.
type fakeToken struct {
	Token
	ready func() bool
	sign  func(ctx context.Context, real ContextSigner, digest []byte, opts crypto.SignerOpts) ([]byte, error)

	mu        sync.Mutex
	condemned error
}

func (t *fakeToken) Ready() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.condemned == nil && (t.ready == nil || t.ready()) && t.Token.Ready()
}

func (t *fakeToken) Condemn(reason error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.condemned = reason
}

func (t *fakeToken) Key(ctx context.Context, uri string, public crypto.PublicKey) (ContextSigner, error) {
	k, err := t.Token.Key(ctx, uri, public)
	if err != nil || t.sign == nil {
		return k, err
	}
	return fakeKey{t, k}, nil
}

type fakeKey struct {
	t    *fakeToken
	real ContextSigner
}

func (k fakeKey) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.t.sign(ctx, k.real, digest, opts)
}
