package staple

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a CA, a certificate in a file, and a responder that answers what a test
// wants: real answers of real programs are in proxies_test.go.
type world struct {
	t        *testing.T
	ca       *ocsptest.CA
	delegate *x509.Certificate
	key      crypto.Signer
	leaf     *x509.Certificate
	chain    string
	url      string
	ahead    atomic.Int64

	mu     sync.Mutex
	answer func() (int, []byte)
	asked  int
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

func newWorld(t *testing.T) *world {
	w := &world{t: t, ca: ocsptest.NewCA(t, "Staple CA"), key: ocsptest.Key(t, "p256")}
	w.delegate = w.ca.Delegate(t, w.key, 1000*time.Hour)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.asked++
		status, body := w.answer()
		rw.WriteHeader(status)
		_, _ = rw.Write(body)
	}))
	t.Cleanup(server.Close)
	w.url = server.URL
	w.chain = filepath.Join(t.TempDir(), "site.pem")
	w.renewCertificate()
	w.says(w.good())
	return w
}

// renewCertificate puts another certificate into the file.
func (w *world) renewCertificate() {
	w.t.Helper()
	w.leaf, _ = w.ca.Leaf(w.t, 1, time.Now().Add(-time.Hour), time.Now().Add(300*time.Hour), w.url)
	text, err := os.ReadFile(ocsptest.WriteCertificate(w.t, "chain.pem", w.leaf, w.ca.Certificate))
	noError(w.t, err)
	noError(w.t, os.WriteFile(w.chain, text, 0o600))
}

// good is a template of an answer for the certificate.
func (w *world) good() ocsp.Response {
	return ocsp.Response{
		Status: ocsp.Good, SerialNumber: w.leaf.SerialNumber, Certificate: w.delegate, IssuerHash: crypto.SHA1,
		ThisUpdate: w.now().Add(-time.Minute).Truncate(time.Second), NextUpdate: w.now().Add(24 * time.Hour).Truncate(time.Second),
	}
}

func (w *world) revoked() ocsp.Response {
	r := w.good()
	r.Status, r.RevokedAt, r.RevocationReason = ocsp.Revoked, w.now().Add(-time.Minute), ocsp.KeyCompromise
	return r
}

func (w *world) sign(r ocsp.Response) []byte {
	w.t.Helper()
	der, err := ocsp.CreateResponse(w.ca.Certificate, r.Certificate, r, w.key)
	noError(w.t, err)
	return der
}

func (w *world) says(r ocsp.Response) { w.saysBytes(http.StatusOK, w.sign(r)) }

func (w *world) saysBytes(status int, body []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = func() (int, []byte) { return status, body }
}

func (w *world) stapler(change ...func(*Config)) *Stapler {
	w.t.Helper()
	cfg := DefaultConfig()
	cfg.Certificates = []Certificate{{Chain: w.chain}}
	for _, c := range change {
		c(&cfg)
	}
	s, err := New(cfg, Deps{Now: w.now})
	noError(w.t, err)
	return s
}

// file is what a proxy would find.
func (w *world) file() string {
	b, err := os.ReadFile(w.chain + ".ocsp")
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	noError(w.t, err)
	return string(b)
}

func (w *world) state(s *Stapler) State {
	reports, ok := s.Check()
	if ok != (reports[0].State == Fresh) {
		w.t.Errorf("ok %v for %+v", ok, reports[0])
	}
	return reports[0].State
}

func TestOnlyAnAnswerThatClientsTakeIsWritten(t *testing.T) {
	w := newWorld(t)
	other := ocsptest.NewCA(t, "Another CA")
	otherKey := ocsptest.Key(t, "p256")
	stranger, strangerKey := w.ca.Leaf(t, 1, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	change := func(f func(*ocsp.Response)) []byte {
		r := w.good()
		f(&r)
		return w.sign(r)
	}
	foreign, err := ocsp.CreateResponse(other.Certificate, other.Delegate(t, otherKey, time.Hour), func() ocsp.Response {
		r := w.good()
		r.Certificate = other.Delegate(t, otherKey, time.Hour)
		return r
	}(), otherKey)
	noError(t, err)
	impostor, err := ocsp.CreateResponse(w.ca.Certificate, stranger, func() ocsp.Response { r := w.good(); r.Certificate = stranger; return r }(), strangerKey)
	noError(t, err)
	// An answer for the same serial of another CA, by our delegate.
	mixed, err := ocsp.CreateResponse(other.Certificate, w.delegate, w.good(), w.key)
	noError(t, err)
	broken := w.sign(w.good())
	broken[len(broken)/2] ^= 1
	late := w.ca.Delegate(t, w.key, -time.Minute)
	for name, c := range map[string]struct {
		status int
		body   []byte
	}{
		"an error of HTTP":            {503, w.sign(w.good())},
		"no answer at all":            {200, nil},
		"tryLater":                    {200, ocsp.TryLaterErrorResponse},
		"unauthorized":                {200, ocsp.UnauthorizedErrorResponse},
		"a broken signature":          {200, broken},
		"another CA's":                {200, foreign},
		"another issuer's CertID":     {200, mixed},
		"signed by any certificate":   {200, impostor},
		"signed by an expired signer": {200, change(func(r *ocsp.Response) { r.Certificate = late })},
		"another serial":              {200, change(func(r *ocsp.Response) { r.SerialNumber = stranger.SerialNumber })},
		"unknown":                     {200, change(func(r *ocsp.Response) { r.Status = ocsp.Unknown })},
		"by SHA-256":                  {200, change(func(r *ocsp.Response) { r.IssuerHash = crypto.SHA256 })},
		"expired":                     {200, change(func(r *ocsp.Response) { r.NextUpdate = time.Now().Add(-time.Second) })},
		"of the future":               {200, change(func(r *ocsp.Response) { r.ThisUpdate = time.Now().Add(time.Hour) })},
		"without an end":              {200, change(func(r *ocsp.Response) { r.NextUpdate = time.Time{} })},
		"endless":                     {200, make([]byte, maxStapleBytes+1)},
	} {
		w.saysBytes(c.status, c.body)
		s := w.stapler()
		if err := s.Once(t.Context()); err == nil || w.file() != "" {
			t.Errorf("%s: %v, file of %d bytes", name, err, len(w.file()))
		}
		if s.Ready() == nil || w.state(s) != Missing {
			t.Errorf("%s: ready, state %s", name, w.state(s))
		}
	}
	der := w.sign(w.good())
	w.saysBytes(200, der)
	s := w.stapler()
	noError(t, s.Once(t.Context()))
	noError(t, s.Ready())
	if w.file() != string(der) || w.state(s) != Fresh {
		t.Error("a right answer is not written")
	}
}

func TestTheLastValidAnswerStaysAndTheAlarmComesInTime(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	noError(t, s.Once(t.Context()))
	first := w.file()
	w.saysBytes(500, nil)
	for _, c := range []struct {
		after time.Duration
		want  State
	}{{20 * time.Hour, Fresh}, {23 * time.Hour, Stale}, {25 * time.Hour, Expired}} {
		w.ahead.Store(int64(c.after))
		if err := s.Once(t.Context()); err == nil {
			t.Error("no error")
		}
		if got := w.state(s); got != c.want || w.file() != first {
			t.Errorf("after %s: %s, want %s; file changed %v", c.after, got, c.want, w.file() != first)
		}
		if ready := s.Ready(); (ready == nil) != (c.want != Expired) {
			t.Errorf("after %s: ready %v", c.after, ready)
		}
	}
	// A start without a responder has the file.
	w.ahead.Store(0)
	again := w.stapler()
	if err := again.Once(t.Context()); err == nil || again.Ready() != nil {
		t.Errorf("after a start: %v, ready %v", err, again.Ready())
	}
}

func TestAnOlderAnswerAndGoodAfterRevokedAreRefused(t *testing.T) {
	w := newWorld(t)
	s := w.stapler()
	noError(t, s.Once(t.Context()))
	first := w.file()
	old := w.good()
	old.ThisUpdate = old.ThisUpdate.Add(-time.Hour)
	w.says(old)
	if err := s.Once(t.Context()); err == nil || w.file() != first {
		t.Errorf("an older answer: %v", err)
	}
	// Revoked wins whatever its time is.
	revoked := w.revoked()
	revoked.ThisUpdate = old.ThisUpdate
	w.says(revoked)
	noError(t, s.Once(t.Context()))
	if w.file() == first || w.state(s) != Revoked {
		t.Errorf("state %s", w.state(s))
	}
	w.says(w.good())
	for what, s := range map[string]*Stapler{"at work": s, "after a start": w.stapler()} {
		if err := s.Once(t.Context()); err == nil || w.state(s) != Revoked {
			t.Errorf("good after revoked, %s: %v, %s", what, err, w.state(s))
		}
	}
	// Another certificate begins anew.
	w.renewCertificate()
	w.says(w.good())
	noError(t, s.Once(t.Context()))
	if w.state(s) != Fresh {
		t.Errorf("another certificate: %s", w.state(s))
	}
}

func TestReloadFollowsAChangeOnceAndIsRepeatedAfterAFailure(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	log, gate := filepath.Join(dir, "log"), filepath.Join(dir, "gate")
	s := w.stapler(func(c *Config) { c.Reload = []string{"sh", "-c", "echo x >> " + log + "; test -e " + gate} })
	runs := func() int {
		b, err := os.ReadFile(log)
		if err != nil {
			return 0
		}
		return strings.Count(string(b), "x")
	}
	if err := s.Once(t.Context()); err == nil || runs() != 1 {
		t.Errorf("%v after %d runs", err, runs())
	}
	noError(t, os.WriteFile(gate, nil, 0o600))
	w.ahead.Add(int64(time.Hour))
	noError(t, s.Once(t.Context()))
	noError(t, s.Once(t.Context())) // nothing has changed
	if runs() != 2 {
		t.Errorf("%d runs", runs())
	}
}

func TestHAProxyIsTriedUntilItTakesTheStaple(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "s")
	s := w.stapler(func(c *Config) { c.Certificates[0].HAProxy = []string{path} })
	if err := s.Once(t.Context()); err == nil || w.file() == "" {
		t.Errorf("without HAProxy: %v; the file must be there all the same", err)
	}
	var got atomic.Int32
	refuse := true
	l, err := net.Listen("unix", path)
	noError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 16<<10)
			n, _ := c.Read(buf)
			if strings.HasPrefix(string(buf[:n]), "set ssl ocsp-response MII") {
				got.Add(1)
			}
			answer := "OCSP Response updated!\n\n"
			if refuse {
				answer = "OCSP single response: Certificate ID does not match.\n\n"
			}
			refuse = false
			_, _ = c.Write([]byte(answer))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	if err := s.Once(t.Context()); err == nil || !strings.Contains(err.Error(), "does not match") {
		t.Errorf("refused: %v", err)
	}
	noError(t, s.Once(t.Context()))
	noError(t, s.Once(t.Context())) // it has it
	if got.Load() != 2 {
		t.Errorf("%d commands", got.Load())
	}
}

func TestRunAsksAtHalfTimeAndForANewCertificateAtOnce(t *testing.T) {
	w := newWorld(t)
	s := w.stapler(func(c *Config) { c.Look, c.Interval = 10*time.Millisecond, 7*24*time.Hour })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	asked := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.asked
	}
	becomes := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not within 10 s: %s", what)
			}
		}
	}
	becomes("the first", func() bool { return asked() == 1 && w.file() != "" })
	w.ahead.Store(int64(9 * time.Hour)) // of 24
	first := w.file()
	time.Sleep(50 * time.Millisecond) // five looks
	if asked() != 1 {
		t.Error("asked before it was time")
	}
	w.ahead.Store(int64(13 * time.Hour))
	w.says(w.good())
	becomes("the next", func() bool { return w.file() != first })
	w.renewCertificate()
	w.says(w.good())
	becomes("the new certificate's", func() bool { return w.state(s) == Fresh })
	cancel()
	noError(t, <-done)
}

func TestConfigurationMistakesAreNamed(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"at least one":          func(c *Config) { c.Certificates = nil },
		"chain is missing":      func(c *Config) { c.Certificates[0].Chain = "" },
		"staple of another":     func(c *Config) { c.Certificates = append(c.Certificates, c.Certificates[0]) },
		"overwrite":             func(c *Config) { c.Certificates[0].Staple = c.Certificates[0].Chain },
		"responder is not":      func(c *Config) { c.Certificates[0].Responder = "ocsp.test" },
		"interval must be":      func(c *Config) { c.Interval = 0 },
		"reload names no progr": func(c *Config) { c.Reload = []string{""} },
	} {
		cfg := DefaultConfig()
		cfg.Certificates = []Certificate{{Chain: "a.pem"}}
		change(&cfg)
		if _, err := New(cfg, Deps{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
