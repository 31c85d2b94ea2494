package presign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	xocsp "golang.org/x/crypto/ocsp"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp"
	"github.com/certmill/certmill/ocsp/ocsptest"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// world is a CA with its ledger in memory, and a real Redis and NATS.
type world struct {
	t      testing.TB
	ca     *ocsptest.CA
	ledger *ocsptest.Ledger
	issuer int32
	epoch  uint32
	redis  string
	proxy  *ocsptest.Proxy // the presigners' way to Redis
	store  *ocsp.Store
	queue  *queue.Conn
	// redisConfig stands in for redis and proxy.
	redisConfig *config.Redis
	ahead       atomic.Int64 // how far the clock is moved
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, ca: ocsptest.NewCA(t, "Test CA"), ledger: ocsptest.NewLedger(), redis: testenv.Redis(t)}
	w.ledger.Now = w.now
	w.proxy = ocsptest.NewProxy(t, w.redis)
	w.issuer = w.ledger.AddIssuer(w.ca)
	w.addSigner(96 * time.Hour)
	w.epoch = w.ledger.AddEpoch(w.issuer)
	store, err := ocsp.OpenStore(config.Redis{Addresses: []string{w.redis}}, ocsp.DefaultNamespace)
	noError(t, err)
	t.Cleanup(func() { noError(t, store.Close()) })
	w.store = store
	return w
}

// addSigner gives the CA another OCSP signer with a key in a file.
func (w *world) addSigner(lifetime time.Duration) int32 {
	w.t.Helper()
	key := ocsptest.Key(w.t, "p256")
	cert := w.ca.Delegate(w.t, key, lifetime)
	return w.ledger.AddSigner(w.issuer, cert.Raw, "file:"+ocsptest.WriteKey(w.t, "ocsp.key", key))
}

// connect gives the world a NATS server with the events' stream.
func (w *world) connect() {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "queue.key")
	noError(w.t, os.WriteFile(path, []byte(strings.Repeat("ab", 32)), 0o600))
	cfg := config.DefaultNATS()
	cfg.URL, cfg.QueueKeyFile, cfg.Memory = testenv.NATS(w.t), path, true
	var err error
	w.queue, err = queue.Connect(cfg, "test", nil)
	noError(w.t, err)
	w.t.Cleanup(func() { w.queue.Close(context.Background()) })
	noError(w.t, w.queue.Wait(w.t.Context()))
	noError(w.t, queue.EnsureStreams(w.t.Context(), w.queue.JetStream, queue.SettingsOf(cfg)))
}

// issue puts a certificate into the ledger. It lives from an hour ago, so that the
// sweep waits for no event.
func (w *world) issue(life time.Duration) ledger.Status {
	w.t.Helper()
	return w.issueAt(w.now().Add(-time.Hour), life)
}

func (w *world) issueAt(notBefore time.Time, life time.Duration) ledger.Status {
	w.t.Helper()
	notBefore = notBefore.Truncate(time.Second)
	notAfter := w.now().Add(life).Truncate(time.Second)
	st := ledger.Status{
		Serial: ocsptest.Serial(w.t, w.epoch, notBefore, notAfter), Issuer: w.issuer,
		NotBefore: notBefore, NotAfter: notAfter, Revocation: ledger.RevocationOCSP,
	}
	w.ledger.Issue(st)
	return st
}

func (w *world) announceIssued(statuses ...ledger.Status) {
	w.t.Helper()
	m := &queuev1.IssuedEvent{}
	for _, st := range statuses {
		m.Issued = append(m.Issued, &queuev1.Issued{
			Serial: st.Serial[:], IssuerId: st.Issuer, Revocation: uint32(st.Revocation),
			NotBeforeUnix: st.NotBefore.Unix(), NotAfterUnix: st.NotAfter.Unix(),
		})
	}
	noError(w.t, w.queue.Publish(queue.IssuedSubject("test"), m))
}

// revoke revokes in the ledger and, if there is a queue, announces it.
func (w *world) revoke(st ledger.Status) {
	w.t.Helper()
	r := w.ledger.Revoke(st.Serial, 1)
	if w.queue == nil {
		return
	}
	noError(w.t, w.queue.Publish(queue.RevokedSubject("test"), &queuev1.RevokedEvent{
		Serial: st.Serial[:], IssuerId: st.Issuer, Reason: int32(r.Reason), RevokedAtUnix: r.RevokedAt.Unix(),
		NotAfterUnix: st.NotAfter.Unix(), AcknowledgedUnixMs: time.Now().UnixMilli(), Revocation: uint32(st.Revocation),
	}))
}

// presigner is a running Presigner.
type presigner struct {
	*Presigner
	reg  *prometheus.Registry
	stop func()
}

// presign starts a presigner with short intervals.
func (w *world) presign(change ...func(*Config, *Deps)) *presigner {
	w.t.Helper()
	cfg := DefaultConfig()
	cfg.Redis = config.Redis{Addresses: []string{w.proxy.Addr()}}
	if w.redisConfig != nil {
		cfg.Redis = *w.redisConfig
	}
	cfg.SweepInterval, cfg.RevocationPoll, cfg.HealthPoll = 200*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	cfg.SharedPoll, cfg.Lease, cfg.RedisTimeout = 100*time.Millisecond, 400*time.Millisecond, time.Second
	cfg.SweepRate, cfg.CheckShare, cfg.SweepShare = 100_000, 1, 0
	reg := prometheus.NewRegistry()
	deps := Deps{Ledger: w.ledger, Queue: w.queue, Registry: reg, Now: w.now}
	if testing.Verbose() {
		deps.Log = slog.New(slog.NewTextHandler(w.t.Output(), nil))
	}
	for _, c := range change {
		c(&cfg, &deps)
	}
	if cfg.Name == "" {
		cfg.Name = "p" + time.Now().Format("150405.000000000")
	}
	p, err := New(cfg, deps)
	noError(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			cancel()
			noError(w.t, <-done)
		}
	}
	w.t.Cleanup(stop)
	return &presigner{Presigner: p, reg: reg, stop: stop}
}

// respond starts a responder and returns its URL.
func (w *world) respond() string {
	w.t.Helper()
	url, _ := w.responder()
	return url
}

// responder starts one that can be stopped before the test ends.
func (w *world) responder() (url string, stop func()) {
	w.t.Helper()
	cfg := ocsp.DefaultConfig()
	cfg.Listen, cfg.Redis = "127.0.0.1:0", config.Redis{Addresses: []string{w.redis}}
	if w.redisConfig != nil {
		cfg.Redis = *w.redisConfig
	}
	r, err := ocsp.New(cfg, ocsp.Deps{Now: w.now})
	noError(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		noError(w.t, <-done)
	})
	w.t.Cleanup(stop)
	addr, err := r.Addr(w.t.Context())
	noError(w.t, err)
	return "http://" + addr.String(), stop
}

// ask asks a responder, by SHA-256, and returns "good", "revoked" or an error's text.
func (w *world) ask(url string, n serial.Number) string {
	w.t.Helper()
	got, err := w.tryAsk(url, n)
	noError(w.t, err)
	return got
}

// tryAsk is ask for a responder that may be away, which is the error.
func (w *world) tryAsk(url string, n serial.Number) (string, error) {
	w.t.Helper()
	der, err := xocsp.CreateRequest(&x509.Certificate{SerialNumber: n.Big()}, w.ca.Certificate, &xocsp.RequestOptions{Hash: crypto.SHA256})
	noError(w.t, err)
	resp, err := http.Post(url, "application/ocsp-request", bytes.NewReader(der))
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return "", err
	}
	return w.judgement(body, n), nil
}

func (w *world) judgement(body []byte, n serial.Number) string {
	got, err := xocsp.ParseResponseForCert(body, &x509.Certificate{SerialNumber: n.Big()}, w.ca.Certificate)
	switch {
	case err != nil:
		return strings.TrimPrefix(err.Error(), "ocsp: error from server: ")
	case !got.NextUpdate.After(w.now()):
		return "expired"
	case got.Status == xocsp.Revoked:
		return "revoked"
	}
	return "good"
}

// record reads a record from Redis; ok is false where there is none.
func (w *world) record(n serial.Number) (rec ocsp.Record, ok bool) {
	w.t.Helper()
	got, err := w.store.Get(w.t.Context(), []serial.Number{n})
	noError(w.t, err)
	if got[0] == "" {
		return rec, false
	}
	rec, err = ocsp.DecodeRecord(got[0])
	noError(w.t, err)
	return rec, true
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	w.eventuallyWithin(30*time.Second, what, ok)
}

func (w *world) eventuallyWithin(d time.Duration, what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(d); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("not within %s: %s", d, what)
		}
	}
}

// metric sums the samples of a metric that have these label values.
func (p *presigner) metric(t testing.TB, name string, labels ...string) (sum float64) {
	t.Helper()
	families, err := p.reg.Gather()
	noError(t, err)
	for _, f := range families {
		if f.GetName() != "certmill_presign_"+name {
			continue
		}
	next:
		for _, m := range f.Metric {
			for _, want := range labels {
				found := false
				for _, l := range m.Label {
					found = found || l.GetValue() == want
				}
				if !found {
					continue next
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// recordEdit is a record to be changed.
type recordEdit struct{ *ocsp.Record }
