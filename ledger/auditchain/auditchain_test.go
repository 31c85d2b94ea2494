package auditchain

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// softKey signs as signer.IssuerKey does.
type softKey struct{ crypto.Signer }

func (k softKey) Hash() crypto.Hash {
	switch p := k.Public().(type) {
	case *ecdsa.PublicKey:
		if p.Curve == elliptic.P384() {
			return crypto.SHA384
		}
	case ed25519.PublicKey:
		return 0
	}
	return crypto.SHA256
}

func (k softKey) Sign(_ context.Context, digest []byte) ([]byte, error) {
	return k.Signer.Sign(rand.Reader, digest, k.Hash())
}

// world is a ledger on PostgreSQL with an issuer and a clock.
type world struct {
	t     *testing.T
	book  *ledger.Ledger
	url   string
	key   softKey
	roots *x509.CertPool
	now   time.Time
	logs  bytes.Buffer
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, url: testenv.PostgreSQL(t), now: time.Now().UTC().Truncate(time.Microsecond)}
	cfg := config.Ledger{URL: w.url, MaxConnections: 4}
	if err := ledger.Migrate(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	w.book = must(ledger.Open(t.Context(), cfg, ledger.Deps{}))(t)
	t.Cleanup(w.book.Close)
	w.key, w.roots = w.issuer("issuing", ledger.IssuerActive)
	return w
}

// issuer registers an issuer below a root of its own.
func (w *world) issuer(name, state string) (softKey, *x509.CertPool) {
	root, rootKey := authority(w.t, "root of "+name, nil, nil)
	cert, key := authority(w.t, name, root, rootKey)
	must(w.book.PutIssuer(w.t.Context(), ledger.Issuer{Name: name, State: state, DER: cert.Raw, Chain: [][]byte{root.Raw}, KeyURI: "pkcs11:object=" + name}))(w.t)
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return softKey{key}, pool
}

func authority(t testing.TB, name string, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der := must(x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey))(t)
	return must(x509.ParseCertificate(der))(t), key
}

func (w *world) sentry() *Sentry {
	w.t.Helper()
	return must(NewSentry(Config{Interval: time.Minute, Heartbeat: time.Hour}, Deps{
		Ledger: w.book, Registry: prometheus.NewRegistry(), Now: func() time.Time { return w.now },
		Key: func(_ context.Context, i ledger.Issuer) (Key, error) {
			if i.Name != "issuing" {
				return nil, errors.New("not here")
			}
			return w.key, nil
		},
		Log: slog.New(slog.NewJSONHandler(&w.logs, nil)),
	}))(w.t)
}

func (w *world) rows(n int) {
	w.t.Helper()
	for i := range n {
		must(w.book.AppendAudit(w.t.Context(), ledger.AuditEntry{Actor: "operator", Action: "certificate.revoke", Subject: fmt.Sprint(i), Detail: "superseded"}))(w.t)
	}
}

// exec changes the database as its owner could.
func (w *world) exec(sql ...string) {
	w.t.Helper()
	conn := must(pgx.Connect(w.t.Context(), w.url))(w.t)
	defer func() { _ = conn.Close(w.t.Context()) }()
	for _, s := range append([]string{`SET session_replication_role = replica`}, sql...) {
		if _, err := conn.Exec(w.t.Context(), s); err != nil {
			w.t.Fatalf("%s: %v", s, err)
		}
	}
}

func (w *world) watch(s *Sentry) {
	w.t.Helper()
	if err := s.Watch(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) options() Options {
	return Options{Roots: w.roots, MaxAge: 2 * time.Hour, Now: func() time.Time { return w.now }}
}

func TestHeadsAreSignedAsRowsComeAndAsTimePasses(t *testing.T) {
	w := newWorld(t)
	s := w.sentry()
	heads := func() []ledger.SignedHead {
		return must(w.book.SignedHeads(t.Context(), ledger.SignedHead{}, 100))(t)
	}
	step := func(d time.Duration, rows, want int) {
		t.Helper()
		w.now = w.now.Add(d)
		w.rows(rows)
		w.watch(s)
		if n := len(heads()); n != want {
			t.Errorf("%d signed heads, want %d", n, want)
		}
	}
	step(0, 0, 1) // the empty chain: from now on a missing head means something
	step(time.Second, 3, 1)
	step(time.Minute, 0, 2)
	step(10*time.Minute, 0, 2) // nothing new
	step(time.Second, 1, 3)
	step(time.Hour, 0, 4) // nothing new for long
	other := w.sentry()   // another signer sees that it is done
	w.watch(other)
	if n := len(heads()); n != 4 {
		t.Errorf("two signers made %d heads, want 4", n)
	}
	report := must(Verify(t.Context(), w.book, w.options()))(t)
	if report.Rows != 4 || report.Heads != 4 || report.SignedRows != 4 || !report.SignedAt.Equal(w.now) {
		t.Errorf("%+v", report)
	}
	if n := strings.Count(w.logs.String(), "audit head signed"); n != 4 {
		t.Errorf("%d heads are in the log, want 4", n)
	}
	if got := testutil.ToFloat64(s.signed); got != 4 {
		t.Errorf("counted %v", got)
	}
}

// Each change must be found in the ledger and in an export that was made of it.
func TestWhatWasChangedIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		sql []string
		row int64
	}{
		"an edit":                           {[]string{`UPDATE audit SET actor = 'nobody' WHERE seq = 3`}, 3},
		"an edit of the time":               {[]string{`UPDATE audit SET recorded_at = recorded_at + interval '1 microsecond' WHERE seq = 3`}, 3},
		"a deletion":                        {[]string{`DELETE FROM audit WHERE seq = 2`}, 2},
		"two rows that changed places":      {[]string{`UPDATE audit SET seq = -4 WHERE seq = 4`, `UPDATE audit SET seq = 4 WHERE seq = 5`, `UPDATE audit SET seq = 5 WHERE seq = -4`}, 4},
		"an end that was cut off":           {[]string{`DELETE FROM audit WHERE seq > 4`, `UPDATE audit_head SET seq = 4, hash = (SELECT hash FROM audit WHERE seq = 4)`}, 6},
		"an end that was cut, one head too": {[]string{`DELETE FROM audit WHERE seq > 4`, `UPDATE audit_head SET seq = 4, hash = (SELECT hash FROM audit WHERE seq = 4)`, `DELETE FROM audit_heads WHERE seq = 8`}, 6},
		"everything":                        {[]string{`DELETE FROM audit`, `UPDATE audit_head SET seq = 0, hash = decode(repeat('00', 32), 'hex')`}, 6},
		"a head that was moved":             {[]string{`UPDATE audit_heads SET seq = 7 WHERE seq = 8`}, 7},
		"a head that was made younger":      {[]string{`UPDATE audit_heads SET signed_at = signed_at + interval '1 hour' WHERE seq = 8`}, 8},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.sentry()
			w.rows(6)
			w.watch(s)
			w.now = w.now.Add(time.Minute)
			w.rows(2)
			w.watch(s)
			must(Verify(t.Context(), w.book, w.options()))(t)
			w.exec(c.sql...)
			_, err := Verify(t.Context(), w.book, w.options())
			if at(err) != c.row {
				t.Errorf("in the ledger: %v, want row %d", err, c.row)
			}
			if _, err := Export(t.Context(), w.book, &bytes.Buffer{}); at(err) != c.row {
				t.Errorf("at the export: %v, want row %d", err, c.row)
			}
		})
	}
}

func at(err error) int64 {
	if e, ok := errors.AsType[*ledger.BrokenChainError](err); ok {
		return e.Sequence
	}
	if e, ok := errors.AsType[*HeadError](err); ok {
		return e.Sequence
	}
	return -1
}

// rewrite writes the chain anew from a row on, with hashes that fit, as an owner of the
// database could.
func (w *world) rewrite(from int64) {
	w.t.Helper()
	rows := must(w.book.Audit(w.t.Context(), 0, 100))(w.t)
	w.exec(fmt.Sprintf(`DELETE FROM audit WHERE seq >= %d`, from),
		fmt.Sprintf(`UPDATE audit_head SET seq = %d, hash = coalesce((SELECT hash FROM audit WHERE seq = %d), decode(repeat('00', 32), 'hex'))`, from-1, from-1))
	for _, e := range rows[from-1:] {
		e.Detail = "nothing happened"
		must(w.book.AppendAudit(w.t.Context(), e))(w.t)
	}
}

func TestAChainThatWasRewrittenWithFittingHashesIsFound(t *testing.T) {
	w := newWorld(t)
	s := w.sentry()
	w.rows(6)
	w.watch(s)
	var witness ledger.SignedHead = must(w.book.LastSignedHead(t.Context()))(t)
	w.rewrite(4)
	if n, err := w.book.VerifyAudit(t.Context()); err != nil || n != 6 {
		t.Fatalf("the rewritten chain does not fit in itself: %d rows, %v", n, err)
	}
	t.Run("by its signed head", func(t *testing.T) {
		if _, err := Verify(t.Context(), w.book, w.options()); at(err) != 6 {
			t.Errorf("%v", err)
		}
	})
	t.Run("by a signer that runs, which signs no more and says so", func(t *testing.T) {
		w.now = w.now.Add(2 * time.Hour)
		if err := s.Watch(t.Context()); at(err) != 6 || !s.broken.Load() {
			t.Errorf("%v", err)
		}
		s.report(s.Watch(t.Context()))
		if !strings.Contains(w.logs.String(), "THE AUDIT TRAIL WAS CHANGED") {
			t.Error("the log does not say so")
		}
		if err := w.sentry().Watch(t.Context()); at(err) != 6 {
			t.Errorf("a signer that starts: %v", err)
		}
	})
	t.Run("without any head, by their absence", func(t *testing.T) {
		w.exec(`DELETE FROM audit_heads`)
		if _, err := Verify(t.Context(), w.book, w.options()); at(err) != 0 {
			t.Errorf("%v", err)
		}
	})
	t.Run("when a signer signed it anew, by a witness", func(t *testing.T) {
		w.watch(w.sentry()) // it starts without memory and without a head: it cannot know
		o := w.options()
		must(Verify(t.Context(), w.book, o))(t)
		o.Witness = &witness
		if _, err := Verify(t.Context(), w.book, o); at(err) != 6 {
			t.Errorf("%v", err)
		}
	})
}

func TestForgedHeadsAreFound(t *testing.T) {
	w := newWorld(t)
	w.rows(3)
	s := w.sentry()
	w.watch(s)
	mallory, _ := w.issuer("mallory", ledger.IssuerRetired)
	head := must(w.book.AuditHead(t.Context()))(t)
	issuers := must(w.book.Issuers(t.Context()))(t)
	forge := func(issuer ledger.Issuer, key softKey) ledger.SignedHead {
		h := ledger.SignedHead{AuditHead: head, SignedAt: w.now.Add(time.Second), Issuer: issuer.ID}
		h.Signature = must(key.Sign(t.Context(), digest(key.Hash(), Statement(h, must(x509.ParseCertificate(issuer.DER))(t)))))(t)
		return h
	}
	t.Run("by another key", func(t *testing.T) {
		v := NewVerifier(Options{})
		for _, i := range issuers {
			must(0, v.Issuer(i))(t)
		}
		if err := v.Head(forge(issuers[0], mallory)); !errors.Is(err, ErrSignature) {
			t.Errorf("%v", err)
		}
	})
	t.Run("by an issuer of their own making", func(t *testing.T) {
		// Which can stand in the ledger, so the roots are what counts.
		if _, err := Verify(t.Context(), w.book, w.options()); err == nil {
			t.Error("an issuer from elsewhere is taken")
		}
		o := w.options()
		o.Roots = nil
		must(Verify(t.Context(), w.book, o))(t)
	})
	t.Run("by nobody known", func(t *testing.T) {
		h := forge(issuers[0], w.key)
		h.Issuer = 99
		if err := NewVerifier(Options{}).Head(h); at(err) != h.Sequence {
			t.Errorf("%v", err)
		}
	})
}

func TestAnOldHeadIsNoHead(t *testing.T) {
	w := newWorld(t)
	w.rows(2)
	w.watch(w.sentry())
	w.now = w.now.Add(2*time.Hour + time.Second)
	if _, err := Verify(t.Context(), w.book, w.options()); at(err) != 2 {
		t.Errorf("%v", err)
	}
}

func TestAnExportIsCheckedOffline(t *testing.T) {
	w := newWorld(t)
	s := w.sentry()
	w.rows(4)
	w.watch(s)
	w.rows(3)
	var out bytes.Buffer
	want := must(Export(t.Context(), w.book, &out))(t)
	if want.Rows != 7 || want.Heads != 1 || want.SignedRows != 4 {
		t.Fatalf("exported %+v", want)
	}
	witness := must(w.book.LastSignedHead(t.Context()))(t)
	o := w.options()
	o.Witness = &witness
	if got := must(VerifyFile(bytes.NewReader(out.Bytes()), o))(t); got.Rows != want.Rows || got.Heads != 2 {
		t.Errorf("read %+v, exported %+v", got, want)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(out.String(), "\n"), "\n")
	for name, text := range map[string]string{
		"a changed row":      strings.Replace(out.String(), `"subject":"2"`, `"subject":"7"`, 1),
		"a row less":         strings.Join(append(append([]string{}, lines[:5]...), lines[6:]...), ""),
		"cut off":            strings.Join(lines[:len(lines)-2], ""),
		"cut off with end":   strings.Join(lines[:4], "") + lines[len(lines)-1],
		"more after the end": out.String() + lines[4],
		"a head less":        strings.Join(append(append([]string{}, lines[:2]...), lines[3:]...), ""),
		"another file":       "{}\n",
		"nothing":            "",
		"no JSON":            "x",
	} {
		if _, err := VerifyFile(strings.NewReader(text), w.options()); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestEveryKindOfIssuerSignsHeads(t *testing.T) {
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for name, key := range map[string]crypto.Signer{
		"P-256": must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t), "P-384": must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t),
		"RSA": must(rsa.GenerateKey(rand.Reader, 2048))(t), "Ed25519": ed,
	} {
		t.Run(name, func(t *testing.T) {
			template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
			cert := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)))(t)
			h := ledger.SignedHead{AuditHead: ledger.AuditHead{Sequence: 5, Hash: [32]byte{1}}, SignedAt: time.Now().Truncate(time.Microsecond), Issuer: 1}
			k := softKey{key}
			h.Signature = must(k.Sign(t.Context(), digest(k.Hash(), Statement(h, cert))))(t)
			if err := CheckSignature(h, cert); err != nil {
				t.Error(err)
			}
			for i, other := range []ledger.SignedHead{h, h, h} {
				switch i {
				case 0:
					other.Sequence++
				case 1:
					other.Hash[9] ^= 1
				case 2:
					other.SignedAt = other.SignedAt.Add(time.Microsecond)
				}
				if err := CheckSignature(other, cert); !errors.Is(err, ErrSignature) {
					t.Errorf("change %d is not noticed: %v", i, err)
				}
			}
		})
	}
}

// What is signed about a head can be read as nothing else that the key signs.
func TestAStatementIsNoDER(t *testing.T) {
	cert, _ := authority(t, "a", nil, nil)
	statement := Statement(ledger.SignedHead{}, cert)
	var raw asn1.RawValue
	if _, err := asn1.Unmarshal(statement, &raw); err == nil && raw.Tag == asn1.TagSequence && raw.Class == asn1.ClassUniversal {
		t.Error("a statement begins a SEQUENCE")
	}
	if statement[0] == 0x30 || statement[0] == 0x20 {
		t.Errorf("a statement begins with %#x", statement[0])
	}
	if _, err := x509.ParseRevocationList(statement); err == nil {
		t.Error("a statement is a CRL")
	}
}

func TestASentryRunsUntilItIsStopped(t *testing.T) {
	w := newWorld(t)
	w.rows(1)
	ctx, cancel := context.WithCancel(t.Context())
	s := w.sentry()
	var ended sync.WaitGroup
	ended.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(10 * time.Second); s.last.Load() == 0 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
	}
	cancel()
	ended.Wait()
	if s.last.Load() == 0 {
		t.Error("nothing was signed")
	}
}
