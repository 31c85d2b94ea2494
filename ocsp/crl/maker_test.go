package crl

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/certmill/certmill/internal/crldp"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ledger/ledgertest"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

// world is an issuer in a real ledger, with a clock that the test moves.
type world struct {
	t      testing.TB
	ca     *ca
	url    string
	book   *ledger.Ledger
	issuer int32
	ahead  atomic.Int64
	broken atomic.Bool // the key
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, ca: newCA(t, "p256", "Issuing"), url: testenv.PostgreSQL(t)}
	w.book = ledgertest.Open(t, w.url, ledger.Deps{Now: w.now})
	var err error
	w.issuer, err = w.book.PutIssuer(t.Context(), ledger.Issuer{Name: "issuing", State: ledger.IssuerActive, DER: w.ca.cert.Raw})
	noError(t, err)
	return w
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

// issue commits a certificate of the issuer that has a CRL.
func (w *world) issue(life time.Duration) serial.Number {
	w.t.Helper()
	e := ledgertest.Entry(w.t, w.now(), life)
	e.Issuer, e.Revocation = w.issuer, ledger.RevocationCRL
	for _, r := range w.book.CommitBatch(w.t.Context(), []ledger.Entry{e}) {
		noError(w.t, r.Err)
	}
	return e.Serial
}

func (w *world) revoke(n serial.Number) {
	w.t.Helper()
	_, _, err := w.book.Revoke(w.t.Context(), ledger.Revocation{Serial: n, Reason: 1, RevokedBy: "test"})
	noError(w.t, err)
}

var points = []Wanted{{"issuing", crldp.Point{URL: "http://crl.test/{issuer}/{shard}.crl", Shards: 4}}}

// maker makes one without running it; each look is the test's.
func (w *world) maker(change ...func(*Config, *Deps)) *Maker {
	w.t.Helper()
	cfg := DefaultConfig()
	cfg.AfterRevocation = 0
	deps := Deps{
		Ledger: w.book, Now: w.now, Wanted: func() []Wanted { return points }, Registry: prometheus.NewRegistry(),
		Key: func(context.Context, ledger.Issuer) (Key, error) {
			if w.broken.Load() {
				return nil, errors.New("the token is away")
			}
			return w.ca.key, nil
		},
	}
	for _, c := range change {
		c(&cfg, &deps)
	}
	m, err := New(cfg, deps)
	noError(w.t, err)
	return m
}

// look has a maker look until nothing is due, and returns the CRLs.
func (w *world) look(makers ...*Maker) []ledger.CRL {
	w.t.Helper()
	for range 8 {
		for _, m := range makers {
			_, err := m.look(w.t.Context())
			noError(w.t, err)
		}
		for _, m := range makers {
			m.work.Wait()
		}
	}
	crls, err := w.book.CRLs(w.t.Context())
	noError(w.t, err)
	return crls
}

// read puts a CRL together and checks it.
func (w *world) read(c ledger.CRL) *x509.RevocationList {
	w.t.Helper()
	der := w.der(c)
	if int64(len(der)) != c.Bytes {
		w.t.Errorf("%d bytes, %d in the ledger", len(der), c.Bytes)
	}
	list, err := x509.ParseRevocationList(der)
	noError(w.t, err)
	noError(w.t, list.CheckSignatureFrom(w.ca.cert))
	if list.Number.Int64() != c.Number || !list.ThisUpdate.Equal(c.ThisUpdate) || !list.NextUpdate.Equal(c.NextUpdate) || int64(len(list.RevokedCertificateEntries)) != c.Entries {
		w.t.Errorf("the CRL is not what the ledger says of it: %+v", c)
	}
	return list
}

func (w *world) lists(c ledger.CRL, n serial.Number) bool {
	return slices.ContainsFunc(w.read(c).RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(n.Big()) == 0 })
}

func TestARevocationRemakesItsShardAlone(t *testing.T) {
	w := newWorld(t)
	m := w.maker()
	before := w.look(m)
	if len(before) != 4 {
		t.Fatalf("%d CRLs", len(before))
	}
	for _, c := range before {
		if c.Entries != 0 || c.Number == 0 {
			t.Errorf("%+v", c)
		}
		w.read(c)
	}
	n := w.issue(time.Hour)
	w.revoke(n)
	after := w.look(m)
	for i, c := range after {
		if i != crldp.Of(n, 4) {
			if c != before[i] {
				t.Errorf("shard %d was made again", i)
			}
			continue
		}
		if c.Number <= before[i].Number || !c.ThisUpdate.After(before[i].ThisUpdate) || c.Scheduled != before[i].Scheduled || !w.lists(c, n) {
			t.Errorf("shard %d: %+v after %+v", i, c, before[i])
		}
	}
	// A maker that starts later makes up for what nobody saw.
	missed := w.issue(time.Hour)
	w.revoke(missed)
	if crls := w.look(w.maker()); !w.lists(crls[crldp.Of(missed, 4)], missed) {
		t.Error("a revocation that happened between two makers is missing")
	}
}

func TestRevocationsAreGathered(t *testing.T) {
	w := newWorld(t)
	m := w.maker(func(c *Config, _ *Deps) { c.AfterRevocation = time.Minute })
	before := w.look(m)
	n := w.issue(time.Hour)
	w.revoke(n)
	if !slices.Equal(w.look(m), before) {
		t.Error("made at once")
	}
	w.ahead.Add(int64(2 * time.Minute))
	if c := w.look(m)[crldp.Of(n, 4)]; !w.lists(c, n) {
		t.Error("not made in time")
	}
}

func TestAnEntryStaysUntilOneScheduledCRLAfterExpiry(t *testing.T) {
	w := newWorld(t)
	m := w.maker()
	n := w.issue(30 * time.Minute)
	w.look(m)
	w.revoke(n)
	shard := crldp.Of(n, 4)
	if !w.lists(w.look(m)[shard], n) {
		t.Fatal("not listed")
	}
	first := w.look(m)[shard].Number
	w.ahead.Add(int64(70 * time.Minute)) // expired, and the schedule is due
	scheduled := w.look(m)[shard]
	if scheduled.Number == first || !w.lists(scheduled, n) {
		t.Error("the first scheduled CRL after expiry lacks the entry")
	}
	w.ahead.Add(int64(70 * time.Minute))
	if next := w.look(m)[shard]; next.Number == scheduled.Number || w.lists(next, n) {
		t.Error("the second one still has it")
	}
}

func TestChangingTheShardsLeavesOldCertificatesTheirCRL(t *testing.T) {
	w := newWorld(t)
	w.look(w.maker())
	more := []Wanted{{"issuing", crldp.Point{URL: points[0].Point.URL, Shards: 16}}}
	m := w.maker(func(_ *Config, d *Deps) { d.Wanted = func() []Wanted { return more } })
	n := w.issue(time.Hour)
	w.look(m)
	w.revoke(n)
	crls := w.look(m)
	if len(crls) != 20 {
		t.Fatalf("%d CRLs", len(crls))
	}
	for _, c := range []ledger.CRL{crls[crldp.Of(n, 4)], crls[4+crldp.Of(n, 16)]} {
		if !w.lists(c, n) {
			t.Errorf("set %d, shard %d lacks it", c.Set, c.Shard)
		}
	}
}

func TestACompleteCRLHoldsCertificatesWithoutACRLToo(t *testing.T) {
	w := newWorld(t)
	m := w.maker(func(c *Config, _ *Deps) { c.CompleteURL = "http://crl.test/{issuer}.crl" })
	w.look(m)
	e := ledgertest.Entry(t, w.now(), time.Hour)
	e.Issuer, e.Revocation = w.issuer, ledger.RevocationOCSP
	noError(t, w.book.CommitBatch(t.Context(), []ledger.Entry{e})[0].Err)
	w.revoke(e.Serial)
	for _, c := range w.look(m) {
		complete := c.Set == 2
		if w.lists(c, e.Serial) != complete {
			t.Errorf("set %d, shard %d: complete %v", c.Set, c.Shard, complete)
		}
	}
}

func TestManyMakersMakeEachCRLOnce(t *testing.T) {
	w := newWorld(t)
	w.look(w.maker())
	regs := []*prometheus.Registry{prometheus.NewRegistry(), prometheus.NewRegistry(), prometheus.NewRegistry()}
	var makers []*Maker
	for _, r := range regs {
		makers = append(makers, w.maker(func(_ *Config, d *Deps) { d.Registry = r }))
	}
	w.ahead.Add(int64(2 * time.Hour))
	for range 8 {
		for _, m := range makers {
			_, err := m.look(t.Context()) // they work side by side
			noError(t, err)
		}
	}
	for _, m := range makers {
		m.work.Wait()
	}
	total := 0.0
	for _, r := range regs {
		families, err := r.Gather()
		noError(t, err)
		for _, f := range families {
			if f.GetName() == "certmill_crl_made_total" {
				for _, v := range f.Metric {
					total += v.GetCounter().GetValue()
				}
			}
		}
	}
	if total != 4 {
		t.Errorf("%v CRLs made of 4 due", total)
	}
}

func TestRunMakesCRLsThroughFailures(t *testing.T) {
	w := newWorld(t)
	w.broken.Store(true)
	m := w.maker(func(c *Config, _ *Deps) { c.Poll = 10 * time.Millisecond })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	made := func() bool {
		crls, err := w.book.CRLs(t.Context())
		noError(t, err)
		return len(crls) == 4 && !slices.ContainsFunc(crls, func(c ledger.CRL) bool { return c.Number == 0 })
	}
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not within 10 s: %s", what)
			}
		}
	}
	wait("it looks", func() bool { return m.Ready() == nil })
	if made() {
		t.Error("made without a key")
	}
	w.broken.Store(false)
	wait("they are made", made)
	cancel()
	noError(t, <-done)
}

func TestACRLThatFailsInTheMiddleIsNotPublished(t *testing.T) {
	w := newWorld(t)
	bad := &failingLedger{Ledger: w.book}
	m := w.maker(func(_ *Config, d *Deps) { d.Ledger = bad })
	before := w.look(m)
	n := w.issue(time.Hour)
	w.revoke(n)
	for what, persisted := range map[string]bool{"nothing is stored": false, "it is stored all the same": true} {
		bad.persist = persisted
		bad.fail.Store(true)
		if crls := w.look(m); !slices.Equal(crls, before) {
			t.Errorf("%s: published", what)
		}
		bad.fail.Store(false)
		w.ahead.Add(int64(2 * pause))
	}
	if c := w.look(m)[crldp.Of(n, 4)]; !w.lists(c, n) {
		t.Error("not made after the failure")
	}
}

// failingLedger loses the pieces, or their acknowledgements.
type failingLedger struct {
	Ledger
	fail    atomic.Bool
	persist bool
}

func (l *failingLedger) PutCRLChunk(ctx context.Context, c ledger.CRLClaim, chunk int, der []byte) error {
	if !l.fail.Load() || l.persist {
		if err := l.Ledger.PutCRLChunk(ctx, c, chunk, der); err != nil {
			return err
		}
	}
	if l.fail.Load() {
		return errors.New("the ledger is away")
	}
	return nil
}

// BenchmarkLedgerMillion makes one complete CRL of a million revocations out of
// PostgreSQL and back into it; peak-MB is the most that the heap grew.
func BenchmarkLedgerMillion(b *testing.B) {
	const many = 1_000_000
	w := newWorld(b)
	w.fill(many)
	cfg := func(c *Config, d *Deps) {
		c.CompleteURL = "http://crl.test/{issuer}.crl"
		d.Wanted = nil
	}
	for b.Loop() {
		runtime.GC()
		var before, now runtime.MemStats
		runtime.ReadMemStats(&before)
		var peak uint64
		m := w.maker(cfg, func(_ *Config, d *Deps) {
			d.Ledger = &watchedLedger{Ledger: w.book, each: func() {
				runtime.ReadMemStats(&now)
				peak = max(peak, now.HeapAlloc-min(before.HeapAlloc, now.HeapAlloc))
			}}
		})
		w.ahead.Add(int64(2 * time.Hour))
		_, err := m.look(b.Context())
		noError(b, err)
		m.work.Wait()
		crls, err := w.book.CRLs(b.Context())
		noError(b, err)
		if len(crls) != 1 || crls[0].Entries != many {
			b.Fatalf("%+v", crls)
		}
		b.ReportMetric(float64(crls[0].Bytes)/1e6, "MB")
		b.ReportMetric(float64(peak)/1e6, "peak-MB")
	}
}

type watchedLedger struct {
	Ledger
	each func()
}

func (l *watchedLedger) PutCRLChunk(ctx context.Context, c ledger.CRLClaim, chunk int, der []byte) error {
	l.each()
	return l.Ledger.PutCRLChunk(ctx, c, chunk, der)
}

// fill puts revocations into the ledger by the shortest way.
func (w *world) fill(n int) {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.url)
	noError(w.t, err)
	defer func() { noError(w.t, conn.Close(context.Background())) }()
	at := time.Now().UTC().Truncate(time.Second)
	i := 0
	_, err = conn.CopyFrom(w.t.Context(), pgx.Identifier{"revocations"},
		[]string{"serial", "seq", "revoked_at", "not_after", "issuer", "reason", "services", "revoked_by", "comment"},
		pgx.CopyFromFunc(func() ([]any, error) {
			if i == n {
				return nil, nil
			}
			i++
			s := ocsptest.Serial(w.t, 1, at, at.Add(300*24*time.Hour))
			sum := sha256.Sum256(fmt.Append(nil, i))
			copy(s[6:], sum[:])
			return []any{s[:], int64(i), at, at.Add(300 * 24 * time.Hour), w.issuer, int16(i % 2), int16(ledger.RevocationCRL), "bench", ""}, nil
		}))
	noError(w.t, err)
	_, err = conn.Exec(w.t.Context(), `ANALYZE revocations`)
	noError(w.t, err)
}

// An issuer that has expired and was not closed has CRLs that nobody can make anew: they
// are no cause for an alarm, and nor are the last ones, which end with it.
func TestTheCRLsOfAnIssuerThatExpiresRaiseNoAlarm(t *testing.T) {
	w := newWorld(t)
	m := w.maker()
	w.look(m)
	nearest := func() float64 { return testutil.ToFloat64(m.metrics.nearest) }
	if at := nearest(); at <= float64(w.now().Unix()) {
		t.Errorf("the earliest nextUpdate is %.0f", at)
	}
	w.ahead.Store(int64(time.Until(w.ca.cert.NotAfter) - 10*time.Minute))
	for _, c := range w.look(m) {
		if !c.NextUpdate.Equal(w.ca.cert.NotAfter) {
			t.Errorf("shard %d lasts until %s, its issuer until %s", c.Shard, c.NextUpdate, w.ca.cert.NotAfter)
		}
	}
	w.look(m) // that sees what was made
	if at := nearest(); at != 0 {
		t.Errorf("CRLs that end with their issuer: the earliest nextUpdate is %.0f", at)
	}
	last := w.look(m)
	w.ahead.Add(int64(time.Hour))
	if after := w.look(m); !slices.Equal(after, last) {
		t.Errorf("CRLs of an issuer that has expired were made: %+v", after)
	}
	if at := nearest(); at != 0 {
		t.Errorf("CRLs of an issuer that has expired: the earliest nextUpdate is %.0f", at)
	}
}
